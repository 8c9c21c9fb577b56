"""The frame: one WebSocket binary message, a 16-byte header and a payload.

::

     0        1        2                                        8                12              16
    +--------+--------+----------------------------------------+----------------+----------------+
    | type   | flags  | offset (48 bits)                       | stream         | CRC-32C        |
    +--------+--------+----------------------------------------+----------------+----------------+

Integers are big-endian. The CRC-32C (Castagnoli, RFC 3720 appendix B.4) covers the first 12 bytes
and the payload. The CRC function is passed in, so that this package needs the standard library only.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Any, Final, NamedTuple

from ..exceptions import CorruptFrame, MalformedFrame

SUBPROTOCOL: Final = "async-upload.v1"
VERSION: Final = 1

HEADER_SIZE: Final = 16
MAX_FRAME: Final = 1024 * 1024
"""Largest frame, bytes; Daphne resets a connection whose message is larger."""
MAX_CHUNK: Final = MAX_FRAME - 4096
"""Largest payload of a DATA frame, bytes: below MAX_FRAME, and a multiple of the page size."""
MAX_CONTROL: Final = 64 * 1024
"""Largest payload of a control frame, bytes."""
MAX_DEPTH: Final = 32
"""Largest nesting depth of objects and arrays in a control payload, which is itself the first level."""
MAX_OFFSET: Final = 2**48 - 1
MAX_STREAM: Final = 2**32 - 1

CRC = Callable[[bytes | bytearray | memoryview, int], int]
"""``crc(data, value) -> value``: CRC-32C of data, continued from value (0 at the start)."""

_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_HEADER = struct.Struct("!QII")  # type, flags and offset are one u64
CHECKED_SIZE: Final = 12
"""Bytes of the header that its CRC covers, with the payload."""
_OFFSET_BITS = 48


class FrameType(IntEnum):
    """Types below 0x40 are sent by the client, from 0x80 on by the server, those between by both."""

    DATA = 0x01
    AUTH = 0x02
    CREATE = 0x03
    ATTACH = 0x04
    PROOF = 0x05
    FINISH = 0x06
    CANCEL = 0x07
    RELEASE = 0x08
    PAUSED = 0x09
    QUERY = 0x0A
    WATCH = 0x0B
    PING = 0x40
    PONG = 0x41
    HELLO = 0x80
    AUTHENTICATED = 0x81
    CREATED = 0x82
    ATTACHED = 0x83
    READY = 0x84
    ACK = 0x85
    REWIND = 0x86
    PAUSE = 0x87
    PROGRESS = 0x88
    COMPLETED = 0x89
    CANCELLED = 0x8A
    RELEASED = 0x8B
    STATUS = 0x8C
    LIMIT = 0x8D
    DRAIN = 0x8E
    ERROR = 0x8F
    CHANGED = 0x90


class Flag(IntFlag):
    NONE = 0
    RESTART = 0x01
    """DATA only: the first frame after a REWIND."""


class Header(NamedTuple):
    type: FrameType
    flags: int
    offset: int
    """Bytes from the start of the file; 0 in control frames."""
    stream: int
    """0 is the connection itself."""
    crc: int


_TYPES: Final = {int(each): each for each in FrameType}
# Python 3.11 finds a member by its class in half a microsecond: the hot path uses names of the module.
_DATA: Final = FrameType.DATA
_DATA_FLAGS: Final = (0, int(Flag.RESTART))


def parse_header(frame: bytes | memoryview) -> Header:
    """Parse the header of a frame. Its CRC is not checked: see :func:`is_intact`.

    Raises :class:`MalformedFrame` for a frame that version 1 does not allow.
    """
    if len(frame) < HEADER_SIZE:
        raise MalformedFrame(reason=f"{len(frame)} bytes are shorter than a header")
    if len(frame) > MAX_FRAME:
        raise MalformedFrame(reason=f"{len(frame)} bytes are more than {MAX_FRAME}")
    word, stream, crc = _HEADER.unpack_from(frame)
    kind = _TYPES.get(word >> 56)
    if kind is None:
        raise MalformedFrame(reason=f"type 0x{word >> 56:02x} is not known")
    flags = (word >> _OFFSET_BITS) & 0xFF
    offset = word & MAX_OFFSET
    if kind is _DATA:
        if flags not in _DATA_FLAGS:
            raise MalformedFrame(reason=f"flags 0x{flags:02x} are not known")
        if not HEADER_SIZE < len(frame) <= HEADER_SIZE + MAX_CHUNK:
            raise MalformedFrame(reason=f"{len(frame) - HEADER_SIZE} bytes are not a valid chunk")
    elif flags or offset:
        raise MalformedFrame(reason="flags and offset are 0 in a control frame")
    elif len(frame) > HEADER_SIZE + MAX_CONTROL:
        raise MalformedFrame(reason=f"a control payload has at most {MAX_CONTROL} bytes")
    return Header(kind, flags, offset, stream, crc)


def is_intact(frame: bytes | memoryview, crc: CRC) -> bool:
    """Whether the CRC in the header matches the frame, which has at least a header."""
    view = memoryview(frame)
    expected = int.from_bytes(view[CHECKED_SIZE:HEADER_SIZE], "big")
    return crc(view[HEADER_SIZE:], crc(view[:CHECKED_SIZE], 0)) == expected


def build_header(
    kind: FrameType,
    stream: int,
    payload: bytes | bytearray | memoryview,
    crc: CRC,
    *,
    offset: int = 0,
    flags: int = 0,
) -> bytes:
    """Build the 16 bytes that precede ``payload``."""
    word = kind << 56 | flags << _OFFSET_BITS | offset
    head = _HEADER.pack(word, stream, 0)[:CHECKED_SIZE]
    return head + crc(payload, crc(head, 0)).to_bytes(4, "big")


def build_data(
    stream: int,
    offset: int,
    payload: bytes | bytearray | memoryview,
    crc: CRC,
    *,
    restart: bool = False,
) -> bytes:
    flags = Flag.RESTART if restart else Flag.NONE
    header = build_header(FrameType.DATA, stream, payload, crc, offset=offset, flags=flags)
    return b"".join((header, payload))


def build_control(kind: FrameType, stream: int, fields: dict[str, Any], crc: CRC) -> bytes:
    """Build a control frame, whose payload is one JSON object in UTF-8 with the keys in the given order.

    Raises :class:`ValueError` for fields that cannot be encoded: NaN, lone surrogates, too many bytes.
    """
    payload = _to_json(fields).encode()
    if len(payload) > MAX_CONTROL:
        raise ValueError(f"{len(payload)} bytes do not fit a control frame")
    return build_header(kind, stream, payload, crc) + payload


def parse_fields(frame: bytes | memoryview, crc: CRC) -> dict[str, Any]:
    """Check the CRC of a control frame and parse its JSON object.

    Raises :class:`CorruptFrame` and :class:`MalformedFrame`.
    """
    if not is_intact(frame, crc):
        raise CorruptFrame
    try:
        # Decoded here, since json.loads accepts UTF-16, UTF-32 and encoded surrogates, too.
        text = str(memoryview(frame)[HEADER_SIZE:], "utf-8")
        fields = json.loads(text, parse_constant=_refuse_number, parse_float=_parse_float)
    except (ValueError, RecursionError) as error:
        raise MalformedFrame(reason="the payload is not JSON") from error
    if not isinstance(fields, dict):
        raise MalformedFrame(reason="the payload is not a JSON object")
    if text.count("{") + text.count("[") > MAX_DEPTH and _is_too_deep(fields):
        raise MalformedFrame(reason=f"the payload is nested deeper than {MAX_DEPTH}")
    return fields


def _refuse_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def _is_too_deep(fields: dict[str, Any]) -> bool:
    layer: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in layer:
            below.extend(each.values() if isinstance(each, dict) else each)
        layer = [each for each in below if isinstance(each, dict | list)]
    return bool(layer)
