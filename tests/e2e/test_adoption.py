"""A process is stopped in the middle of a publication: another one adopts it, and what the first does when it wakes
changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from django_async_upload import failpoints
from django_async_upload.protocol import messages

from .hosts import PATH, Host, migrated
from .postgres import Postgres
from .raw import Failed, RawConnection, finish
from .servers import running, wait_for

IS_LONG = os.environ.get("E2E_LONG") == "1"
pytestmark = pytest.mark.one_server

LINKED = [
    "publish.after_commit",
    "link.before_link",
    "link.after_link",
    "link.after_sync",
    "publish.after_files",
    "rows.complete.after_commit",
]
COPIED = [
    "publish.after_commit",
    "copy.before_save",
    "copy.after_save",
    "copy.after_sync",
    "rows.complete.after_commit",
]
COPYING_PATH = "/ws/checking/"
"""An endpoint whose storage may overwrite files, so that parts are copied into it."""
STEPS = [(PATH, point) for point in LINKED] + [(COPYING_PATH, point) for point in COPIED]
CASES = [
    (path, point, database)
    for index, (path, point) in enumerate(STEPS)
    for database in (["sqlite", "postgresql"] if IS_LONG else [["sqlite", "postgresql"][index % 2]])
]
"""Each step on one of the databases, with ``E2E_LONG=1`` on both."""
CASES.append((PATH, "rows.complete.before_commit", "postgresql"))  # SQLite stays locked as a whole


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """The environment of hosts on PostgreSQL."""
    with Postgres() as postgres:
        yield migrated(postgres.setting)


@pytest.mark.parametrize(("path", "point", "database"), CASES)
def test_a_publication_is_adopted_from_a_worker_that_is_stopped_in_it(
    hosts: Callable[..., Host],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    path: str,
    point: str,
    database: str,
) -> None:
    on: dict[str, str] = {} if database == "sqlite" else request.getfixturevalue("postgres")
    stopping = {failpoints.VARIABLE: point, failpoints.SIGNAL_VARIABLE: "SIGSTOP"}
    host = hosts(extra={**on, **stopping, "E2E_SILENT": "1"})
    env = {name: value for name, value in host.server.env.items() if name not in stopping}
    data = os.urandom(300_000)
    with running(host.server.kind, env, tmp_path / "another.log") as server:
        another = Host(host.root, server)
        ticket = another.ticket(endpoint="checking" if path == COPYING_PATH else "default")
        with host.connect(ticket, path=path) as old, another.connect(ticket, path=path) as new:
            stream, created = old.create("adopted.bin", len(data))
            old.upload(stream, data)
            old.send(finish(data), stream)
            wait_for(lambda: is_stopped(host), what="the stop of the worker")
            number = new.next_stream()
            new.send(messages.Attach(created.upload), number)
            completed = new.expect(messages.Completed, stream=number)
            before = files(another, path)
            host.server.cont()
            assert answer_of(old, stream) in (completed, None)
        (row,) = (each for each in another.uploads() if str(each["id"]) == created.upload)
        assert (row["state"], row["stored_as"]) == ("completed", completed.stored_as)
        wait_for(lambda: not another.parts(), what="the end of the parts")
        assert files(another, path) == before
        ((name, content),) = ((name, each[0]) for name, each in before.items())
        assert name == completed.stored_as
        assert content == data
        another.wait_for_signals("upload_completed", created.upload)
        time.sleep(0.5)  # for a second event, if there were one
        assert len({each["event"] for each in another.signals(upload=created.upload)}) == 1


def answer_of(connection: RawConnection, stream: int) -> messages.Completed | None:
    """None where the client is asked to try again."""
    try:
        return connection.expect(messages.Completed, stream=stream)
    except Failed as failed:
        if not failed.error.retryable:
            raise
        return None


def is_stopped(host: Host) -> bool:
    return all(each.status() == psutil.STATUS_STOPPED for each in host.server.processes())


def files(host: Host, path: str) -> dict[str, tuple[bytes, int, int]]:
    """The published files: content, inode and time of the last change."""
    folder = host.disk / "copied" if path == COPYING_PATH else host.storage
    found = (each for each in folder.rglob("*") if each.is_file())
    return {
        str(each.relative_to(folder)): (
            each.read_bytes(),
            each.stat().st_ino,
            each.stat().st_mtime_ns,
        )
        for each in found
    }
