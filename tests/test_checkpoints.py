"""When an upload makes its checkpoints, one at a time, and what an error of one does to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from django_async_upload.engine import checkpoints as module
from django_async_upload.engine.checkpoints import SLOW_BYTES, Checkpoints
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import (
    DatabaseUnavailable,
    InternalError,
    StorageFailed,
    TakenOver,
    UploadError,
)
from django_async_upload.models import UploadSession
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.stores import Checkpoint

from .fixtures import MIB, row
from .test_active import until
from .test_service import begun, feed

pytest_plugins = ["tests.fixtures"]


class Part:
    """A part whose syncs and saves are recorded; they may fail."""

    def __init__(self) -> None:
        self.session = UploadSession(owner_key="user:1")
        self.writer = object()
        self.checkpoint = Checkpoint("part")
        self.received = 0
        self.saved: list[tuple[int, State]] = []
        self.error: Exception | None = None
        self.may_sync = asyncio.Event()
        self.may_sync.set()

    async def sync(self) -> Checkpoint:
        received = self.received
        await self.may_sync.wait()
        if self.error is not None:
            raise self.error
        return Checkpoint("part", received)

    async def save(self, checkpoint: Checkpoint, state: State) -> None:
        self.checkpoint = checkpoint
        self.saved.append((checkpoint.offset, state))

    def durable(self, received: int) -> int:
        return 0


class Flow:
    def __init__(self, part: Part) -> None:
        self._part = part
        self.durable = 0

    @property
    def received(self) -> int:
        return self._part.received

    def keep(self, durable: int) -> None:
        self.durable = max(self.durable, durable)

    def grant(self) -> None: ...


class Runtime:
    """Gives a turn at once, unless it is locked."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.turns: list[dict[str, bool]] = []

    @asynccontextmanager
    async def sync_turn(self, owner: str, **options: bool) -> AsyncIterator[None]:
        self.turns.append(options)
        async with self.lock:
            yield


class Upload:
    """The checkpoints of an upload, with what they need."""

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.part = Part()
        self.flow = Flow(self.part)
        self.lost: list[UploadError] = []
        self.woken = asyncio.Event()
        runtime, part, flow = self.runtime, self.part, self.flow
        self.checkpoints = Checkpoints(
            runtime,  # type: ignore[arg-type]
            part,  # type: ignore[arg-type]
            flow,  # type: ignore[arg-type]
            wake=self.woken.set,
            lose=self.lost.append,
        )

    async def receive(self, size: int) -> None:
        """Receive bytes; returns after the checkpoint, where one is due."""
        self.part.received += size
        self.checkpoints.make_if_due()
        await self.checkpoints.finish()


@pytest.fixture
async def upload() -> Upload:
    upload = Upload()
    upload.checkpoints.begin()
    return upload


@pytest.mark.parametrize("name", ["CHECKPOINT_BYTES", "UNDURABLE_BYTES"])
async def test_one_is_due_after_so_many_bytes(
    upload: Upload, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in ("CHECKPOINT_BYTES", "UNDURABLE_BYTES"):
        monkeypatch.setattr(module, each, 10 if each == name else 1 << 40)
    await upload.receive(9)
    assert upload.part.saved == []
    await upload.receive(1)
    assert upload.part.saved == [(10, State.UPLOADING)]
    assert upload.flow.durable == 10


async def test_the_writer_is_woken_when_the_time_for_one_has_come(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.05)
    upload.checkpoints.begin()
    upload.part.received = 1
    upload.checkpoints.make_if_due()
    assert upload.checkpoints.is_scheduled
    async with asyncio.timeout(20):
        await upload.woken.wait()
    await upload.receive(0)
    assert upload.part.saved == [(1, State.UPLOADING)]


async def test_none_is_made_without_new_bytes(upload: Upload) -> None:
    await upload.receive(0)
    await upload.checkpoints.make_now()
    assert not upload.checkpoints.is_scheduled
    assert upload.part.saved == []


async def test_a_second_one_waits_for_the_first(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1)
    upload.part.may_sync.clear()
    upload.part.received = 1
    upload.checkpoints.make_if_due()
    await asyncio.sleep(0)
    upload.part.received = 2
    upload.checkpoints.make_if_due()
    asked_for = asyncio.create_task(upload.checkpoints.make_now())
    await asyncio.sleep(0)
    assert len(upload.runtime.turns) == 1
    upload.part.may_sync.set()
    await asked_for
    assert upload.part.saved == [(1, State.UPLOADING), (2, State.UPLOADING)]


async def test_only_one_that_is_asked_for_does_not_rest(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1)
    await upload.receive(SLOW_BYTES)
    upload.part.received += 1
    await upload.checkpoints.make_now()
    assert upload.runtime.turns == [
        {"is_slow": False, "rests": True},
        {"is_slow": True, "rests": False},
    ]


async def test_one_that_waits_for_its_turn_is_cancelled_at_the_end(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1)
    async with upload.runtime.lock:
        upload.part.received = 1
        upload.checkpoints.make_if_due()
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await upload.checkpoints.finish()
    await upload.checkpoints.make_last()
    assert upload.part.saved == [(1, State.INTERRUPTED)]


async def test_a_slow_upload_makes_fewer_of_them_until_it_is_fast(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1)
    waits = []
    for size in (1, 1, 1, 1, SLOW_BYTES):
        await upload.receive(size)
        waits.append(upload.checkpoints._seconds)
    assert waits == [4.0, 16.0, 32.0, 32.0, 1.0]


async def test_a_failed_sync_is_for_the_writer_and_is_not_tried_again(upload: Upload) -> None:
    upload.part.received = 1
    upload.part.error = StorageFailed()
    await upload.checkpoints.make_now()
    assert upload.checkpoints.sync_failed
    upload.part.error = None
    await upload.checkpoints.make_last()
    assert upload.part.saved == []
    assert upload.lost == []


async def test_an_upload_with_another_holder_is_lost(upload: Upload) -> None:
    upload.part.received = 1
    upload.part.error = TakenOver()
    await upload.checkpoints.make_now()
    assert [error.code for error in upload.lost] == ["taken_over"]


async def test_an_upload_whose_checkpoint_the_database_refuses_is_lost(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.01)

    async def away(*args: Any, **kwargs: Any) -> Any:
        raise DatabaseUnavailable(retry_after=1.0)

    async with begun(uploads, owner, b"data") as upload:
        with monkeypatch.context() as patch:
            patch.setattr(uploads.database, "call", away)
            feed(upload, b"da")
            with pytest.raises(DatabaseUnavailable):
                await upload.write()
            assert await upload.interrupt() == 0
    assert (await row(upload.session.pk)).state == State.CREATED


async def test_a_checkpoint_that_breaks_is_logged_and_ends_the_upload(
    uploads: UploadService,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.01)

    def broken(items: Any) -> Any:
        raise ZeroDivisionError

    async with begun(uploads, owner, b"data") as upload:
        with monkeypatch.context() as patch:
            patch.setattr(rows, "change", broken)
            feed(upload, b"da")
            with pytest.raises(InternalError):
                await upload.write()
        assert await upload.interrupt() == 2
    assert "ZeroDivisionError" in caplog.text


async def test_a_checkpoint_that_is_asked_for_writes_down_what_came(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        writing = asyncio.create_task(upload.write())
        feed(upload, b"da")
        await until(lambda: upload.flow.received == 2)
        await upload.checkpoints.make_now()
        assert (upload.flow.durable, (await row(upload.session.pk)).durable) == (2, 2)
        upload.release()
        await writing


@pytest.mark.parametrize(("size", "seconds"), [(5 * MIB, 1000.0), (1, 0.05)])
async def test_checkpoints_come_by_bytes_and_by_time(
    uploads: UploadService,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    seconds: float,
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", seconds)
    data = os.urandom(6 * MIB)
    async with begun(uploads, owner, data) as upload:
        writing = asyncio.create_task(upload.write())
        feed(upload, data[:size])
        while upload.flow.durable < size:
            await asyncio.sleep(0.005)
        assert (await row(upload.session.pk)).durable == size
        upload.release()
        await writing
        await upload.interrupt()
