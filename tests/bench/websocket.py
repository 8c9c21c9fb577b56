"""A WebSocket client reduced to what a load needs: messages go out as they lie in memory."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
from collections.abc import Iterator

try:
    from websockets.speedups import apply_mask
except ImportError:  # without its C part; a load that masks in Python is slower than the servers
    from websockets.utils import apply_mask

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FIN = 0x80
_MASKED = 0x80
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def message(payload: bytes | memoryview, opcode: int = BINARY) -> bytes:
    """The bytes that carry one client message: header, masking key, masked payload (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", _FIN | opcode, _MASKED | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FIN | opcode, _MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", _FIN | opcode, _MASKED | 127, size)
    key = os.urandom(4)
    return b"".join((head, key, apply_mask(payload, key)))


class WebSocket:
    """One connection, after its handshake; no extension is offered.

    ``socket`` is for the caller to send with. What is read comes out of :meth:`messages`; answers to pings
    gather in ``pongs`` and have to be sent between two messages.
    """

    def __init__(self, port: int, path: str, subprotocol: str, timeout: float = 60) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pongs: list[bytes] = []
        key = base64.b64encode(os.urandom(16))
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n".encode()
        )
        self._received = bytearray()
        while b"\r\n\r\n" not in self._received:
            self.read()
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received = bytearray(rest)
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        if b" 101 " not in head.split(b"\r\n", 1)[0] or accept not in head:
            raise ConnectionError(f"the handshake was refused: {head.decode(errors='replace')}")

    def read(self) -> None:
        """Take what has arrived; raises :class:`ConnectionError` at the end of the stream."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server hung up")
        self._received += data

    def messages(self) -> Iterator[bytes]:
        """The payloads of all binary messages that are complete."""
        buffer = self._received
        start = 0
        while (parts := _extent(buffer, start)) is not None:
            opcode, begin, end = parts
            payload = bytes(memoryview(buffer)[begin:end])
            start = end
            if opcode == BINARY:
                yield payload
            elif opcode == PING:
                self.pongs.append(message(payload, PONG))
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big")
                raise ConnectionError(f"closed with {code} {payload[2:].decode()}")
        del buffer[:start]

    def wait(self) -> list[bytes]:
        """Block until there is at least one message."""
        while not (found := list(self.messages())):
            self.read()
        return found

    def close(self) -> None:
        """Close with code 1000."""
        self.socket.setblocking(True)
        self.socket.settimeout(1)
        try:
            self.socket.sendall(message((1000).to_bytes(2, "big"), CLOSE))
            while self.socket.recv(1 << 16):
                pass
        except OSError:
            pass
        self.socket.close()


def _extent(buffer: bytearray, start: int) -> tuple[int, int, int] | None:
    """Opcode, begin and end of the payload of the message at ``start``; None while it is not whole."""
    if len(buffer) - start < 2:
        return None
    size = buffer[start + 1]
    begin = start + 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(buffer) - begin < width:
            return None
        size = int.from_bytes(buffer[begin : begin + width], "big")
        begin += width
    if len(buffer) - begin < size:
        return None
    if not buffer[start] & _FIN:
        raise ConnectionError("a fragmented message: no server of the bench sends one")
    return buffer[start] & 0x0F, begin, begin + size
