"""Every frame in every state of a stream: accepted, dropped, or refused and nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import CorruptChunks, UploadError
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import FrameType, build_data
from django_async_upload.protocol.server import (
    ACCEPTS,
    DROPS,
    IN_FLIGHT_SLACK,
    LEAST_DROPPED,
    MAX_REWINDS,
    Broken,
    Chunk,
    Control,
    ServerProtocol,
    ServerStreamState,
)

KEY, UPLOAD = "0" * 32, "5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0"
HELLO = m.Hello(connection_limit=10_000, stream_limit=1000, max_streams=4)
CREATE, ATTACH = m.Create(KEY, "a.bin", size=5000), m.Attach(UPLOAD)
CREATED, ATTACHED = m.Created(UPLOAD, "a.bin", 1000, 100), m.Attached(UPLOAD, "a.bin", 10, 20)
READY = m.Ready(offset=20, durable=10, limit=1000, chunk=100)
PROOF, FINISH = m.Proof("0" * 8), m.Finish(0, "0" * 8)
REWIND = m.Rewind(offset=0, durable=0, limit=1000, code="corrupt_chunk")
STREAM = 3

# How a server's stream gets into each state: messages of the client and of the server, in turn.
ROADS: dict[ServerStreamState, tuple[m.Message, ...]] = {
    ServerStreamState.CREATING: (CREATE,),
    ServerStreamState.ATTACHING: (ATTACH,),
    ServerStreamState.PROVING: (ATTACH, ATTACHED),
    ServerStreamState.OPEN: (CREATE, CREATED),
    ServerStreamState.REWINDING: (CREATE, CREATED, REWIND),
    ServerStreamState.FINISHING: (CREATE, CREATED, FINISH),
    ServerStreamState.ASKING: (m.Query(UPLOAD),),
    ServerStreamState.WATCHING: (m.Watch("own"),),
    ServerStreamState.ENDING: (CREATE, CREATED, m.Release()),
}

FRAMES: dict[str, Callable[[int], bytes]] = {
    "DATA": lambda stream: build_data(stream, 0, b"x" * 10, crc32c),
    "RESTART": lambda stream: build_data(stream, 0, b"x" * 10, crc32c, restart=True),
    "HOLE": lambda stream: build_data(stream, 11, b"x", crc32c),
    "LONG": lambda stream: build_data(stream, 0, b"x" * 1001, crc32c),
    "DAMAGED": lambda stream: build_data(stream, 11, b"x", crc32c)[:-1] + b"y",
    **{
        message.frame_type.name: lambda stream, message=message: message.to_frame(stream, crc32c)
        for message in (
            CREATE,
            ATTACH,
            PROOF,
            FINISH,
            m.Cancel(),
            m.Release(),
            m.Paused(0),
            m.Query(UPLOAD),
            m.Watch("own"),
            m.Auth(),
            m.Ping(),
            m.Pong(),
            *(CREATED, ATTACHED, READY, REWIND),
            m.Ack(0, 0, 5000, 100),
            m.Limit(10**9),
            HELLO,
        )
    },
}

_S = ServerStreamState
BEFORE_DATA = {_S.ATTACHING, _S.PROVING}


def server_in(state: ServerStreamState, hello: m.Hello = HELLO) -> ServerProtocol:
    protocol = ServerProtocol(hello, crc32c)
    for message in ROADS[state]:
        if message.frame_type in m.FROM_CLIENT:
            assert isinstance(protocol.receive(message.to_frame(STREAM, crc32c)), Control)
        else:
            protocol.send(STREAM, message)
    assert state_of(protocol) is state
    return protocol


def state_of(protocol: ServerProtocol) -> ServerStreamState | None:
    stream = protocol._streams.get(STREAM)
    return stream and stream.state


def snapshot(protocol: ServerProtocol) -> dict[str, Any]:
    """All state of the object, at every depth."""
    return copy.deepcopy({k: v for k, v in vars(protocol).items() if k not in ("_hello", "_crc")})


def outcome(protocol: ServerProtocol, frame: bytes) -> str:
    """The event's name or the error's code; a refusal must have changed nothing."""
    before = snapshot(protocol)
    try:
        event = protocol.receive(frame)
    except UploadError as error:
        assert snapshot(protocol) == before, "a refused frame changed the state"
        return error.code
    if isinstance(event, Broken):
        return event.error.code
    return {Chunk: "chunk", Control: "received", type(None): "dropped"}[type(event)]


def expected(frame: str, state: ServerStreamState) -> str:
    """What the specification says of a frame on an open stream."""
    kind = FrameType.__members__.get(frame, FrameType.DATA)
    if frame == "DAMAGED":
        return "corrupt_frame"
    if kind in (FrameType.AUTH, FrameType.PING, FrameType.PONG):
        return "malformed_frame"
    if state is _S.ENDING and kind in m.FROM_CLIENT:
        return "dropped"
    if kind is FrameType.DATA:
        if state is _S.REWINDING:
            return "chunk" if frame == "RESTART" else "dropped"
        if state in BEFORE_DATA:
            return "dropped"
        if state in (_S.CREATING, _S.OPEN):
            return {"HOLE": "wrong_offset", "LONG": "flow_control"}.get(frame, "chunk")
        return "unexpected_message"
    if kind is FrameType.FINISH and state in BEFORE_DATA | {_S.REWINDING}:
        return "dropped"
    accepted = {
        FrameType.FINISH: {_S.CREATING, _S.OPEN},
        FrameType.PROOF: {_S.PROVING},
        FrameType.CANCEL: set(_S) - {_S.ASKING, _S.WATCHING},
        FrameType.RELEASE: set(_S) - {_S.ASKING},
    }
    return "received" if state in accepted.get(kind, ()) else "unexpected_message"


@pytest.mark.parametrize("state", ServerStreamState)
@pytest.mark.parametrize("frame", FRAMES)
def test_each_frame_in_each_state_of_a_stream(frame: str, state: ServerStreamState) -> None:
    assert outcome(server_in(state), FRAMES[frame](STREAM)) == expected(frame, state)


@pytest.mark.parametrize("state", ServerStreamState)
@pytest.mark.parametrize("frame", FRAMES)
def test_each_frame_on_a_closed_and_on_an_unknown_stream(
    frame: str, state: ServerStreamState
) -> None:
    protocol = server_in(state)
    protocol.send(STREAM, m.Error("busy", "", True))
    opens = {"CREATE", "ATTACH", "QUERY", "WATCH"}
    for stream, usual in ((STREAM, "dropped"), (STREAM - 1, "dropped"), (9, "unknown_stream")):
        want = usual
        if frame in ("AUTH", "PING", "PONG"):
            want = "malformed_frame"
        elif frame == "DAMAGED":
            want = "corrupt_frame"
        elif frame in FrameType.__members__ and FrameType[frame] not in m.FROM_CLIENT:
            want = "unexpected_message"
        elif frame in opens:
            want = "received" if stream == 9 else "unexpected_message"
        assert outcome(protocol, FRAMES[frame](stream)) == want


@pytest.mark.parametrize("state", sorted(ACCEPTS[FrameType.PAUSED], key=lambda each: each.name))
def test_paused_is_the_limit_where_no_later_message_set_another(state: ServerStreamState) -> None:
    protocol = server_in(state)
    limit = protocol._streams[STREAM].limit
    protocol.send(STREAM, m.Pause())
    assert outcome(protocol, FRAMES["PAUSED"](STREAM)) == "received"
    assert protocol._streams[STREAM].limit == (limit if state in DROPS else 0)
    assert outcome(protocol, FRAMES["PAUSED"](STREAM)) == "unexpected_message"


def test_an_ack_between_pause_and_paused_names_no_credit_that_pause_takes_back() -> None:
    protocol = server_in(_S.OPEN)
    protocol.receive(build_data(STREAM, 0, bytes(100), crc32c))
    protocol.send(STREAM, m.Pause())
    ack = m.Ack(received=100, durable=0, limit=900, chunk=10)
    assert protocol.send(STREAM, ack) == m.Ack(100, 0, 100, 10).to_frame(STREAM, crc32c)
    # Data that had been sent before PAUSE came is good; after PAUSED nothing beyond it is.
    protocol.receive(build_data(STREAM, 100, bytes(50), crc32c))
    protocol.receive(m.Paused(150).to_frame(STREAM, crc32c))
    assert outcome(protocol, build_data(STREAM, 150, b"x", crc32c)) == "flow_control"
    assert protocol.send(STREAM, ack) == ack.to_frame(STREAM, crc32c)
    assert outcome(protocol, build_data(STREAM, 150, b"x", crc32c)) == "chunk"


@pytest.mark.parametrize("message", [CREATED, ATTACHED, READY, REWIND, m.Ack(0, 0, 9, 1)])
def test_no_message_of_the_server_brings_an_ending_stream_back(message: m.Message) -> None:
    protocol = server_in(_S.ENDING)
    protocol.send(STREAM, message)
    assert state_of(protocol) is _S.ENDING
    protocol.send(STREAM, m.Released(0))
    assert not protocol.is_open(STREAM)


def test_the_ninth_rewind_to_one_offset_is_refused_and_progress_starts_the_count_again() -> None:
    protocol = server_in(_S.OPEN)
    for _ in range(MAX_REWINDS):
        protocol.send(STREAM, REWIND)
        protocol.receive(FRAMES["RESTART"](STREAM))
    before = snapshot(protocol)
    with pytest.raises(CorruptChunks):
        protocol.send(STREAM, REWIND)
    assert snapshot(protocol) == before
    protocol.send(STREAM, m.Rewind(offset=5, durable=0, limit=1000, code="corrupt_chunk"))
    protocol.send(STREAM, REWIND)


def test_limits_never_go_down_but_for_rewind_and_paused() -> None:
    protocol = server_in(_S.OPEN)
    protocol.send(0, m.Limit(5))
    assert protocol.limit == HELLO.connection_limit
    protocol.send(0, m.Limit(20_000))
    assert protocol.limit == 20_000
    for message in (m.Ack(0, 0, 5, 1), m.Created(UPLOAD, "a.bin", 5, 1)):
        protocol.send(STREAM, message)
    assert outcome(protocol, build_data(STREAM, 0, bytes(1000), crc32c)) == "chunk"


def test_nothing_can_be_sent_on_a_stream_that_is_not_open() -> None:
    protocol = server_in(_S.OPEN)
    for stream in (STREAM - 1, STREAM + 1):
        with pytest.raises(RuntimeError):
            protocol.send(stream, m.Ack(0, 0, 1, 1))


def test_a_connection_without_a_login_hears_nothing_but_auth() -> None:
    protocol = ServerProtocol(m.Hello(1000, 1000, 4, authenticated=False), crc32c)
    for name, frame in FRAMES.items():
        want = "corrupt_frame" if name == "DAMAGED" else "authentication_required"
        if name != "AUTH":
            assert outcome(protocol, frame(0)) == want
    assert outcome(protocol, b"") == "malformed_frame"
    assert outcome(protocol, m.Auth("x").to_frame(1, crc32c)) == "malformed_frame"
    assert outcome(protocol, m.Ping().to_frame(0, crc32c)) == "authentication_required"
    assert outcome(protocol, m.Auth("x").to_frame(0, crc32c)) == "received"
    assert outcome(protocol, CREATE.to_frame(STREAM, crc32c)) == "received"
    assert outcome(protocol, m.Auth("x").to_frame(0, crc32c)) == "unexpected_message"
    protocol.send(0, m.Authenticated())
    assert outcome(protocol, m.Auth("x").to_frame(0, crc32c)) == "received"


def test_all_data_counts_against_the_connections_limit() -> None:
    protocol = server_in(_S.OPEN)
    for event, frame in (
        ("chunk", build_data(STREAM, 0, bytes(10), crc32c)),
        ("chunk", build_data(STREAM, 10, bytes(10), crc32c)[:-1] + b"?"),  # the writer finds it
        ("wrong_offset", build_data(STREAM, 40, bytes(10), crc32c)),
        ("dropped", build_data(STREAM, 20, bytes(10), crc32c)),
        ("dropped", build_data(STREAM - 1, 0, bytes(10), crc32c)),
    ):
        received = protocol.received
        assert outcome(protocol, frame) == event
        assert protocol.received == received + 10
    protocol.receive(FRAMES["CREATE"](STREAM + 1))
    assert outcome(protocol, build_data(STREAM, 0, bytes(9951), crc32c)) == "flow_control"
    assert outcome(protocol, build_data(STREAM, 0, bytes(9950), crc32c)) == "dropped"
    assert outcome(protocol, FRAMES["DATA"](STREAM + 1)) == "flow_control"


def test_no_more_frames_are_dropped_than_can_have_been_in_flight() -> None:
    protocol = server_in(_S.ENDING)
    for _ in range((HELLO.stream_limit + IN_FLIGHT_SLACK) // LEAST_DROPPED):
        assert outcome(protocol, FRAMES["DATA"](STREAM)) == "dropped"
    assert outcome(protocol, FRAMES["FINISH"](STREAM)) == "flow_control"
