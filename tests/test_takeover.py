"""An upload that changes from one worker to another: two services with one database and one folder."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from django_async_upload.engine import completion, service
from django_async_upload.engine import hints as hints_module
from django_async_upload.engine.active import ActiveUpload
from django_async_upload.engine.outcomes import Attached, Finishing, Published
from django_async_upload.engine.service import UploadService
from django_async_upload.engine.taps import Digest
from django_async_upload.exceptions import (
    Busy,
    NotFound,
    TakenOver,
    UploadError,
    UploadOver,
)
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import Progress, UploadAccess

from .fixtures import KIB, MIB, row
from .test_service import Host, RecordingListener, attached, begun, feed, host, write
from .two_workers import attach_and_leave, cancel_elsewhere, copied, holding, other

__all__ = ["copied", "host", "other"]
pytest_plugins = ["tests.fixtures"]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the rows that come more often than once a second."""
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 0.05)


async def test_a_holder_at_another_worker_closes_its_part_and_the_new_one_continues_in_it(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    copied: list[str],
) -> None:
    data = os.urandom(3 * MIB)
    async with holding(uploads, owner, data, 2 * MIB) as (older, holder):
        inode = os.stat(uploads.store.path(older.part.name)).st_ino
        async with attached(other, owner, older.session.pk) as newer:
            assert (newer.part.name, newer.flow.received) == (older.part.name, 2 * MIB)
            with pytest.raises(TakenOver):
                await holder
            end = await other.complete(newer, await write(newer, data, 2 * MIB), host)
    published = media / end.session.stored_as
    assert published.read_bytes() == data
    assert (published.stat().st_ino, copied) == (inode, [])


async def test_the_new_holder_reads_only_what_is_above_the_checkpoint(
    uploads: UploadService, other: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_async_upload.stores import disk

    data = os.urandom(2 * MIB)
    read: list[tuple[int, int]] = []
    read_at = disk.read_at

    def recorded(fd: int, start: int, stop: int, *size: int) -> Any:
        read.append((start, stop))
        return read_at(fd, start, stop, *size)

    async with holding(uploads, owner, data, MIB) as (older, holder):
        await older.checkpoints.make_now()
        feed(older, data[: MIB + 7 * KIB], MIB)
        while older.flow.received < MIB + 7 * KIB:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(disk, "read_at", recorded)
        async with attached(other, owner, older.session.pk) as newer:
            assert (newer.flow.durable, newer.flow.received) == (MIB, MIB + 7 * KIB)
            assert read == [(MIB, MIB + 7 * KIB)]
            assert holder.done()


async def test_the_wait_for_a_holder_takes_no_thread(
    uploads: UploadService, other: UploadService, owner: Owner
) -> None:
    """As many as there are threads, and all of one owner, wait; another upload's part is opened meanwhile."""
    data = os.urandom(20 * KIB)
    left: list[uuid.UUID] = []
    for _ in range(2 * other.store.threads + 1):
        async with holding(uploads, owner, data, 17 * KIB) as (upload, _holder):
            await upload.checkpoints.make_now()
            left.append(upload.session.pk)
    # By processes that do not run.
    stopped = [uploads.store.open((await row(pk)).checkpoint) for pk in left[1:]]
    waiting = [asyncio.create_task(attach_and_leave(other, owner, pk)) for pk in left[1:]]
    await asyncio.sleep(0.1)
    begun_at = time.monotonic()
    async with attached(other, owner, left[0]) as newer:
        assert newer.flow.received == 17 * KIB
    assert time.monotonic() - begun_at < 1.0
    assert not any(task.done() for task in waiting)
    for writer in stopped:
        writer.close()
    for outcome in await asyncio.gather(*waiting):
        assert isinstance(outcome, Attached)


async def test_of_a_holder_that_does_not_run_the_bytes_are_copied(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    copied: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 3600.0)
    data = os.urandom(2 * MIB)
    async with holding(uploads, owner, data, MIB) as (older, _holder):
        await older.checkpoints.make_now()
        begun_at = time.monotonic()
        async with attached(other, owner, older.session.pk) as newer:
            assert time.monotonic() - begun_at >= 0.2
            assert copied == [older.part.name]
            end = await other.complete(newer, await write(newer, data, MIB), host)
        feed(older, b"\xee" * (2 * MIB), MIB)
        while older.flow.received < 2 * MIB:  # it wakes, and writes to a file that is not published
            await asyncio.sleep(0.001)
    assert (media / end.session.stored_as).read_bytes() == data


async def test_a_still_newer_holder_ends_the_wait_for_the_oldest(
    uploads: UploadService, other: UploadService, owner: Owner, copied: list[str]
) -> None:
    data = os.urandom(2 * MIB)
    async with holding(uploads, owner, data, MIB) as (older, _holder):
        await older.checkpoints.make_now()
        pk = older.session.pk
    stopped = uploads.store.open((await row(pk)).checkpoint)
    waiting = asyncio.create_task(attach_and_leave(other, owner, pk))
    while (await row(pk)).epoch < 2:
        await asyncio.sleep(0.01)
    newest = asyncio.create_task(attach_and_leave(uploads, owner, pk))
    with pytest.raises(TakenOver):
        await waiting
    assert not newest.done()
    stopped.close()
    assert isinstance(await newest, Attached)
    assert not copied


@pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
async def test_an_upload_that_the_host_ends_stops_its_holder_at_another_worker(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with holding(uploads, owner, b"data" * 5000, 4) as (upload, holder):
        await upload.checkpoints.make_now()
        part, pk = upload.part.name, upload.session.pk
        with monkeypatch.context() as elsewhere:  # the command runs in a process of its own
            elsewhere.setattr(service, "_services", {})
            ended = await sync_to_async(service.end)([pk], state)
        assert [each.pk for each in ended] == [pk]
        with pytest.raises(UploadOver) as error:
            await asyncio.wait_for(holder, 10)
        assert error.value.facts == {"state": state}
        assert not os.path.exists(uploads.store.path(part))
        assert upload.part.writer is not None
        assert upload.closed.is_set()


async def test_a_cancel_at_one_worker_stops_the_holder_at_another(
    uploads: UploadService, other: UploadService, owner: Owner
) -> None:
    await cancel_elsewhere(uploads, other, owner, seconds=10)


async def test_a_deleted_row_stops_its_holder(uploads: UploadService, owner: Owner) -> None:
    async with holding(uploads, owner, b"data" * 5000, 4) as (upload, holder):
        await UploadSession.objects.filter(pk=upload.session.pk).adelete()
        with pytest.raises(NotFound):
            await asyncio.wait_for(holder, 10)


# What another worker verifies or publishes --------------------------------------------------------


@asynccontextmanager
async def inspecting(
    uploads: UploadService, owner: Owner, host: Host, data: bytes
) -> AsyncIterator[tuple[ActiveUpload, asyncio.Task[object]]]:
    """An upload whose inspection goes on until ``host.released``, and the task of its completion."""
    host.inspects = True
    host.released.clear()
    async with begun(uploads, owner, data) as upload:
        done = await write(upload, data)
        completing = asyncio.create_task(uploads.complete(upload, done, host))
        await asyncio.wait_for(host.inspecting.wait(), 10)
        try:
            yield upload, completing
        finally:
            host.released.set()
            await asyncio.wait({completing})


async def test_what_another_worker_verifies_is_waited_for(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    copied: list[str],
) -> None:
    reports: list[Progress] = []
    async with inspecting(uploads, owner, host, b"data") as (upload, completing):
        newer = ActiveUpload(other, RecordingListener(), "user:1")
        pk = upload.session.pk
        found = await other.attach(newer, UploadAccess(pk, owner, "default"))
        assert isinstance(found, Finishing)
        waiting = asyncio.create_task(other.result(found.session, reports.append))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert (await row(pk)).epoch == 1
        host.released.set()
        end = await asyncio.wait_for(waiting, 10)
        assert isinstance(end, Published)
        assert isinstance(await completing, Published)
        assert (media / end.session.stored_as).read_bytes() == b"data"
        await other.leave(newer)
    assert reports[0] == ("verifying", 0, 4)
    assert await CompletionEvent.objects.acount() == 1
    assert not copied


@pytest.mark.parametrize("how", ["died", "stopped"])
async def test_what_a_worker_verified_that_does_not_run_is_taken_over(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    host: Host,
    how: str,
    copied: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(completion, "TOUCHED_SECONDS", 0.1)
    monkeypatch.setattr(hints_module, "LOOK_SECONDS", 3600.0)
    async with inspecting(uploads, owner, host, b"data") as (upload, completing):
        pk, part = upload.session.pk, upload.part.name
        if how == "died":
            assert upload.part.writer is not None
            upload.part.writer.close()
        else:
            long_ago = timezone.now() - timedelta(seconds=completion.SILENT_SECONDS + 1)
            await UploadSession.objects.filter(pk=pk).aupdate(updated_at=long_ago)
        async with attached(other, owner, pk) as newer:
            assert newer.flow.received == 4
            assert copied == ([] if how == "died" else [part])
        host.released.set()
        with pytest.raises(UploadError):
            await completing


async def test_what_another_worker_verifies_is_not_taken_over_because_the_clock_was_moved(
    uploads: UploadService, other: UploadService, owner: Owner, host: Host
) -> None:
    async with inspecting(uploads, owner, host, b"data") as (upload, _completing):
        pk = upload.session.pk
        an_hour_ago = timezone.now() - timedelta(hours=1)
        await UploadSession.objects.filter(pk=pk).aupdate(updated_at=an_hour_ago)
        newer = ActiveUpload(other, RecordingListener(), "user:1")
        attaching = asyncio.create_task(other.attach(newer, UploadAccess(pk, owner, "default")))
        await asyncio.sleep(0.3)
        assert not attaching.done()
        await uploads._recovery._touch_publishing()
        assert isinstance(await asyncio.wait_for(attaching, 10), Finishing)
        assert (await row(pk)).epoch == 1
        await other.leave(newer)


async def test_a_verification_that_ends_without_a_file_makes_the_waiting_client_attach_again(
    uploads: UploadService, other: UploadService, owner: Owner, host: Host
) -> None:
    async with inspecting(uploads, owner, host, b"data") as (upload, completing):
        session = await row(upload.session.pk)
        waiting = asyncio.create_task(other.result(session, lambda progress: None))
        await asyncio.sleep(0.1)
        host.refusal = Busy()
        host.released.set()
        with pytest.raises(Busy):
            await completing
        await upload.interrupt()
        await uploads.leave(upload)
        with pytest.raises(Busy):
            await asyncio.wait_for(waiting, 10)


async def test_a_worker_touches_what_it_verifies(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    async with inspecting(uploads, owner, host, b"data") as (upload, _completing):
        long_ago = timezone.now() - timedelta(hours=1)
        await UploadSession.objects.filter(pk=upload.session.pk).aupdate(updated_at=long_ago)
        await uploads._recovery._touch_publishing()
        assert (await row(upload.session.pk)).updated_at > long_ago + timedelta(minutes=59)


async def test_a_cancel_at_another_worker_ends_the_scan(
    uploads: UploadService,
    other: UploadService,
    owner: Owner,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = os.urandom(64 * KIB)
    scanned: list[int] = []
    monkeypatch.setattr("django_async_upload.engine.taps.READ_BYTES", 16)

    class Slow(Digest):
        def restart(self, pieces: Any) -> None:
            for piece in pieces:
                scanned.append(len(piece))
                time.sleep(0.01)

    def slow_taps(session: UploadSession) -> Sequence[Any]:
        return [Slow("sha256")]

    older = ActiveUpload(uploads, RecordingListener(), "user:1")
    async with holding(uploads, owner, data, 17 * KIB) as (begun_upload, _holder):
        pk = begun_upload.session.pk
    await uploads.attach(older, UploadAccess(pk, owner, "default"), None, slow_taps)
    older.forget_queued()
    done = await write(older, data, older.flow.received)
    completing = asyncio.create_task(uploads.complete(older, done, host))
    while not scanned:
        await asyncio.sleep(0.01)
    await other.cancel(UploadAccess(pk, owner, "default"))
    with pytest.raises(UploadOver):
        await asyncio.wait_for(completing, 5)
    assert sum(scanned) < len(data)
    await uploads.leave(older)
