"""A holder, and no other one, hears that it has to stop; what no message says is read from the rows."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from django_async_upload.engine import hints as hints_module
from django_async_upload.engine.bus import LocalBus
from django_async_upload.engine.hints import Hints
from django_async_upload.exceptions import (
    DatabaseUnavailable,
    TakenOver,
    UploadError,
    UploadOver,
)
from django_async_upload.sessions import rows
from django_async_upload.sessions.values import HolderQuery


class Rows:
    """The answers to looks at the rows, in the place of the database."""

    def __init__(self) -> None:
        self.looks: list[list[HolderQuery]] = []
        self.outdated: dict[uuid.UUID, UploadError] = {}
        self.failures: list[Exception] = []

    async def call_many(
        self, function: Any, items: Sequence[HolderQuery]
    ) -> list[UploadError | None]:
        assert function is rows.check_holders
        self.looks.append(list(items))
        if self.failures:
            raise self.failures.pop()
        return [self.outdated.get(item.upload) for item in items]


@pytest.fixture
def database() -> Rows:
    return Rows()


class Writer:
    """A holder, which closes its part when a test says so."""

    def __init__(self, *, is_complete: bool = False) -> None:
        self.closed = asyncio.Event()
        self.heard: asyncio.Queue[UploadError | None] = asyncio.Queue()
        self._is_complete = is_complete

    def lose(self, error: UploadError) -> None:
        self.heard.put_nowait(error)

    def yields(self) -> bool:
        if not self._is_complete:
            self.heard.put_nowait(None)
        return not self._is_complete


class Sites(LocalBus):
    """Two processes on one bus: each has the receivers of both."""

    is_shared = True


@pytest.fixture
def bus() -> LocalBus:
    return Sites()


@pytest.fixture
async def hints(database: Any, bus: LocalBus) -> AsyncIterator[Hints]:
    hints = Hints(database, bus)
    yield hints
    hints.close()


@pytest.fixture
async def other(database: Any, bus: LocalBus) -> AsyncIterator[Hints]:
    """Those of another process."""
    other = Hints(database, bus)
    yield other
    other.close()


async def test_a_holder_hears_of_its_own_upload_until_it_lets_go(hints: Hints) -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    older, newer = Writer(), Writer()
    reason = TakenOver()
    hints.register(one, 1, older)
    hints.register(one, 2, newer)
    hints.unregister(one, older)  # the older holder leaves; the newer one stays
    hints.tell_holder(other, reason)
    assert newer.heard.empty()
    hints.tell_holder(one, reason)
    assert newer.heard.get_nowait() is reason
    assert older.heard.empty()
    hints.unregister(one, newer)
    hints.tell_holder(one, reason)
    assert newer.heard.empty()


async def test_a_holder_is_asked_to_yield_and_its_closed_part_is_the_answer(
    hints: Hints, other: Hints
) -> None:
    upload, bystander = uuid.uuid4(), uuid.uuid4()
    writer, another = Writer(), Writer()
    hints.register(upload, 3, writer)
    hints.register(bystander, 3, another)
    asking = [asyncio.create_task(each.ask_to_yield(upload, 3)) for each in (other, hints)]
    assert await asyncio.wait_for(writer.heard.get(), 10) is None
    await asyncio.sleep(0.05)
    assert not any(each.done() for each in asking)
    writer.closed.set()
    assert await asyncio.gather(*asking) == [False, False]
    assert another.heard.empty()
    assert not other._waiting


async def test_a_complete_upload_is_kept(hints: Hints, other: Hints) -> None:
    upload = uuid.uuid4()
    writer = Writer(is_complete=True)
    hints.register(upload, 3, writer)
    assert await other.ask_to_yield(upload, 3) is True
    assert writer.heard.empty()


async def test_a_newer_holder_than_the_asker_knows_does_not_yield(
    hints: Hints, other: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "YIELD_SECONDS", 0.05)
    upload = uuid.uuid4()
    writer = Writer()
    hints.register(upload, 4, writer)
    assert await other.ask_to_yield(upload, 3) is None
    assert writer.heard.empty()


async def test_a_holder_in_another_process_looks_at_its_row_when_the_upload_has_ended(
    hints: Hints, other: Hints, database: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 3600.0)
    upload, bystander = uuid.uuid4(), uuid.uuid4()
    writer, another = Writer(), Writer()
    hints.register(upload, 1, writer)
    hints.register(bystander, 1, another)
    reason = UploadOver(state="expired")
    other.tell_holder(upload, TakenOver())  # a message is no truth: the row says otherwise
    await asyncio.sleep(0.05)
    assert writer.heard.empty()
    database.outdated[upload] = reason
    other.tell_holder(upload, TakenOver())
    assert await asyncio.wait_for(writer.heard.get(), 10) is reason
    assert database.looks == [[(upload, 1)]] * 2


async def test_a_holder_hears_what_another_process_did_to_its_row(
    hints: Hints, database: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.01)
    lost, kept = uuid.uuid4(), uuid.uuid4()
    reason = UploadOver(state="cancelled")
    writer, another = Writer(), Writer()
    hints.register(lost, 3, writer)
    hints.register(kept, 4, another)
    database.outdated[lost] = reason
    assert await asyncio.wait_for(writer.heard.get(), 10) is reason
    assert another.heard.empty()
    assert database.looks[0] == [(lost, 3), (kept, 4)]


async def test_a_process_looks_once_a_second_and_only_while_it_holds_an_upload(
    hints: Hints, database: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hints_module.LOOK_SECONDS == 1.0
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    began, uploads, writer = loop.time(), [uuid.uuid4() for _ in range(50)], Writer()
    for upload in uploads:
        hints.register(upload, 1, writer)
        await asyncio.sleep(0.005)
    looks = len(database.looks)
    assert 1 <= looks <= (loop.time() - began) / 0.05
    for upload in uploads:
        hints.unregister(upload, writer)
    await asyncio.sleep(0.1)
    looks = len(database.looks)
    await asyncio.sleep(0.2)
    assert len(database.looks) == looks
    hints.register(uploads[0], 1, writer)
    await asyncio.sleep(0.2)
    assert len(database.looks) > looks


@pytest.mark.parametrize("failure", [DatabaseUnavailable(), ZeroDivisionError()])
async def test_a_look_that_fails_is_not_the_last_one(
    hints: Hints,
    database: Rows,
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.01)
    writer, upload = Writer(), uuid.uuid4()
    database.failures.append(failure)
    database.outdated[upload] = TakenOver()
    with caplog.at_level(logging.WARNING):
        hints.register(upload, 1, writer)
        assert isinstance(await asyncio.wait_for(writer.heard.get(), 10), TakenOver)
    assert "The rows of held uploads were not read" in caplog.text


async def test_a_closed_process_tells_nobody(hints: Hints, database: Rows) -> None:
    writer, upload = Writer(), uuid.uuid4()
    hints.register(upload, 1, writer)
    hints.close()
    hints.tell_holder(upload, TakenOver())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert writer.heard.empty()
    assert len(asyncio.all_tasks()) == 1
