"""The client's half of protocol 1, sans I/O: frames in, events out, without a clock and without file data.

:meth:`ClientProtocol.receive` takes one WebSocket message and returns an event. The ``send_*`` methods check that a
message is allowed, update the state and return the frame to write. The caller MUST write frames in the order in which
they were returned. After every ``receive`` it also writes :meth:`ClientProtocol.replies`.

A message that the server may not send raises a :class:`ProtocolViolation` and changes nothing: the caller
closes the connection. The specification is ``docs/reference/protocol.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, NamedTuple

from ..exceptions import (
    CorruptFrame,
    Draining,
    FlowControlViolation,
    MalformedFrame,
    SizeMismatch,
    TooManyStreams,
    UnexpectedMessage,
    UnknownStream,
)
from . import messages
from .frames import (
    CRC,
    HEADER_SIZE,
    MAX_CHUNK,
    Flag,
    FrameType,
    build_header,
    is_intact,
    parse_fields,
    parse_header,
)
from .messages import Message, parse_message


class ClientStreamState(Enum):
    CREATING = auto()
    """CREATE was sent and is not answered; data may follow it."""
    CREATING_FINISHED = auto()
    """CREATE and FINISH were sent; CREATE is not answered."""
    ATTACHING = auto()
    PROVING = auto()
    """ATTACHED was received; PROOF is due."""
    PROVED = auto()
    SENDING = auto()
    FINISHING = auto()
    CANCELLING = auto()
    RELEASING = auto()
    QUERYING = auto()
    WATCHING = auto()
    CLOSED = auto()


_S = ClientStreamState
_F = FrameType

# Frames that were in flight when CANCEL or RELEASE was sent may still arrive.
_IN_FLIGHT = (_F.CREATED, _F.ATTACHED, _F.READY, _F.ACK, _F.REWIND, _F.PAUSE)

_OVER = {_F.ERROR: _S.CLOSED, _F.CANCELLED: _S.CLOSED}

RECEIVES: Final[Mapping[ClientStreamState, Mapping[FrameType, ClientStreamState]]] = {
    _S.CREATING: {
        _F.CREATED: _S.SENDING,
        _F.ATTACHED: _S.PROVING,
        _F.PROGRESS: _S.FINISHING,
        _F.COMPLETED: _S.CLOSED,
        **_OVER,
    },
    _S.CREATING_FINISHED: {
        _F.CREATED: _S.FINISHING,
        _F.ATTACHED: _S.PROVING,
        _F.PROGRESS: _S.FINISHING,
        _F.COMPLETED: _S.CLOSED,
        **_OVER,
    },
    _S.ATTACHING: {
        _F.ATTACHED: _S.PROVING,
        _F.PROGRESS: _S.FINISHING,
        _F.COMPLETED: _S.CLOSED,
        **_OVER,
    },
    _S.PROVING: _OVER,
    _S.PROVED: {_F.READY: _S.SENDING, **_OVER},
    _S.SENDING: {
        _F.ACK: _S.SENDING,
        _F.REWIND: _S.SENDING,
        _F.PAUSE: _S.SENDING,
        **_OVER,
    },
    _S.FINISHING: {
        _F.ACK: _S.FINISHING,
        _F.REWIND: _S.SENDING,
        _F.PAUSE: _S.FINISHING,
        _F.PROGRESS: _S.FINISHING,
        _F.COMPLETED: _S.CLOSED,
        **_OVER,
    },
    _S.CANCELLING: {
        **dict.fromkeys(_IN_FLIGHT, _S.CANCELLING),
        _F.PROGRESS: _S.CANCELLING,
        _F.COMPLETED: _S.CLOSED,
        **_OVER,
    },
    _S.RELEASING: {
        **dict.fromkeys(_IN_FLIGHT, _S.RELEASING),
        # CREATE or ATTACH of an upload whose bytes were all received: there is nothing to release.
        _F.PROGRESS: _S.RELEASING,
        _F.COMPLETED: _S.CLOSED,
        _F.RELEASED: _S.CLOSED,
        _F.CHANGED: _S.RELEASING,
        **_OVER,
    },
    _S.QUERYING: {_F.STATUS: _S.CLOSED, _F.ERROR: _S.CLOSED},
    _S.WATCHING: {_F.CHANGED: _S.WATCHING, _F.ERROR: _S.CLOSED},
}
"""State of a stream -> frame from the server -> next state."""

_GIVE_UP = {_F.CANCEL: _S.CANCELLING, _F.RELEASE: _S.RELEASING}

SENDS: Final[Mapping[ClientStreamState, Mapping[FrameType, ClientStreamState]]] = {
    _S.CREATING: {_F.DATA: _S.CREATING, _F.FINISH: _S.CREATING_FINISHED, **_GIVE_UP},
    _S.CREATING_FINISHED: {_F.CANCEL: _S.CANCELLING},
    _S.ATTACHING: _GIVE_UP,
    _S.PROVING: {_F.PROOF: _S.PROVED, **_GIVE_UP},
    _S.PROVED: _GIVE_UP,
    _S.SENDING: {_F.DATA: _S.SENDING, _F.FINISH: _S.FINISHING, **_GIVE_UP},
    _S.FINISHING: {_F.CANCEL: _S.CANCELLING},
    _S.CANCELLING: {},
    _S.RELEASING: {},
    _S.QUERYING: {},
    _S.WATCHING: {_F.RELEASE: _S.RELEASING},
}
"""State of a stream -> frame from the client -> next state."""

_ABOUT_CONNECTION = frozenset({_F.HELLO, _F.AUTHENTICATED, _F.PING, _F.PONG, _F.LIMIT, _F.DRAIN})


class Event(NamedTuple):
    """A message from the server and its stream; 0 is the connection itself."""

    stream: int
    message: Message


@dataclass(slots=True)
class Stream:
    """An open stream. All offsets are bytes from the start of the file."""

    id: int
    state: ClientStreamState
    sent: int = 0
    """End of the last byte sent since the last REWIND or READY."""
    received: int = 0
    durable: int = 0
    limit: int = 0
    """The stream's limit: no DATA may end beyond it."""
    chunk: int = MAX_CHUNK
    """Advised payload size."""
    restart: bool = False
    """Whether the next DATA is the first after a REWIND."""
    rewinds: int = 0
    """Number of REWINDs received: data prepared before the last one is void."""
    proved: tuple[int, ...] = ()
    """The offsets whose CRCs PROOF contains: READY names one of them."""


class ClientProtocol:
    """One connection, as its client sees it. ``crc`` is CRC-32C (see :data:`frames.CRC`).

    ``last_stream`` is the highest stream id that was used on the connection before.
    """

    def __init__(self, crc: CRC, *, last_stream: int = 0) -> None:
        self._crc = crc
        self._replies: list[bytes] = []
        self._streams: dict[int, Stream] = {}
        self._last_id = last_stream
        self.hello: messages.Hello | None = None
        self.draining = False
        self.sent = 0
        """Payload bytes of all DATA sent on this connection."""
        self.limit = 0
        """The connection's limit of :attr:`sent`."""
        self.in_flight = 0
        """Payload bytes on open streams that were sent and that no ACK has reported as received."""

    @property
    def streams(self) -> Mapping[int, Stream]:
        """The open streams by id."""
        return MappingProxyType(self._streams)

    def credit(self, stream: int) -> int:
        """Bytes of DATA that may be sent on ``stream`` now; 0 where its state does not allow DATA."""
        entry = self._streams.get(stream)
        if entry is None or _F.DATA not in SENDS[entry.state]:
            return 0
        return max(0, min(entry.limit - entry.sent, self.limit - self.sent))

    @property
    def awaits(self) -> bool:
        """Whether the server owes a message on some stream: an ACK, credit, or the answer to FINISH.

        Answers to CREATE and ATTACH do not count: before them the server may read for a long time.
        """
        return any(map(self._is_owed, self._streams.values()))

    def _is_owed(self, stream: Stream) -> bool:
        if stream.state is _S.SENDING:
            return stream.sent > stream.received or self.credit(stream.id) == 0
        return stream.state is _S.FINISHING

    # Receiving ------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> Event | None:
        """Receive one binary message. Returns None for one that was in flight to a closed stream.

        Raises :class:`ProtocolViolation` and changes nothing: close the connection.
        If the message closes the stream, :attr:`streams` no longer contains it.
        """
        try:
            header = parse_header(frame)
        except MalformedFrame as error:
            if len(frame) >= HEADER_SIZE and not is_intact(frame, self._crc):
                raise CorruptFrame from error
            raise
        message_type = header.type
        fields = parse_fields(frame, self._crc)
        if message_type < _F.PING:
            raise self._unexpected(message_type, "a server does not send it")
        message = parse_message(message_type, fields)
        if self.hello is None and not isinstance(message, (messages.Hello, messages.Error)):
            raise self._unexpected(message_type, "before HELLO")
        if header.stream == 0:
            self._receive_on_connection(message)
            return Event(0, message)
        if message_type in _ABOUT_CONNECTION:
            raise MalformedFrame(reason=f"{message_type.name} belongs to stream 0")
        if header.stream > self._last_id:
            raise UnknownStream(stream=header.stream)
        stream = self._streams.get(header.stream)
        if stream is None:
            return None
        state = RECEIVES[stream.state].get(message_type)
        if state is None:
            raise self._unexpected(message_type, stream.state.name.lower())
        self._apply(stream, message)
        stream.state = state
        if state is _S.CLOSED:
            self.in_flight -= stream.sent - stream.received
            del self._streams[stream.id]
        return Event(stream.id, message)

    def replies(self) -> list[bytes]:
        """Frames that answer the received message (PONG, PAUSED): write them now, in this order."""
        replies, self._replies = self._replies, []
        return replies

    def _receive_on_connection(self, message: Message) -> None:
        match message:
            case messages.Hello():
                if self.hello is not None:
                    raise self._unexpected(_F.HELLO, "HELLO was received before")
                self.hello = message
                self.limit = message.connection_limit
            case messages.Limit(limit=limit):
                if limit < self.limit:
                    raise MalformedFrame(reason=f"LIMIT: {limit} is below {self.limit}")
                self.limit = limit
            case messages.Drain():
                self.draining = True
            case messages.Ping(nonce=nonce):
                self._replies.append(messages.Pong(nonce).to_frame(0, self._crc))
            case messages.Pong() | messages.Authenticated() | messages.Error():
                pass
            case _:
                name = message.frame_type.name
                raise MalformedFrame(reason=f"{name} does not belong to stream 0")

    def _apply(self, stream: Stream, message: Message) -> None:
        """Check a message's offsets and limits against the stream's, then apply them."""
        match message:
            case messages.Created():
                self._set_limit(stream, max(stream.limit, message.limit))
                stream.chunk = self._chunk(message.chunk)
            case messages.Attached():
                _check(message.durable <= message.received, message)
                # The server drops the data that was sent after CREATE.
                self._move(stream, sent=0, received=0)
                stream.limit = stream.durable = 0
                stream.proved = (message.durable, message.received)
            case messages.Ready():
                _check(message.offset in stream.proved, message)
                _check(stream.proved[0] <= message.durable <= message.offset, message)
                self._move(stream, sent=message.offset, received=message.offset)
                stream.durable = message.durable
                self._set_limit(stream, message.limit)
                stream.chunk = self._chunk(message.chunk)
            case messages.Ack():
                _check(stream.durable <= message.durable <= message.received, message)
                _check(stream.received <= message.received <= stream.sent, message)
                self._move(stream, sent=stream.sent, received=message.received)
                stream.durable = message.durable
                self._set_limit(stream, max(stream.limit, message.limit))
                stream.chunk = self._chunk(message.chunk)
            case messages.Rewind():
                _check(stream.durable <= message.durable <= message.offset, message)
                _check(message.offset <= stream.sent, message)
                self._move(stream, sent=message.offset, received=message.offset)
                stream.durable = message.durable
                self._set_limit(stream, message.limit)
                stream.restart = True
                stream.rewinds += 1
            case messages.Pause():
                # PAUSED is sent at once, so no ACK can be received between PAUSE and PAUSED.
                stream.limit = stream.sent
                self._replies.append(messages.Paused(stream.sent).to_frame(stream.id, self._crc))

    def _move(self, stream: Stream, *, sent: int, received: int) -> None:
        self.in_flight += (sent - received) - (stream.sent - stream.received)
        stream.sent, stream.received = sent, received

    def _set_limit(self, stream: Stream, limit: int) -> None:
        # Never beyond the window, since a client keeps that much of a stream in memory.
        stream.limit = min(limit, stream.durable + self._open_hello().window)

    def _chunk(self, advised: int) -> int:
        return max(1, min(advised, self._open_hello().max_chunk, MAX_CHUNK))

    def _unexpected(self, message_type: FrameType, state: str) -> UnexpectedMessage:
        return UnexpectedMessage(type=message_type.name, state=state)

    # Sending --------------------------------------------------------------------------------------

    def send_auth(self, ticket: str | None) -> bytes:
        """Send AUTH. With a ticket, it is the first frame after a HELLO with ``authenticated: false``."""
        self._open_hello()
        return messages.Auth(ticket).to_frame(0, self._crc)

    def send_ping(self, nonce: int = 0) -> bytes:
        return messages.Ping(nonce).to_frame(0, self._crc)

    def send_create(self, create: messages.Create) -> tuple[int, bytes]:
        """Open a stream with CREATE; returns its id and the frame. Data may follow at once, within the credit.

        Raises :class:`TooManyStreams`, :class:`Draining`.
        """
        stream, frame = self._open(_S.CREATING, create)
        self._set_limit(stream, self._open_hello().stream_limit)
        stream.chunk = self._chunk(MAX_CHUNK)
        return stream.id, frame

    def send_attach(self, upload: str) -> tuple[int, bytes]:
        """Open a stream with ATTACH, to resume an upload; raises as :meth:`send_create` does."""
        stream, frame = self._open(_S.ATTACHING, messages.Attach(upload))
        return stream.id, frame

    def send_query(self, upload: str) -> tuple[int, bytes]:
        """Ask for an upload's state on a new stream; raises as :meth:`send_create` does."""
        stream, frame = self._open(_S.QUERYING, messages.Query(upload))
        return stream.id, frame

    def send_watch(self, scope: str, uploads: Sequence[str] = ()) -> tuple[int, bytes]:
        """Follow uploads on a new stream (see :class:`messages.Watch`), until :meth:`send_release`; raises as
        :meth:`send_create` does."""
        stream, frame = self._open(_S.WATCHING, messages.Watch(scope, list(uploads)))
        return stream.id, frame

    def send_cancel_of(self, upload: str, *, finished: bool = False) -> tuple[int, bytes]:
        """Cancel an upload on a new stream, without an open stream for it; with ``finished`` also a completed one."""
        stream, frame = self._open(_S.CANCELLING, messages.Cancel(upload, finished or None))
        return stream.id, frame

    def send_proof(self, stream: int, durable_crc32c: str, received_crc32c: str | None) -> bytes:
        """Answer ATTACHED; ``received_crc32c`` is None where the client has fewer bytes."""
        entry, state = self._may_send(stream, _F.PROOF)
        entry.state = state
        if received_crc32c is None:
            entry.proved = entry.proved[:1]
        proof = messages.Proof(durable_crc32c, received_crc32c)
        return proof.to_frame(stream, self._crc)

    def send_data(self, stream: int, payload: bytes | bytearray | memoryview) -> bytes:
        """Send DATA at :attr:`Stream.sent`; returns the 16 bytes to write before ``payload``.

        Raises :class:`FlowControlViolation` beyond the credit.
        """
        entry = self._stream(stream)
        offset, flags = entry.sent, Flag.RESTART if entry.restart else Flag.NONE
        self.record_data(stream, offset, len(payload))
        return build_header(_F.DATA, stream, payload, self._crc, offset=offset, flags=flags)

    def record_data(self, stream: int, offset: int, size: int) -> None:
        """Count a DATA frame that the caller encoded itself, with the stream's ``restart``.

        Raises :class:`FlowControlViolation` beyond the credit, :class:`UnexpectedMessage` where no
        DATA, or none at this offset or of this size, may be sent.
        """
        entry, _ = self._may_send(stream, _F.DATA)
        if offset != entry.sent or not 0 < size <= min(self._open_hello().max_chunk, MAX_CHUNK):
            raise self._unexpected(_F.DATA, f"{size} bytes at {offset}")
        if offset + size > entry.limit:
            raise FlowControlViolation(end=offset + size, limit=entry.limit)
        if self.sent + size > self.limit:
            raise FlowControlViolation(end=self.sent + size, limit=self.limit)
        entry.sent += size
        entry.restart = False
        self.sent += size
        self.in_flight += size

    def send_finish(self, stream: int, finish: messages.Finish) -> bytes:
        """Send FINISH. Raises :class:`SizeMismatch` unless exactly ``finish.size`` bytes were sent."""
        entry, state = self._may_send(stream, _F.FINISH)
        if finish.size != entry.sent:
            raise SizeMismatch(size=finish.size, received=entry.sent)
        entry.state = state
        return finish.to_frame(stream, self._crc)

    def send_cancel(self, stream: int) -> bytes:
        """Cancel the upload. The answer is CANCELLED, or the result where the upload has completed."""
        entry, state = self._may_send(stream, _F.CANCEL)
        entry.state = state
        return messages.Cancel().to_frame(stream, self._crc)

    def send_release(self, stream: int) -> bytes:
        """Release the upload, which stays unfinished, or stop watching; the answer is RELEASED."""
        entry, state = self._may_send(stream, _F.RELEASE)
        entry.state = state
        return messages.Release().to_frame(stream, self._crc)

    def _open(self, state: ClientStreamState, message: Message) -> tuple[Stream, bytes]:
        hello = self._open_hello()
        if self.draining:
            raise Draining
        if len(self._streams) >= hello.max_streams:
            raise TooManyStreams(max_streams=hello.max_streams)
        frame = message.to_frame(self._last_id + 1, self._crc)
        self._last_id += 1
        stream = self._streams[self._last_id] = Stream(self._last_id, state)
        return stream, frame

    def _may_send(self, stream: int, message_type: FrameType) -> tuple[Stream, ClientStreamState]:
        entry = self._stream(stream)
        state = SENDS[entry.state].get(message_type)
        if state is None:
            raise self._unexpected(message_type, entry.state.name.lower())
        return entry, state

    def _stream(self, stream: int) -> Stream:
        if stream not in self._streams:
            raise UnknownStream(stream=stream)
        return self._streams[stream]

    def _open_hello(self) -> messages.Hello:
        if self.hello is None:
            raise UnexpectedMessage(type="A frame", state="before HELLO")
        return self.hello


def _check(holds: bool, message: Message) -> None:
    if not holds:
        raise MalformedFrame(reason=f"the figures of {message} contradict earlier messages")
