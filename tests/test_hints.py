"""Hints reach the holder of an upload, and no other upload; what other processes did is read from the rows."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from django_async_upload.engine import hints as hints_module
from django_async_upload.engine.hints import LocalHints
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


@pytest.fixture
async def hints(database: Any) -> AsyncIterator[LocalHints]:
    hints = LocalHints(database)
    yield hints
    hints.close()


async def test_a_holder_hears_of_its_own_upload_until_it_lets_go(hints: LocalHints) -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    heard: list[UploadError] = []
    older: list[UploadError] = []
    reason = TakenOver()
    hints.register(one, 1, older.append)
    hints.register(one, 2, heard.append)
    hints.unregister(one, older.append)  # the older holder leaves; the newer one stays
    hints.tell_holder(other, reason)
    assert not heard
    hints.tell_holder(one, reason)
    assert (heard, older) == ([reason], [])
    hints.unregister(one, heard.append)
    hints.tell_holder(one, reason)
    assert heard == [reason]


async def test_a_holder_hears_what_another_process_did_to_its_row(
    hints: LocalHints, database: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.01)
    lost, kept = uuid.uuid4(), uuid.uuid4()
    reason = UploadOver(state="cancelled")
    heard: asyncio.Queue[UploadError] = asyncio.Queue()
    heard_by_another: list[UploadError] = []
    hints.register(lost, 3, heard.put_nowait)
    hints.register(kept, 4, heard_by_another.append)
    database.outdated[lost] = reason
    assert await asyncio.wait_for(heard.get(), 10) is reason
    assert not heard_by_another
    assert database.looks[0] == [(lost, 3), (kept, 4)]


async def test_a_process_looks_once_a_second_and_only_while_it_holds_an_upload(
    hints: LocalHints, database: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hints_module.LOOK_SECONDS == 1.0
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    began, uploads = loop.time(), [uuid.uuid4() for _ in range(50)]
    for upload in uploads:
        hints.register(upload, 1, print)
        await asyncio.sleep(0.005)
    looks = len(database.looks)
    assert 1 <= looks <= (loop.time() - began) / 0.05
    for upload in uploads:
        hints.unregister(upload, print)
    await asyncio.sleep(0.1)
    looks = len(database.looks)
    await asyncio.sleep(0.2)
    assert len(database.looks) == looks
    hints.register(uploads[0], 1, print)
    await asyncio.sleep(0.2)
    assert len(database.looks) > looks


@pytest.mark.parametrize("failure", [DatabaseUnavailable(), ZeroDivisionError()])
async def test_a_look_that_fails_is_not_the_last_one(
    hints: LocalHints,
    database: Rows,
    failure: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.01)
    heard: asyncio.Queue[UploadError] = asyncio.Queue()
    upload = uuid.uuid4()
    database.failures.append(failure)
    database.outdated[upload] = TakenOver()
    with caplog.at_level(logging.WARNING):
        hints.register(upload, 1, heard.put_nowait)
        assert isinstance(await asyncio.wait_for(heard.get(), 10), TakenOver)
    assert "The rows of held uploads were not read" in caplog.text


async def test_a_closed_process_tells_nobody(hints: LocalHints, database: Rows) -> None:
    heard: list[UploadError] = []
    upload = uuid.uuid4()
    hints.register(upload, 1, heard.append)
    hints.close()
    hints.tell_holder(upload, TakenOver())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not heard
    assert len(asyncio.all_tasks()) == 1
