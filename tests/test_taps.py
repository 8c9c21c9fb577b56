"""Taps see every byte once and in order, beside the writing; their suite catches taps that do not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from django_async_upload.concurrency.apart import Unfinished
from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import taps as module
from django_async_upload.engine.runtime import Runtime
from django_async_upload.engine.service import UploadService
from django_async_upload.engine.taps import MAX_BEHIND, Digest, Tap, Taps
from django_async_upload.exceptions import FileRefused, StorageFailed, UploadError
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.state import State
from django_async_upload.stores import MemoryStore, Piece
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.testing.stores import split
from django_async_upload.testing.taps import TapCompliance

from .fixtures import KIB, MIB, crc, finish, new_key, row, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


class TestDigest(TapCompliance):
    def make_tap(self) -> Tap:
        return Digest()


class Recorder:
    """Keeps what it sees, and refuses the content that its head names."""

    def __init__(self, refuses: bytes = b"BAD") -> None:
        self.seen = bytearray()
        self.restarts = 0
        self.refuses = refuses

    def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        assert offset == len(self.seen)
        for piece in pieces:
            self.seen += piece.payload
        self.judge()

    def restart(self, prefix: Iterable[bytes]) -> None:
        self.restarts += 1
        self.seen.clear()
        for piece in prefix:
            self.seen += piece
        self.judge()

    def judge(self) -> None:
        if self.seen.startswith(self.refuses):
            raise FileRefused("Its head is bad.")

    def end(self) -> Mapping[str, str]:
        return {"md5": hashlib.md5(self.seen).hexdigest()}


class TestRecorder(TapCompliance):
    def make_tap(self) -> Tap:
        return Recorder()


class KeepsPieces(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Piece] = []

    def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        self.kept += pieces

    def end(self) -> Mapping[str, str]:
        return {"md5": hashlib.md5(b"".join(bytes(each.payload) for each in self.kept)).hexdigest()}


class ForgetsNothing(Recorder):
    def restart(self, prefix: Iterable[bytes]) -> None:
        for piece in prefix:
            self.seen += piece


class SeesTheFirstPieceOnly(Recorder):
    def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        super().feed(offset, pieces[:1])


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (KeepsPieces, "no_piece_is_kept"),
        (ForgetsNothing, "restarted_in_the_middle_it_forgets_what_it_saw"),
        (SeesTheFirstPieceOnly, "many_pieces_come_in_one_call"),
    ],
)
def test_a_broken_tap_is_caught(broken: type[Recorder], test: str) -> None:
    class Suite(TapCompliance):
        def make_tap(self) -> Tap:
            return broken()

    suite = Suite()
    expected = {"md5": hashlib.md5(suite.data).hexdigest()}
    with pytest.raises((AssertionError, BufferError, ValueError)):
        getattr(suite, f"test_{test}")(expected)


@pytest.fixture
def recorders() -> list[Recorder]:
    return []


@pytest.fixture
def tapped(recorders: list[Recorder]) -> Any:
    class Tapped(UploadConsumer):
        def taps(self, session: UploadSession) -> Sequence[Tap]:
            recorders.append(Recorder())
            return [recorders[-1]]

    return Tapped


async def test_a_tap_sees_the_file_and_its_digest_is_saved(
    connect: Connect,
    application: Any,
    tapped: Any,
    recorders: list[Recorder],
    uploads: UploadService,
) -> None:
    from channels.auth import AuthMiddlewareStack

    data = os.urandom(300 * KIB)
    async with connect(AuthMiddlewareStack(tapped.as_asgi())) as client:
        done = await client.upload("a.bin", data)
    md5 = hashlib.md5(data).hexdigest()
    assert done.digests == {}, "which the protocol does not know"
    assert (await row(done.upload)).digests == {"md5": md5}
    assert any(bytes(each.seen) == data for each in recorders)
    assert not any(each.restarts for each in recorders)


async def test_a_small_file_is_seen_too(
    connect: Connect, tapped: Any, recorders: list[Recorder], uploads: UploadService
) -> None:
    from channels.auth import AuthMiddlewareStack

    async with connect(AuthMiddlewareStack(tapped.as_asgi())) as client:
        done = await client.upload("a.bin", b"hello")
        assert (await row(done.upload)).digests
        with pytest.raises(FileRefused):
            await client.upload("b.bin", b"BAD")


async def test_a_file_is_refused_before_the_rest_is_sent(
    connect: Connect, tapped: Any, media: Path, uploads: UploadService
) -> None:
    from channels.auth import AuthMiddlewareStack

    async with connect(AuthMiddlewareStack(tapped.as_asgi())) as client:
        await client.send(m.Create(new_key(), "a.bin", 100 * MIB), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"BAD" + bytes(4 * KIB))
        with pytest.raises(FileRefused, match="Its head is bad"):
            await client.wait_for(m.Completed, 1)
    await settled()
    session = await row(created.upload)
    assert (session.state, session.error) == (State.FAILED, "file_refused")
    assert not os.listdir(uploads.store.root)  # type: ignore[attr-defined]


async def test_after_a_resume_a_new_tap_gets_the_whole_file(
    connect: Connect, tapped: Any, recorders: list[Recorder], uploads: UploadService
) -> None:
    from channels.auth import AuthMiddlewareStack

    data = os.urandom(60 * KIB)
    application = AuthMiddlewareStack(tapped.as_asgi())
    async with connect(application) as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[: 10 * KIB])
        await client.send(m.Release(), 1)
        released = await client.wait_for(m.Released, 1)
    recorders.clear()
    async with connect(application) as client:
        await client.send(m.Attach(created.upload), 1)
        attached = await client.wait_for(m.Attached, 1)
        assert attached.durable == released.durable == 10 * KIB
        await client.send(m.Proof(crc(data[: 10 * KIB]), crc(data[: 10 * KIB])), 1)
        ready = await client.wait_for(m.Ready, 1)
        sent, limit = ready.offset, ready.limit
        while sent < len(data):
            while limit <= sent:
                limit = (await client.wait_for(m.Ack, 1)).limit
            await client.send_data(1, sent, data[sent:limit])
            sent = min(limit, len(data))
        await client.send(finish(data), 1)
        await client.wait_for(m.Completed, 1)
    (recorder,) = recorders
    assert bytes(recorder.seen) == data
    assert recorder.restarts == 1


async def test_a_mistake_in_a_tap_is_logged_and_the_upload_can_be_resumed(
    connect: Connect, uploads: UploadService, caplog: pytest.LogCaptureFixture
) -> None:
    from channels.auth import AuthMiddlewareStack

    class Broken(Recorder):
        def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
            raise RuntimeError("a mistake")

    class Tapped(UploadConsumer):
        def taps(self, session: UploadSession) -> Sequence[Tap]:
            return [Broken()]

    async with connect(AuthMiddlewareStack(Tapped.as_asgi())) as client:
        with pytest.raises(UploadError) as caught:
            await client.upload("a.bin", b"data")
    assert caught.value.code == "internal_error"
    assert "A tap of upload" in caplog.text
    await settled()
    assert (await UploadSession.objects.aget()).state == State.INTERRUPTED


async def test_a_slow_tap_holds_up_its_own_upload_only(
    connect: Connect, uploads: UploadService
) -> None:
    from channels.auth import AuthMiddlewareStack

    released = threading.Event()

    class Slow(Recorder):
        def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
            released.wait(20)

    class Tapped(UploadConsumer):
        def taps(self, session: UploadSession) -> Sequence[Tap]:
            return [Slow()] if session.name == "slow.bin" else []

    application = AuthMiddlewareStack(Tapped.as_asgi())

    async def upload_slowly() -> None:
        async with connect(application) as client:
            await client.upload("slow.bin", bytes(64 * KIB))

    # As many as the store has threads: none of these may be one that writes chunks.
    slow = [asyncio.create_task(upload_slowly()) for _ in range(uploads.store.threads)]
    try:
        await asyncio.sleep(0.5)
        async with connect() as other, asyncio.timeout(10):
            await other.upload("b.bin", bytes(64 * KIB))
        assert not any(each.done() for each in slow)
    finally:
        released.set()
    await asyncio.gather(*slow)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(MemoryStore())
    yield runtime
    runtime.tap_threads.close()


async def test_the_writing_waits_for_taps_that_are_far_behind(runtime: Runtime) -> None:
    began, released = threading.Event(), threading.Event()

    class Slow(Recorder):
        def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
            began.set()
            released.wait(20)

    taps = Taps(runtime, "", [Slow()], lambda error: None)
    await taps.feed(split(b"x"))
    await asyncio.to_thread(began.wait, 20)
    await taps.feed(split(bytes(MAX_BEHIND + 1), 1))
    waiting = asyncio.create_task(taps.feed(split(b"x")))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    released.set()
    async with asyncio.timeout(20):
        await waiting
        await taps.caught_up()


class Hanging(Recorder):
    """Does not return from one of its methods until it is released."""

    def __init__(self, method: str, released: threading.Event) -> None:
        super().__init__()
        self.method = method
        self.released = released

    def hang_in(self, method: str) -> None:
        if method == self.method:
            self.released.wait()

    def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        self.hang_in("feed")
        super().feed(offset, pieces)

    def restart(self, prefix: Iterable[bytes]) -> None:
        self.hang_in("restart")
        super().restart(prefix)

    def end(self) -> Mapping[str, str]:
        self.hang_in("end")
        return super().end()


@pytest.fixture
def hanging(released: threading.Event) -> Callable[[str], Any]:
    """An endpoint whose taps hang in a method, for uploads with a name that begins with "hangs"."""
    from channels.auth import AuthMiddlewareStack

    def hanging(method: str) -> Any:
        class Tapped(UploadConsumer):
            def taps(self, session: UploadSession) -> Sequence[Tap]:
                return [Hanging(method if session.name.startswith("hangs") else "", released)]

        return AuthMiddlewareStack(Tapped.as_asgi())

    return hanging


async def begin(client: UploadCommunicator, name: str, data: bytes, sent: int) -> str:
    """Create an upload on stream 1 and send its first bytes; returns its id when they are received."""
    await client.send(m.Create(new_key(), name, len(data)), 1)
    created = await client.wait_for(m.Created, 1)
    await client.send_data(1, 0, data[:sent])
    while (await client.wait_for(m.Ack, 1)).received < sent:
        pass
    return created.upload


async def release(client: UploadCommunicator) -> None:
    await client.send(m.Release(), 1)
    await client.wait_for(m.Released, 1)


async def resume(client: UploadCommunicator, upload: str, data: bytes) -> None:
    """Attach to an upload on stream 1, send what is missing, and wait for its completion."""
    await client.send(m.Attach(upload), 1)
    attached = await client.wait_for(m.Attached, 1)
    await client.send(m.Proof(crc(data[: attached.durable]), crc(data[: attached.received])), 1)
    ready = await client.wait_for(m.Ready, 1)
    if ready.offset < len(data):
        await client.send_data(1, ready.offset, data[ready.offset :])
    await client.send(finish(data), 1)
    await client.wait_for(m.Completed, 1)


@pytest.mark.parametrize("method", ["feed", "end"])
async def test_a_tap_that_never_returns_interrupts_its_upload(
    connect: Connect,
    hanging: Callable[[str], Any],
    uploads: UploadService,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    monkeypatch.setattr(module, "TAP_SECONDS", 0.2)
    data = os.urandom(8 * KIB)
    async with connect(hanging(method)) as client, asyncio.timeout(20):
        with pytest.raises(UploadError) as caught:
            await client.upload("hangs.bin", data)
    assert caught.value.code == "internal_error"
    assert caught.value.retryable
    assert "did not return within 0.2 s" in caplog.text
    await settled()
    session = await UploadSession.objects.aget()
    assert (session.state, session.durable) == (State.INTERRUPTED, len(data))
    async with connect(hanging("")) as client, asyncio.timeout(20):
        await resume(client, str(session.pk), data)


async def test_a_restart_that_never_returns_interrupts_its_upload_again(
    connect: Connect,
    hanging: Callable[[str], Any],
    uploads: UploadService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TAP_SECONDS", 0.2)
    data = os.urandom(8 * KIB)
    async with connect(hanging("")) as client:
        upload = await begin(client, "hangs.bin", data, 4 * KIB)
        await release(client)
    async with connect(hanging("restart")) as client, asyncio.timeout(20):
        with pytest.raises(UploadError) as caught:
            await resume(client, upload, data)
    assert caught.value.code == "internal_error"
    await settled()
    assert (await row(upload)).state == State.INTERRUPTED


async def test_taps_that_hang_delay_neither_resumes_nor_the_taps_of_other_uploads(
    connect: Connect, hanging: Callable[[str], Any], uploads: UploadService
) -> None:
    uploads.store.threads = 2
    application = hanging("feed")
    data = os.urandom(8 * KIB)
    async with connect(application) as client:
        upload = await begin(client, "a.bin", data, 4 * KIB)
        await release(client)
    async with connect(application) as first, connect(application) as second:
        await begin(first, "hangs1.bin", data, 4 * KIB)
        await begin(second, "hangs2.bin", data, 4 * KIB)
        async with connect(application) as client, asyncio.timeout(20):
            await resume(client, upload, data)
        async with connect(application) as client, asyncio.timeout(20):
            await client.upload("b.bin", data)


async def test_a_takeover_does_not_wait_for_the_tap_of_the_older_connection(
    connect: Connect,
    hanging: Callable[[str], Any],
    uploads: UploadService,
    released: threading.Event,
) -> None:
    data = os.urandom(8 * KIB)
    async with connect(hanging("feed")) as older:
        upload = await begin(older, "hangs.bin", data, 4 * KIB)
        part = uploads.active[UUID(upload)].part.name
        async with connect(hanging("")) as newer, asyncio.timeout(20):
            await newer.send(m.Attach(upload), 1)
            attached = await newer.wait_for(m.Attached, 1)
            assert attached.received == 4 * KIB
            assert (await row(upload)).part == part, "no copy: the older holder has closed it"
        released.set()
        with suppress(UploadError):
            await older.wait_for(m.Completed, 1)


async def test_a_tap_that_was_given_up_is_not_fed_again_and_keeps_no_bytes(
    runtime: Runtime, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAP_SECONDS", 0.05)
    failures: list[Exception] = []
    given: list[Sequence[Piece]] = []

    class Tapped(Hanging):
        def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
            given.append(pieces)
            super().feed(offset, pieces)

    taps = Taps(runtime, "", [Tapped("feed", released)], failures.append)
    async with asyncio.timeout(20):
        await taps.feed(split(bytes(100), 10))
        await taps.caught_up()
        await taps.feed(split(b"x"))
        await taps.caught_up()
    assert [type(error) for error in failures] == [Unfinished]
    assert given == [[]]


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_BYTES", 1)


async def end_after_missing(runtime: Runtime, tap: Tap, data: bytes) -> dict[str, str]:
    """The digests of a tap that has missed all bytes."""
    writer = runtime.store.create(len(data))
    writer.append(split(data))
    taps = Taps(runtime, "", [tap], lambda error: None)
    taps.miss()
    return await taps.end(writer, lambda done: None)


@pytest.mark.usefixtures("small_reads")
async def test_a_restart_may_take_long_as_long_as_it_reads(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAP_SECONDS", 0.2)

    class Slow(Recorder):
        def restart(self, prefix: Iterable[bytes]) -> None:
            for piece in prefix:
                self.seen += piece
                threading.Event().wait(0.1)

    found = await end_after_missing(runtime, Slow(), b"12345")
    assert found == {"md5": hashlib.md5(b"12345").hexdigest()}


@pytest.mark.usefixtures("small_reads")
async def test_a_restart_that_was_given_up_reads_no_more_bytes(
    runtime: Runtime, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAP_SECONDS", 0.05)
    caught: list[Exception] = []
    returned = threading.Event()

    class Late(Recorder):
        def restart(self, prefix: Iterable[bytes]) -> None:
            try:
                for piece in prefix:
                    self.seen += piece
                    released.wait()
            except StorageFailed as error:
                caught.append(error)
            returned.set()

    tap = Late()
    with pytest.raises(Unfinished):
        await end_after_missing(runtime, tap, b"12345")
    released.set()
    assert await asyncio.to_thread(returned.wait, 20)
    assert tap.seen == b"1"
    assert caught
