"""A TCP proxy that breaks connections on purpose, and keeps count of what the client sent.

It follows WebSocket framing, so that it can flip a bit in a payload without breaking the framing, count the file bytes
that pass, and cut the connection instead of delivering a certain answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from django_async_upload.protocol.frames import HEADER_SIZE, FrameType

from .cursor import MessageCursor, asks_for_websocket
from .forwarder import Forwarder

PIECE = 64 * 1024
IN_FLIGHT = 256
"""Pieces that may be under way on a delayed connection."""


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


class ChaosProxy(Forwarder):
    """Connect to :attr:`port`; it forwards to ``upstream``. Use as a context manager."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
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

    # What a test may do ---------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection now."""
        self._run(self._cut())

    def cut_after(self, size: int) -> None:
        """Reset everything once ``size`` more bytes have come from the client."""
        self._cut_at = self.bytes_up + size

    @property
    def is_cutting(self) -> bool:
        """Whether the bytes of :meth:`cut_after` have not come yet."""
        return self._cut_at is not None

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

    async def _listen(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        await super()._listen()

    async def _close(self) -> None:
        self._flowing.set()
        await self._cut()
        await super()._close()

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
        upstream = await self._connect(writer)
        if upstream is None:
            return
        up_reader, up_writer = upstream
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
