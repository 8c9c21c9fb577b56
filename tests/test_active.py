"""One upload's queue and task: credit, the order of requests, and what is released at its end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from crc32c import crc32c
from django.db import DataError

from django_async_upload.engine import active, checkpoints, queue
from django_async_upload.engine.credit import FLOOR, LARGEST_WINDOW
from django_async_upload.engine.part import UploadPart
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.exceptions import (
    DatabaseUnavailable,
    FileTooLarge,
    TakenOver,
    UploadOver,
)
from django_async_upload.protocol import messages as m
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import Stop
from django_async_upload.stores import Checkpoint, Piece, disk

from .fixtures import KIB, MIB, facts, row
from .test_service import RecordingListener, attached, begun, crash, feed, pieces

pytest_plugins = ["tests.fixtures"]


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def without_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECKPOINT_BYTES", "UNDURABLE_BYTES"):
        monkeypatch.setattr(checkpoints, name, 1 << 40)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1000.0)


async def test_the_limit_rises_with_what_is_written_within_the_window(
    uploads: UploadService, owner: Owner
) -> None:
    data = os.urandom(2 * MIB)
    async with begun(uploads, owner, data) as upload:
        assert upload.flow.limit == FLOOR
        writing = asyncio.create_task(upload.write())
        while upload.flow.received < len(data):
            end = min(upload.flow.limit, len(data))
            feed(upload, data[:end], upload.flow.received, chunk=16 * KIB)
            await until(lambda end=end: upload.flow.received == end)
            assert upload.flow.received < upload.flow.limit <= upload.flow.durable + LARGEST_WINDOW
            assert upload.flow.limit - upload.flow.received <= upload.account.promised
        assert upload.flow.chunk > FLOOR
        upload.release()
        await writing
    assert upload.account.promised == 0


async def test_no_credit_goes_beyond_the_window_while_nothing_becomes_durable(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_checkpoints(monkeypatch)
    uploads.budget.total = 4 * LARGEST_WINDOW
    data = bytes(LARGEST_WINDOW + MIB)
    async with begun(uploads, owner, data) as upload:
        await upload.reserve()
        writing = asyncio.create_task(upload.write())
        while upload.flow.limit > upload.flow.received:
            end = upload.flow.limit
            feed(upload, data[:end], upload.flow.received)
            await until(lambda end=end: upload.flow.received == end)
        assert upload.flow.received == upload.flow.limit == LARGEST_WINDOW
        upload.release()
        await writing
        assert await upload.interrupt() == LARGEST_WINDOW


async def test_what_the_kernel_has_is_durable_where_a_crash_of_the_process_counts(
    uploads: UploadService, owner: Owner, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    uploads = get_service()
    without_checkpoints(monkeypatch)
    data = os.urandom(9 * MIB)
    async with begun(uploads, owner, data) as upload:
        feed(upload, data[:MIB])
        upload.release()
        await upload.write()
        assert (upload.flow.received, upload.flow.durable) == (MIB, 0), "no row names the part"
        assert upload.part.writer is not None
        named = Checkpoint(upload.part.writer.part, token=disk.boot_id())
        await upload.checkpoints.save(named, State.UPLOADING)
        assert upload.flow.durable == MIB
        feed(upload, data[: 9 * MIB], MIB)
        await upload.write()
        assert upload.flow.durable == 9 * MIB
        pk = upload.session.pk
    uploads = await crash(uploads)
    assert (await row(pk)).durable == 0
    async with attached(uploads, owner, pk) as upload:
        assert (upload.flow.durable, upload.flow.received) == (9 * MIB, 9 * MIB)
        assert upload.part.crc(upload.flow.durable) == crc32c(data)


async def test_nothing_is_durable_that_no_ack_called_received(
    uploads: UploadService, owner: Owner, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}  # durable as soon as the kernel has it
    uploads = get_service()
    data = os.urandom(MIB)
    async with begun(uploads, owner, data) as upload:
        await upload.reserve()
        assert upload.part.writer is not None
        upload.part.writer.append(
            pieces(data)
        )  # as a write that is still under way beside a checkpoint
        await upload.checkpoints.save(upload.part.checkpoint, State.UPLOADING)
        assert (upload.flow.received, upload.flow.durable) == (0, 0)


async def test_a_pause_gives_back_what_is_not_used(uploads: UploadService, owner: Owner) -> None:
    data = os.urandom(MIB)
    async with begun(uploads, owner, data) as upload:
        upload.account.grant(0)
        upload.account.is_pausing = True
        upload.flow.limit = 512 * KIB
        upload.flow.paused(20 * KIB)
        assert not upload.account.is_pausing
        assert upload.flow.limit == 20 * KIB
        assert upload.account.promised == 20 * KIB  # so much may be queued
        assert upload.listener.acks == 1


async def test_a_size_that_was_not_declared_is_limited(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, None) as upload:
        upload.max_size = 10
        feed(upload, b"eleven byte")
        with pytest.raises(FileTooLarge):
            await upload.write()


async def test_what_is_lost_is_lost_at_once(uploads: UploadService, owner: Owner) -> None:
    async with begun(uploads, owner, b"data") as upload:
        upload.lose(TakenOver())
        upload.lose(UploadOver(state="cancelled"))  # the first reason holds
        upload.finish(facts(b"data"))
        with pytest.raises(TakenOver):
            await upload.write()
        with pytest.raises(TakenOver):
            await upload.proof()


async def test_a_proof_is_waited_for_or_what_comes_instead(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        proving = asyncio.create_task(upload.proof())
        await asyncio.sleep(0)
        assert not proving.done()
        proof = m.Proof("00000000")
        upload.prove(proof)
        assert await proving is proof
    async with begun(uploads, owner, b"data") as upload:
        upload.cancel()
        assert await upload.proof() is Stop.CANCEL


async def test_a_cancel_is_not_softened_by_a_drop(uploads: UploadService, owner: Owner) -> None:
    async with begun(uploads, owner, b"data") as upload:
        upload.cancel()
        upload.release()
        assert await upload.write() is Stop.CANCEL


async def test_closing_gives_everything_back(uploads: UploadService, owner: Owner) -> None:
    async with begun(uploads, owner, b"data") as upload:
        upload.append(pieces(b"data")[0])
        writing = asyncio.create_task(upload.write())
        await until(lambda: upload.flow.received)
        writing.cancel()
        await asyncio.wait({writing})
    assert upload.closed.is_set()
    assert upload.account not in uploads.budget.accounts
    assert not upload.checkpoints.is_scheduled
    await upload.close()  # once more is no error


def test_a_listener_is_what_the_stream_is() -> None:
    assert {name for name in vars(active.UploadListener) if not name.startswith("_")} <= set(
        dir(RecordingListener)
    )


async def test_durable_never_goes_down(uploads: UploadService, owner: Owner) -> None:
    """A checkpoint may cover less than an earlier one: an S3 store names whole pieces only."""
    data = os.urandom(100)
    async with begun(uploads, owner, data) as upload:
        feed(upload, data)
        upload.release()
        await upload.write()
        await upload.checkpoints.make_now()
        assert upload.flow.durable == 100
        assert upload.part.writer is not None
        older = Checkpoint(upload.part.writer.part, 40, crc32c(data[:40]), disk.boot_id())
        await upload.checkpoints.save(older, State.UPLOADING)
        assert upload.flow.durable == 100


async def test_the_old_part_stays_until_the_row_names_the_new_one(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash, or a database that is away, comes in between: what was durable is still there."""
    data = os.urandom(100)
    async with begun(uploads, owner, data) as upload:
        feed(upload, data[:60])
        upload.release()
        await upload.write()
        await upload.checkpoints.make_now()
        assert upload.part.writer is not None
        await uploads.store.run(upload.part.writer.rewrite, upload.part.checkpoint)
        renewed = await upload.part.sync()
        with monkeypatch.context() as patch:
            patch.setattr(uploads.database, "call", unavailable)
            with pytest.raises(DatabaseUnavailable):
                await upload.checkpoints.save(renewed, State.UPLOADING)
        pk = upload.session.pk
    uploads = await crash(uploads)
    async with attached(uploads, owner, pk) as upload:
        assert (upload.flow.durable, upload.flow.received) == (60, 60)


async def unavailable(*args: Any, **kwargs: Any) -> Any:
    raise DatabaseUnavailable(retry_after=1.0)


async def test_what_the_database_refuses_when_an_upload_is_left_is_logged_and_breaks_nothing(
    uploads: UploadService,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        feed(upload, b"data")
        upload.release()
        await upload.write()

        def refuse(items: Any) -> Any:
            raise DataError("value out of range")

        with monkeypatch.context() as patch:
            patch.setattr(rows, "change", refuse)
            assert await upload.interrupt() == 0
    assert "value out of range" in caplog.text


async def test_a_close_that_is_cancelled_while_a_checkpoint_runs_gives_everything_back(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, syncing = threading.Event(), threading.Event()
    fdatasync = disk.fdatasync

    def slow(fd: int) -> None:
        syncing.set()
        released.wait(30)
        fdatasync(fd)

    monkeypatch.setattr(disk, "fdatasync", slow)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 1)
    async with begun(uploads, owner, b"data") as upload:
        feed(upload, b"data")
        upload.release()
        await upload.write()
        await asyncio.to_thread(syncing.wait, 30)
        closing = asyncio.create_task(upload.close())
        await asyncio.sleep(0)
        closing.cancel()
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert upload.closed.is_set()
        assert upload.account.promised == 0
        assert upload.part.writer is not None
        assert not uploads.store.is_held(upload.part.writer.part)


async def test_pieces_that_follow_closely_are_written_in_one_hop(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "BATCH_SECONDS", 5.0)  # however busy the machine is
    hops: list[int] = []
    append = UploadPart.append

    def counting(self: UploadPart, batch: Sequence[Piece]) -> int:
        hops.append(len(batch))
        return append(self, batch)

    monkeypatch.setattr(UploadPart, "append", counting)
    data = os.urandom(4 * MIB)
    async with begun(uploads, owner, data) as upload:
        upload.flow.limit = 16 * MIB
        writing = asyncio.create_task(upload.write())
        for start in range(0, len(data), 256 * KIB):
            upload.append(*pieces(data[: start + 256 * KIB], start))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await until(lambda: upload.flow.received == len(data))
        assert hops == [8, 8]
        assert upload.listener.acks == 2
        upload.release()
        await writing


async def test_much_that_waits_is_acked_in_parts(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_checkpoints(monkeypatch)  # each has an ACK of its own
    data = os.urandom(5 * MIB)
    async with begun(uploads, owner, data) as upload:
        feed(upload, data, chunk=512 * KIB)
        writing = asyncio.create_task(upload.write())
        await until(lambda: upload.flow.received == len(data))
        assert upload.listener.acks == 3
        upload.release()
        await writing


async def test_a_piece_alone_does_not_wait_for_long(uploads: UploadService, owner: Owner) -> None:
    data = os.urandom(MIB)
    async with begun(uploads, owner, data) as upload:
        upload.flow.limit = 16 * MIB
        writing = asyncio.create_task(upload.write())
        feed(upload, data[: 10 * KIB])
        await asyncio.wait_for(until(lambda: upload.flow.received == 10 * KIB), 5)
        upload.release()
        await writing


async def test_credit_rises_by_whole_chunks(uploads: UploadService, owner: Owner) -> None:
    """A client sends what it may: if each small chunk earned a small credit, it would send small chunks for ever."""
    uploads.budget.total = 2 * MIB  # a share of 1 MiB, chunks of 508 KiB
    data = os.urandom(8 * MIB)
    async with begun(uploads, owner, data) as upload:
        writing = asyncio.create_task(upload.write())
        wire: deque[bytes] = deque()
        sizes: list[int] = []
        while upload.flow.received < len(data):
            while (start := sum(sizes)) < min(upload.flow.limit, len(data)):
                piece = data[start : min(start + upload.flow.chunk, upload.flow.limit, len(data))]
                wire.append(piece)
                sizes.append(len(piece))
            arrived = upload.flow.received + len(wire[0])
            upload.append(Piece(wire.popleft()))
            await until(lambda arrived=arrived: upload.flow.received == arrived)
        assert len(sizes) < 45, sizes
        upload.release()
        await writing
