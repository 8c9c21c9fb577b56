"""The client against a scripted server: no network, every fault on command."""

from __future__ import annotations

import asyncio
import io
import os
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from django_async_upload.client import Progress, UploadClient
from django_async_upload.exceptions import (
    AuthenticationRequired,
    ConnectionLost,
    ConnectionRefused,
    DataLost,
    DigestMismatch,
    FileChanged,
    FileTooLarge,
    FlowControlViolation,
    MetadataInvalid,
    NameRefused,
    SizeMismatch,
    TakenOver,
    UnexpectedMessage,
    UploadError,
    UploadOver,
)
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import Flag, FrameType, Header
from django_async_upload.protocol.messages import Message

from .scripted import HELLO, Kept, ScriptedServer, Session, crc, eventually, lost, lying

CONTENT = random.Random(1).randbytes(1000)
LARGE = random.Random(2).randbytes(100_000)
"""More than is read together with opening the file."""


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_async_upload.client.backoff._FIRST", 0.01)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


@pytest.fixture(params=["memory", "disk", "stream"])
def what(request: pytest.FixtureRequest, large: Path) -> io.BufferedIOBase | io.BytesIO | Path:
    """The same bytes from each kind of source."""
    if request.param == "memory":
        return io.BytesIO(LARGE)
    return large if request.param == "disk" else Unseekable(LARGE)


class Unseekable(io.BytesIO):
    """Like a pipe; each read returns a little."""

    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise OSError("a pipe has no positions")

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(700)


# What arrives -------------------------------------------------------------------------------------


async def test_what_arrives_is_what_was_sent(server: ScriptedServer, what: Path) -> None:
    async with server.client() as client:
        result = await client.upload(what, name="name.bin")
    assert server.contents == [LARGE]
    assert (result.name, result.size, result.crc32c) == ("name.bin", len(LARGE), crc(LARGE))
    assert result.stored_as == "in/name.bin"
    assert (result.resumed, result.bytes_sent) == (False, len(LARGE))
    assert result.receipt == f"signed {result.id}"
    assert result.response is None


async def test_the_apps_own_answer_is_in_the_result(server: ScriptedServer, large: Path) -> None:
    server.complete = lying(response={"document": 7, "größe": [1.5, None]})
    async with server.client() as client:
        result = await client.upload(large)
    assert result.response == {"document": 7, "größe": [1.5, None]}


async def test_an_empty_file_arrives(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with server.client() as client:
        assert (await client.upload(tmp_path / "empty")).size == 0
        assert (await client.upload(Unseekable(), name="nothing")).size == 0
    assert server.contents == [b"", b""]


async def test_what_is_known_of_a_file_goes_with_create(
    server: ScriptedServer, large: Path
) -> None:
    async with server.client() as client:
        await client.upload(large, content_type="text/plain", metadata={"a": 1}, sha256=True)
        await client.upload(Unseekable(b"x"), name="stream", taker="api")
    file, stream = server.sessions[0].of(m.Create)
    assert isinstance(file, m.Create)
    assert isinstance(stream, m.Create)
    assert (file.name, file.size, file.content_type) == ("large.bin", len(LARGE), "text/plain")
    assert (file.metadata, file.digest) == ({"a": 1}, "sha-256")
    assert (stream.size, stream.digest, stream.metadata) == (None, None, {"taker": "api"})


async def test_an_open_file_is_sent_from_where_it_stands_and_is_left_open(
    server: ScriptedServer, large: Path
) -> None:
    with large.open("rb") as file:
        file.seek(90_000)
        async with server.client() as client:
            await client.upload(file)
        assert not file.closed
    assert server.contents == [LARGE[90_000:]]


async def test_a_text_file_is_refused(server: ScriptedServer, large: Path) -> None:
    with large.open(encoding="latin-1") as file:
        async with server.client() as client:
            with pytest.raises(TypeError, match="binary"):
                await client.upload(file)
    assert not server.sessions


async def test_what_cannot_be_said_is_refused_before_it_is_sent(server: ScriptedServer) -> None:
    async with server.client() as client:
        with pytest.raises(NameRefused):
            await client.upload(io.BytesIO(b"x"), name="x" * 1025)
        with pytest.raises(MetadataInvalid):
            await client.upload(io.BytesIO(b"x"), name="x", metadata={"x": "x" * 70_000})
    assert not server.sessions


# Many files ---------------------------------------------------------------------------------------


async def test_small_files_do_not_wait_for_answers(server: ScriptedServer) -> None:
    """As many files as may be open at once are sent whole before any message but HELLO has come."""
    held: list[tuple[Session, Header, Message | bytes]] = []
    server.hooks.append(lambda *frame: held.append(frame) is None)
    async with server.client() as client:
        uploads = [client.start(io.BytesIO(b"abc"), name=f"{n}") for n in range(20)]
        await eventually(lambda: len(held) == 3 * HELLO.max_streams)
        kinds = [header.type for _, header, _ in held]
        assert kinds == [FrameType.CREATE, FrameType.DATA, FrameType.FINISH] * HELLO.max_streams
        server.hooks.clear()
        for session, header, message in held:
            session._answer(header, message)
        results = await asyncio.gather(*uploads)
    assert sorted(int(each.name) for each in results) == list(range(20))
    assert server.contents == [b"abc"] * 20


async def test_no_more_streams_are_open_than_the_server_allows() -> None:
    server = ScriptedServer(replace(HELLO, max_streams=3))
    open_streams: set[int] = set()
    most = 0

    def watch(session: Session, header: Header, message: Message | bytes) -> bool:
        nonlocal most
        open_streams.add(header.stream)
        most = max(most, len(open_streams))
        if isinstance(message, m.Finish):
            open_streams.discard(header.stream)
        return False

    server.hooks.append(watch)
    async with server.client() as client:
        await asyncio.gather(*(client.upload(io.BytesIO(CONTENT), name=f"{n}") for n in range(12)))
    assert len(server.contents) == 12
    assert most == 3


async def test_uploads_share_the_credit_of_the_connection() -> None:
    server = ScriptedServer(replace(HELLO, connection_limit=500))
    granted = 500

    def grant(session: Session, header: Header, message: Message | bytes) -> bool:
        nonlocal granted
        assert server.payload_bytes <= granted
        if server.payload_bytes == granted:
            granted += 500
            session.say(m.Limit(granted))
        return False

    server.hooks.append(grant)
    async with server.client() as client:
        uploads = (client.upload(io.BytesIO(CONTENT), name=f"{n}") for n in range(10))
        async with asyncio.timeout(20):
            await asyncio.gather(*uploads)
    assert server.contents == [CONTENT] * 10


async def test_a_long_way_is_filled_with_bytes() -> None:
    """What is queued is capped by time. It must follow the network's rate, not the rate that the cap causes."""
    server = ScriptedServer(replace(HELLO, stream_limit=8 << 20))
    content = bytes(8 << 20)
    received = acked = most = 0

    def far_away(session: Session, header: Header, message: Message | bytes) -> bool:
        nonlocal received, most
        if not isinstance(message, bytes):
            return False
        kept = session.streams[header.stream]
        kept.content += message
        received += len(message)
        most = max(most, received - acked)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, answer, session, header.stream, received)
        return True

    def answer(session: Session, stream: int, offset: int) -> None:
        nonlocal acked
        acked = offset
        if stream in session.streams:
            session.say(m.Ack(offset, offset, offset + (8 << 20), 64 << 10), stream)

    server.hooks.append(far_away)
    async with server.client() as client, asyncio.timeout(30):
        await client.upload(io.BytesIO(content), name="far")
    assert server.contents == [content]
    assert most > 3 << 20


async def test_no_more_large_files_are_sent_at_once_than_jobs(
    server: ScriptedServer, large: Path
) -> None:
    async with server.client(jobs=2) as client:
        uploads = [client.start(large, name=f"{n}") for n in range(4)]
        await eventually(lambda: server.payload_bytes > 50_000)
        assert len(server.uploads) == 2
        await asyncio.gather(*uploads)


# A bad network ------------------------------------------------------------------------------------


async def test_a_lost_connection_costs_at_most_a_window(server: ScriptedServer, what: Path) -> None:
    server.drop_after(40_000)
    async with server.client() as client:
        result = await client.upload(what, name="name")
    assert server.contents == [LARGE]
    assert len(server.sessions) == 2
    assert result.resumed
    assert len(server.uploads) == 1
    assert server.payload_bytes - len(LARGE) <= 256


async def test_it_goes_on_from_durable_where_received_is_not_proved(
    server: ScriptedServer, what: Path
) -> None:
    """The bytes above durable were damaged by the crash, say."""

    def damage(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Create) and len(server.sessions) == 2:
            kept = server.uploads[message.key]
            kept.content[-1] ^= 1
        return False

    server.drop_after(40_000)
    server.hooks.append(damage)
    async with server.client() as client:
        await client.upload(what, name="name")
    assert server.contents == [LARGE]


async def test_many_losses_cost_no_byte(server: ScriptedServer, what: Path) -> None:
    for size in range(5_000, 100_000, 5_000):
        server.drop_after(size)
    async with server.client() as client:
        await client.upload(what, name="name")
    assert server.contents == [LARGE]
    assert len(server.sessions) == 20


@pytest.mark.parametrize("kind", [m.Create, m.Finish])
async def test_a_lost_answer_makes_no_second_upload(
    server: ScriptedServer, kind: type[Message]
) -> None:
    def lose(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, kind):
            server.hooks.remove(lose)
            session._answer(header, message)
            session.drop()
            return True
        return False

    server.hooks.append(lose)
    async with server.client() as client:
        await client.upload(io.BytesIO(CONTENT), name="name")
    assert server.contents == [CONTENT]
    assert len(server.uploads) == 1


async def test_after_a_rewind_everything_from_there_on_is_sent_again(
    server: ScriptedServer, what: Path
) -> None:
    def rewind(session: Session, header: Header, message: Message | bytes) -> bool:
        if header.type is FrameType.DATA and header.offset > 50_000:
            server.hooks.remove(rewind)
            kept = session.streams[header.stream]
            session.expecting_restart.add(header.stream)
            at, limit = len(kept.content), kept.durable + 256
            session.say(m.Rewind(at, kept.durable, limit, "corrupt_chunk"), header.stream)
            return True
        return False

    server.hooks.append(rewind)
    async with server.client() as client:
        await client.upload(what, name="name")
    assert server.contents == [LARGE]
    assert [flags for _, flags in server.sessions[0].data].count(Flag.RESTART) == 1


async def test_a_pause_of_the_server_stops_the_stream_until_an_ack_names_more(
    server: ScriptedServer, what: Path
) -> None:
    paused_at: list[int] = []
    resumed = asyncio.Event()

    def pause(session: Session, header: Header, message: Message | bytes) -> bool:
        if header.type is FrameType.DATA and header.offset > 50_000 and not session.pausing:
            if not paused_at:
                session.pausing.add(header.stream)
                session.say(m.Pause("busy"), header.stream)
            assert not paused_at or resumed.is_set()
        elif isinstance(message, m.Paused):
            paused_at.append(message.offset)
            asyncio.get_running_loop().call_later(0.1, resume, session, header.stream)
        return False

    def resume(session: Session, stream: int) -> None:
        assert len(session.streams[stream].content) == paused_at[0]
        resumed.set()
        session.pausing.discard(stream)
        session.ack(stream)

    server.hooks.append(pause)
    async with server.client() as client:
        await client.upload(what, name="name")
    assert len(paused_at) == 1
    assert server.contents == [LARGE]


async def test_damage_on_the_way_to_the_client_is_come_back_from(server: ScriptedServer) -> None:
    def damage(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Finish) and len(server.sessions) == 1:
            session._peer.message_received(b"\x89" + bytes(30))
            return True
        return False

    server.hooks.append(damage)
    async with server.client() as client:
        await client.upload(io.BytesIO(CONTENT), name="name")
    assert server.contents == [CONTENT]


async def test_a_server_that_breaks_the_protocol_is_left(server: ScriptedServer) -> None:
    server.answer_once(m.Create, m.Ack(0, 0, 10, 10))
    async with server.client() as client:
        with pytest.raises(UnexpectedMessage):
            await client.upload(io.BytesIO(CONTENT), name="name")
    assert len(server.sessions) == 1


async def test_silence_is_asked_about_and_then_taken_for_death() -> None:
    server = ScriptedServer(replace(HELLO, heartbeat=0.05))

    def deaf(session: Session, header: Header, message: Message | bytes) -> bool:
        return len(server.sessions) == 1

    server.hooks.append(deaf)
    async with server.client() as client:
        await client.upload(io.BytesIO(CONTENT), name="name")
    assert len(server.sessions) == 2
    assert server.sessions[0].of(m.Ping)


async def test_a_connection_without_work_is_kept_alive() -> None:
    server = ScriptedServer(replace(HELLO, heartbeat=0.05))
    async with server.client() as client:
        await client.upload(io.BytesIO(b""), name="first")
        await asyncio.sleep(0.4)
        await client.upload(io.BytesIO(b""), name="second")
    assert len(server.sessions) == 1
    assert len(server.sessions[0].of(m.Ping)) >= 3


# Errors -------------------------------------------------------------------------------------------


async def test_an_error_that_is_final_is_raised_with_its_facts(server: ScriptedServer) -> None:
    server.answer_once(
        m.Create, m.Error("file_too_large", "too large", False, facts={"max_size": 5})
    )
    async with server.client() as client:
        with pytest.raises(FileTooLarge) as caught:
            await client.upload(io.BytesIO(CONTENT), name="name")
    assert caught.value.facts == {"max_size": 5}
    assert caught.value.message == "too large"


async def test_an_error_that_passes_is_tried_again_after_the_time_it_names(
    server: ScriptedServer,
) -> None:
    server.answer_once(m.Create, m.Error("busy", "later", True, retry_after=0.2))
    started = asyncio.get_running_loop().time()
    async with server.client() as client:
        await client.upload(io.BytesIO(CONTENT), name="name")
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert len(server.sessions) == 1


async def test_a_busy_server_is_spared_on_the_whole_connection(server: ScriptedServer) -> None:
    """`busy` on one stream holds back the others that have yet to be opened."""
    loop = asyncio.get_running_loop()
    opened: list[float] = []

    def hook(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Create):
            opened.append(loop.time())
            if len(opened) == 1:
                session.say(m.Error("busy", "later", True, retry_after=0.3), header.stream)
                return True
        return False

    server.hooks.append(hook)
    async with server.client() as client:
        first = client.start(io.BytesIO(CONTENT), name="first")
        await eventually(lambda: opened)
        await eventually(lambda: not client._connection.protocol.streams)
        others = [client.start(io.BytesIO(CONTENT), name=f"{n}") for n in range(5)]
        await asyncio.gather(first, *others)
    assert len(opened) == 7
    assert min(opened[1:]) - opened[0] >= 0.3


async def test_a_connection_that_serves_no_stream_is_left_though_it_answers_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Like a stream whose credit was lost: `patience` never runs out, since nothing fails."""
    monkeypatch.setattr("django_async_upload.client.client._STALL_SECONDS", 0.3)
    server = ScriptedServer(replace(HELLO, connection_limit=500, heartbeat=0.1))
    async with server.client() as client:
        upload = client.start(io.BytesIO(LARGE), name="name")
        await eventually(lambda: len(server.sessions) == 2)
        assert server.sessions[0].of(m.Ping)
        server.sessions[1].say(m.Limit(10**9))
        await upload
    assert server.contents == [LARGE]


async def test_a_server_that_has_much_to_read_before_it_answers_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_async_upload.client.client._STALL_SECONDS", 0.1)
    server = ScriptedServer(replace(HELLO, heartbeat=0.1))

    def hold(session: Session, header: Header, message: Message | bytes) -> bool:
        return header.type is not FrameType.PING

    server.hooks.append(hold)
    async with server.client() as client:
        upload = client.start(io.BytesIO(CONTENT), name="name")
        await eventually(lambda: server.sessions and len(server.sessions[-1].of(m.Ping)) > 8)
        assert len(server.sessions) == 1
        server.hooks.remove(hold)
        server.sessions[0].drop()
        await upload


async def test_an_upload_that_waits_for_its_own_program_is_no_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("django_async_upload.client.client._STALL_SECONDS", 0.1)
    server = ScriptedServer(replace(HELLO, heartbeat=0.1))
    async with server.client() as client:
        upload = client.start(io.BytesIO(LARGE), name="name")
        await eventually(lambda: server.contents or server.payload_bytes > 1000)
        upload.pause()
        await eventually(lambda: len(server.sessions[0].of(m.Ping)) > 8)
        upload.resume()
        await upload
    assert len(server.sessions) == 1


async def test_an_unknown_error_is_tried_again_where_the_server_says_so(
    server: ScriptedServer,
) -> None:
    server.answer_once(m.Create, m.Error("moon_phase", "later", retryable=True))
    async with server.client() as client:
        await client.upload(io.BytesIO(b"x"), name="name")
        server.answer_once(m.Create, m.Error("moon_phase", "never", retryable=False))
        with pytest.raises(UploadError, match="never") as caught:
            await client.upload(io.BytesIO(b"x"), name="name")
    assert caught.value.facts["code"] == "moon_phase"


async def test_an_error_that_mostly_passes_is_final_where_the_server_says_so(
    server: ScriptedServer,
) -> None:
    server.answer_once(m.Finish, m.Error("size_mismatch", "never", retryable=False))
    async with server.client() as client:
        with pytest.raises(SizeMismatch, match="never"):
            await client.upload(io.BytesIO(CONTENT), name="name")
    assert len(server.sessions[0].of(m.Create)) == 1


async def test_an_upload_that_was_taken_over_is_not_taken_back(server: ScriptedServer) -> None:
    server.answer_once(m.Create, m.Error("taken_over", "another connection", retryable=False))
    async with server.client() as client:
        with pytest.raises(TakenOver):
            await client.upload(io.BytesIO(CONTENT), name="name")
    assert len(server.sessions[0].of(m.Create)) == 1


async def test_an_error_of_the_connection_ends_what_is_on_it(server: ScriptedServer) -> None:
    def refuse(session: Session, header: Header, message: Message | bytes) -> bool:
        session.say(m.Error("flow_control", "too much", retryable=False))
        return True

    server.hooks.append(refuse)
    async with server.client() as client:
        uploads = [client.start(io.BytesIO(b"x"), name=f"{n}") for n in range(3)]
        results = await asyncio.gather(*uploads, return_exceptions=True)
    assert [type(each) for each in results] == [FlowControlViolation] * 3


async def test_patience_has_an_end(server: ScriptedServer) -> None:
    server.refusals = [lost() for _ in range(1000)]
    started = asyncio.get_running_loop().time()
    async with server.client(patience=0.3) as client:
        with pytest.raises(ConnectionLost):
            await client.upload(io.BytesIO(b"x"), name="name")
    assert asyncio.get_running_loop().time() - started < 5
    assert len(server.refusals) < 998


async def test_a_connection_that_gains_nothing_wears_out_patience_too(
    server: ScriptedServer,
) -> None:
    def drop(session: Session, header: Header, message: Message | bytes) -> bool:
        session.drop()
        return True

    server.hooks.append(drop)
    async with server.client(patience=0.3) as client:
        with pytest.raises(ConnectionLost):
            async with asyncio.timeout(5):
                await client.upload(io.BytesIO(b"x"), name="name")


async def test_a_server_that_refuses_for_good_is_not_asked_again(server: ScriptedServer) -> None:
    server.refusals = [ConnectionRefused("HTTP 404"), lost()]
    async with server.client() as client:
        with pytest.raises(ConnectionRefused):
            await client.upload(io.BytesIO(b"x"), name="name")
    assert len(server.refusals) == 1


async def test_a_restart_is_waited_for(server: ScriptedServer) -> None:
    """No stream is opened after DRAIN; the client comes back after the time that it names."""

    def drain(session: Session, header: Header, message: Message | bytes) -> bool:
        if len(server.sessions) == 1 and header.type is FrameType.DATA and header.offset > 50_000:
            server.hooks.remove(drain)
            session.say(m.Drain(retry_after=0.2))
            asyncio.get_running_loop().call_later(0.05, session.drop, 1012)
        return False

    server.hooks.append(drain)
    async with server.client() as client:
        upload = client.start(io.BytesIO(LARGE), name="name")
        await eventually(lambda: client._connection and client._connection.protocol.draining)
        announced = asyncio.get_running_loop().time()
        other = await client.upload(io.BytesIO(b"x"), name="other")
        assert asyncio.get_running_loop().time() - announced >= 0.2
        await upload
    assert other.size == 1
    first, second = server.sessions
    assert len(first.of(m.Create)) == 1
    assert len(second.of(m.Create)) == 2
    assert sorted(server.contents) == sorted([LARGE, b"x"])


# Integrity ----------------------------------------------------------------------------------------


async def test_a_digest_that_differs_from_ours_is_an_error(server: ScriptedServer) -> None:
    async with server.client() as client:
        for change in ({"crc32c": "00000000"}, {"digests": {"sha-256": "0" * 64}}, {"digests": {}}):
            server.complete = lying(**change)
            with pytest.raises(DigestMismatch):
                await client.upload(io.BytesIO(CONTENT), name="name", sha256=True)


async def test_sha_256_is_that_of_the_whole_file_after_a_resume_too(
    server: ScriptedServer, what: Path
) -> None:
    server.drop_after(40_000)
    async with server.client() as client:
        result = await client.upload(what, name="name", sha256=True)
    assert result.digests == {"sha-256": sha256(LARGE).hexdigest()}


async def test_a_published_file_of_another_size_is_not_ours(server: ScriptedServer) -> None:
    """Its CRC is that of so many bytes of the file."""
    server.complete = lying(size=600, crc32c=crc(CONTENT[:600]))
    async with server.client() as client:
        with pytest.raises(DigestMismatch):
            await client.upload(io.BytesIO(CONTENT), name="name")


async def test_a_file_that_is_shorter_than_what_is_durable_leaves_the_upload_as_it_is(
    server: ScriptedServer, large: Path, tmp_path: Path
) -> None:
    def lie(session: Session, header: Header, message: Message | bytes) -> bool:
        if not isinstance(message, m.Create):
            return False
        server.uploads[message.key] = session.streams[header.stream] = Kept(message)
        upload = server.uploads[message.key].id
        session.say(m.Attached(upload, "name", len(LARGE) + 1, len(LARGE) + 1), header.stream)
        return True

    server.hooks.append(lie)
    async with server.client(state=tmp_path / "state") as client:
        with pytest.raises(FileChanged):
            await client.upload(large)
        await eventually(lambda: server.sessions[0].of(m.Release))
        assert not server.sessions[0].of(m.Cancel)
        assert client.state is not None
        assert [each.path for each in client.state.entries()] == [str(large)]


async def test_bytes_of_a_stream_that_the_server_lost_are_data_lost(
    server: ScriptedServer,
) -> None:
    def forget(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Create) and len(server.sessions) == 2:
            kept = server.uploads[message.key]
            del kept.content[1000:]
            kept.durable = 1000
        return False

    server.drop_after(40_000)
    server.hooks.append(forget)
    async with server.client() as client:
        with pytest.raises(DataLost):
            await client.upload(Unseekable(LARGE), name="name")
        await eventually(lambda: server.sessions[1].of(m.Cancel))


async def test_bytes_of_a_file_that_the_server_lost_are_sent_again(
    server: ScriptedServer, large: Path
) -> None:
    def forget(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Create) and len(server.sessions) == 2:
            kept = server.uploads[message.key]
            del kept.content[1000:]
            kept.durable = 1000
        return False

    server.drop_after(40_000)
    server.hooks.append(forget)
    async with server.client() as client:
        await client.upload(large)
    assert server.contents == [LARGE]


# The handle ---------------------------------------------------------------------------------------


async def test_a_paused_upload_sends_nothing_until_it_is_resumed(
    server: ScriptedServer, what: Path
) -> None:
    async with server.client() as client:
        upload = client.start(what, name="name")
        await eventually(lambda: server.payload_bytes > 20_000)
        upload.pause()
        await asyncio.sleep(0.05)
        sent = server.payload_bytes
        await asyncio.sleep(0.1)
        assert server.payload_bytes == sent < len(LARGE)
        upload.resume()
        await upload
    assert server.contents == [LARGE]


async def test_a_paused_upload_whose_stream_the_server_takes_away_waits_until_it_is_resumed(
    server: ScriptedServer,
) -> None:
    async with server.client(patience=0.2) as client:
        upload = client.start(io.BytesIO(LARGE), name="name")
        await eventually(lambda: server.payload_bytes > 10_000)
        upload.pause()
        (session,) = server.sessions
        (stream,) = session.streams
        session.say(m.Error("busy", "others need it", True, retry_after=0.01), stream)
        await eventually(lambda: not client._connection.protocol.streams)
        await asyncio.sleep(0.3)  # more than ``patience``, which does not run while it is paused
        assert len(session.of(m.Create)) == 1
        upload.resume()
        await upload
    assert server.contents == [LARGE]
    assert len(session.of(m.Create)) == 2


async def test_a_cancelled_upload_is_thrown_away_on_the_server(
    server: ScriptedServer, what: Path
) -> None:
    async with server.client() as client:
        upload = client.start(what, name="name")
        await eventually(lambda: server.payload_bytes > 20_000)
        assert await upload.cancel() is True
        with pytest.raises(UploadOver):
            await upload
    (kept,) = server.uploads.values()
    assert kept.cancelled


async def test_a_cancel_that_comes_too_late_changes_nothing(server: ScriptedServer) -> None:
    async with server.client() as client:
        upload = client.start(io.BytesIO(CONTENT), name="name")
        await upload
        assert await upload.cancel() is False
    assert server.contents == [CONTENT]


async def test_progress_rises_and_ends_with_completed(server: ScriptedServer) -> None:
    told: list[Progress] = []
    async with server.client() as client:
        upload = client.start(io.BytesIO(LARGE), name="name", on_progress=told.append)
        seen = [each async for each in upload]
        await upload
    for progress in (told, seen):
        done = [each.done for each in progress if each.phase == "uploading"]
        assert done == sorted(done)
        assert progress[-1].phase == "completed"
        assert progress[-1].done == progress[-1].total == len(LARGE)
    assert all(each.durable <= each.done <= each.sent for each in told)


async def test_iterating_over_an_upload_that_fails_ends(server: ScriptedServer) -> None:
    server.answer_once(m.Create, m.Error("not_found", "gone", retryable=False))
    async with server.client() as client:
        upload = client.start(io.BytesIO(LARGE), name="name")
        assert {each.phase async for each in upload} == {"waiting"}
        with pytest.raises(UploadError):
            await upload


async def test_a_progress_callback_that_raises_breaks_nothing(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(progress: Progress) -> None:
        raise ValueError("not my day")

    async with server.client() as client:
        await client.upload(io.BytesIO(CONTENT), name="name", on_progress=broken)
    assert server.contents == [CONTENT]
    assert "not my day" in caplog.text


async def test_a_cancelled_task_lets_the_upload_go(server: ScriptedServer, large: Path) -> None:
    """Released where a later program can resume it, cancelled where none can."""
    for state, kind in ((large.parent / "state.json", m.Release), (False, m.Cancel)):
        before = server.payload_bytes
        async with server.client(state=state) as client:
            task = asyncio.create_task(client.upload(large))
            await eventually(lambda before=before: server.payload_bytes > before + 20_000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda kind=kind: server.sessions[-1].of(kind))


async def test_leaving_the_client_stops_what_runs(server: ScriptedServer, what: Path) -> None:
    async with server.client() as client:
        upload = client.start(what, name="name")
        await eventually(lambda: server.payload_bytes > 20_000)
    assert upload.task.cancelled()
    assert server.sessions[0].lost


async def test_questions_are_answered(server: ScriptedServer) -> None:
    async with server.client() as client:
        upload = client.start(io.BytesIO(LARGE), name="name")
        await eventually(lambda: upload.id and server.payload_bytes > 20_000)
        assert upload.id is not None
        assert (await client.status(upload.id)).name == "name"
        await client.cancel(upload.id)
        assert server.find(upload.id).cancelled
        server.answer_once(m.Query, m.Error("not_found", "no such upload", retryable=False))
        with pytest.raises(UploadError, match="no such"):
            await client.status(upload.id)
        server.answer_once(m.Query, drop=True)
        assert (await client.status(upload.id)).name == "name"


# Who is there -------------------------------------------------------------------------------------

LOCKED = replace(HELLO, authenticated=False)


async def test_a_ticket_is_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_UPLOAD_TICKET", "from the environment")
    for options, expected in (
        ({"ticket": "given"}, "given"),
        ({}, "from the environment"),
        ({"ticket": lambda: "called"}, "called"),
    ):
        server = ScriptedServer(LOCKED)
        async with server.client(**options) as client:
            await client.upload(io.BytesIO(b"x"), name="name")
        assert server.sessions[0].messages[0] == m.Auth(expected)


async def test_a_cookie_goes_with_the_handshake_and_no_ticket_with_it(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNC_UPLOAD_TICKET", "from the environment")
    async with server.client(cookie="sessionid=abc") as client:
        await client.upload(io.BytesIO(b"x"), name="name")
    assert server.sessions[0].target.headers == {"Cookie": "sessionid=abc"}
    assert not server.sessions[0].of(m.Auth)
    with pytest.raises(ValueError, match="line break"):
        UploadClient("ws://test/", cookie="a=b\r\nHost: other")


async def test_without_a_ticket_nothing_is_sent_to_a_server_that_wants_one() -> None:
    server = ScriptedServer(LOCKED)
    async with server.client() as client:
        with pytest.raises(AuthenticationRequired):
            await client.upload(io.BytesIO(b"x"), name="name")
    assert not server.sessions[0].messages


async def test_a_ticket_is_renewed_before_it_runs_out() -> None:
    server = ScriptedServer(LOCKED)
    server.expires_in = 0.1
    numbers = iter(range(100))

    async def ticket() -> str:
        return f"ticket {next(numbers)}"

    async with server.client(ticket=ticket) as client:
        await client.upload(io.BytesIO(b"x"), name="name")
        await eventually(lambda: len(server.sessions[0].of(m.Auth)) >= 2)
    assert server.sessions[0].of(m.Auth)[:2] == [m.Auth("ticket 0"), m.Auth("ticket 1")]


async def test_an_upload_whose_ticket_ran_out_goes_on_with_a_fresh_one() -> None:
    server = ScriptedServer(LOCKED)
    server.answer_once(m.Finish, m.Error("ticket_expired", "too old", retryable=True))
    async with server.client(ticket=lambda: os.urandom(4).hex()) as client:
        await client.upload(io.BytesIO(CONTENT), name="name")
    first, second = server.sessions[0].of(m.Auth)
    assert first != second
    assert server.contents == [CONTENT]


async def test_the_ticket_that_was_refused_is_not_sent_again() -> None:
    server = ScriptedServer(LOCKED)
    server.answer_once(m.Finish, m.Error("ticket_expired", "too old", retryable=True))
    async with server.client(ticket=lambda: "the only one") as client:
        with pytest.raises(UploadError, match="too old"):
            await client.upload(io.BytesIO(CONTENT), name="name")
    assert len(server.sessions[0].of(m.Auth)) == 1


async def test_uploads_whose_ticket_ran_out_share_one_fresh_one() -> None:
    """A second AUTH before the answer to the first would close the connection."""
    server = ScriptedServer(LOCKED)

    def refuse_the_first_ticket(session: Session, header: Header, message: Message | bytes) -> bool:
        if not isinstance(message, m.Finish) or len(session.of(m.Auth)) > 1:
            return False
        session.say(m.Error("ticket_expired", "too old", retryable=True), header.stream)
        return True

    server.hooks.append(refuse_the_first_ticket)
    async with server.client(ticket=lambda: os.urandom(4).hex()) as client:
        uploads = [client.start(io.BytesIO(CONTENT), name=f"{n}") for n in range(5)]
        await asyncio.gather(*uploads)
    assert len(server.sessions[0].of(m.Auth)) == 2
    assert server.contents == [CONTENT] * 5


async def test_a_ticket_that_cannot_be_renewed_is_not_tried_again() -> None:
    server = ScriptedServer(LOCKED)
    server.answer_once(m.Finish, m.Error("ticket_expired", "too old", retryable=True))
    async with server.client(ticket="the only one") as client:
        with pytest.raises(UploadError, match="too old"):
            await client.upload(io.BytesIO(CONTENT), name="name")
