"""The use cases, without a consumer: what is created, attached, taken over, cancelled and recovered."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.utils import timezone

from django_async_upload.engine import checkpoints, completion, hints, recovery, service
from django_async_upload.engine.active import ActiveUpload
from django_async_upload.engine.database import Database
from django_async_upload.engine.outcomes import Cancelled, Created, Finishing, Known, Published
from django_async_upload.engine.publish import Publisher
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.engine.taps import Digest, Tap
from django_async_upload.exceptions import (
    Busy,
    ByteQuotaExceeded,
    CorruptChunks,
    DataLost,
    DigestMismatch,
    FileRefused,
    KeyReused,
    NameRefused,
    NotFound,
    SizeMismatch,
    StorageFailed,
    StorageFull,
    TakenOver,
    UploadError,
    UploadOver,
)
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import Adoption, Change, Facts, Stop, UploadAccess
from django_async_upload.stores import Piece, disk
from django_async_upload.stores.publication import link as link_module
from django_async_upload.stores.publication.base import Finished
from django_async_upload.stores.publication.link import LinkPublication
from django_async_upload.testing.stores import MAX_PIECE, damage, split

from .fixtures import KIB, MIB, Heard, crc, facts, forget_service, new_key, row, run

pytest_plugins = ["tests.fixtures"]


class RecordingListener:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.acks = 0
        self.rewinds: list[tuple[int, str]] = []
        self.pauses = 0
        self.most_rewinds = 100

    def acked(self) -> None:
        self.acks += 1

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        assert durable <= offset <= limit
        self.rewinds.append((offset, code))
        if len(self.rewinds) > self.most_rewinds:
            raise CorruptChunks(offset=offset, times=len(self.rewinds))

    def pause(self) -> None:
        self.pauses += 1


class Host:
    """An endpoint that may refuse; see :class:`~django_async_upload.engine.verify.Hooks`."""

    inspects = False

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.refusal: UploadError | None = None
        self.name = "uploads/a.bin"
        self.inspecting = asyncio.Event()
        self.released = asyncio.Event()
        self.released.set()

    async def admit(self) -> int | None:
        return None

    async def new_session(self, new: Any) -> Any:
        raise NotImplementedError

    def get_taps(self, session: UploadSession) -> list[Tap]:
        return taps_of(session)

    async def name_of(self, session: UploadSession) -> str:
        if self.name == "":
            raise NameRefused
        return self.name

    async def inspect(self, session: UploadSession, file: Any) -> None:
        self.seen = await asyncio.to_thread(file.read)
        self.inspecting.set()
        await self.released.wait()
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def host(owner: Owner) -> Host:
    return Host(owner)


def new_session(owner: Owner, data: bytes | None, **fields: Any) -> UploadSession:
    return UploadSession(
        **{
            "key": new_key(),
            "endpoint": "default",
            "owner_id": owner.user_id,
            "owner_key": owner.key,
            "name": "a.bin",
            "size": None if data is None else len(data),
            "expires_at": rows.expiry(),
            **fields,
        }
    )


def taps_of(session: UploadSession) -> list[Tap]:
    return [Digest(session.digest)] if session.digest else []


def pieces(data: bytes, start: int = 0, size: int = MAX_PIECE) -> list[Piece]:
    return split(data[start:], size, offset=start)


@asynccontextmanager
async def begun(
    uploads: UploadService, owner: Owner, data: bytes | None, **fields: Any
) -> AsyncIterator[ActiveUpload]:
    upload = ActiveUpload(uploads, RecordingListener(), "user:1")
    try:
        session = new_session(owner, data, **fields)
        assert await uploads.create(upload, session, owner, None, taps_of(session)) == Created(
            session
        )
        yield upload
    finally:
        await uploads.leave(upload)


@asynccontextmanager
async def attached(
    uploads: UploadService, owner: Owner, pk: uuid.UUID
) -> AsyncIterator[ActiveUpload]:
    upload = ActiveUpload(uploads, RecordingListener(), "user:1")
    try:
        await uploads.attach(upload, UploadAccess(pk, owner, "default"), None, taps_of)
        upload.forget_queued()
        yield upload
    finally:
        await uploads.leave(upload)


def feed(upload: ActiveUpload, data: bytes, start: int = 0, *, chunk: int = MAX_PIECE) -> None:
    for piece in pieces(data, start, chunk):
        upload.append(piece)


async def write(upload: ActiveUpload, data: bytes, start: int = 0, **digests: str) -> Facts:
    feed(upload, data, start)
    upload.finish(facts(data, **digests))
    outcome = await upload.write()
    assert isinstance(outcome, Facts)
    return outcome


async def interrupted(uploads: UploadService, owner: Owner, data: bytes, sent: int) -> uuid.UUID:
    """An upload of which ``sent`` bytes are durable."""
    async with begun(uploads, owner, data) as upload:
        feed(upload, data[:sent])
        upload.release()
        assert await upload.write() is Stop.RELEASE
        assert await upload.interrupt() == sent
        return upload.session.pk


async def crash(uploads: UploadService) -> UploadService:
    """Discard the service as if its process had died, and start another one."""
    service._services.pop(asyncio.get_running_loop())
    uploads._recovery.stop()
    uploads.store.close()
    uploads.database.close()
    return get_service()


# Whole uploads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("size", [0, 1, 16 * KIB, 5 * MIB + 7])
async def test_what_was_written_is_published(
    uploads: UploadService, owner: Owner, host: Host, media: Path, size: int, sized: bool
) -> None:
    data = os.urandom(size)
    async with begun(uploads, owner, data if sized else None) as upload:
        session = (await uploads.complete(upload, await write(upload, data), host)).session
        assert session.state == State.COMPLETED
    kept = await row(session.pk)
    assert (media / kept.stored_as).read_bytes() == data
    assert (kept.state, kept.size, kept.durable, kept.crc32c) == (
        State.COMPLETED,
        size,
        size,
        crc(data),
    )
    assert kept.part == ""
    assert not os.listdir(uploads.store.root)


async def test_a_digest_is_checked_beside_the_crc(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    import hashlib

    data = os.urandom(3 * MIB)
    digest = hashlib.sha256(data).hexdigest()
    async with begun(uploads, owner, data, digest="sha-256") as upload:
        done = await write(upload, data, **{"sha-256": digest})
        session = (await uploads.complete(upload, done, host)).session
    assert (await row(session.pk)).digests == {"sha-256": digest}


async def test_a_digest_is_read_again_after_a_resume(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    import hashlib

    data = os.urandom(MIB)
    digest = hashlib.sha256(data).hexdigest()
    async with begun(uploads, owner, data, digest="sha-256") as upload:
        feed(upload, data[:5000])
        upload.release()
        await upload.write()
        await upload.interrupt()
    async with attached(uploads, owner, upload.session.pk) as again:
        done = await write(again, data, 5000, **{"sha-256": digest})
        session = (await uploads.complete(again, done, host)).session
    assert (await row(session.pk)).digests == {"sha-256": digest}


@pytest.mark.parametrize("digests", [{}, {"sha-256": "0" * 64}])
async def test_a_wrong_or_missing_digest_fails_the_upload(
    uploads: UploadService, owner: Owner, host: Host, heard: Heard, digests: dict[str, str]
) -> None:
    async with begun(uploads, owner, b"data", digest="sha-256") as upload:
        with pytest.raises(DigestMismatch):
            await uploads.complete(upload, await write(upload, b"data", **digests), host)
    await assert_failed(uploads, upload, "digest_mismatch", heard)


async def test_a_wrong_crc_fails_the_upload(
    uploads: UploadService, owner: Owner, host: Host, heard: Heard
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        feed(upload, b"data")
        upload.finish(Facts(4, "00000000"))
        done = await upload.write()
        with pytest.raises(DigestMismatch):
            await uploads.complete(upload, done, host)
    await assert_failed(uploads, upload, "digest_mismatch", heard)


async def assert_failed(
    uploads: UploadService, upload: ActiveUpload, code: str, heard: Heard
) -> None:
    kept = await row(upload.session.pk)
    assert (kept.state, kept.error) == (State.FAILED, code)
    assert not os.listdir(uploads.store.root)
    (failed,) = heard.named("failed")
    assert failed["error"].code == code
    assert failed["session"].pk == kept.pk


@pytest.mark.parametrize(("size", "declared"), [(3, 4), (5, 4), (3, 3), (4, 5)])
async def test_a_size_that_is_not_the_one_received_or_declared_interrupts(
    uploads: UploadService, owner: Owner, host: Host, size: int, declared: int
) -> None:
    async with begun(uploads, owner, b"d" * declared) as upload:
        feed(upload, b"data")
        upload.finish(m.Finish(size, crc(b"data")))
        with pytest.raises(SizeMismatch):
            await uploads.complete(upload, await upload.write(), host)
    assert (await row(upload.session.pk)).state == State.CREATED


async def test_a_host_may_refuse_the_whole_file(
    uploads: UploadService, owner: Owner, host: Host, heard: Heard, media: Path
) -> None:
    host.inspects, host.refusal = True, FileRefused("A virus.")
    async with begun(uploads, owner, b"data") as upload:
        with pytest.raises(FileRefused):
            await uploads.complete(upload, await write(upload, b"data"), host)
    assert host.seen == b"data"
    assert not media.exists()
    await assert_failed(uploads, upload, "file_refused", heard)


async def test_a_host_may_refuse_the_name(
    uploads: UploadService, owner: Owner, host: Host, heard: Heard
) -> None:
    host.name = ""
    async with begun(uploads, owner, b"data") as upload:
        with pytest.raises(NameRefused):
            await uploads.complete(upload, await write(upload, b"data"), host)
    await assert_failed(uploads, upload, "name_refused", heard)


async def test_many_that_want_one_name_all_survive(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    async def one(data: bytes) -> None:
        async with begun(uploads, owner, data) as upload:
            await uploads.complete(upload, await write(upload, data), host)

    contents = [f"content {number}".encode() for number in range(30)]
    await asyncio.gather(*map(one, contents))
    assert sorted(path.read_bytes() for path in (media / "uploads").iterdir()) == sorted(contents)


# Create -------------------------------------------------------------------------------------------


async def test_the_same_key_finds_the_upload_that_it_made(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        again = ActiveUpload(uploads, RecordingListener(), "user:1")
        session = new_session(owner, b"data", key=upload.session.key)
        pk = upload.session.pk
        found = await uploads.create(again, session, owner)
        assert isinstance(found, Known)
        assert found.session.pk == pk
        assert uploads.active[pk] is upload
        session = new_session(owner, b"other data", key=upload.session.key)
        with pytest.raises(KeyReused):
            await uploads.create(again, session, owner)
        await uploads.leave(again)
        assert uploads.active[pk] is upload


# Writing ------------------------------------------------------------------------------------------


async def test_a_damaged_chunk_rewinds_and_voids_what_follows_and_the_finish(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    data = os.urandom(10_000)
    sent = pieces(data, size=1000)
    async with begun(uploads, owner, data) as upload:
        for number, frame in enumerate(sent):
            upload.append(damage(frame) if number == 3 else frame)
        upload.finish(facts(data))
        writing = asyncio.create_task(upload.write())
        while not upload.listener.rewinds:
            await asyncio.sleep(0.001)
        assert upload.listener.rewinds == [(3000, "corrupt_chunk")]
        assert not writing.done()
        feed(upload, data, 3000)
        upload.finish(facts(data))
        session = (await uploads.complete(upload, await writing, host)).session
    assert session.crc32c == crc(data)


async def test_too_much_damage_fails_the_upload(uploads: UploadService, owner: Owner) -> None:
    async with begun(uploads, owner, b"data") as upload:
        upload.listener.most_rewinds = 0
        upload.append(damage(pieces(b"data")[0]))
        with pytest.raises(CorruptChunks):
            await upload.write()


async def test_a_sync_that_fails_is_not_tried_again_but_written_again(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    media: Path,
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.01)
    data = os.urandom(300 * KIB)
    broken: list[int] = []
    real = disk.fdatasync

    def fdatasync(fd: int) -> None:
        if not broken and os.fstat(fd).st_size > 100 * KIB:
            broken.append(fd)
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(disk, "fdatasync", fdatasync)
    async with begun(uploads, owner, data) as upload:
        writing = asyncio.create_task(upload.write())
        feed(upload, data[: 50 * KIB])
        while upload.flow.durable < 50 * KIB:
            await asyncio.sleep(0.005)
        first = upload.part.checkpoint.part
        feed(upload, data[: 200 * KIB], 50 * KIB)
        while not upload.listener.rewinds:
            await asyncio.sleep(0.005)
        assert upload.listener.rewinds == [(50 * KIB, "storage_error")]
        assert upload.flow.limit - upload.flow.received <= upload.account.promised
        feed(upload, data, 50 * KIB)
        upload.finish(facts(data))
        session = (await uploads.complete(upload, await writing, host)).session
    assert (media / session.stored_as).read_bytes() == data
    assert upload.part.writer is not None
    assert upload.part.writer.part != first
    assert not os.listdir(uploads.store.root)


async def test_the_old_part_stays_until_the_row_names_the_new_one(
    uploads: UploadService, owner: Owner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a crash in between would leave a row that names no file."""
    data = os.urandom(300 * KIB)
    pk = await interrupted(uploads, owner, data, 200 * KIB)
    old = (await row(pk)).part
    still_there: list[bool] = []
    change = rows.change

    def changing(items: Any) -> Any:
        if any(item.values.get("part", old) != old for item in items):
            still_there.append(os.path.exists(os.path.join(uploads.store.root, old)))  # type: ignore[attr-defined]
        return change(items)

    monkeypatch.setattr(rows, "change", changing)
    other = uploads.store.open((await row(pk)).checkpoint)  # a process that is stopped has its lock
    try:
        async with attached(uploads, owner, pk) as upload:
            assert (await row(pk)).part not in ("", old)
            session = (
                await uploads.complete(upload, await write(upload, data, 200 * KIB), host)
            ).session
    finally:
        other.close()
    assert session.state == State.COMPLETED
    assert still_there[0]
    assert not os.listdir(uploads.store.root)  # type: ignore[attr-defined]


async def test_a_disk_that_fails_again_and_again_interrupts(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.001)

    def fdatasync(fd: int) -> None:
        if os.fstat(fd).st_size:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "fdatasync", fdatasync)
    async with begun(uploads, owner, b"data") as upload:
        writing = asyncio.create_task(upload.write())
        while not writing.done():
            if not upload.queue.pieces and upload.flow.received == 0:
                feed(upload, b"data")
            await asyncio.sleep(0.002)
        with pytest.raises(StorageFailed):
            await writing
        assert await upload.interrupt() == 0


async def test_a_full_disk_interrupts_and_keeps_what_came(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = disk.write_at, False

    def write_at(fd: int, buffers: Any, offset: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        real(fd, buffers, offset)

    monkeypatch.setattr(disk, "write_at", write_at)
    data = os.urandom(2000)
    async with begun(uploads, owner, data) as upload:
        writing = asyncio.create_task(upload.write())
        feed(upload, data[:1000])
        while upload.flow.received < 1000:
            await asyncio.sleep(0.001)
        full = True
        feed(upload, data, 1000)
        with pytest.raises(StorageFull):
            await writing
        assert await upload.interrupt() == 1000
    kept = await row(upload.session.pk)
    assert (kept.state, kept.durable, kept.crc32c) == (State.INTERRUPTED, 1000, crc(data[:1000]))


async def test_a_release_keeps_what_came_before_it(uploads: UploadService, owner: Owner) -> None:
    data = os.urandom(50_000)
    assert await interrupted(uploads, owner, data, 40_000)
    (session,) = [each async for each in UploadSession.objects.all()]
    assert (session.state, session.durable) == (State.INTERRUPTED, 40_000)


async def test_a_finish_that_came_before_the_connection_went_is_carried_out(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        feed(upload, b"data")
        upload.finish(facts(b"data"))
        upload.release()
        assert isinstance(await upload.write(), Facts)


# Attach and takeover ------------------------------------------------------------------------------


async def test_a_resume_goes_on_from_what_is_there(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    data = os.urandom(200 * KIB)
    pk = await interrupted(uploads, owner, data, 150 * KIB)
    async with attached(uploads, owner, pk) as upload:
        assert (upload.flow.received, upload.flow.durable) == (150 * KIB, 150 * KIB)
        session = (
            await uploads.complete(upload, await write(upload, data, 150 * KIB), host)
        ).session
    assert (media / session.stored_as).read_bytes() == data


async def test_after_a_crash_what_was_written_is_proved_again(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    data = os.urandom(200 * KIB)
    async with begun(uploads, owner, data) as upload:
        await upload.reserve()
        writing = asyncio.create_task(upload.write())
        feed(upload, data[: 100 * KIB])
        while upload.flow.received < 100 * KIB:
            await asyncio.sleep(0.001)
        writing.cancel()  # nothing is saved
        await asyncio.wait({writing})
    again = await crash(uploads)
    async with attached(again, owner, upload.session.pk) as resumed:
        assert (resumed.flow.durable, resumed.flow.received) == (0, 100 * KIB)
        session = (
            await again.complete(resumed, await write(resumed, data, 100 * KIB), host)
        ).session
    assert (media / session.stored_as).read_bytes() == data


async def test_the_newest_wins_while_the_older_one_writes(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    data = os.urandom(4 * MIB)
    async with begun(uploads, owner, data) as older:
        writing = asyncio.create_task(older.write())

        async def give_way() -> None:
            with pytest.raises(TakenOver):
                await writing
            await older.interrupt()
            await uploads.leave(older)

        giving_way = asyncio.create_task(give_way())
        feed(older, data[: 3 * MIB], chunk=64 * KIB)
        await asyncio.sleep(0.002)  # in the middle of a write
        async with attached(uploads, owner, older.session.pk) as newer:
            await giving_way
            assert newer.session.epoch == older.session.epoch + 1
            older.append(pieces(b"x")[0])  # no task writes it any more
            received = newer.flow.received
            assert newer.part.writer is not None
            assert f"{newer.part.writer.crc:08x}" == crc(data[:received])
            session = (
                await uploads.complete(newer, await write(newer, data, received), host)
            ).session
    assert (media / session.stored_as).read_bytes() == data
    assert uploads.active == {}


async def test_an_older_holder_is_asked_to_let_go_so_that_no_byte_is_copied(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, b"data") as older:
        writing = asyncio.create_task(older.write())

        async def give_way() -> None:
            with pytest.raises(TakenOver):
                await writing
            await uploads.leave(older)

        giving_way = asyncio.create_task(give_way())
        feed(older, b"da")
        await older.checkpoints.make_now()
        while older.flow.durable < 2:
            await asyncio.sleep(0.001)
            await older.checkpoints.make_now()
        try:
            async with attached(uploads, owner, older.session.pk) as newer:
                assert older.part.writer is not None
                assert newer.part.writer is not None
                assert newer.part.writer.part == older.part.writer.part
        finally:
            giving_way.cancel()
            writing.cancel()


async def test_a_holder_that_does_not_let_go_loses_its_file(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a holder in another process that is stopped: the newer one continues in another file."""
    monkeypatch.setattr(hints, "YIELD_SECONDS", 0.05)
    monkeypatch.setattr(service, "LOCK_SECONDS", 0.05)
    data = os.urandom(100 * KIB)
    async with begun(uploads, owner, data) as older:
        feed(older, data[: 50 * KIB])
        older.release()
        await older.write()  # and then nothing: neither interrupted nor closed
        await older.checkpoints.save(await older.part.sync(), State.UPLOADING)
        async with attached(uploads, owner, older.session.pk) as newer:
            assert newer.flow.received == 50 * KIB
            done = await write(newer, data, 50 * KIB)
            session = (await uploads.complete(newer, done, host)).session
            assert older.part.writer is not None
            assert newer.part.writer is not None
            assert newer.part.writer.part != older.part.writer.part
            with pytest.raises(UploadError):  # the woken holder reaches neither row nor file
                await older.checkpoints.save(await older.part.sync(), State.UPLOADING)
            await uploads.store.run(older.part.writer.append, pieces(b"late"))
    assert (media / session.stored_as).read_bytes() == data


async def test_a_crowd_that_attaches_leaves_one_holder(
    uploads: UploadService, owner: Owner
) -> None:
    data = os.urandom(1000)
    pk = await interrupted(uploads, owner, data, 500)
    outcomes: list[str] = []

    async def fight() -> None:
        upload = ActiveUpload(uploads, RecordingListener(), "user:1")
        try:
            await uploads.attach(upload, UploadAccess(pk, owner, "default"))
            assert uploads.active[pk] is upload
            await upload.write()
        except UploadError as error:
            outcomes.append(error.code)
            await upload.interrupt()
        finally:
            await uploads.leave(upload)

    fighters = [asyncio.create_task(fight()) for _ in range(8)]
    last = 1 + len(fighters)
    while pk not in uploads.active or uploads.active[pk].session.epoch < last:
        assert not any(fighter.done() and fighter.exception() for fighter in fighters)
        await asyncio.sleep(0.005)
    uploads.active[pk].release()
    await asyncio.wait_for(asyncio.gather(*fighters), 10)
    assert outcomes == ["taken_over"] * 7
    kept = await row(pk)
    assert (kept.epoch, kept.durable) == (9, 500)


async def test_an_attach_while_it_completes_waits_for_the_result(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    host.inspects = True
    host.released.clear()
    async with begun(uploads, owner, b"data") as upload:
        completing = asyncio.create_task(
            uploads.complete(upload, await write(upload, b"data"), host)
        )
        await host.inspecting.wait()
        other = ActiveUpload(uploads, RecordingListener(), "user:1")
        found = await uploads.attach(other, UploadAccess(upload.session.pk, owner, "default"))
        assert isinstance(found, Finishing)
        waiting = asyncio.create_task(uploads.result(found.session, lambda progress: None))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        host.released.set()
        assert await waiting == await completing
        await uploads.leave(other)
    assert await CompletionEvent.objects.acount() == 1


async def test_a_result_of_what_was_interrupted_meanwhile_is_busy(
    uploads: UploadService, owner: Owner
) -> None:
    pk = await interrupted(uploads, owner, b"data", 2)
    with pytest.raises(Busy):
        await uploads.result(await row(pk), lambda progress: None)
    assert (await row(pk)).state == State.INTERRUPTED


@pytest.mark.parametrize("state", [State.COMPLETED, State.CANCELLED, State.FAILED])
async def test_an_attach_to_what_is_over_answers_with_the_end(
    uploads: UploadService, owner: Owner, state: State
) -> None:
    session = new_session(owner, b"data", state=state, stored_as="a")
    await session.asave(force_insert=True)
    upload = ActiveUpload(uploads, RecordingListener(), "user:1")
    try:
        if state == State.COMPLETED:
            found = await uploads.attach(upload, UploadAccess(session.pk, owner, "default"))
            assert isinstance(found, Published)
            assert found.session.stored_as == "a"
        else:
            with pytest.raises(UploadOver):
                await uploads.attach(upload, UploadAccess(session.pk, owner, "default"))
    finally:
        await uploads.leave(upload)


async def test_an_attach_to_a_lost_part_fails_loudly_and_for_good(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    pk = await interrupted(uploads, owner, b"data", 3)
    uploads.store.delete((await row(pk)).part)
    upload = ActiveUpload(uploads, RecordingListener(), "user:1")
    with pytest.raises(DataLost):
        await uploads.attach(upload, UploadAccess(pk, owner, "default"))
    await uploads.leave(upload)
    kept = await row(pk)
    assert (kept.state, kept.error) == (State.FAILED, "data_lost")
    assert len(heard.named("failed")) == 1


async def test_without_credit_a_new_upload_is_busy(uploads: UploadService, settings: Any) -> None:
    uploads.budget.total = 40 * KIB
    first = ActiveUpload(uploads, RecordingListener(), "user:1")
    with pytest.raises(Busy):
        ActiveUpload(uploads, RecordingListener(), "user:1")
    await uploads.leave(first)
    await uploads.leave(ActiveUpload(uploads, RecordingListener(), "user:1"))


# Cancel -------------------------------------------------------------------------------------------


async def test_a_cancel_throws_the_bytes_away(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    pk = await interrupted(uploads, owner, b"data", 3)
    ended = (await uploads.cancel(UploadAccess(pk, owner, "default"))).session
    assert ended.state == State.CANCELLED
    assert not os.listdir(uploads.store.root)
    again = (await uploads.cancel(UploadAccess(pk, owner, "default"))).session
    assert again.state == State.CANCELLED
    assert len(heard.named("cancelled")) == 1


async def test_a_cancel_from_elsewhere_stops_the_holder(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not at its next checkpoint, or its next look at its row."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 1000.0)
    monkeypatch.setattr(hints, "LOOK_SECONDS", 1000.0)
    async with begun(uploads, owner, b"data") as upload:
        writing = asyncio.create_task(upload.write())
        feed(upload, b"da")
        while upload.flow.received < 2:
            await asyncio.sleep(0.001)
        await uploads.cancel(UploadAccess(upload.session.pk, owner, "default"))
        with pytest.raises(UploadOver):
            async with asyncio.timeout(10):
                await writing
    # The row did not know the part's name yet.
    assert not os.listdir(uploads.store.root)


async def test_a_cancel_outruns_what_is_queued(uploads: UploadService, owner: Owner) -> None:
    async with begun(uploads, owner, b"data") as upload:
        feed(upload, b"data")
        upload.finish(facts(b"data"))
        upload.cancel()
        assert await upload.write() is Stop.CANCEL


@pytest.mark.parametrize("from_elsewhere", [True, False])
async def test_a_cancel_works_while_the_file_is_checked(
    uploads: UploadService, owner: Owner, host: Host, media: Path, from_elsewhere: bool
) -> None:
    host.inspects = True
    host.released.clear()
    async with begun(uploads, owner, b"data") as upload:
        done = await write(upload, b"data")
        completing = asyncio.create_task(uploads.complete(upload, done, host))
        await host.inspecting.wait()
        if from_elsewhere:
            cancelling = asyncio.create_task(
                uploads.cancel(UploadAccess(upload.session.pk, owner, "default"))
            )
            while not upload.is_cancelled:
                await asyncio.sleep(0.001)
        else:
            upload.cancel()
        host.released.set()
        assert isinstance(await completing, Cancelled)
        if from_elsewhere:
            assert isinstance(await cancelling, Cancelled)
    assert not media.exists()


async def test_a_cancel_after_publication_is_answered_with_the_result(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        session = (await uploads.complete(upload, await write(upload, b"data"), host)).session
    ended = (await uploads.cancel(UploadAccess(session.pk, owner, "default"))).session
    assert (ended.state, ended.stored_as) == (State.COMPLETED, session.stored_as)


@pytest.mark.parametrize("verb", ["find", "cancel"])
async def test_another_owners_upload_is_not_there(
    uploads: UploadService, owner: Owner, bob: Any, verb: str
) -> None:
    pk = await interrupted(uploads, owner, b"data", 3)
    stranger = Owner(f"user:{bob.pk}", bob)
    with pytest.raises(NotFound):
        await getattr(uploads, verb)(UploadAccess(pk, stranger, "default"))
    assert (await row(pk)).state == State.INTERRUPTED


# After a crash ------------------------------------------------------------------------------------


class Died(BaseException):
    """The process ends here."""


async def die_at(
    uploads: UploadService, owner: Owner, host: Host, step: str, patch: pytest.MonkeyPatch
) -> UploadSession:
    """Complete an upload in a process that dies at a step of the publication."""

    async def die(self: Publisher, *args: Any) -> Any:
        raise Died

    def link_and_die(*args: Any, **kwargs: Any) -> None:
        real_link(*args, **kwargs)
        raise Died

    def die_in_thread(self: Publisher, *args: Any) -> None:
        raise Died

    real_link = link_module.link

    with patch.context() as until_death:
        if step == "before the link":
            until_death.setattr(Publisher, "_continue_finalizing", die)
        elif step == "after the link":
            until_death.setattr(link_module, "link", link_and_die)
        else:
            until_death.setattr(Publisher, "_clean_up", die_in_thread)
        async with begun(uploads, owner, b"data") as upload:
            done = await write(upload, b"data")
            with pytest.raises(Died):
                await uploads.complete(upload, done, host)
    return await row(upload.session.pk)


@pytest.mark.parametrize("how", ["attach", "cancel", "watch"])
@pytest.mark.parametrize("step", ["before the link", "after the link", "after the commit"])
async def test_a_publication_goes_on_where_a_crash_left_it(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    how: str,
) -> None:
    session = await die_at(uploads, owner, host, step, monkeypatch)
    committed = step == "after the commit"
    assert session.state == (State.COMPLETED if committed else State.FINALIZING)
    assert not heard.named("completed")
    again = await crash(uploads)
    access = UploadAccess(session.pk, owner, "default")
    if how == "attach":
        upload = ActiveUpload(again, RecordingListener(), "user:1")
        found = await again.attach(upload, access)
        assert isinstance(found, Published if committed else Finishing)
        results = await asyncio.gather(
            *(again.result(found.session, lambda progress: None) for _ in range(3))
        )
        assert {each.session.stored_as for each in results} == {"uploads/a.bin"}
        await again.leave(upload)
    elif how == "cancel":
        assert isinstance(await again.cancel(access), Published)
    else:
        monkeypatch.setattr(recovery, "STUCK_SECONDS", 0.0)
        again.start()
        for _ in range(200):
            if (await row(session.pk)).state == State.COMPLETED:
                break
            await asyncio.sleep(0.01)
    assert [path.read_bytes() for path in (media / "uploads").iterdir()] == [b"data"]
    assert await CompletionEvent.objects.acount() == 1
    await CompletionEvent.objects.filter(delivered_at=None).aupdate(due_at=timezone.now())
    await again.outbox.join()
    await again.outbox.deliver_due()
    while not heard.named("completed"):  # the watch may have claimed it first
        await asyncio.sleep(0.01)
    assert {each["event_id"] for each in heard.named("completed")} == {
        (await CompletionEvent.objects.aget()).pk
    }
    if not committed:
        assert not os.listdir(again.store.root)


async def test_a_part_that_is_gone_in_the_middle_of_its_publication_is_lost(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = await die_at(uploads, owner, host, "before the link", monkeypatch)
    again = await crash(uploads)
    again.store.delete(session.part)
    with pytest.raises(DataLost):
        await again.result(session, lambda progress: None)
    kept = await row(session.pk)
    assert (kept.state, kept.error) == (State.FAILED, "data_lost")
    assert not media.exists()


@pytest.mark.parametrize("boot", ["this", "another"])
async def test_a_part_that_is_not_whole_is_never_published(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    boot: str,
) -> None:
    """With durability ``os`` the machine's crash may take bytes that the row counts."""
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    uploads = get_service()
    session = await die_at(uploads, owner, host, "before the link", monkeypatch)
    if boot == "another":
        await UploadSession.objects.aupdate(token="another")
    again = await crash(uploads)
    os.truncate(os.path.join(again.store.root, session.part), 2)
    with pytest.raises(DataLost):
        await again.result(await row(session.pk), lambda progress: None)
    assert (await row(session.pk)).state == State.FAILED
    assert not media.exists()


async def test_what_another_process_publishes_is_left_to_it(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = await die_at(uploads, owner, host, "before the link", monkeypatch)
    other = uploads.store.open(session.checkpoint)  # a process that lives holds its lock
    recovering = asyncio.create_task(uploads._completions.recover(session))
    await UploadSession.objects.filter(pk=session.pk).aupdate(updated_at=timezone.now())
    with pytest.raises(Busy):
        await recovering
    waiting = asyncio.create_task(uploads.result(session, lambda progress: None))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    other.close()
    assert isinstance(await waiting, Published)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is silent counts as stopped after moments."""
    monkeypatch.setattr(completion, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(completion, "TOUCHED_SECONDS", 0.1)


@pytest.mark.parametrize("how", ["attach", "watch"])
@pytest.mark.parametrize("step", ["before the link", "after the link"])
async def test_a_publication_is_adopted_from_a_process_that_is_stopped(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    how: str,
) -> None:
    session = await die_at(uploads, owner, host, step, monkeypatch)
    stopped = uploads.store.open(session.checkpoint)  # its lock is never free
    inode = os.stat(stopped.path()).st_ino
    if how == "attach":
        result = await uploads.result(session, lambda progress: None)
    else:
        result = await uploads._completions.recover(session)
    published = media / result.session.stored_as
    assert (published.stat().st_ino, published.read_bytes()) == (inode, b"data")
    before = published.stat()
    # It wakes, and goes on wherever it was.
    (late,) = await run(rows.change, [Change(session.pk, session.epoch, State.FINALIZING)])
    assert isinstance(late, Busy)
    part = Finished(stopped, session.get_storage(), session.pk, "in/late.bin", lambda done: None)
    (linked,) = LinkPublication(uploads.store).publish([part])
    assert isinstance(linked, StorageFailed)
    (event,) = await run(rows.complete, [session])
    assert isinstance(event, Busy)
    stopped.close()
    assert [each for each in media.rglob("*") if each.is_file()] == [published]
    assert published.stat() == before
    assert not os.listdir(uploads.store.root)
    assert await CompletionEvent.objects.acount() == 1


async def test_a_process_that_was_slower_fails_no_upload_that_another_one_adopted(
    uploads: UploadService, owner: Owner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await die_at(uploads, owner, host, "before the link", monkeypatch)
    adoption = Adoption(session.pk, session.epoch, f"{session.part}-1")
    os.rename(uploads.store.path(session.part), uploads.store.path(adoption.part))
    await run(rows.adopt, [adoption])
    with pytest.raises(Busy):
        await uploads._completions._resume(session, lambda progress: None)
    assert (await row(session.pk)).state == State.FINALIZING


async def test_of_two_processes_that_adopt_a_publication_one_publishes(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = await die_at(uploads, owner, host, "before the link", monkeypatch)
    stopped = uploads.store.open(session.checkpoint)
    others = [UploadService(uploads.store) for _ in range(3)]
    results = await asyncio.gather(
        *(each._completions.recover(session) for each in others), return_exceptions=True
    )
    assert {type(each) for each in results} <= {Published, Busy}
    assert any(isinstance(each, Published) for each in results)
    assert len([each for each in media.rglob("*") if each.is_file()]) == 1
    assert await CompletionEvent.objects.acount() == 1
    assert not os.listdir(uploads.store.root)
    stopped.close()
    for each in others:
        each.database.close()


async def test_a_storage_that_cannot_be_linked_into_gets_a_copy(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "links_into", lambda storage, path: False)
    data = os.urandom(3 * MIB)
    reports: list[m.Progress] = []
    async with begun(uploads, owner, data) as upload:
        monkeypatch.setattr(upload, "report", reports.append)
        session = (await uploads.complete(upload, await write(upload, data), host)).session
    assert (media / session.stored_as).read_bytes() == data
    assert [report.phase for report in reports] == ["finalizing"] * len(reports)
    assert reports[-1].done == reports[-1].total == len(data)
    assert not os.listdir(uploads.store.root)


# The service itself -------------------------------------------------------------------------------


async def test_a_loop_has_one_service_until_settings_change(
    uploads: UploadService, settings: Any
) -> None:
    assert get_service() is uploads
    settings.ASYNC_UPLOAD = {"MEMORY_BUDGET": 2 * MIB}
    again = get_service()
    assert again is not uploads
    assert again.budget.total == 2 * MIB
    await uploads.close()


async def test_close_saves_what_is_held(uploads: UploadService, owner: Owner) -> None:
    async def hold() -> ActiveUpload:
        async with begun(uploads, owner, b"data") as upload:
            feed(upload, b"da")
            if await upload.write() is Stop.RELEASE:
                await upload.interrupt()
            return upload

    holding = asyncio.create_task(hold())
    while not uploads.active:
        await asyncio.sleep(0.001)
    uploads.start()
    await forget_service()
    upload = await holding
    assert (await row(upload.session.pk)).durable == 2
    assert upload.account.promised == 0


# What a crash, or an answer that did not come, leaves ---------------------------------------------


async def test_a_create_whose_commit_was_not_answered_is_this_ones_own(
    uploads: UploadService, owner: Owner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Database._transact
    lost: list[bool] = []

    def losing(self: Database, group: Any) -> Any:
        results = transact(self, group)
        if not lost:
            lost.append(True)
            raise OperationalError("server closed the connection unexpectedly")
        return results

    monkeypatch.setattr(Database, "_transact", losing)
    async with begun(uploads, owner, b"data") as upload:
        assert lost
        session = (await uploads.complete(upload, await write(upload, b"data"), host)).session
    assert session.state == State.COMPLETED


async def test_an_end_whose_commit_was_not_answered_still_deletes_the_part_and_is_told(
    uploads: UploadService, owner: Owner, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pk = await interrupted(uploads, owner, b"data", 2)
    transact = Database._transact
    lost: list[bool] = []

    def losing(self: Database, group: Any) -> Any:
        results = transact(self, group)
        if not lost and any(call.function is rows.end for call in group):
            lost.append(True)
            raise OperationalError("server closed the connection unexpectedly")
        return results

    monkeypatch.setattr(Database, "_transact", losing)
    ended = (await uploads.cancel(UploadAccess(pk, owner, "default"))).session
    assert lost
    assert ended.state == State.CANCELLED
    assert len(heard.named("cancelled")) == 1
    assert not os.listdir(uploads.store.root)  # type: ignore[attr-defined]


async def test_what_a_reboot_took_is_sent_again_where_durability_never_promised_it(
    uploads: UploadService, owner: Owner, host: Host, settings: Any
) -> None:
    """Durability ``os``: the row counts bytes that the machine's crash took."""
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    uploads = get_service()
    data = os.urandom(3 * MIB)
    pk = await interrupted(uploads, owner, data, 2 * MIB)
    await UploadSession.objects.aupdate(token="another")
    os.truncate(os.path.join(uploads.store.root, (await row(pk)).part), 4096)  # type: ignore[attr-defined]
    async with attached(uploads, owner, pk) as upload:
        assert (upload.flow.durable, upload.flow.received) == (0, 0)
        assert (await row(pk)).durable == 0
        session = (await uploads.complete(upload, await write(upload, data), host)).session
    assert session.state == State.COMPLETED


async def test_a_name_that_was_linked_before_a_crash_is_synced_before_the_upload_counts_as_complete(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = await die_at(uploads, owner, host, "after the link", monkeypatch)
    again = await crash(uploads)
    synced: list[str] = []
    sync_directory = disk.sync_directory

    def noting(directory: str) -> None:
        synced.append(directory)
        sync_directory(directory)

    monkeypatch.setattr(disk, "sync_directory", noting)
    assert isinstance(await again.result(session, lambda progress: None), Published)
    folder = media / os.path.dirname(session.stored_as)
    assert {str(folder), str(media), str(media.parent)} <= set(synced)


async def test_a_refusal_that_may_pass_keeps_the_bytes(
    uploads: UploadService, owner: Owner, host: Host
) -> None:
    """A host's quota at FINISH: what was sent stays, and can be finished later."""

    async def admit() -> int | None:
        raise ByteQuotaExceeded(max_bytes=1, open_bytes=2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "admit", admit)
        async with begun(uploads, owner, b"data") as upload:
            with pytest.raises(ByteQuotaExceeded):
                await uploads.complete(upload, await write(upload, b"data"), host)
            assert await upload.interrupt() == 4
    async with attached(uploads, owner, upload.session.pk) as again:
        again.finish(facts(b"data"))
        wish = await again.write()
        assert isinstance(wish, Facts)
        assert isinstance(await uploads.complete(again, wish, host), Published)


async def test_a_part_that_is_gone_leaves_no_new_one_behind(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    uploads = get_service()
    session = await die_at(uploads, owner, host, "before the link", monkeypatch)
    again = await crash(uploads)
    again.store.delete(session.part)
    await UploadSession.objects.aupdate(token="another")
    with pytest.raises(DataLost):
        await again.result(session, lambda progress: None)
    assert not os.listdir(again.store.root)  # type: ignore[attr-defined]
