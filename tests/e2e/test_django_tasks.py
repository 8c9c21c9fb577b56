"""Work for finished uploads is handed to Django's tasks, and a worker on the database does all of it, once in effect.

On Django 5.2 they come from the package django-tasks.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..browser.example import sha256
from .servers import wait_for
from .workers import Site, Worker, held_open

WORKER = ("manage.py", "db_worker", "--interval", "0.2", "--no-startup-delay")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("django_tasks_db", reason="needs django-tasks-db")
    with Site(tmp_path_factory.mktemp("tasks") / "site", "demo.settings_tasks") as site:
        yield site


def make(folder: Path, *sizes: int) -> list[Path]:
    made = []
    for size in sizes:
        made.append(folder / f"{random.getrandbits(64):016x}.bin")
        made[-1].write_bytes(os.urandom(size))
    return made


def status(site: Site) -> list[str]:
    """Of each task, in the order in which they were finished; unfinished ones first."""
    found = site.server.rows(
        "SELECT status FROM django_tasks_database_dbtaskresult ORDER BY finished_at"
    )
    return [each["status"] for each in found]


def assert_done_once(site: Site, files: list[Path], before: tuple[int, int]) -> None:
    """All files are summarized, and added to the user's total once."""
    names = {each.name for each in files}
    wait_for(lambda: names <= site.summaries().keys(), seconds=60, what="the work")
    found = site.summaries()
    assert {name: found[name] for name in names} == {each.name: sha256(each) for each in files}
    size = sum(each.stat().st_size for each in files)
    assert site.total() == (before[0] + len(files), before[1] + size)


def test_small_files_go_first(site: Site, tmp_path: Path) -> None:
    before = site.total()
    files = make(tmp_path, 3 << 20, 2 << 20, 1000)
    for each in files:
        site.upload(each)
    site.wait_until_handed_on()
    with Worker(site, *WORKER):
        assert_done_once(site, files, before)
    assert list(site.summaries())[-3] == files[2].name


def test_work_that_fails_is_tried_again_after_pauses_that_grow(site: Site, tmp_path: Path) -> None:
    before = site.total()
    files = make(tmp_path, 1000)
    site.upload(*files)
    stored = site.server.stored(files[0].name)
    away = stored.rename(stored.with_name("away"))
    done = len(status(site))
    with Worker(site, *WORKER):
        wait_for(lambda: len(status(site)) >= done + 3, seconds=60, what="three failures")
        assert files[0].name not in site.summaries()
        away.rename(stored)
        assert_done_once(site, files, before)


def test_the_work_of_a_worker_that_is_killed_is_done_once_it_is_given_back(
    site: Site, tmp_path: Path
) -> None:
    before = site.total()
    files = make(tmp_path, 1000)
    site.upload(*files)
    with held_open(site, files[0].name), Worker(site, *WORKER):
        wait_for(lambda: "RUNNING" in status(site), what="the task")
    assert files[0].name not in site.summaries()
    assert site.manage("give_tasks_back").strip() == "Given back: 0"
    assert site.manage("give_tasks_back", "--after", "0").strip() == "Given back: 1"
    with Worker(site, *WORKER):
        assert_done_once(site, files, before)
