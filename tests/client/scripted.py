"""A server in the same process, whose faults a test scripts. It knows no network: its wires are the
client's seam for transports.

It keeps uploads by key, checks every chunk, and grants little credit, so that a file of some hundred
bytes takes many turns.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from crc32c import crc32c

from django_async_upload.client import UploadClient
from django_async_upload.client.source import Path
from django_async_upload.client.transport import Buffer, Target, Wire, WireListener
from django_async_upload.exceptions import ConnectionLost, UploadError
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import (
    HEADER_SIZE,
    Flag,
    FrameType,
    Header,
    is_intact,
    parse_fields,
    parse_header,
)
from django_async_upload.protocol.messages import Message, parse_message

CHUNK = 64
LIMIT = 256
HELLO = m.Hello(connection_limit=10**9, stream_limit=LIMIT, max_streams=8, heartbeat=20.0)

Hook = Callable[["Session", Header, Message | bytes], bool]


@dataclass
class Kept:
    """An upload on the server."""

    create: m.Create
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    content: bytearray = field(default_factory=bytearray)
    durable: int = 0
    completed: m.Completed | None = None
    cancelled: bool = False


class Session(Wire):
    """One connection, seen from the server."""

    def __init__(self, server: ScriptedServer, peer: WireListener, target: Target) -> None:
        self.server = server
        self.target = target
        self.frames: list[Header] = []
        self.messages: list[Message | bytes] = []
        """What the client sent: DATA as its payload."""
        self.streams: dict[int, Kept] = {}
        self.expecting_restart: set[int] = set()
        self.pausing: set[int] = set()
        """Streams that were told to pause and have not said where: ACKs give them no credit."""
        self.lost = False
        self._peer = peer
        self._loop = asyncio.get_running_loop()

    # The client's side ----------------------------------------------------------------------------

    def encode(self, header: bytes, payload: Buffer) -> list[bytes]:
        return [header + bytes(payload)]

    def write(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self._loop.call_soon(self._receive, piece)

    def close(self, code: int) -> None:
        self._loop.call_soon(self.drop, code)

    def abort(self) -> None:
        self._loop.call_soon(self.drop, 1006)

    # The server's side ----------------------------------------------------------------------------

    def say(self, message: Message, stream: int = 0) -> None:
        frame = message.to_frame(stream, crc32c)
        self._loop.call_soon(lambda: self.lost or self._peer.message_received(frame))

    def drop(self, code: int = 1006, error: UploadError | None = None) -> None:
        if not self.lost:
            self.lost = True
            self._peer.wire_lost(code, error)

    def of(self, kind: type[Message]) -> list[Message]:
        return [each for each in self.messages if isinstance(each, kind)]

    @property
    def data(self) -> list[tuple[int, int]]:
        """Offset and flags of each DATA."""
        return [(each.offset, each.flags) for each in self.frames if each.type is FrameType.DATA]

    def _receive(self, frame: bytes) -> None:
        if self.lost:
            return
        header = parse_header(frame)
        assert is_intact(frame, crc32c)
        if header.type is FrameType.DATA:
            message: Message | bytes = frame[HEADER_SIZE:]
        else:
            message = parse_message(header.type, parse_fields(frame, crc32c))
        self.frames.append(header)
        self.messages.append(message)
        if any(hook(self, header, message) for hook in list(self.server.hooks)):
            return
        self._answer(header, message)

    def _answer(self, header: Header, message: Message | bytes) -> None:
        stream = header.stream
        match message:
            case bytes():
                self._take(header, message)
            case m.Create():
                kept = self.server.uploads.get(message.key)
                if kept is None:
                    kept = self.server.uploads[message.key] = Kept(message)
                    self.say(m.Created(kept.id, message.name, LIMIT, CHUNK), stream)
                elif kept.completed is not None:
                    self.say(kept.completed, stream)
                    return
                else:
                    received = len(kept.content)
                    self.say(m.Attached(kept.id, message.name, kept.durable, received), stream)
                self.streams[stream] = kept
            case m.Proof():
                self._compare(stream, message)
            case m.Finish():
                kept = self.streams[stream]
                if stream not in self.expecting_restart:
                    assert (message.size, message.crc32c) == (len(kept.content), crc(kept.content))
                    kept.completed = self.server.complete(kept, message)
                    self.say(kept.completed, stream)
            case m.Cancel():
                kept = self.streams.get(stream) or self.server.find(message.upload)
                kept.cancelled = True
                self.say(m.Cancelled(kept.id), stream)
            case m.Release():
                kept = self.streams.get(stream)  # None: of a watch
                self.say(m.Released(kept.durable if kept else 0), stream)
            case m.Query():
                kept = self.server.find(message.upload)
                self.say(m.Status(kept.id, "uploading", kept.create.name, kept.durable), stream)
            case m.Auth():
                self.say(m.Authenticated("demo", expires_in=self.server.expires_in))
            case m.Ping():
                self.say(m.Pong(message.nonce))

    def _take(self, header: Header, payload: bytes) -> None:
        kept = self.streams[header.stream]
        if header.stream in self.expecting_restart:
            if not header.flags & Flag.RESTART:
                return
            self.expecting_restart.discard(header.stream)
        assert header.offset == len(kept.content)
        assert header.offset + len(payload) <= kept.durable + LIMIT
        kept.content += payload
        kept.durable = max(kept.durable, len(kept.content) - self.server.lag)
        self.ack(header.stream)

    def ack(self, stream: int) -> None:
        kept = self.streams[stream]
        limit = 0 if stream in self.pausing else kept.durable + LIMIT
        self.say(m.Ack(len(kept.content), kept.durable, limit, CHUNK), stream)

    def _compare(self, stream: int, proof: m.Proof) -> None:
        kept = self.streams[stream]
        if proof.received_crc32c == crc(kept.content):
            offset = len(kept.content)
        elif proof.durable_crc32c == crc(kept.content[: kept.durable]):
            offset = kept.durable
            del kept.content[offset:]
        else:
            self.say(m.Error("file_changed", "it differs", retryable=False), stream)
            return
        self.say(m.Ready(offset, kept.durable, kept.durable + LIMIT, CHUNK), stream)


class ScriptedServer:
    """``hooks`` see each frame first; one that returns True has handled it."""

    def __init__(self, hello: m.Hello = HELLO) -> None:
        self.hello = hello
        self.hooks: list[Hook] = []
        self.uploads: dict[str, Kept] = {}
        self.sessions: list[Session] = []
        self.refusals: list[UploadError] = []
        """Raised by the next attempts to connect, in turn."""
        self.lag = 100
        """Bytes that ``durable`` stays behind."""
        self.expires_in: float | None = None
        self.complete: Callable[[Kept, m.Finish], m.Completed] = completed

    async def connect(self, target: Target, peer: WireListener) -> Wire:
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        session = Session(self, peer, target)
        self.sessions.append(session)
        session.say(self.hello)
        return session

    def client(self, *, state: Path | bool = False, **options: object) -> UploadClient:
        return UploadClient("ws://test/", state=state, connect=self.connect, **options)

    def find(self, upload: str | None) -> Kept:
        return next(each for each in self.uploads.values() if each.id == upload)

    @property
    def contents(self) -> list[bytes]:
        """What has completed."""
        return [bytes(each.content) for each in self.uploads.values() if each.completed]

    @property
    def payload_bytes(self) -> int:
        """Bytes of DATA over all connections."""
        return sum(len(x) for each in self.sessions for x in each.messages if isinstance(x, bytes))

    def drop_after(self, size: int) -> None:
        """Lose the connection once, when that many bytes have come."""

        def hook(session: Session, header: Header, message: Message | bytes) -> bool:
            if self.payload_bytes >= size:
                self.hooks.remove(hook)
                session.drop()
                return True
            return False

        self.hooks.append(hook)

    def answer_once(self, kind: type[Message], *answers: Message, drop: bool = False) -> None:
        """Answer the first message of a kind like this, on its stream."""

        def hook(session: Session, header: Header, message: Message | bytes) -> bool:
            if not isinstance(message, kind):
                return False
            self.hooks.remove(hook)
            for answer in answers:
                session.say(answer, header.stream)
            if drop:
                session.drop()
            return True

        self.hooks.append(hook)


def crc(content: bytes | bytearray) -> str:
    return f"{crc32c(bytes(content)):08x}"


def completed(kept: Kept, finish: m.Finish) -> m.Completed:
    """The honest answer to FINISH."""
    name = kept.create.name
    return m.Completed(
        kept.id,
        name,
        finish.size,
        finish.crc32c,
        f"in/{name}",
        finish.digests,
        f"signed {kept.id}",
    )


def lying(**changes: object) -> Callable[[Kept, m.Finish], m.Completed]:
    """An answer to FINISH with other figures."""
    return lambda kept, finish: replace(completed(kept, finish), **changes)


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until ``condition`` is true. Raises :class:`TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def lost() -> UploadError:
    return ConnectionLost("no route")
