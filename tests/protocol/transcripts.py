"""Transcripts: conversations of the protocol as data, and functions that run them against an implementation.

A transcript is a JSON file: the frames of one connection in the order in which the server sends and receives
them, and the outcome of each at its receiver. The format is described in ``tests/vectors/README.md``.
:func:`run_on_server` and :func:`run_on_client` drive the two halves of the sans-I/O protocol;
:func:`run_on_connection` plays the client against a running server.
"""

from __future__ import annotations

import json
import secrets
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from crc32c import crc32c

from django_async_upload.exceptions import UploadError
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.client import ClientProtocol
from django_async_upload.protocol.frames import (
    HEADER_SIZE,
    FrameType,
    build_control,
    build_header,
    parse_fields,
    parse_header,
)
from django_async_upload.protocol.server import Broken, Chunk, Control, ServerProtocol

Side = Literal["client", "server"]

_PERIOD: Final = 251  # a prime, so that no shift by a power of two gives the same bytes
_OWN_PACE: Final = frozenset({FrameType.ACK, FrameType.LIMIT, FrameType.PROGRESS, FrameType.PAUSE})
"""Messages that a live server sends at any time."""
_OWN_FIGURES: Final = frozenset(
    {
        "limit",
        "chunk",
        "durable",
        "message",
        "facts",
        "retry_after",
        "stored_as",
        "receipt",
        "response",
        "user",
        "expires_in",
    }
)
"""Fields that depend on a live server's speed or settings."""


class TranscriptFailed(AssertionError):
    """An implementation deviated from the transcript."""


def pattern(seed: int, start: int, stop: int) -> bytes:
    """The bytes ``start`` to ``stop`` of the file number ``seed``: at position p, (seed + p) mod 251."""
    first = (seed + start) % _PERIOD
    table = bytes(range(_PERIOD))
    return (table * ((first + stop - start) // _PERIOD + 1))[first : first + stop - start]


@dataclass(frozen=True, slots=True)
class Step:
    """One frame, and its outcome at the receiver."""

    sender: Side
    type: FrameType
    stream: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    offset: int = 0
    flags: int = 0
    payload: bytes = b""
    """DATA only."""
    frame: bytes | None = None
    """The frame's bytes, where the transcript contains them."""
    damage: tuple[int, int] | None = None
    """Index and mask of the byte that is damaged in transit."""
    late: int = 0
    """Of a server's frame: the number of following client frames sent before this one was received."""
    outcome: Literal["taken", "dropped", "broken", "closed"] = "taken"
    file: bytes | None = None
    """The client's file, where it differs from that of DATA."""
    code: str | None = None
    """The receiver's error, where the outcome is ``broken`` or ``closed``."""

    @property
    def message(self) -> m.Message:
        """The message of a control frame."""
        return m.parse_message(self.type, self.fields)

    def encode(self) -> bytes:
        """The frame as it is received."""
        if self.frame is not None:
            frame = self.frame
        elif self.type is FrameType.DATA:
            head = build_header(
                self.type, self.stream, self.payload, crc32c, offset=self.offset, flags=self.flags
            )
            frame = head + self.payload
        else:
            frame = build_control(self.type, self.stream, dict(self.fields), crc32c)
        if self.damage is not None:
            index, mask = self.damage
            frame = frame[:index] + bytes([frame[index] ^ mask]) + frame[index + 1 :]
        return frame


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation. ``sides`` are the halves of the protocol that it can drive."""

    name: str
    about: str
    steps: tuple[Step, ...]
    sides: frozenset[str] = frozenset({"client", "server"})
    live: bool = False
    """Whether it can be played against a server with default settings."""
    close: int | None = None
    """The WebSocket close code that follows the last frame."""


def read(path: Path) -> Transcript:
    """Read a transcript. Raises :class:`KeyError` and :class:`ValueError` for an invalid file."""
    raw = json.loads(path.read_text("utf-8"))
    return Transcript(
        name=path.stem,
        about=raw["about"],
        steps=tuple(map(_read_step, raw["steps"])),
        sides=frozenset(raw.get("sides", ("client", "server"))),
        live=raw.get("live", False),
        close=raw.get("close"),
    )


def read_all(directory: Path) -> list[Transcript]:
    """Read the transcripts of a folder, sorted by name."""
    return [read(path) for path in sorted(directory.glob("*.json"))]


def _read_step(raw: Mapping[str, Any]) -> Step:
    offset = raw.get("offset", 0)
    payload = b""
    if "payload" in raw:
        seed, length = raw["payload"]["pattern"], raw["payload"]["length"]
        payload = pattern(seed, offset, offset + length)
    damage = raw.get("damage")
    return Step(
        sender=raw["from"],
        type=FrameType[raw["type"]],
        stream=raw["stream"],
        fields=raw.get("fields", {}),
        offset=offset,
        flags=raw.get("flags", 0),
        payload=payload,
        frame=bytes.fromhex(raw["frame"]) if "frame" in raw else None,
        damage=(damage["at"], damage["xor"]) if damage else None,
        late=raw.get("late", 0),
        outcome=raw.get("outcome", "taken"),
        file=pattern(raw["file"]["pattern"], 0, raw["file"]["length"]) if "file" in raw else None,
        code=raw.get("code"),
    )


# As the client sees it ----------------------------------------------------------------------------


def _in_client_order(steps: tuple[Step, ...]) -> Iterator[Step]:
    """The steps in the order in which the client sends and receives them."""
    waiting: deque[list[Any]] = deque()
    for step in steps:
        if step.sender == "server":
            waiting.append([step.late, step])
        else:
            yield step
            for each in waiting:
                each[0] -= 1
        while waiting and waiting[0][0] <= 0:
            yield waiting.popleft()[1]
    yield from (step for _late, step in waiting)


def _expect(holds: bool, transcript: Transcript, step: Step, got: object) -> None:
    if not holds:
        number = transcript.steps.index(step)
        raise TranscriptFailed(
            f"{transcript.name}, step {number} ({step.sender}: {step.type.name} on stream"
            f" {step.stream}, {step.outcome} {step.code or ''}): got {got!r}"
        )


def _check_sent(transcript: Transcript, step: Step, frame: bytes) -> None:
    """Check that the implementation sent the transcript's frame; spaces in JSON may differ."""
    header = parse_header(frame)
    place = (header.type, header.stream, header.offset, header.flags)
    _expect(place == (step.type, step.stream, step.offset, step.flags), transcript, step, header)
    if step.type is FrameType.DATA:
        _expect(frame == replace(step, damage=None).encode(), transcript, step, header)
    else:
        message = m.parse_message(header.type, parse_fields(frame, crc32c))
        _expect(message == step.message, transcript, step, message)


# Against the sans-I/O protocol --------------------------------------------------------------------


def run_on_server(transcript: Transcript) -> ServerProtocol:
    """Play the client of a :class:`ServerProtocol`, and its shell. Raises :class:`TranscriptFailed`."""
    hello, *steps = transcript.steps
    greeting = hello.message
    assert isinstance(greeting, m.Hello)
    protocol = ServerProtocol(greeting, crc32c)
    _check_sent(transcript, hello, protocol.greeting)
    for step in steps:
        if step.sender == "server":
            _check_sent(transcript, step, protocol.send(step.stream, step.message))
            continue
        try:
            event = protocol.receive(step.encode())
        except UploadError as error:
            _expect((step.outcome, step.code) == ("closed", error.code), transcript, step, error)
            continue
        got: tuple[str, str | None, int]
        match event:
            case Broken(stream, reason):
                got = ("broken", reason.code, stream)
            case Chunk(stream, payload):
                _expect(payload == step.encode()[HEADER_SIZE:], transcript, step, event)
                got = ("taken", None, stream)
            case Control(stream, message):
                _expect(message == step.message, transcript, step, event)
                got = ("taken", None, stream)
            case None:  # PONG needs no handling
                outcome = "taken" if step.type is FrameType.PONG else "dropped"
                got = (outcome, None, step.stream)
        _expect(got == (step.outcome, step.code, step.stream), transcript, step, event)
    return protocol


def run_on_client(transcript: Transcript) -> ClientProtocol:
    """Play the server of a :class:`ClientProtocol`, and its shell. Raises :class:`TranscriptFailed`."""
    protocol = ClientProtocol(crc32c)
    replies: deque[bytes] = deque()
    for step in _in_client_order(transcript.steps):
        if step.sender == "client":
            if step.type in (FrameType.PAUSED, FrameType.PONG):
                _expect(bool(replies), transcript, step, "no reply")
                frame = replies.popleft()
            else:
                frame = send_as_client(protocol, step)
            _check_sent(transcript, step, frame)
            continue
        try:
            event = protocol.receive(step.encode())
        except UploadError as error:
            _expect((step.outcome, step.code) == ("closed", error.code), transcript, step, error)
            continue
        if event is None:
            _expect(step.outcome == "dropped", transcript, step, event)
        else:
            said = (event.stream, event.message) == (step.stream, step.message)
            _expect(said and step.outcome == "taken", transcript, step, event)
        replies.extend(protocol.replies())
    return protocol


def send_as_client(protocol: ClientProtocol, step: Step) -> bytes:
    """Send a client's step by the protocol; returns the frame."""
    match step.message if step.type is not FrameType.DATA else None:
        case None:
            return protocol.send_data(step.stream, step.payload) + step.payload
        case m.Auth(ticket=ticket):
            return protocol.send_auth(ticket)
        case m.Ping(nonce=nonce):
            return protocol.send_ping(nonce)
        case m.Create() as create:
            return protocol.send_create(create)[1]
        case m.Attach(upload=upload):
            return protocol.send_attach(upload)[1]
        case m.Query(upload=upload):
            return protocol.send_query(upload)[1]
        case m.Watch(scope=scope, uploads=uploads):
            return protocol.send_watch(scope, uploads)[1]
        case m.Cancel(upload=str(upload)):
            return protocol.send_cancel_of(upload)[1]
        case m.Cancel():
            return protocol.send_cancel(step.stream)
        case m.Release():
            return protocol.send_release(step.stream)
        case m.Proof(durable_crc32c=durable, received_crc32c=received):
            return protocol.send_proof(step.stream, durable, received)
        case m.Finish() as finish:
            return protocol.send_finish(step.stream, finish)
    raise ValueError(f"a client does not send {step.type.name}")


# Against a running server -------------------------------------------------------------------------


class LiveConnection(Protocol):
    """An open WebSocket, e.g. Channels' ``WebsocketCommunicator``."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def closed(self) -> int:
        """Wait until the server has closed, and return its close code."""


async def run_on_connection(
    transcript: Transcript, connection: LiveConnection, texts: Mapping[str, str] | None = None
) -> list[m.Message]:
    """Play the client of a live server and compare the server's messages; returns those compared.

    Keys are replaced by random ones, upload ids by the server's, and the ``texts`` (tickets) by others. Messages that
    the server sends at any time (ACK, LIMIT, PROGRESS, PAUSE) and figures that depend on its settings are not
    compared.
    """
    names = dict(texts or {})  # keys, ids and tickets: from the transcript's to the connection's
    heard: defaultdict[int, deque[m.Message]] = defaultdict(deque)
    said: list[m.Message] = []
    for step in _in_client_order(transcript.steps):
        if step.sender == "client":
            if "key" in step.fields:
                names.setdefault(step.fields["key"], secrets.token_hex(16))
            fields = {name: names.get(str(value), value) for name, value in step.fields.items()}
            await connection.send(replace(step, fields=fields, frame=None).encode())
            continue
        if step.type in _OWN_PACE:
            continue
        while not heard[step.stream]:
            frame = await connection.receive()
            header = parse_header(frame)
            if header.type not in _OWN_PACE:
                message = m.parse_message(header.type, parse_fields(frame, crc32c))
                heard[header.stream].append(message)
        if step.type is FrameType.CREATED and isinstance(heard[step.stream][0], m.Completed):
            continue  # then the server may omit it
        message = heard[step.stream].popleft()
        _expect(message.frame_type is step.type, transcript, step, message)
        said.append(message)
        if step.type is not FrameType.HELLO:
            _compare(transcript, step, message, names)
    if transcript.close is not None:
        code = await connection.closed()
        _expect(code == transcript.close, transcript, transcript.steps[-1], code)
    return said


def _compare(transcript: Transcript, step: Step, message: m.Message, names: dict[str, str]) -> None:
    got = message.to_fields()
    for name, value in step.fields.items():
        if name == "upload":
            _expect(names.setdefault(value, got[name]) == got[name], transcript, step, message)
        elif name not in _OWN_FIGURES:
            _expect(got.get(name) == value, transcript, step, message)
