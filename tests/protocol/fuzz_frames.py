"""A fuzz target for the parser of frames and for ``ServerProtocol.receive``.

Any bytes are a programme: records of an opcode, a stream and a length, and then so many bytes. The only allowed
outcomes are the documented events and exceptions, and an exception must leave everything as it was.

With atheris installed, ``python -m tests.protocol.fuzz_frames [CORPUS] [libFuzzer's options]`` runs until
it finds something; without it, ``test_fuzz.py`` runs the same target.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from crc32c import crc32c

from django_async_upload.exceptions import (
    AuthenticationRequired,
    CorruptChunks,
    CorruptFrame,
    MalformedFrame,
    ProtocolViolation,
    SizeExceeded,
    WrongOffset,
)
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import (
    HEADER_SIZE,
    MAX_FRAME,
    FrameType,
    build_control,
    build_data,
    build_header,
    is_intact,
    parse_fields,
    parse_header,
)
from django_async_upload.protocol.server import (
    Broken,
    Chunk,
    Control,
    ServerProtocol,
    ServerStreamState,
)

UPLOAD: Final = "5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0"
KINDS: Final = tuple(FrameType)
RAW, DATA, DAMAGED, ANSWER = range(len(KINDS), len(KINDS) + 4)
"""Opcodes above those that make a frame of one type with a right CRC around the record's bytes."""
OPCODES: Final = ANSWER + 1


class Record(NamedTuple):
    opcode: int
    stream: int
    body: bytes


def encode(records: list[Record]) -> bytes:
    """The programme that says these records."""
    return b"".join(
        bytes([each.opcode, each.stream]) + len(each.body).to_bytes(2, "big") + each.body
        for each in records
    )


def decode(programme: bytes) -> Iterator[Record]:
    while len(programme) >= 4:
        length = int.from_bytes(programme[2:4], "big")
        yield Record(programme[0] % OPCODES, programme[1] % 8, programme[4 : 4 + length])
        programme = programme[4 + length :]


def run(programme: bytes) -> None:
    """Run a programme. A violation would close the connection; it changes nothing, so the next frame may follow."""
    parse(programme)
    authenticated = not programme.startswith(b"\xff")
    hello = m.Hello(4000, 1000, 3, authenticated=authenticated)
    protocol = ServerProtocol(hello, crc32c)
    for record in decode(programme):
        if record.opcode == ANSWER:
            answer(protocol, record)
        else:
            receive(protocol, frame_of(protocol, record))
        check(protocol)


def parse(frame: bytes) -> None:
    try:
        header = parse_header(frame)
        m.parse_message(header.type, parse_fields(frame, crc32c) if header.type > 1 else {})
    except (MalformedFrame, CorruptFrame):
        pass
    except KeyError:
        assert header.type is FrameType.DATA


def frame_of(protocol: ServerProtocol, record: Record) -> bytes:
    opcode, number, body = record
    stream = protocol._streams.get(number)
    if opcode == RAW:
        return body
    if opcode in (DATA, DAMAGED) and stream is not None and body:
        restart = stream.state is ServerStreamState.REWINDING
        frame = build_data(number, stream.expected, body, crc32c, restart=restart)
        return frame if opcode == DATA else frame[:-1] + bytes([frame[-1] ^ 1])
    kind = KINDS[opcode % len(KINDS)]
    return build_header(kind, number, body, crc32c) + body


def receive(protocol: ServerProtocol, frame: bytes) -> None:
    before, known = snapshot(protocol), set(protocol._streams)
    try:
        event = protocol.receive(frame)
    except (ProtocolViolation, AuthenticationRequired) as error:
        assert snapshot(protocol) == before
        if not isinstance(error, CorruptFrame) and HEADER_SIZE <= len(frame) <= MAX_FRAME:
            assert is_intact(frame, crc32c)
        return
    match event:
        case None:
            pass
        case Chunk(stream, payload):
            assert payload == frame[HEADER_SIZE:]
            assert stream in known
        case Broken(stream, error):
            assert type(error) in (WrongOffset, SizeExceeded)
            assert stream in known
        case Control(stream, message):
            header = parse_header(frame)
            assert header.stream == stream
            assert header.type is message.frame_type
            assert header.type in m.FROM_CLIENT
            assert stream == 0 or protocol.is_open(stream)
        case _:
            raise AssertionError(event)


def answer(protocol: ServerProtocol, record: Record) -> None:
    """What the server says on a stream, so that it gets into all its states."""
    stream = protocol._streams.get(record.stream)
    if record.stream == 0:
        protocol.send(0, m.Limit(protocol.limit + len(record.body)))
        protocol.send(0, m.Authenticated())
    if stream is None:
        return
    which, *_ = record.body or b"\0"
    offset = min(stream.expected, len(record.body))
    messages: dict[ServerStreamState, tuple[m.Message, ...]] = {
        ServerStreamState.CREATING: (
            m.Created(UPLOAD, "a", 2000, 100),
            m.Attached(UPLOAD, "a", 5, 10, 500),
        ),
        ServerStreamState.ATTACHING: (
            m.Attached(UPLOAD, "a", 5, 10),
            m.Ready(offset, 0, 1500, 100),
        ),
        ServerStreamState.OPEN: (
            m.Ack(offset, 0, 1500, 100),
            m.Rewind(offset, 0, 1500, "corrupt_chunk"),
            m.Pause(),
        ),
        ServerStreamState.ASKING: (m.Status(UPLOAD, "failed", "a", 0),),
    }
    closing: tuple[m.Message, ...] = (m.Error("busy", "", True), m.Cancelled(UPLOAD))
    choices = messages.get(stream.state, messages[ServerStreamState.OPEN]) + closing
    try:
        protocol.send(record.stream, choices[which % len(choices)])
    except CorruptChunks:
        protocol.send(record.stream, closing[0])


def snapshot(protocol: ServerProtocol) -> object:
    return copy.deepcopy({k: v for k, v in vars(protocol).items() if k not in ("_hello", "_crc")})


def check(protocol: ServerProtocol) -> None:
    """What holds between any two frames."""
    assert protocol.received <= protocol.limit
    assert len(protocol._streams) <= 3
    for number, stream in protocol._streams.items():
        assert 0 < number <= protocol._highest
        if stream.state in (ServerStreamState.OPEN, ServerStreamState.FINISHING):
            assert stream.expected <= max(stream.limit, stream.rewound_to)
        if stream.size is not None and stream.state in (
            ServerStreamState.CREATING,
            ServerStreamState.OPEN,
        ):
            assert stream.expected <= stream.size


def main() -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed; test_fuzz.py runs the same target without it.")
    atheris.instrument_all()
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


# What a record's bytes are made of by those who make up programmes.
FIELDS: Final = {
    message.frame_type: build_control(message.frame_type, 0, message.to_fields(), crc32c)[
        HEADER_SIZE:
    ]
    for message in (
        m.Create("0" * 32, "a", 300),
        m.Attach(UPLOAD),
        m.Query(UPLOAD),
        m.Watch("uploads", [UPLOAD]),
        m.Cancel(UPLOAD),
        m.Release(),
        m.Proof("0" * 8),
        m.Finish(0, "0" * 8),
        m.Paused(0),
        m.Auth("x"),
        m.Ping(1),
        m.Pong(1),
    )
}

if __name__ == "__main__":
    main()
