"""The eyes of the chaos proxy: how it finds messages of ours in the bytes of a WebSocket connection."""

from __future__ import annotations

import pytest

from .e2e.cursor import MessageCursor

REQUEST = b"GET /ws/ HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
MASK = b"\x01\x02\x03\x04"
MESSAGE = bytes(range(16)) + b"payload"


def frame(first: int, payload: bytes) -> bytes:
    masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([first, 0x80 | len(payload)]) + MASK + masked


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("cut", [1, 3, 15, 16, 20])
def test_a_message_is_found_however_it_is_fragmented(cut: int, at_once: int) -> None:
    data = REQUEST + frame(0x02, MESSAGE[:cut]) + frame(0x89, b"ping") + frame(0x80, MESSAGE[cut:])
    cursor = MessageCursor()
    payload = sum(
        end - begin
        for at in range(0, len(data), at_once)
        for begin, end in cursor.spans(data[at : at + at_once])
    )
    assert payload == len(MESSAGE)
    assert cursor.started[0][0] == MESSAGE[:16]
    assert sum(size for _, size in cursor.started) == len(MESSAGE)


def test_a_short_message_is_found_too() -> None:
    cursor = MessageCursor()
    assert len(list(cursor.spans(REQUEST + frame(0x82, b"short")))) == 1
    assert cursor.started == [(b"short", 5)]
