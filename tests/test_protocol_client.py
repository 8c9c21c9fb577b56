"""The client's half of the protocol: what it may receive, what it may send, and that refusals change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import (
    CorruptFrame,
    Draining,
    FlowControlViolation,
    MalformedFrame,
    ProtocolViolation,
    SizeMismatch,
    TooManyStreams,
    UnexpectedMessage,
    UnknownStream,
)
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.client import RECEIVES, SENDS, ClientProtocol, ClientStreamState
from django_async_upload.protocol.frames import (
    Flag,
    FrameType,
    build_data,
    is_intact,
    parse_fields,
    parse_header,
)

ID = "00000000-0000-4000-8000-000000000001"
KEY = "0" * 32
S = ClientStreamState

HELLO = m.Hello(connection_limit=1000, stream_limit=100, max_streams=2, window=400, max_chunk=64)
CREATED = m.Created(ID, "name", limit=200, chunk=50)
ATTACHED = m.Attached(ID, "name", durable=40, received=60)

SERVER: dict[FrameType, m.Message] = {
    each.frame_type: each
    for each in (
        HELLO,
        m.Authenticated(),
        CREATED,
        ATTACHED,
        m.Ready(offset=40, durable=40, limit=200, chunk=50),
        m.Ack(received=40, durable=40, limit=200, chunk=50),
        m.Rewind(offset=40, durable=40, limit=200, code="corrupt_chunk"),
        m.Pause(),
        m.Progress("verifying", 0, 60),
        m.Completed(ID, "name", 60, "00000000", "name"),
        m.Cancelled(ID),
        m.Released(40),
        m.Status(ID, "uploading", "name", 40),
        m.Limit(2000),
        m.Drain(1.0),
        m.Error("busy", "later", True),
        m.Ping(7),
        m.Pong(7),
    )
}
"""One message of each type that a server may send, with figures that fit :func:`in_state`."""


def new(hello: m.Hello | None = HELLO) -> ClientProtocol:
    protocol = ClientProtocol(crc32c)
    if hello is not None:
        protocol.receive(hello.to_frame(0, crc32c))
    return protocol


def tell(protocol: ClientProtocol, message: m.Message, stream: int = 1) -> Any:
    event = protocol.receive(message.to_frame(stream, crc32c))
    return event and event.message


def create(protocol: ClientProtocol) -> int:
    return protocol.send_create(m.Create(KEY, "name"))[0]


def in_state(state: ClientStreamState) -> ClientProtocol:
    """A protocol whose stream 1 is in ``state``; 60 bytes were sent where data could be."""
    protocol = new()

    def sent() -> None:
        protocol.record_data(1, protocol.streams[1].sent, 60)

    def finish() -> None:
        protocol.send_finish(1, m.Finish(60, "00000000"))

    def sending() -> None:
        create(protocol)
        tell(protocol, CREATED)
        sent()

    match state:
        case S.CREATING:
            create(protocol)
            sent()
        case S.CREATING_FINISHED:
            create(protocol)
            sent()
            finish()
        case S.ATTACHING:
            protocol.send_attach(ID)
        case S.PROVING | S.PROVED:
            protocol.send_attach(ID)
            tell(protocol, ATTACHED)
            if state is S.PROVED:
                protocol.send_proof(1, "00000000", "00000000")
        case S.SENDING:
            sending()
        case S.FINISHING:
            sending()
            finish()
        case S.CANCELLING | S.RELEASING:
            # As late as it may be, so that everything that can be in flight fits.
            protocol.send_attach(ID)
            tell(protocol, ATTACHED)
            protocol.send_proof(1, "00000000", "00000000")
            tell(protocol, SERVER[FrameType.READY])
            sent()
            give_up = protocol.send_cancel if state is S.CANCELLING else protocol.send_release
            give_up(1)
        case S.QUERYING:
            protocol.send_query(ID)
        case S.WATCHING:
            protocol.send_watch("own")
        case S.CLOSED:
            create(protocol)
            tell(protocol, SERVER[FrameType.ERROR])
            return protocol
    assert protocol.streams[1].state is state
    return protocol


def snapshot(protocol: ClientProtocol) -> dict[str, Any]:
    return copy.deepcopy({name: value for name, value in vars(protocol).items() if name != "_crc"})


def refuses(
    protocol: ClientProtocol, error: type[Exception], call: Callable[..., Any], *arguments: Any
) -> None:
    """It raises, and nothing has changed."""
    before = snapshot(protocol)
    with pytest.raises(error):
        call(*arguments)
    assert snapshot(protocol) == before


OPEN = [state for state in ClientStreamState if state is not S.CLOSED]
ON_STREAM = [
    kind
    for kind in SERVER
    if kind
    not in {
        FrameType[each] for each in ["HELLO", "AUTHENTICATED", "LIMIT", "DRAIN", "PING", "PONG"]
    }
]


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize("kind", ON_STREAM)
def test_a_server_says_what_the_table_allows_and_nothing_else(
    state: ClientStreamState, kind: FrameType
) -> None:
    protocol = in_state(state)
    frame = SERVER[kind].to_frame(1, crc32c)
    following = RECEIVES[state].get(kind)
    if following is None:
        refuses(protocol, UnexpectedMessage, protocol.receive, frame)
        return
    assert protocol.receive(frame) == (1, SERVER[kind])
    if following is S.CLOSED:
        assert 1 not in protocol.streams
        assert protocol.in_flight == 0
    else:
        assert protocol.streams[1].state is following


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize(
    "kind", [FrameType.PROOF, FrameType.FINISH, FrameType.CANCEL, FrameType.RELEASE]
)
def test_a_client_says_what_the_table_allows_and_nothing_else(
    state: ClientStreamState, kind: FrameType
) -> None:
    protocol = in_state(state)
    calls: dict[FrameType, tuple[Callable[..., Any], *tuple[Any, ...]]] = {
        FrameType.PROOF: (protocol.send_proof, 1, "00000000", None),
        FrameType.FINISH: (protocol.send_finish, 1, m.Finish(60, "00000000")),
        FrameType.CANCEL: (protocol.send_cancel, 1),
        FrameType.RELEASE: (protocol.send_release, 1),
    }
    following = SENDS[state].get(kind)
    if following is None:
        refuses(protocol, UnexpectedMessage, *calls[kind])
        return
    call, *arguments = calls[kind]
    assert parse_header(call(*arguments)).type is kind
    assert protocol.streams[1].state is following


@pytest.mark.parametrize("state", OPEN)
def test_data_goes_only_where_the_table_allows_it(state: ClientStreamState) -> None:
    protocol = in_state(state)
    sent = protocol.streams[1].sent
    if FrameType.DATA in SENDS[state]:
        assert protocol.credit(1) > 0
        protocol.record_data(1, sent, 1)
        assert protocol.streams[1].sent == sent + 1
    else:
        assert protocol.credit(1) == 0
        refuses(protocol, UnexpectedMessage, protocol.record_data, 1, sent, 1)


@pytest.mark.parametrize("kind", ON_STREAM)
def test_what_was_in_flight_to_a_closed_stream_is_dropped_silently(kind: FrameType) -> None:
    protocol = in_state(S.CLOSED)
    before = snapshot(protocol)
    assert protocol.receive(SERVER[kind].to_frame(1, crc32c)) is None
    assert snapshot(protocol) == before


@pytest.mark.parametrize("kind", [kind for kind in ON_STREAM if kind is not FrameType.ERROR])
def test_a_message_of_a_stream_does_not_come_on_the_connection(kind: FrameType) -> None:
    protocol = in_state(S.SENDING)
    refuses(protocol, MalformedFrame, protocol.receive, SERVER[kind].to_frame(0, crc32c))


@pytest.mark.parametrize("kind", [kind for kind in SERVER if kind not in ON_STREAM])
def test_a_message_of_the_connection_does_not_come_on_a_stream(kind: FrameType) -> None:
    protocol = in_state(S.SENDING)
    refuses(protocol, MalformedFrame, protocol.receive, SERVER[kind].to_frame(1, crc32c))


@pytest.mark.parametrize("kind", SERVER)
def test_hello_is_the_first_word_but_for_an_error(kind: FrameType) -> None:
    protocol = new(None)
    frame = SERVER[kind].to_frame(0, crc32c)
    if kind in {FrameType.HELLO, FrameType.ERROR}:
        assert protocol.receive(frame) == (0, SERVER[kind])
    else:
        refuses(protocol, UnexpectedMessage, protocol.receive, frame)


def test_hello_comes_once() -> None:
    protocol = new()
    refuses(protocol, UnexpectedMessage, protocol.receive, HELLO.to_frame(0, crc32c))


def test_nothing_is_sent_before_hello() -> None:
    protocol = new(None)
    refuses(protocol, UnexpectedMessage, create, protocol)
    refuses(protocol, UnexpectedMessage, protocol.send_auth, "ticket")


def test_a_stream_that_was_never_opened_is_a_violation() -> None:
    protocol = in_state(S.SENDING)
    refuses(protocol, UnknownStream, protocol.receive, CREATED.to_frame(2, crc32c))
    refuses(protocol, UnknownStream, protocol.send_cancel, 2)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff" * 20,
        build_data(1, 0, b"x", crc32c),
        m.Auth("x").to_frame(0, crc32c),
        m.Create(KEY, "x").to_frame(2, crc32c),
    ],
)
def test_what_only_a_client_says_and_junk_are_violations(frame: bytes) -> None:
    protocol = in_state(S.SENDING)
    refuses(protocol, ProtocolViolation, protocol.receive, frame)


@pytest.mark.parametrize("position", range(24))
def test_a_flipped_bit_is_damage_wherever_it_is(position: int) -> None:
    """Damage is retryable; a violation would end every upload of the client."""
    protocol = in_state(S.SENDING)
    frame = bytearray(SERVER[FrameType.ACK].to_frame(1, crc32c))
    frame[position] ^= 0x10
    refuses(protocol, CorruptFrame, protocol.receive, bytes(frame))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (S.SENDING, m.Ack(received=61, durable=0, limit=200, chunk=50)),
        (S.SENDING, m.Ack(received=40, durable=41, limit=200, chunk=50)),
        (S.SENDING, m.Rewind(offset=61, durable=0, limit=200, code="corrupt_chunk")),
        (S.SENDING, m.Rewind(offset=10, durable=11, limit=200, code="corrupt_chunk")),
        (S.ATTACHING, m.Attached(ID, "name", durable=2, received=1)),
        (S.PROVED, m.Ready(offset=50, durable=40, limit=200, chunk=50)),
        (S.PROVED, m.Ready(offset=60, durable=61, limit=200, chunk=50)),
        (S.PROVED, m.Ready(offset=40, durable=39, limit=200, chunk=50)),
    ],
)
def test_figures_that_contradict_each_other_are_refused(
    state: ClientStreamState, message: m.Message
) -> None:
    protocol = in_state(state)
    refuses(protocol, MalformedFrame, protocol.receive, message.to_frame(1, crc32c))


@pytest.mark.parametrize(
    "message",
    [
        m.Ack(received=39, durable=39, limit=200, chunk=50),
        m.Ack(received=50, durable=39, limit=200, chunk=50),
        m.Rewind(offset=39, durable=39, limit=200, code="storage_error"),
    ],
)
def test_an_ack_is_never_taken_back(message: m.Message) -> None:
    protocol = in_state(S.SENDING)
    tell(protocol, SERVER[FrameType.ACK])
    refuses(protocol, MalformedFrame, protocol.receive, message.to_frame(1, crc32c))


def test_the_limit_of_the_connection_never_goes_down() -> None:
    protocol = new()
    refuses(protocol, MalformedFrame, protocol.receive, m.Limit(999).to_frame(0, crc32c))


def test_a_small_file_is_sent_as_a_whole_before_any_answer() -> None:
    protocol = new()
    stream = create(protocol)
    payload = b"x" * 60
    header = protocol.send_data(stream, payload)
    assert is_intact(header + payload, crc32c)
    finish = protocol.send_finish(stream, m.Finish(60, f"{crc32c(payload):08x}"))
    assert parse_fields(finish, crc32c)["size"] == 60
    assert isinstance(tell(protocol, SERVER[FrameType.COMPLETED]), m.Completed)
    assert not protocol.streams


def test_the_limit_of_a_stream_is_not_passed() -> None:
    protocol = new()
    stream = create(protocol)
    protocol.record_data(stream, 0, 64)
    assert protocol.credit(stream) == 36
    refuses(protocol, FlowControlViolation, protocol.record_data, stream, 64, 37)
    protocol.record_data(stream, 64, 36)
    assert protocol.credit(stream) == 0


def test_the_limit_of_the_connection_counts_all_streams_and_all_that_was_dropped() -> None:
    protocol = new(m.Hello(connection_limit=150, stream_limit=100, max_streams=9))
    protocol.record_data(create(protocol), 0, 100)
    second = create(protocol)
    assert protocol.credit(second) == 50
    refuses(protocol, FlowControlViolation, protocol.record_data, second, 0, 51)
    tell(protocol, CREATED)
    tell(protocol, m.Rewind(0, 0, 200, "corrupt_chunk"))
    assert protocol.credit(second) == 50
    tell(protocol, m.Limit(151), 0)
    assert protocol.credit(second) == 51


def test_a_limit_beyond_the_window_counts_as_the_window() -> None:
    protocol = in_state(S.SENDING)
    tell(protocol, m.Ack(received=60, durable=10, limit=10_000, chunk=50))
    assert protocol.streams[1].limit == 410


def test_a_chunk_is_not_larger_than_hello_allows_and_begins_where_the_last_ended() -> None:
    protocol = in_state(S.SENDING)
    for offset, size in ((60, 65), (60, 0), (59, 1), (61, 1)):
        refuses(protocol, UnexpectedMessage, protocol.record_data, 1, offset, size)


@pytest.mark.parametrize("advised", [0, 1, 50, 10**9])
def test_the_advised_chunk_is_always_one_that_may_be_sent(advised: int) -> None:
    protocol = in_state(S.SENDING)
    tell(protocol, m.Ack(received=60, durable=0, limit=200, chunk=advised))
    protocol.record_data(1, 60, protocol.streams[1].chunk)


def test_after_a_rewind_the_next_data_carries_restart_once() -> None:
    protocol = in_state(S.FINISHING)
    tell(protocol, m.Rewind(20, 10, 200, "corrupt_chunk"))
    stream = protocol.streams[1]
    assert (stream.state, stream.sent, stream.rewinds) == (S.SENDING, 20, 1)
    first, second = (parse_header(protocol.send_data(1, b"abc") + b"abc") for _ in range(2))
    assert (first.offset, first.flags) == (20, Flag.RESTART)
    assert (second.offset, second.flags) == (23, Flag.NONE)


def test_the_limit_of_a_rewind_replaces_the_older_one() -> None:
    protocol = in_state(S.SENDING)
    tell(protocol, m.Rewind(20, 10, 25, "corrupt_chunk"))
    assert protocol.credit(1) == 5


def test_a_pause_is_answered_at_once_and_takes_the_credit_until_an_ack_names_more() -> None:
    protocol = in_state(S.SENDING)
    tell(protocol, m.Pause())
    (reply,) = protocol.replies()
    assert parse_header(reply).type is FrameType.PAUSED
    assert parse_fields(reply, crc32c) == {"offset": 60}
    assert protocol.replies() == []
    assert protocol.credit(1) == 0
    tell(protocol, m.Ack(received=60, durable=60, limit=60, chunk=50))
    assert protocol.credit(1) == 0
    tell(protocol, m.Ack(received=60, durable=60, limit=61, chunk=50))
    assert protocol.credit(1) == 1


def test_a_ping_is_answered_with_its_nonce() -> None:
    protocol = new()
    tell(protocol, m.Ping(7), 0)
    assert protocol.replies() == [m.Pong(7).to_frame(0, crc32c)]


def test_what_was_sent_behind_create_is_void_when_the_upload_was_known() -> None:
    protocol = in_state(S.CREATING_FINISHED)
    tell(protocol, m.Attached(ID, "name", durable=30, received=30))
    assert protocol.in_flight == 0
    assert protocol.credit(1) == 0
    protocol.send_proof(1, "00000000", None)
    tell(protocol, m.Ready(offset=30, durable=30, limit=100, chunk=50))
    assert protocol.streams[1].sent == 30
    assert parse_header(protocol.send_data(1, b"x") + b"x").flags == Flag.NONE


def test_ready_names_an_offset_that_was_proved() -> None:
    protocol = in_state(S.PROVING)
    protocol.send_proof(1, "00000000", None)
    ready = m.Ready(offset=60, durable=40, limit=200, chunk=50)
    refuses(protocol, MalformedFrame, protocol.receive, ready.to_frame(1, crc32c))


def test_finish_says_exactly_what_was_sent() -> None:
    protocol = in_state(S.SENDING)
    refuses(protocol, SizeMismatch, protocol.send_finish, 1, m.Finish(61, "00000000"))


def test_no_more_streams_are_opened_than_hello_allows() -> None:
    protocol = new()
    assert [create(protocol), create(protocol)] == [1, 2]
    refuses(protocol, TooManyStreams, create, protocol)
    tell(protocol, SERVER[FrameType.ERROR], 1)
    assert create(protocol) == 3


def test_no_stream_is_opened_after_drain() -> None:
    protocol = new()
    tell(protocol, m.Drain(2.0), 0)
    for send in (protocol.send_attach, protocol.send_query, protocol.send_cancel_of):
        refuses(protocol, Draining, send, ID)


def test_bytes_in_flight_are_those_that_were_sent_and_not_received() -> None:
    protocol = in_state(S.SENDING)
    assert protocol.in_flight == 60
    tell(protocol, m.Ack(received=45, durable=0, limit=200, chunk=50))
    assert protocol.in_flight == 15
    other = create(protocol)
    protocol.record_data(other, 0, 10)
    assert protocol.in_flight == 25
    tell(protocol, m.Rewind(20, 0, 200, "corrupt_chunk"))
    assert protocol.in_flight == 10
