"""The database thread: one group, one transaction; errors go to their callers; outages heal."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.db import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)

from django_async_upload import notices
from django_async_upload.engine import database as database_module
from django_async_upload.engine.database import Database
from django_async_upload.exceptions import (
    DatabaseNotMigrated,
    DatabaseUnavailable,
    NotFound,
    UploadError,
)

on_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's locks")
on_a_server = pytest.mark.skipif(connection.vendor == "sqlite", reason="servers of databases")


def backend(items: Sequence[Any], alias: str = "default") -> list[int]:
    """The server's number of the database connection."""
    ask = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}
    with connections[alias].cursor() as cursor:
        cursor.execute(ask[connection.vendor])
        return [cursor.fetchone()[0]]


def terminate(number: int) -> None:
    end = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}
    with connection.cursor() as cursor:
        cursor.execute(end[connection.vendor], [number])


@pytest.fixture
async def database(transactional_db: None) -> AsyncIterator[Database]:
    notices.forget()
    database = Database("default")
    yield database
    database.close()
    await sync_to_async(connections.close_all)()


async def names() -> set[str]:
    return {name async for name in Group.objects.values_list("name", flat=True)}


groups_seen: list[list[str]] = []


@pytest.fixture(autouse=True)
def _forget_groups() -> None:
    groups_seen.clear()


def insert(items: Sequence[str]) -> list[str | UploadError]:
    groups_seen.append(list(items))
    for name in items:
        if name.startswith("fail"):
            raise ValueError(name)
        if not name.startswith("refuse"):
            Group.objects.create(name=name)
    return [NotFound() if name.startswith("refuse") else name.upper() for name in items]


def insert_more(items: Sequence[str]) -> list[str | UploadError]:
    return insert(items)


async def test_calls_that_wait_share_a_transaction_and_get_their_own_results(
    database: Database,
) -> None:
    results = await asyncio.gather(*(database.call(insert, f"g{n}") for n in range(20)))
    assert results == [f"G{n}" for n in range(20)]
    assert len(groups_seen) <= 2
    assert sum(map(len, groups_seen)) == 20


async def test_a_large_crowd_is_served_in_groups(database: Database) -> None:
    await asyncio.gather(*(database.call(insert, f"g{n}") for n in range(600)))
    assert max(map(len, groups_seen)) == 256
    assert len(await names()) == 600


async def test_one_call_that_fails_undoes_only_its_own_work(database: Database) -> None:
    calls = [database.call(insert, name) for name in ("a", "fail", "b")]
    first, failed, last = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, last) == ("A", "B")
    assert isinstance(failed, ValueError)
    assert await names() == {"a", "b"}


async def test_a_failing_call_does_not_undo_those_of_another_function(database: Database) -> None:
    calls = [database.call(insert, "a"), database.call(insert_more, "fail")]
    done, failed = await asyncio.gather(*calls, return_exceptions=True)
    assert done == "A"
    assert isinstance(failed, ValueError)
    assert await names() == {"a"}


async def test_a_refusal_is_raised_to_its_caller_and_undoes_nothing(database: Database) -> None:
    calls = [database.call(insert, name) for name in ("a", "refuse", "b")]
    first, refused, last = await asyncio.gather(*calls, return_exceptions=True)
    assert (first, last) == ("A", "B")
    assert isinstance(refused, NotFound)
    assert len(groups_seen) == 1


async def test_a_lone_call_that_loses_a_race_for_a_key_looks_again(database: Database) -> None:
    def get_or_insert(items: Sequence[str]) -> list[str]:
        """A look-up cannot see what another connection inserts after it."""
        attempts.append(list(items))
        if len(attempts) > 1:
            assert set(items) <= set(Group.objects.values_list("name", flat=True))
            return ["found" for _ in items]
        raise IntegrityError("UNIQUE constraint failed")

    attempts: list[list[str]] = []
    await Group.objects.acreate(name="a")
    assert await database.call(get_or_insert, "a") == "found"


async def test_a_cancelled_caller_harms_no_other_one(database: Database) -> None:
    held = threading.Event()

    def hold(items: Sequence[None]) -> list[None]:
        held.wait(5)
        return [None for _ in items]

    blocking = asyncio.create_task(database.call(hold, None))
    await asyncio.sleep(0.02)
    gone = asyncio.create_task(database.call(insert, "gone"))
    stays = asyncio.create_task(database.call(insert, "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    held.set()
    await blocking
    assert await stays == "STAYS"
    with pytest.raises(asyncio.CancelledError):
        await gone


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("async-upload-database")]


async def test_close_ends_the_thread_and_its_connection(database: Database) -> None:
    before = threads()
    await database.call(insert, "a")
    (thread,) = set(threads()) - set(before)
    database.close()
    assert not thread.is_alive()
    database.close()
    assert await database.call(insert, "b") == "B"  # and starts again where it is still needed


class Outage:
    """Calls fail as those to a database that is away do, until it is over."""

    __name__ = "outage"
    """A function's, for its failpoints."""

    def __init__(self) -> None:
        self.is_over = False
        self.attempts = 0

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.attempts += 1
        if not self.is_over:
            raise OperationalError("the database is away")
        return list(items)


async def test_an_outage_that_ends_is_not_noticed(database: Database) -> None:
    away = Outage()
    calls = [asyncio.create_task(database.call(away, number)) for number in range(50)]
    await asyncio.sleep(0.3)
    away.is_over = True
    assert await asyncio.gather(*calls) == list(range(50))


async def test_an_outage_is_not_paid_for_by_each_of_a_group(database: Database) -> None:
    """Each attempt may block for as long as the driver waits: one for all, not one for each."""
    away = Outage()
    calls = [database.call(away, number, patience=0.0) for number in range(50)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, DatabaseUnavailable) for each in outcomes)
    assert away.attempts <= 2


async def test_patience_ends(database: Database) -> None:
    begun = time.monotonic()
    with pytest.raises(DatabaseUnavailable) as caught:
        await database.call(Outage(), 1, patience=0.4)
    assert caught.value.retry_after == 1.0
    assert 0.2 <= time.monotonic() - begun < 5.0


@on_sqlite
async def test_a_locked_database_heals_when_the_lock_goes(
    database: Database, settings: Any
) -> None:
    def shorten_the_busy_timeout(items: Sequence[None]) -> list[None]:
        connection.cursor().execute("PRAGMA busy_timeout = 50")
        return [None]

    await database.call(shorten_the_busy_timeout, None)
    locker = sqlite3.connect(settings.DATABASES["default"]["NAME"], isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    call = asyncio.create_task(database.call(insert, "a"))
    await asyncio.sleep(0.3)
    assert not call.done()
    locker.execute("ROLLBACK")
    locker.close()
    assert await call == "A"


@on_a_server
async def test_a_terminated_backend_is_replaced(database: Database) -> None:
    first = await database.call(backend, None)
    await sync_to_async(terminate)(first)
    assert await database.call(insert, "a") == "A"
    assert await database.call(backend, None) != first


@on_a_server
async def test_a_connection_that_rested_is_tried_before_it_is_used(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_the_connection(items: Sequence[None]) -> list[None]:
        """After the commit: the driver's connection, without Django's knowing."""
        transaction.on_commit(lambda: connections["default"].connection.close())
        return [None]

    monkeypatch.setattr(database_module, "HEALTH_CHECK_AFTER", -1.0)
    await database.call(close_the_connection, None, patience=0.0)
    assert await database.call(insert, "b", patience=0.0) == "B"


# Nothing waits without limit ----------------------------------------------------------------------


class Hang:
    """A call that blocks until it is released, as over a network that drops every packet."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.released = threading.Event()

    def __call__(self, items: Sequence[Any]) -> list[None]:
        self.began.set()
        self.released.wait(60)
        return [None for _ in items]


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.released.set()


async def test_who_asks_a_database_that_gives_no_answer_hears_of_it(
    database: Database, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "ANSWER_SECONDS", 0.1)
    hanging = asyncio.create_task(database.call(hang, None, patience=0.1))
    await asyncio.to_thread(hang.began.wait, 30)
    async with asyncio.timeout(30):
        for call in (hanging, database.call(insert, "a", patience=0.1)):
            with pytest.raises(DatabaseUnavailable):
                await call
    hang.released.set()
    assert await database.call(insert, "b") == "B"
    assert await names() == {"b"}  # no caller waited for "a" any more when its turn came


async def test_a_connection_without_an_answer_does_not_stop_the_others(
    database: Database,
    hang: Hang,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(database_module, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(database_module, "ANSWER_SECONDS", 0.1)

    def wait(items: Sequence[Any]) -> list[None]:
        return hang(items)

    if (
        connection.vendor == "sqlite"
    ):  # whose transactions would wait for that of the call that hangs
        monkeypatch.setattr(
            Database,
            "_transact",
            lambda self, group: [[call.function([None])[0]] for call in group],
        )
    hanging = asyncio.create_task(database.call(wait, None, patience=0.1))
    await asyncio.to_thread(hang.began.wait, 30)
    assert await database.call(lambda items: ["answer"], None) == "answer"
    with pytest.raises(DatabaseUnavailable):
        await hanging
    assert "did not answer" in caplog.text


async def test_close_does_not_wait_for_ever_for_a_call_that_hangs(
    database: Database, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(database_module, "ANSWER_SECONDS", 0.1)
    hanging = asyncio.create_task(database.call(hang, None, patience=0.0))
    await asyncio.to_thread(hang.began.wait, 30)
    database.close()
    assert not hang.released.is_set()
    with pytest.raises(DatabaseUnavailable):
        await hanging


async def test_a_connection_that_cannot_even_be_closed_strands_no_caller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers raise where they are asked to close what is broken."""

    def broken(items: Sequence[int]) -> list[int]:
        connection.errors_occurred = True
        raise OperationalError("the server closed the connection")

    def close(self: Any) -> None:
        raise InterfaceError("connection already closed")

    await database.call(insert, "a")
    wrapper = type(connections["default"])
    with monkeypatch.context() as patch:
        patch.setattr(wrapper, "is_usable", lambda self: False)
        patch.setattr(wrapper, "close", close)
        async with asyncio.timeout(30):
            with pytest.raises(DatabaseUnavailable):
                await database.call(broken, 1, patience=0.2)
    assert await database.call(insert, "b") == "B"


async def test_a_thread_that_fails_in_an_unknown_way_strands_no_caller(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Database, *args: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_care", fail)
        async with asyncio.timeout(30):
            with pytest.raises(ZeroDivisionError):
                await database.call(insert, "a")
    assert await database.call(insert, "b") == "B"


@on_a_server
async def test_a_locked_row_delays_only_the_calls_that_need_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LOCK_SECONDS", 0.2)

    def rename(items: Sequence[str]) -> list[int]:
        return [Group.objects.filter(name=name).update(name=f"new {name}") for name in items]

    await database.call(insert, "held")
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Group.objects.select_for_update().get(name="held")
            held.set()
            released.wait(60)
        connections.close_all()

    holding = asyncio.create_task(asyncio.to_thread(hold))
    try:
        await asyncio.to_thread(held.wait, 10)
        wanting = asyncio.create_task(database.call(rename, "held", patience=60.0))
        for number in range(20):
            assert await database.call(insert, f"free {number}") == f"FREE {number}"
            await asyncio.sleep(0.05)
        assert not wanting.done()
    finally:
        released.set()
        await holding
    assert await wanting == 1


@on_a_server
async def test_a_process_that_is_stopped_in_a_transaction_keeps_no_row_locked(
    database: Database, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ran into the limit of its transaction; it is made again, in another one."""
    monkeypatch.setattr(database_module, "IDLE_SECONDS", 0.2)

    def rename(items: Sequence[str]) -> list[int]:
        renamed = [Group.objects.filter(name=name).update(name=f"new {name}") for name in items]
        hang(items)
        Group.objects.create(name=f"beside {items[0]}")
        return renamed

    await database.call(insert, "held")
    stopped = asyncio.create_task(database.call(rename, "held"))
    await asyncio.to_thread(hang.began.wait, 30)
    other = Database("default")
    async with asyncio.timeout(5):
        rows = Group.objects.filter(name="held")
        assert await other.call(lambda items: [rows.update(name="taken") for _ in items], None) == 1
    other.close()
    hang.released.set()
    assert await stopped == 0
    assert await names() == {"taken", "beside held"}


@on_a_server
async def test_the_victim_of_a_deadlock_is_made_again(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = threading.Barrier(2)

    def rename(items: Sequence[tuple[str, str]]) -> list[None]:
        for first, second in items:
            Group.objects.filter(name=first).update(name=first)
            with suppress(threading.BrokenBarrierError):  # the second time nobody comes
                meeting.wait(0.5)
            Group.objects.filter(name=second).update(name=second)
        return [None for _ in items]

    await asyncio.gather(database.call(insert, "a"), database.call(insert, "b"))
    other = Database("default")
    await asyncio.gather(
        database.call(rename, ("a", "b")),
        other.call(rename, ("b", "a")),
    )
    other.close()
    assert "deadlock" in caplog.text.lower()


@pytest.fixture
def _other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same database under another alias: users may live in another one than uploads."""
    other = {**connections["default"].settings_dict}
    monkeypatch.setitem(connections.databases, "other", other)

    def ensure_connection(self: Any) -> None:
        """Django's own: its test cases refuse databases that the settings did not have."""
        if self.connection is None:
            with self.wrap_database_errors:
                self.connect()

    monkeypatch.setattr(type(connections["default"]), "ensure_connection", ensure_connection)


@pytest.mark.usefixtures("_other")
async def test_every_connection_that_is_broken_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases = ("default", "other")

    def use(items: Sequence[None]) -> list[list[Any]]:
        for alias in aliases:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
        return [[connections[alias].connection for alias in aliases]]

    monkeypatch.setattr(database_module, "HEALTH_CHECK_AFTER", -1.0)
    first = await database.call(use, None)
    assert await database.call(use, None) == first
    with monkeypatch.context() as patch:
        patch.setattr(type(connections["default"]), "is_usable", lambda self: False)
        second = await database.call(use, None)
    assert not set(map(id, first)) & set(map(id, second))
    assert await database.call(use, None) == second


@on_a_server
@pytest.mark.usefixtures("_other")
async def test_every_database_that_was_used_heals(database: Database) -> None:
    """Both connections are the thread's."""

    def other_backend(items: Sequence[None]) -> list[int]:
        return backend(items, "other")

    first = await database.call(other_backend, None)
    await sync_to_async(terminate)(first)
    assert await database.call(other_backend, None) != first


async def test_missing_tables_are_not_taken_for_a_database_that_is_away(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def ask(items: Sequence[None]) -> list[None]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM async_upload_no_such_table")
        return [None]

    for _attempt in range(3):
        with pytest.raises(DatabaseNotMigrated) as caught:
            await database.call(ask, None)
    assert not caught.value.retryable
    assert [each.levelname for each in caplog.records] == ["ERROR"]  # once, not for each attempt
    assert "manage.py migrate" in caplog.text
