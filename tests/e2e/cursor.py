"""WebSocket framing, followed just far enough to find message payloads."""

from __future__ import annotations

from collections.abc import Iterator

from django_async_upload.protocol.frames import HEADER_SIZE


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
