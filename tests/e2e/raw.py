"""A scripted WebSocket client on a blocking socket, which can send anything at all.

It follows docs/reference/protocol.md only where a test asks for it, and shares nothing with the client of
the package but the frames and messages.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from crc32c import crc32c

from django_async_upload.protocol import frames, messages
from django_async_upload.protocol.frames import SUBPROTOCOL, FrameType
from django_async_upload.protocol.messages import Message

M = TypeVar("M", bound=Message)

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass
class Closed(Exception):
    """The connection is over. ``code`` is None where no close frame came (a reset, an end)."""

    code: int | None


@dataclass
class Refused(Exception):
    """The handshake was answered with this HTTP status."""

    status: int


@dataclass
class Failed(Exception):
    """An ERROR came where something else was expected."""

    error: messages.Error
    stream: int


class RawConnection:
    """One WebSocket, opened by the constructor; :meth:`greet` reads HELLO.

    The newest offsets that the server has named are kept per stream in ``limits``, ``received`` and
    ``durable``; only :meth:`upload` keeps to them.
    """

    def __init__(
        self,
        port: int,
        *,
        path: str = "/ws/uploads/",
        address: str = "127.0.0.1",
        origin: str | None = None,
        cookie: str | None = None,
        subprotocol: str | None = SUBPROTOCOL,
        host: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> None:
        self.timeout = timeout
        self.hello: messages.Hello
        self.limits: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.connection_limit = 0
        self.spent = 0
        self._last_stream = 0
        self._buffer = bytearray()
        self.socket = socket.create_connection((address, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host or f'{address}:{port}'}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
        ]
        optional = {"Sec-WebSocket-Protocol": subprotocol, "Origin": origin, "Cookie": cookie}
        optional |= headers or {}
        lines += [f"{name}: {value}" for name, value in optional.items() if value is not None]
        self.send_bytes("\r\n".join([*lines, "", ""]).encode())
        self._read_handshake()

    def _read_handshake(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            self._fill(time.monotonic() + self.timeout)
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        status = int(head.split()[1])
        if status != 101:
            self.socket.close()
            raise Refused(status)
        assert b"permessage-deflate" not in head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    # Sending --------------------------------------------------------------------------------------

    def send_bytes(self, data: bytes) -> None:
        """Straight into the socket. Raises :class:`Closed` when the peer has reset it."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(None) from error

    def send_message(self, payload: bytes, *, opcode: int = BINARY, fin: bool = True) -> None:
        """One WebSocket frame. Its mask is zero, which is allowed and leaves the payload as it is."""
        self.send_bytes(frame_head(len(payload), opcode=opcode, fin=fin) + payload)

    def send(self, message: Message, stream: int = 0) -> None:
        self.send_message(message.to_frame(stream, crc32c))

    def send_data(self, stream: int, offset: int, payload: bytes, *, restart: bool = False) -> None:
        self.spent += len(payload)
        self.send_message(frames.build_data(stream, offset, payload, crc32c, restart=restart))

    def next_stream(self) -> int:
        self._last_stream += 1
        return self._last_stream

    # Receiving ------------------------------------------------------------------------------------

    def receive(self, *, timeout: float | None = None) -> tuple[int, Message]:
        """The next message: (stream, message). Raises :class:`Closed` and TimeoutError."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            opcode, payload = self._next_frame(deadline)
            if opcode == PING:
                with contextlib.suppress(Closed):
                    self.send_message(payload, opcode=PONG)
            elif opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                with contextlib.suppress(Closed, OSError):
                    self.send_message(payload[:2], opcode=CLOSE)
                self.socket.close()
                raise Closed(code)
            elif opcode == BINARY:
                header = frames.parse_header(payload)
                fields = frames.parse_fields(payload, crc32c)
                message = messages.parse_message(header.type, fields)
                self._note(header.stream, message)
                return header.stream, message

    def _note(self, stream: int, message: Message) -> None:
        match message:
            case messages.Hello():
                self.hello, self.connection_limit = message, message.connection_limit
            case messages.Limit():
                self.connection_limit = message.limit
            case messages.Created():
                self.limits[stream] = message.limit
            case messages.Ready() | messages.Rewind():
                self.limits[stream] = message.limit
                self.received[stream], self.durable[stream] = message.offset, message.durable
            case messages.Ack():
                self.limits[stream] = max(self.limits.get(stream, 0), message.limit)
                self.received[stream] = message.received
                assert message.durable >= self.durable.get(stream, 0), "durable went down"
                self.durable[stream] = message.durable

    def expect(
        self, kind: type[M], *, stream: int | None = None, timeout: float | None = None
    ) -> M:
        """Read on to the next message of ``kind`` (on ``stream``). An ERROR in between is :class:`Failed`."""
        while True:
            found, message = self.receive(timeout=timeout)
            if isinstance(message, kind) and stream in (None, found):
                return message
            if isinstance(message, messages.Error) and stream in (None, found, 0):
                raise Failed(message, found)

    def error(self, *, timeout: float | None = None) -> messages.Error:
        """Read on to the next ERROR."""
        return self.expect(messages.Error, timeout=timeout)

    def close_code(self, *, timeout: float | None = None) -> int | None:
        """Read on to the end. None: without a close frame."""
        try:
            while True:
                self.receive(timeout=timeout)
        except Closed as closed:
            return closed.code

    def close(self) -> None:
        with contextlib.suppress(Closed):
            self.send_message(struct.pack("!H", 1000), opcode=CLOSE)
        self.socket.close()

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("nothing came")
        self.socket.settimeout(left)
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError as error:
            raise Closed(None) from error
        finally:
            with contextlib.suppress(OSError):
                self.socket.settimeout(self.timeout)
        if not data:
            raise Closed(None)
        self._buffer += data

    def _next_frame(self, deadline: float) -> tuple[int, bytes]:
        while True:
            buffer = self._buffer
            if len(buffer) >= 2:
                short = buffer[1] & 0x7F
                extra = {126: 2, 127: 8}.get(short, 0)
                if len(buffer) >= 2 + extra:
                    size = int.from_bytes(buffer[2 : 2 + extra], "big") if extra else short
                    if len(buffer) >= 2 + extra + size:
                        opcode = buffer[0] & 0x0F
                        payload = bytes(buffer[2 + extra : 2 + extra + size])
                        del buffer[: 2 + extra + size]
                        return opcode, payload
            self._fill(deadline)

    # Scripts --------------------------------------------------------------------------------------

    def greet(self, ticket: str | None = None) -> messages.Hello:
        """Read HELLO and, with a ticket, authenticate."""
        self.hello = self.expect(messages.Hello)
        if ticket is not None:
            self.send(messages.Auth(ticket))
            self.expect(messages.Authenticated)
        return self.hello

    def create(
        self, name: str, size: int | None = None, **fields: Any
    ) -> tuple[int, messages.Created]:
        stream = self.next_stream()
        key = fields.pop("key", None) or uuid.uuid4().hex
        self.send(messages.Create(key=key, name=name, size=size, **fields), stream)
        return stream, self.expect(messages.Created, stream=stream)

    def attach(self, upload: str, data: bytes) -> tuple[int, messages.Ready]:
        stream = self.next_stream()
        self.send(messages.Attach(upload), stream)
        attached = self.expect(messages.Attached, stream=stream)
        self.send(proof(attached, data), stream)
        return stream, self.expect(messages.Ready, stream=stream)

    def upload(
        self,
        stream: int,
        data: bytes,
        *,
        offset: int = 0,
        stop: int | None = None,
        chunk: int = 256 * 1024,
    ) -> None:
        """Send ``data[offset:stop]`` within the limits and return when all of it is received."""
        stop = len(data) if stop is None else stop
        while self.received.get(stream, 0) < stop:
            while (
                size := min(
                    *(chunk, stop - offset, self.limits[stream] - offset),
                    self.connection_limit - self.spent,
                )
            ) > 0:
                self.send_data(stream, offset, data[offset : offset + size])
                offset += size
            found, message = self.receive()
            if isinstance(message, messages.Error) and found in (0, stream):
                raise Failed(message, found)
            if isinstance(message, messages.Pause) and found == stream:
                self.send(messages.Paused(offset), stream)
                self.limits[stream] = offset
            assert not isinstance(message, messages.Rewind), "intact bytes were rewound"

    def finish(self, stream: int, data: bytes, **fields: Any) -> messages.Completed:
        self.send(finish(data, **fields), stream)
        return self.expect(messages.Completed, stream=stream)


def frame_head(size: int, *, opcode: int = BINARY, fin: bool = True) -> bytes:
    """The head of a masked client frame that announces ``size`` bytes."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + b"\0\0\0\0"


def proof(attached: messages.Attached, data: bytes) -> messages.Proof:
    received = (
        f"{crc32c(data[: attached.received]):08x}" if len(data) >= attached.received else None
    )
    return messages.Proof(f"{crc32c(data[: attached.durable]):08x}", received)


def finish(data: bytes, **fields: Any) -> messages.Finish:
    return messages.Finish(**{"size": len(data), "crc32c": f"{crc32c(data):08x}", **fields})


class SteadyUpload:
    """Another user's upload that is under way: it must complete on its one connection, undisturbed.

    Use as a context manager around the hostile part of a test; leaving it finishes the upload and compares
    its CRC with the answer's.
    """

    def __init__(self, port: int, ticket: str, *, size: int = 4 * 1024 * 1024) -> None:
        self._port, self._ticket = port, ticket
        self._data = os.urandom(size)
        self._over = threading.Event()
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self.completed: messages.Completed | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._begun.wait(30), "the steady upload did not begin"
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the steady upload hangs"
        if self._error is not None:
            raise AssertionError("the steady upload was disturbed") from self._error
        assert self.completed is not None
        assert self.completed.crc32c == f"{crc32c(self._data):08x}"

    def _run(self) -> None:
        try:
            with RawConnection(self._port) as connection:
                connection.greet(self._ticket)
                stream, _ = connection.create("steady.bin", len(self._data))
                offset, piece = 0, 16 * 1024
                while offset < len(self._data):
                    stop = offset + piece if not self._over.is_set() else len(self._data)
                    connection.upload(stream, self._data, offset=offset, stop=stop)
                    offset = stop
                    self._begun.set()
                    self._over.wait(0.02)
                self.completed = connection.finish(stream, self._data)
        except BaseException as error:
            self._error = error
            self._begun.set()


def control(kind: FrameType, stream: int, fields: dict[str, Any]) -> bytes:
    return frames.build_control(kind, stream, fields, crc32c)
