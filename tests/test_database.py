"""The database thread: one group, one transaction; errors go to their callers; outages heal."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.db import IntegrityError, OperationalError, connection, connections

from django_async_upload.database import Database
from django_async_upload.exceptions import DatabaseUnavailable, NotFound, UploadError

on_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's locks")
on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="its backends")


@pytest.fixture
async def database(transactional_db: None) -> AsyncIterator[Database]:
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
        """What another connection inserts after this one looked, a look before cannot see."""
        attempts.append(list(items))
        if len(attempts) > 1:
            assert set(items) <= set(Group.objects.values_list("name", flat=True))
            return ["found" for _ in items]
        raise IntegrityError("UNIQUE constraint failed")

    attempts: list[list[str]] = []
    await Group.objects.acreate(name="a")
    assert await database.call(get_or_insert, "a") == "found"


async def test_a_cancelled_caller_harms_nobody_else(database: Database) -> None:
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


async def test_close_ends_the_thread_and_its_connection(database: Database) -> None:
    await database.call(insert, "a")
    (thread,) = database._thread._threads
    assert thread.is_alive()
    database.close()
    assert not thread.is_alive()
    database.close()
    assert await database.call(insert, "b") == "B"  # and begins anew where it is still needed


class Outage:
    """Calls fail as those to a database that is away do, until it is told to end."""

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
    def be_impatient(items: Sequence[None]) -> list[None]:
        connection.cursor().execute("PRAGMA busy_timeout = 50")
        return [None]

    await database.call(be_impatient, None)
    locker = sqlite3.connect(settings.DATABASES["default"]["NAME"], isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    call = asyncio.create_task(database.call(insert, "a"))
    await asyncio.sleep(0.3)
    assert not call.done()
    locker.execute("ROLLBACK")
    locker.close()
    assert await call == "A"


@on_postgresql
async def test_a_terminated_backend_is_replaced(database: Database) -> None:
    def backend(items: Sequence[None]) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return [cursor.fetchone()[0]]

    def terminate(pid: int) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])

    first = await database.call(backend, None)
    await sync_to_async(terminate)(first)
    assert await database.call(insert, "a") == "A"
    assert await database.call(backend, None) != first


@on_postgresql
async def test_a_connection_that_rested_is_tried_before_it_is_used(database: Database) -> None:
    def die_quietly() -> None:
        connections["default"].connection.close()  # the driver's: Django does not know

    await database.call(insert, "a", patience=0.0)
    await asyncio.get_running_loop().run_in_executor(database._thread, die_quietly)
    database._used_at = 0.0
    assert await database.call(insert, "b", patience=0.0) == "B"
