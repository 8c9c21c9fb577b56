"""A TCP proxy that breaks connections on purpose, and keeps count of what the client sent.

It runs on an event loop in a thread of its own. It understands WebSocket framing just far enough to find
message payloads, so that it can flip a bit in one without breaking the framing, count the file bytes that
pass, and cut the connection instead of delivering a certain answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django_async_upload.protocol.frames import HEADER_SIZE, FrameType

T = TypeVar("T")
PIECE = 64 * 1024
IN_FLIGHT = 256
"""Pieces that may be under way on a delayed connection."""


class MessageCursor:
    """Follows one direction of a WebSocket connection, byte by byte, from its HTTP head on.

    On a connection that is no WebSocket there are no messages. Browsers send a large message as several frames, and the
    first of them may be shorter than a header of ours (RFC 6455, section 5.4); control frames may stand between them.

    ``spans(data)`` gives the slices of ``data`` that are payload of messages, and fills :attr:`started`.
    """

    def __init__(self) -> None:
        self._head = b""
        self._in_http = True
        self._is_websocket = False
        self._frame = b""
        self._is_control = False
        self._left = 0
        self._mask = b"\0\0\0\0"
        self._start = b""
        self._is_final = False
        self._unreported: int | None = None
        """Size of the message so far, while less than a header of it has passed."""
        self.started: list[tuple[bytes, int]] = []
        """First 16 bytes of a message and the size of the frames they were in; of a further one b"" and its size."""

    def spans(self, data: bytes) -> Iterator[tuple[int, int]]:
        at = 0
        while at < len(data):
            if self._in_http:
                self._head += data[at : at + 1]
                at += 1
                self._in_http = not self._head.endswith(b"\r\n\r\n")
                self._is_websocket = not self._in_http and asks_for_websocket(self._head)
            elif not self._is_websocket:
                return
            elif self._left == 0:
                self._frame += data[at : at + 1]
                at += 1
                self._read_header()
            else:
                end = min(len(data), at + self._left)
                self._left -= end - at
                if not self._is_control:
                    self._note(data[at:end])
                    yield at, end
                at = end

    def _read_header(self) -> None:
        head = self._frame
        if len(head) < 2:
            return
        masked, short = head[1] & 0x80, head[1] & 0x7F
        extra = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + extra + (4 if masked else 0):
            return
        size = int.from_bytes(head[2 : 2 + extra], "big") if extra else short
        opcode = head[0] & 0x0F
        self._frame, self._left = b"", size
        self._is_control = opcode >= 8
        self._mask = head[2 + extra :] if masked else b"\0\0\0\0"
        if self._is_control:
            return
        self._is_final = bool(head[0] & 0x80)
        if opcode:
            self._start, self._unreported = b"", size
        elif self._unreported is None:
            self.started.append((b"", size))
        else:
            self._unreported += size

    def _note(self, piece: bytes) -> None:
        if self._unreported is None:
            return
        wanted = piece[: HEADER_SIZE - len(self._start)]
        self._start += bytes(byte ^ self._mask[at % 4] for at, byte in enumerate(wanted))
        self._mask = self._mask[len(wanted) % 4 :] + self._mask[: len(wanted) % 4]
        if len(self._start) == HEADER_SIZE or (self._is_final and self._left == 0):
            self.started.append((self._start, self._unreported))
            self._unreported = None


def asks_for_websocket(head: bytes) -> bool:
    """Of a request, or of the answer that agrees."""
    return b"\nupgrade: websocket" in head.lower()


@dataclass
class Sent:
    """One DATA frame as it entered the proxy."""

    connection: int
    stream: int
    offset: int
    size: int


@dataclass
class _Link:
    number: int
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    last: Sent | None = None
    """What its latest message was, if that was DATA."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self, *writers: asyncio.StreamWriter) -> None:
        """Close with RST: what is buffered is gone, as when a network goes away."""
        for writer in writers or (self.client, self.server):
            with contextlib.suppress(OSError):
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class ChaosProxy:
    """Connect to :attr:`port`; it forwards to ``upstream``. Use as a context manager."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.sent: list[Sent] = []
        self.delay = 0.0
        """Seconds that each piece waits, one way."""
        self.rate: float | None = None
        """Bytes a second towards the server."""
        self.websockets_allowed = True
        """False: as a proxy that knows nothing of WebSockets, which answers a handshake with 400."""
        self.missing = ""
        """Requests with it in their address are answered with 404; "": none."""
        self._refusing = False
        self._cut_at: int | None = None
        self._stall_at: int | None = None
        self._flips: list[int] = []
        self._raw_flips: list[int] = []
        self._lose: set[FrameType] = set()
        self._payload_up = 0
        self._links: dict[int, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ChaosProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        assert not self._errors, self._errors

    # What a test may do ---------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection now."""
        self._run(self._cut())

    def cut_after(self, size: int) -> None:
        """Reset everything once ``size`` more bytes have come from the client."""
        self._cut_at = self.bytes_up + size

    def half_open(self) -> None:
        """The client sees a reset; the server still believes that the connection is open."""
        self._run(self._half_open())

    def stall(self) -> None:
        """Accept connections and bytes, forward nothing either way."""
        self._run(self._set_flowing(False))

    def stall_after(self, size: int) -> None:
        """Stall once ``size`` more bytes have come from the client."""
        self._stall_at = self.bytes_up + size

    @property
    def is_stalled(self) -> bool:
        return not self._flowing.is_set()

    def flow(self) -> None:
        self._run(self._set_flowing(True))

    def refuse(self, refusing: bool = True) -> None:
        """Reset every new connection at once."""
        self._refusing = refusing

    def flip_payload(self, after: int) -> None:
        """Flip one bit of the message payload byte that comes ``after`` more payload bytes."""
        self._flips.append(self._payload_up + after)

    def flip_raw(self, after: int) -> None:
        """Flip one bit of the byte that comes ``after`` more bytes, framing or not."""
        self._raw_flips.append(self.bytes_up + after)

    def lose(self, kind: FrameType) -> None:
        """Cut the connection instead of delivering the server's next message of this type."""
        self._lose.add(kind)

    @property
    def is_losing(self) -> bool:
        return bool(self._lose)

    @property
    def pending_flips(self) -> int:
        return len(self._flips) + len(self._raw_flips)

    def data_bytes(self) -> int:
        """Bytes of file that clients began to send, resent ones counted again."""
        return sum(each.size for each in self.sent)

    # The proxy itself -----------------------------------------------------------------------------

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._flowing.set()
        await self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _set_flowing(self, flowing: bool) -> None:
        (self._flowing.set if flowing else self._flowing.clear)()

    async def _cut(self) -> None:
        for link in list(self._links.values()):
            self._break(link)

    def _break(self, link: _Link) -> None:
        self._links.pop(link.number, None)
        link.reset()
        for task in link.tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def _half_open(self) -> None:
        for link in self._links.values():
            link.reset(link.client)
            for task in link.tasks:
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        if self._refusing:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        link = self._links[number] = _Link(number, writer, up_writer)
        link.tasks = [
            self._track(self._pump_up(link, reader)),
            self._track(self._pump_down(link, up_reader)),
        ]

    async def _pump_up(self, link: _Link, reader: asyncio.StreamReader) -> None:
        cursor = MessageCursor()
        async for data in self._arriving(reader):
            if not self.websockets_allowed and asks_for_websocket(data):
                link.client.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                self._finish(link, link.server)
                return
            if self.missing and self.missing.encode() in data.partition(b"\r\n")[0]:
                link.client.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                self._finish(link, link.server)
                return
            if self.rate:
                await asyncio.sleep(len(data) / self.rate)
            cut = self._cut_at is not None and self.bytes_up + len(data) >= self._cut_at
            if cut:
                assert self._cut_at is not None
                data, self._cut_at = data[: self._cut_at - self.bytes_up], None
            link.server.write(self._damage(data, link, cursor))
            self.bytes_up += len(data)
            if self._stall_at is not None and self.bytes_up >= self._stall_at:
                self._stall_at = None
                self._flowing.clear()
            await link.server.drain()
            if cut:
                await self._cut()
                return
        self._finish(link, link.server)

    async def _pump_down(self, link: _Link, reader: asyncio.StreamReader) -> None:
        cursor = MessageCursor()
        async for data in self._arriving(reader):
            for _ in cursor.spans(data):
                pass
            lost = {start[0] for start, _ in cursor.started if start} & self._lose
            cursor.started.clear()
            if lost:
                self._lose -= {FrameType(kind) for kind in lost}
                self._break(link)
                return
            self.bytes_down += len(data)
            link.client.write(data)
            await link.client.drain()
        self._finish(link, link.client)

    async def _arriving(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """What comes in, each piece after its delay; the ones after it travel meanwhile."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        reading = self._track(self._read(reader, pieces))
        try:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(due - self._loop.time())
                await self._flowing.wait()
                if not data:
                    return
                yield data
        finally:
            reading.cancel()

    async def _read(
        self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(PIECE)
            except OSError:
                data = b""
            await pieces.put((self._loop.time() + self.delay, data))

    def _track(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), OSError):
            return  # the other side was gone already
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    def _finish(self, link: _Link, other: asyncio.StreamWriter) -> None:
        """One side is gone: let what was written to the other leave, then close it too."""
        self._links.pop(link.number, None)
        other.close()

    def _damage(self, data: bytes, link: _Link, cursor: MessageCursor) -> bytes:
        damaged = bytearray(data)
        for at, end in cursor.spans(data):
            for place in [p for p in self._flips if p < self._payload_up + end - at]:
                self._flips.remove(place)
                damaged[at + max(0, place - self._payload_up)] ^= 0x10
            self._payload_up += end - at
        for place in [p for p in self._raw_flips if p < self.bytes_up + len(data)]:
            self._raw_flips.remove(place)
            damaged[max(0, place - self.bytes_up)] ^= 0x10
        for start, size in cursor.started:
            if not start and link.last is not None:
                link.last.size += size
            elif len(start) == HEADER_SIZE and start[0] == FrameType.DATA:
                stream = int.from_bytes(start[8:12], "big")
                offset = int.from_bytes(start[2:8], "big")
                link.last = Sent(link.number, stream, offset, size - HEADER_SIZE)
                self.sent.append(link.last)
            else:
                link.last = None
        cursor.started.clear()
        return bytes(damaged)
