"""What is counted is counted across processes: each here has an event loop and a database connection of its own."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connections

from django_async_upload.concurrency.pace import FRAMES_PER_SECOND, Pace
from django_async_upload.engine.database import Database
from django_async_upload.engine.slots import Slots
from django_async_upload.exceptions import (
    ByteQuotaExceeded,
    SessionQuotaExceeded,
    TooManyConnections,
    UploadError,
)
from django_async_upload.models import Slot, UploadSession
from django_async_upload.sessions import rows, slots
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.quotas import Growth
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import Change, Creation

from .fixtures import new_key

pytest_plugins = ["tests.fixtures"]

PROCESSES = 4

Outcome = UploadError | None


def race(work: Callable[[Database, int], Awaitable[list[Outcome]]]) -> list[Outcome]:
    """Run ``work`` at the same time in each process; returns the outcomes of all."""
    barrier = Barrier(PROCESSES)

    async def process(number: int) -> list[Outcome]:
        database = Database("default")
        try:
            barrier.wait(30)
            return await work(database, number)
        finally:
            database.close()

    def run(number: int) -> list[Outcome]:
        try:
            return asyncio.run(process(number))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(PROCESSES) as pool:
        return [outcome for outcomes in pool.map(run, range(PROCESSES)) for outcome in outcomes]


async def outcome_of(call: Awaitable[Any]) -> Outcome:
    try:
        await call
    except UploadError as error:
        return error
    return None


def new(owner: Owner, size: int = 7, address: str | None = None) -> Creation:
    session = UploadSession(
        key=new_key(), endpoint="default", owner_key=owner.key, name="a", size=size, address=address
    )
    return Creation(session, owner)


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        ({"USER_MAX_SESSIONS": 50}, SessionQuotaExceeded),
        ({"USER_MAX_BYTES": 7 * 50 + 6}, ByteQuotaExceeded),
        ({"ADDRESS_MAX_SESSIONS": 50}, SessionQuotaExceeded),
    ],
)
def test_processes_that_create_at_once_do_not_exceed_a_quota(
    transactional_db: None,
    owner: Owner,
    settings: Any,
    limits: dict[str, int],
    refusal: type[UploadError],
) -> None:
    settings.ASYNC_UPLOAD = limits

    async def create(database: Database, number: int) -> list[Outcome]:
        outcomes = []
        for _ in range(5):  # groups of five
            calls = [database.call(rows.create, new(owner, address="192.0.2.1")) for _ in range(5)]
            outcomes += await asyncio.gather(*map(outcome_of, calls))
        return outcomes

    outcomes = race(create)
    refused = [each for each in outcomes if each is not None]
    assert all(isinstance(each, refusal) for each in refused)
    assert len(outcomes) - len(refused) == UploadSession.objects.count() == 50


def test_uploads_that_grow_at_several_processes_end_at_the_quota_together(
    transactional_db: None, owner: Owner, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": 500}
    growing = [new(owner).session for _ in range(PROCESSES)]
    for session in growing:
        session.size = None
        session.save(force_insert=True)

    async def grow(database: Database, number: int) -> list[Outcome]:
        session, outcomes = growing[number], []
        for before in range(0, 300, 10):
            growth = Growth(owner.key, None, before, before + 10)
            values = {"durable": before + 10}
            change = Change(session.pk, 1, State.UPLOADING, values, growth=growth)
            outcomes.append(await outcome_of(database.call(rows.change, change)))
            if outcomes[-1] is not None:
                break
        return outcomes

    refused = [each for each in race(grow) if each is not None]
    assert refused
    assert all(isinstance(each, ByteQuotaExceeded) for each in refused)
    assert sum(UploadSession.objects.values_list("durable", flat=True)) == 500


def test_groups_of_many_owners_do_not_wait_for_each_other_in_a_circle(
    transactional_db: None, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    owners = [Owner(f"visitor:{number}", owner.user) for number in range(20)]

    async def create(database: Database, number: int) -> list[Outcome]:
        outcomes = []
        for _ in range(5):
            turned = owners[5 * number :] + owners[: 5 * number]
            calls = [
                database.call(rows.create, new(each, address=f"192.0.2.{turn}"))
                for turn, each in enumerate(turned)
            ]
            outcomes += await asyncio.gather(*map(outcome_of, calls))
        return outcomes

    with caplog.at_level(logging.WARNING):
        assert set(race(create)) == {None}
    assert "deadlock" not in caplog.text.lower()
    assert UploadSession.objects.count() == PROCESSES * 5 * 20


@pytest.mark.parametrize("limits", [{"USER_MAX_CONNECTIONS": 10}, {"ADDRESS_MAX_CONNECTIONS": 10}])
def test_connections_to_several_processes_are_capped_together(
    transactional_db: None, settings: Any, limits: dict[str, int]
) -> None:
    settings.ASYNC_UPLOAD = limits

    async def connect(database: Database, number: int) -> list[Outcome]:
        there = [taken(owner_key="user:1", address="192.0.2.1") for _ in range(6)]
        outcomes = []
        for slot in there:
            outcomes.append(await outcome_of(database.call(slots.take, slot)))
            await asyncio.sleep(0.001)
        return outcomes

    for _ in range(3):
        outcomes = race(connect)
        assert all(each is None or isinstance(each, TooManyConnections) for each in outcomes)
        assert outcomes.count(None) == Slot.objects.count() == 10
        Slot.objects.all().delete()


def taken(**fields: Any) -> Slot:
    return Slot(**{"process": uuid.uuid4(), "owner_key": "user:1", "address": None, **fields})


def test_slots_that_nobody_renews_lapse(
    db: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_CONNECTIONS": 2}
    living, dead, refused = slots_of = [taken() for _ in range(3)]
    first, second, third = slots.take(slots_of)
    assert (first, second) == (1, 2)  # at so many processes
    assert isinstance(third, TooManyConnections)
    Slot.objects.update(seen_at=slots.Now() - slots.LEASE)
    assert slots.take([refused]) == [1]
    assert slots.renew([[living]]) == [{"user:1": 2}]
    assert set(Slot.objects.all()) == {living, refused}
    # A process that was stopped for longer has its connections back.
    assert slots.renew([[dead], [living]]) == [{"user:1": 3}] * 2
    assert isinstance(slots.take([taken()])[0], TooManyConnections)


def test_a_slot_is_taken_once_where_the_answer_to_the_commit_was_lost(
    db: None, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_CONNECTIONS": 1}
    slot = taken()
    assert slots.take([slot]) == slots.take([slot]) == [1]
    assert Slot.objects.count() == 1


async def test_an_owner_has_one_pace_at_all_processes(transactional_db: None) -> None:
    database = Database("default")
    paces = [Pace(), Pace()]
    here, there = (Slots(database, lambda owner, pace=pace: pace) for pace in paces)
    first = await here.take("user:1", None)
    assert paces[0].processes == 1
    second = await there.take("user:1", None)
    await here._renew_once()
    assert [pace.processes for pace in paces] == [2, 2]
    assert paces[0].delay(1000.0, FRAMES_PER_SECOND) == pytest.approx(2.0, abs=0.3)
    there.free(second)
    await asyncio.gather(there.close(), asyncio.sleep(0.1))
    await here._renew_once()
    assert paces[0].processes == 1
    here.free(first)
    await here.close()
    database.close()
