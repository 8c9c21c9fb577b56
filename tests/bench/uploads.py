"""The load on the app: uploads by protocol 1 whose frames were built before the clock started.

A sender keeps every limit and takes every advice it is given. Where a limit or an advised chunk is smaller than
the prebuilt frames (as an upload gathers speed), it builds shorter ones on the way and says how many
bytes went so.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from socket import IPPROTO_TCP, MSG_EOR, SOL_SOCKET, TCP_INFO
from typing import Any

from crc32c import crc32c

from django_async_upload.engine.credit import LARGEST_CHUNK
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import (
    HEADER_SIZE,
    SUBPROTOCOL,
    FrameType,
    build_data,
    parse_fields,
    parse_header,
)

from .websocket import WebSocket, message

STREAM = 1
SLOWEST = 8 * 1024
"""Bytes a second of a :class:`Trickle`."""
SEGMENT = 1448
"""Bytes that it sends at once: those of a TCP segment on an Ethernet."""
_SO_MAX_PACING_RATE = 47
"""Of Linux; Python has no name for it."""
_TCP_INFO = struct.Struct("=44xI4xI")
"""``tcpi_last_data_sent`` and ``tcpi_last_data_recv`` of Linux: milliseconds since."""
_FRAMED = 2 + 8 + 4 + HEADER_SIZE + LARGEST_CHUNK
"""Bytes of one full DATA frame in its WebSocket message: length in 8 bytes, key in 4."""


def build_frames(source: str, target: str) -> None:
    """Write every DATA frame of ``source`` on stream 1, masked, one after the other, to a file."""
    with open(source, "rb") as file, open(target, "wb") as frames:
        offset = 0
        while payload := file.read(LARGEST_CHUNK):
            frames.write(message(build_data(STREAM, offset, payload, crc32c)))
            offset += len(payload)


@cache
def map_file(path: str) -> memoryview:
    """A file's bytes, all of them in memory."""
    with open(path, "rb") as file:
        return memoryview(
            mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        )


def crc_of(source: memoryview) -> str:
    return f"{crc32c(source, 0):08x}"


class Connection:
    """A WebSocket that speaks protocol 1: HELLO was read, the ticket was accepted."""

    def __init__(self, port: int, path: str, ticket: str) -> None:
        self.websocket = WebSocket(port, path, SUBPROTOCOL)
        inbox = self.websocket.wait()
        self.hello = m.Hello.from_fields(parse_fields(inbox[0], crc32c))
        self.limit = self.hello.connection_limit
        self.sent = 0
        """Bytes of payload, as the connection's limit counts them."""
        self.websocket.socket.sendall(message(m.Auth(ticket=ticket).to_frame(0, crc32c)))
        self.early = [frame for frame in inbox[1:] if not self.take(frame)]
        while not any(frame[0] == FrameType.AUTHENTICATED for frame in self.early):
            self.early += [frame for frame in self.websocket.wait() if not self.take(frame)]
        self.websocket.socket.setblocking(False)

    def take(self, frame: bytes) -> bool:
        """Handle a frame about the connection's credit or life; false for any other frame."""
        kind = parse_header(frame).type
        if kind is FrameType.LIMIT:
            self.limit = max(self.limit, parse_fields(frame, crc32c)["limit"])
        elif kind is FrameType.PING:
            fields = parse_fields(frame, crc32c)
            pong = m.Pong(nonce=fields.get("nonce", 0)).to_frame(0, crc32c)
            self.websocket.pongs.append(message(pong))
        elif kind in (FrameType.ERROR, FrameType.DRAIN, FrameType.REWIND):
            raise ConnectionError(f"{kind.name}: {bytes(frame[HEADER_SIZE:]).decode()}")
        else:
            return False
        return True


@dataclass
class Upload:
    """One file on one connection of its own. Drive it by :meth:`write` and :meth:`read`."""

    connection: Connection
    source: memoryview
    name: str
    crc: str
    frames: memoryview | None = None
    """What :func:`build_frames` wrote for this source. None: every frame is built on the way."""
    digests: dict[str, str] = field(default_factory=dict)
    pace: float | None = None
    """Bytes a second at which a slow sender trickles, in the middle of messages too."""

    offset: int = 0
    """Payload bytes handed out for sending."""
    received: int = 0
    durable: int = 0
    limit: int = 0
    chunk: int = 0
    built: int = 0
    """Bytes whose frames were built on the way."""
    started: float = 0
    last_byte: float = 0
    finished: float = 0
    completed: dict[str, Any] | None = None
    waits: list[float] = field(default_factory=list)
    """Seconds from the last byte of a chunk, handed to the kernel, to the ACK of it."""
    _unanswered: deque[tuple[int, float]] = field(default_factory=deque)
    _outgoing: bytes | memoryview = b""
    _answers: list[bytes] = field(default_factory=list)
    _paused: bool = False
    _finishing: bool = False
    _allowance: float = 0
    _paid: float = 0

    def start(self) -> None:
        """The clock runs from here: CREATE is the first thing sent."""
        hello = self.connection.hello
        self.limit = hello.stream_limit
        self.chunk = min(hello.max_chunk, max(hello.stream_limit, 1))
        create = m.Create(
            key=os.urandom(16).hex(),
            name=self.name,
            size=len(self.source),
            digest=next(iter(self.digests), None),
        )
        self._answers.append(message(create.to_frame(STREAM, crc32c)))
        self.started = self._paid = time.perf_counter()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._outgoing) or self._fill()

    def due(self) -> float:
        """Seconds until a paced sender may write again; 0 without a pace."""
        if self.pace is None:
            return 0
        now = time.perf_counter()
        self._allowance = min(self._allowance + (now - self._paid) * self.pace, self.pace / 4)
        self._paid = now
        return max(0.0, (1024 - self._allowance) / self.pace)

    def write(self) -> None:
        """Send what the socket takes now."""
        if self.pace is not None and self.due() > 0:
            return
        part = memoryview(self._outgoing)
        if self.pace is not None:
            part = part[: int(self._allowance)]
        try:
            sent = self.connection.websocket.socket.send(part)
        except BlockingIOError:
            return
        self._outgoing = memoryview(self._outgoing)[sent:]
        self._allowance -= sent
        if not self._outgoing:
            self._unanswered.append((self.offset, time.perf_counter()))
        if not self._outgoing and self.offset == len(self.source) and not self.last_byte:
            self.last_byte = time.perf_counter()

    def read(self) -> None:
        """Take what has arrived."""
        try:
            self.connection.websocket.read()
        except BlockingIOError:
            return
        for frame in self.connection.websocket.messages():
            if not self.connection.take(frame):
                self._take(frame)

    def run(self, timeout: float) -> None:
        """Start, and continue until COMPLETED. Raises :class:`TimeoutError`."""
        poll = select.poll()
        number = self.connection.websocket.socket.fileno()
        self.start()
        poll.register(number, select.POLLIN)
        while self.completed is None:
            writing = self.wants_to_write
            poll.modify(number, select.POLLIN | (select.POLLOUT if writing else 0))
            ready = poll.poll(1000)
            events = ready[0][1] if ready else 0
            if events & ~select.POLLOUT:
                self.read()
            if events & select.POLLOUT:
                self.write()
            if time.perf_counter() - self.started > timeout:
                raise TimeoutError(f"not completed after {timeout} s; {self.received} received")
        self.connection.websocket.close()

    def _fill(self) -> bool:
        """Choose what goes out next; false where nothing may."""
        pongs = self.connection.websocket.pongs
        if pongs or self._answers:
            self._outgoing = b"".join((*self._answers, *pongs))
            self._answers.clear()
            pongs.clear()
            self._paused = False
        elif self.offset < len(self.source):
            self._outgoing = self._next_data()
        elif not self._finishing:
            self._finishing = True
            finish = m.Finish(size=len(self.source), crc32c=self.crc, digests=self.digests)
            self._outgoing = message(finish.to_frame(STREAM, crc32c))
        return bool(self._outgoing)

    def _next_data(self) -> bytes | memoryview:
        size = len(self.source)
        credit = self.connection.limit - self.connection.sent
        # No further ahead than the package's clients are on a line without delay.
        window = self.durable + self.connection.hello.window
        end = min(self.limit, window, size, self.offset + credit)
        first, beyond = divmod(self.offset, LARGEST_CHUNK)
        if self.frames is not None and not beyond and self.chunk >= LARGEST_CHUNK:
            last = -(-size // LARGEST_CHUNK) if end == size else end // LARGEST_CHUNK
            if last > first:
                self._advance(min(last * LARGEST_CHUNK, size))
                return self.frames[first * _FRAMED : last * _FRAMED]
            if self.durable < self.offset:
                return b""  # the next checkpoint brings credit for whole frames
        if self.frames is not None:
            end = min(end, (first + 1) * LARGEST_CHUNK)
        end = min(end, self.offset + self.chunk)
        if end <= self.offset:
            return b""
        begin = self.offset
        self.built += end - begin
        self._advance(end)
        return message(build_data(STREAM, begin, self.source[begin:end], crc32c))

    def _advance(self, end: int) -> None:
        self.connection.sent += end - self.offset
        self.offset = end

    def _take(self, frame: bytes) -> None:
        kind = parse_header(frame).type
        fields = parse_fields(frame, crc32c)
        if kind is FrameType.COMPLETED:
            self.finished = time.perf_counter()
            self.completed = fields
        elif kind is FrameType.PAUSE:
            self._answers.append(message(m.Paused(offset=self.offset).to_frame(STREAM, crc32c)))
            self.limit = self.offset
            self._paused = True
        elif kind in (FrameType.CREATED, FrameType.ACK):
            if not self._paused:
                self.limit = max(self.limit, fields["limit"])
            self.chunk = fields["chunk"]
            self.received = fields.get("received", self.received)
            while self._unanswered and self._unanswered[0][0] <= self.received:
                _offset, sent = self._unanswered.popleft()
                self._answered(sent)
            self.durable = fields.get("durable", self.durable)

    def _answered(self, sent: float) -> None:
        self.waits.append(time.perf_counter() - sent)

    def outcome(self) -> dict[str, Any]:
        """The figures; raises :class:`RuntimeError` where the server completed something else."""
        completed = self.completed or {}
        if completed.get("size") != len(self.source) or completed.get("crc32c") != self.crc:
            raise RuntimeError(f"{completed} is not what was sent")
        return {
            "seconds": self.finished - self.started,
            "tail": self.finished - self.last_byte,
            "built": self.built,
            "stored_as": completed["stored_as"],
        }


class Trickle(Upload):
    """An upload at :data:`SLOWEST`, which the kernel paces: a segment at a time, as a slow line delivers them.

    So a thousand of them cost the generator little more than their chunks. ``waits`` are those between a chunk's last
    segment and its ACK, both by the kernel's clock: how long this process takes to look at the ACK does not count.
    """

    def start(self) -> None:
        super().start()
        self.connection.websocket.socket.setsockopt(SOL_SOCKET, _SO_MAX_PACING_RATE, SLOWEST)

    def write_all(self) -> None:
        """Hand all that may be sent to the kernel, a message for each segment, which it does not join."""
        socket = self.connection.websocket.socket
        while self.wants_to_write:
            part = memoryview(self._outgoing)
            for start in range(0, len(part), SEGMENT):
                socket.send(part[start : start + SEGMENT], MSG_EOR)
            self._outgoing = b""
            self._unanswered.append((self.offset, 0.0))

    def _answered(self, sent: float) -> None:
        info = self.connection.websocket.socket.getsockopt(IPPROTO_TCP, TCP_INFO, _TCP_INFO.size)
        since_sent, since_received = _TCP_INFO.unpack(info)
        self.waits.append((since_sent - since_received) / 1000)


class SmallFiles:
    """Many small files, each created, sent and finished in one breath on one connection."""

    def __init__(self, connection: Connection, source: memoryview, size: int) -> None:
        self.connection = connection
        self.size = size
        self.pieces = [source[start : start + size] for start in range(0, len(source), size)]
        self.messages = [self._build(number, piece) for number, piece in enumerate(self.pieces, 1)]
        self.completed: dict[int, bytes] = {}

    def _build(self, stream: int, piece: memoryview) -> bytes:
        create = m.Create(key=os.urandom(16).hex(), name=f"{stream}.bin", size=len(piece))
        finish = m.Finish(size=len(piece), crc32c=crc_of(piece))
        return b"".join(
            (
                message(create.to_frame(stream, crc32c)),
                message(build_data(stream, 0, piece, crc32c)),
                message(finish.to_frame(stream, crc32c)),
            )
        )

    def run(self, timeout: float) -> float:
        """Seconds from the first CREATE to the last COMPLETED. Raises :class:`TimeoutError`."""
        connection, websocket = self.connection, self.connection.websocket
        poll = select.poll()
        poll.register(websocket.socket, select.POLLIN)
        outgoing = memoryview(b"")
        handed_out = 0
        started = time.perf_counter()
        while len(self.completed) < len(self.messages):
            if not outgoing:
                open_now = handed_out - len(self.completed)
                credit = (connection.limit - connection.sent) // self.size
                more = max(0, min(connection.hello.max_streams - open_now, credit))
                batch = self.messages[handed_out : handed_out + more]
                handed_out += len(batch)
                connection.sent += len(batch) * self.size
                outgoing = memoryview(b"".join((*batch, *websocket.pongs)))
                websocket.pongs.clear()
            poll.modify(websocket.socket, select.POLLIN | (select.POLLOUT if outgoing else 0))
            for _, events in poll.poll(1000):
                if events & ~select.POLLOUT:
                    websocket.read()
                    for frame in websocket.messages():
                        if frame[0] == FrameType.COMPLETED:
                            self.completed[parse_header(frame).stream] = frame
                        else:
                            connection.take(frame)
                if events & select.POLLOUT:
                    outgoing = outgoing[websocket.socket.send(outgoing) :]
            if time.perf_counter() - started > timeout:
                raise TimeoutError(f"{len(self.completed)} completed after {timeout} s")
        seconds = time.perf_counter() - started
        websocket.close()
        return seconds

    def stored(self) -> list[str]:
        """The stored names in the order of the files; raises :class:`RuntimeError` for a wrong answer."""
        names = []
        for number, piece in enumerate(self.pieces, 1):
            completed = json.loads(self.completed[number][HEADER_SIZE:])
            if completed["size"] != len(piece) or completed["crc32c"] != crc_of(piece):
                raise RuntimeError(f"{completed} is not what was sent")
            names.append(completed["stored_as"])
        return names
