"""An upload that changes from one worker to another over the bus: the holder is asked, and answers.

Two services with one database, one folder, and a Redis of their own. They never look at their rows by themselves.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import channel_layers

from django_async_upload.concurrency.pace import Rates
from django_async_upload.engine import hints as hints_module
from django_async_upload.engine import service
from django_async_upload.engine.active import ActiveUpload
from django_async_upload.engine.outcomes import Attached, Finishing, Published
from django_async_upload.engine.service import UploadService
from django_async_upload.engine.telemetry import NoTelemetry
from django_async_upload.exceptions import Busy, TakenOver, UploadOver
from django_async_upload.models import CompletionEvent
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import UploadAccess

from .e2e.redis import Redis, running_redis
from .fixtures import KIB, MIB, row
from .test_service import Host, RecordingListener, attached, begun, host, interrupted, write
from .two_workers import attach_and_leave, cancel_elsewhere, copied, holding, other

__all__ = ["copied", "host", "other"]
FEW, FEW_SECONDS = 3, 3.0

pytest_plugins = ["tests.fixtures"]


class Figures(NoTelemetry):
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        self.counts[" ".join([name, *labels.values()])] += by


@pytest.fixture(autouse=True)
def redis(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 3600.0)
    with running_redis(tmp_path) as redis:
        settings.CHANNEL_LAYERS = redis.layers()
        channel_layers.backends.clear()
        yield redis
    channel_layers.backends.clear()


@pytest.fixture(autouse=True)
async def _joined(redis: Redis, uploads: UploadService, other: UploadService) -> None:
    """Both services have joined the bus."""
    assert await uploads.bus.joined()
    assert await other.bus.joined()


async def test_a_holder_saves_its_upload_and_the_new_one_reads_nothing_again(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    copied: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from django_async_upload.stores import disk

    def forbidden(fd: int, start: int, stop: int, *size: int) -> Any:
        assert start == stop
        return iter(())

    figures = other.telemetry = Figures()
    data = os.urandom(3 * MIB)
    async with holding(uploads, owner, data, 2 * MIB) as (older, holder):
        inode = os.stat(uploads.store.path(older.part.name)).st_ino
        await older.checkpoints.make_now()
        with monkeypatch.context() as reading:
            reading.setattr(disk, "read_at", forbidden)
            begun_at = time.monotonic()
            async with attached(other, owner, older.session.pk) as newer:
                assert time.monotonic() - begun_at < hints_module.YIELD_SECONDS
                reading.undo()
                assert (newer.part.name, newer.flow.received, newer.flow.durable) == (
                    *(older.part.name, 2 * MIB, 2 * MIB),
                )
                with pytest.raises(TakenOver):
                    await holder
                end = await other.complete(newer, await write(newer, data, 2 * MIB), host)
    published = media / end.session.stored_as
    assert published.read_bytes() == data
    assert (published.stat().st_ino, copied) == (inode, [])
    assert figures.counts["uploads.taken_over yielded"] == 1
    assert figures.counts["uploads.taken_over waited"] == 0


@asynccontextmanager
async def completing(
    uploads: UploadService, owner: Owner, host: Host, data: bytes
) -> AsyncIterator[tuple[ActiveUpload, asyncio.Task[Any]]]:
    """An upload with all its bytes and FINISH, whose row is not in ``verifying`` or ``finalizing`` yet."""
    admitting = asyncio.Event()

    async def admit() -> int | None:
        admitting.set()
        await host.released.wait()
        if host.refusal is not None:
            raise host.refusal
        return None

    host.admit = admit  # type: ignore[method-assign]
    host.released.clear()
    async with begun(uploads, owner, data) as upload:
        await upload.reserve()
        done = await write(upload, data)
        task = asyncio.create_task(uploads.complete(upload, done, host))
        await asyncio.wait_for(admitting.wait(), 10)
        assert (await row(upload.session.pk)).state == State.UPLOADING
        try:
            yield upload, task
        finally:
            host.released.set()
            await asyncio.wait({task})


async def test_a_complete_upload_that_is_not_verified_yet_is_waited_for(
    uploads: UploadService, other: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    phases: list[str] = []
    async with completing(uploads, owner, host, b"data" * 9000) as (upload, task):
        newer = ActiveUpload(other, RecordingListener(), "user:1")
        pk = upload.session.pk
        found = await other.attach(newer, UploadAccess(pk, owner, "default"))
        assert isinstance(found, Finishing)
        waiting = asyncio.create_task(
            other.result(found.session, lambda progress: phases.append(progress.phase))
        )
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert (await row(pk)).epoch == 1
        host.released.set()
        end = await asyncio.wait_for(waiting, 10)
        assert isinstance(end, Published)
        assert isinstance(await task, Published)
        assert (media / end.session.stored_as).read_bytes() == b"data" * 9000
        await other.leave(newer)
    assert phases[0] == "verifying"
    assert await CompletionEvent.objects.acount() == 1


async def test_a_completion_that_fails_makes_the_waiting_client_attach_again(
    uploads: UploadService, other: UploadService, owner: Owner, host: Host
) -> None:
    async with completing(uploads, owner, host, b"data" * 9000) as (upload, task):
        session = await row(upload.session.pk)
        waiting = asyncio.create_task(other.result(session, lambda progress: None))
        await asyncio.sleep(0.1)
        host.refusal = Busy()
        host.released.set()
        with pytest.raises(Busy):
            await task
        await upload.interrupt()
        await uploads.leave(upload)
        with pytest.raises(Busy):
            await asyncio.wait_for(waiting, 10)
        assert isinstance(await attach_and_leave(other, owner, session.pk), Attached)


@pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
async def test_an_upload_that_the_host_ends_at_one_worker_stops_its_holder_at_another(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with holding(uploads, owner, b"data" * 5000, 4) as (upload, holder):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(service, "_services", {asyncio.get_running_loop(): other})
            await sync_to_async(service.end)([upload.session.pk], state)
        with pytest.raises(UploadOver) as error:
            await asyncio.wait_for(holder, 1)
        assert error.value.facts == {"state": state}


async def test_a_cancel_at_one_worker_stops_the_holder_at_another_at_once(
    uploads: UploadService, other: UploadService, owner: Owner
) -> None:
    await cancel_elsewhere(uploads, other, owner, seconds=1)


@pytest.mark.parametrize("trouble", ["kill", "stop"])
async def test_without_redis_the_look_at_the_rows_serves(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    redis: Redis,
    copied: list[str],
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 1.0)
    figures = other.telemetry = Figures()
    async with holding(uploads, owner, os.urandom(2 * MIB), MIB) as (older, holder):
        await older.checkpoints.make_now()
        getattr(redis, trouble)()
        begun_at = time.monotonic()
        async with attached(other, owner, older.session.pk) as newer:
            assert time.monotonic() - begun_at < 2.5
            assert newer.flow.received == MIB
            with pytest.raises(TakenOver):
                await holder
    assert copied == []
    assert figures.counts["uploads.taken_over waited"] == 1


async def test_what_nobody_holds_is_resumed_without_a_question(
    uploads: UploadService, other: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    pk = await interrupted(uploads, owner, os.urandom(64 * KIB), 32 * KIB)
    monkeypatch.setattr(other.bus, "publish", lambda *message: asked.append(message))
    assert isinstance(await attach_and_leave(other, owner, pk), Attached)
    assert asked == []


async def test_an_upload_that_is_taken_again_and_again_is_busy(
    uploads: UploadService, other: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few at once, which a busy machine manages before the first of them is forgotten.
    monkeypatch.setattr(uploads, "_takeovers", Rates(FEW, FEW_SECONDS))
    pk = await interrupted(uploads, owner, os.urandom(64 * KIB), 32 * KIB)
    another = await interrupted(uploads, owner, os.urandom(64 * KIB), 32 * KIB)
    for _ in range(FEW):
        await attach_and_leave(uploads, owner, pk)
    epoch = (await row(pk)).epoch
    for _ in range(5):
        with pytest.raises(Busy) as error:
            await attach_and_leave(uploads, owner, pk)
        assert 0 < error.value.facts["retry_after"] <= FEW_SECONDS
    assert (await row(pk)).epoch == epoch
    assert isinstance(await attach_and_leave(uploads, owner, another), Attached)
    await asyncio.sleep(error.value.facts["retry_after"])
    assert isinstance(await attach_and_leave(uploads, owner, pk), Attached)
