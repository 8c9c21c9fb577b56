"""Work for finished uploads is handed to Celery, on real brokers: all of it is done, and once in effect."""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..browser.example import sha256
from .proxy import ChaosProxy
from .servers import wait_for
from .workers import BROKERS, Site, Worker, go_on_together, held_open

DOWN_SECONDS = float(os.environ.get("E2E_BROKER_DOWN_SECONDS", "3"))
"""How long a broker is away. With 60, as long as a restart may take, the file needs five minutes."""

WORKER = ("-m", "celery", "--app", "demo", "worker", "--concurrency", "1", "--loglevel", "INFO")
ALONE = ("--without-gossip", "--without-mingle")


HANGING_SECONDS = 8
"""After which an attempt of the outbox ends whose receiver has not returned."""
ADDITIONS = {
    "settings.py": f"""
ASYNC_UPLOAD["RECEIVER_TIMEOUT"] = {HANGING_SECONDS}
""",
    "celery_tasks.py": """

@receiver(upload_completed)
def note(session, **kwargs):
    with open(settings.BASE_DIR / "noted", "a") as file:
        file.write(f"{session.name} ")
""",
}
"""A second receiver, which depends on no broker."""


@pytest.fixture(scope="module", params=list(BROKERS))
def _site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, ChaosProxy]]:
    queue = f"test-{uuid.uuid4().hex}"
    folder = tmp_path_factory.mktemp(request.param) / "site"
    with BROKERS[request.param](queue) as (url, proxy):
        env = {"DEMO_BROKER": url, "DEMO_QUEUE": queue, "DEMO_VISIBILITY_TIMEOUT": "5"}
        with Site(folder, "demo.settings_celery", ADDITIONS, **env) as site:
            yield site, proxy


@pytest.fixture
def site(_site: tuple[Site, ChaosProxy]) -> Site:
    return _site[0]


@pytest.fixture
def proxy(_site: tuple[Site, ChaosProxy]) -> ChaosProxy:
    return _site[1]


@pytest.fixture
def start(site: Site) -> Iterator[Callable[[], Worker]]:
    """``start()``: a worker, which is gone at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(
            Worker(site, *WORKER, *ALONE, "--hostname", f"{uuid.uuid4().hex}@%h")
        )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Path]]:
    """``make(size, ...)``: files whose names no other test has."""

    def files(*sizes: int) -> list[Path]:
        made = []
        for size in sizes:
            made.append(tmp_path / f"{uuid.uuid4().hex}.bin")
            made[-1].write_bytes(os.urandom(size))
        return made

    return files


def assert_done_once(site: Site, files: list[Path], before: tuple[int, int]) -> None:
    """All files are summarized, and added to the user's total once."""
    names = {each.name for each in files}
    wait_for(lambda: names <= site.summaries().keys(), seconds=90, what="the work")
    site.wait_until_handed_on()
    found = site.summaries()
    assert {name: found[name] for name in names} == {each.name: sha256(each) for each in files}
    size = sum(each.stat().st_size for each in files)
    assert site.total() == (before[0] + len(files), before[1] + size)


def test_small_files_go_first_and_one_that_is_handed_on_again_counts_once(
    site: Site, start: Callable[[], Worker], make: Callable[..., list[Path]]
) -> None:
    before = site.total()
    files = make(3 << 20, 2 << 20, 1000)
    for each in files:
        site.upload(each)
    site.wait_until_handed_on()
    worker = start()
    assert_done_once(site, files, before)
    found = site.server.rows(
        "SELECT name FROM demo_summary JOIN async_upload_uploadsession ON upload_id = id ORDER BY demo_summary.rowid"
    )
    order = [each["name"] for each in found]
    assert order[-3] == files[2].name, order

    again = "from django_async_upload.engine import outbox;"
    again += "from django_async_upload.models import UploadSession as S;"
    again += "print(len(outbox.send_again([each.pk for each in S.objects.all()])))"
    assert int(site.manage("shell", "--command", again).split()[-1]) >= 3
    wait_for(lambda: worker.log().count("succeeded") >= 6, what="the second time")
    assert_done_once(site, files, before)


def test_work_that_fails_is_tried_again_after_pauses_that_grow(
    site: Site, start: Callable[[], Worker], make: Callable[..., list[Path]]
) -> None:
    before = site.total()
    files = make(1000)
    site.upload(*files)
    stored = site.server.stored(files[0].name)
    away = stored.rename(stored.with_name("away"))
    worker = start()
    wait_for(lambda: worker.log().count("Retry in") >= 3, seconds=60, what="three failures")
    assert files[0].name not in site.summaries()
    away.rename(stored)
    assert_done_once(site, files, before)


def test_a_broker_that_is_down_loses_nothing_and_invents_nothing(
    site: Site,
    proxy: ChaosProxy,
    start: Callable[[], Worker],
    make: Callable[..., list[Path]],
    chance: random.Random,
) -> None:
    before = site.total()
    files = make(*[1000 + number for number in range(40)])
    start()
    with site.uploading(*files) as program:
        wait_for(lambda: site.total() > before, what="the first work")
        time.sleep(chance.random() * 0.2)
        proxy.refuse()
        proxy.cut()
        down = time.monotonic()
        program.results()
    late = make(*[2000 + number for number in range(5)])
    site.upload(*late)
    wait_for(lambda: any(each["error"] for each in site.waiting()), what="a failed attempt")
    time.sleep(max(0.0, down + DOWN_SECONDS - time.monotonic()))
    assert len(site.waiting()) >= len(late)
    assert not {each.name for each in late} & site.summaries().keys()
    proxy.refuse(False)
    site.wait_until_handed_on(seconds=30 + 2 * DOWN_SECONDS)
    assert_done_once(site, files + late, before)


def test_the_work_of_a_worker_that_is_killed_is_done_by_another_one(
    site: Site, start: Callable[[], Worker], make: Callable[..., list[Path]]
) -> None:
    before = site.total()
    files = make(1000)
    site.upload(*files)
    with held_open(site, files[0].name):
        worker = start()
        wait_for(lambda: worker.log().count("received") == 1, what="the task")
        time.sleep(0.5)
        for each in worker.children():  # as the kernel does where memory runs out
            each.kill()
        wait_for(lambda: worker.log().count("received") == 2, what="the task again")
        time.sleep(0.5)
        worker.kill()
        assert files[0].name not in site.summaries()
    start()
    assert_done_once(site, files, before)


def test_two_runs_of_one_task_at_the_same_moment_have_one_effect(
    site: Site, start: Callable[[], Worker], make: Callable[..., list[Path]]
) -> None:
    before = site.total()
    files = make(0)
    site.upload(*files)
    with held_open(site, files[0].name) as fifo:
        workers = [start()]
        wait_for(lambda: "received" in workers[0].log(), seconds=60, what="the task")
        site.hand_on_again(files[0].name)
        workers.append(start())
        wait_for(lambda: "received" in workers[1].log(), seconds=60, what="the task again")
        go_on_together(fifo, workers)
        wait_for(  # each acknowledges its own
            lambda: all("succeeded" in each.log() for each in workers), seconds=60, what="both runs"
        )
    assert_done_once(site, files, before)


def test_a_broker_that_accepts_connections_and_never_answers_delays_only_its_receiver(
    site: Site,
    proxy: ChaosProxy,
    start: Callable[[], Worker],
    make: Callable[..., list[Path]],
) -> None:
    before = site.total()
    files = make(1000, 1000)
    noted = site.folder / "noted"
    proxy.stall()
    begun = time.monotonic()
    site.upload(*files)
    names = {each.name for each in files}
    wait_for(
        lambda: len([each for each in site.waiting() if each["error"]]) == len(files),
        seconds=3 * HANGING_SECONDS,
        what="the end of both attempts",
    )
    assert time.monotonic() - begun > HANGING_SECONDS / 2, "the broker answered"
    assert names <= set(noted.read_text().split())  # the other receiver was called
    proxy.flow()
    start()
    site.wait_until_handed_on(seconds=120)
    assert_done_once(site, files, before)
