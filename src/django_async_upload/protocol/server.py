"""The server's side of one connection, sans I/O: it awaits nothing, has no clock and moves no bytes.

The shell passes every message to :meth:`ServerProtocol.receive` and carries out the event that comes back;
it sends every message through :meth:`ServerProtocol.send`, which keeps the state of the streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from ..exceptions import (
    AuthenticationRequired,
    CorruptChunks,
    CorruptFrame,
    FlowControlViolation,
    MalformedFrame,
    SizeExceeded,
    TooManyStreams,
    UnexpectedMessage,
    UnknownStream,
    UploadError,
    WrongOffset,
)
from . import messages as m
from .frames import (
    CRC,
    HEADER_SIZE,
    Flag,
    FrameType,
    Header,
    is_intact,
    parse_fields,
    parse_header,
)

MAX_REWINDS: Final = 8
"""Rewinds to one offset before the stream ends with ``corrupt_chunks``."""


class StreamState(Enum):
    """What the server expects on a stream. A closed stream has no state: it is forgotten."""

    CREATING = auto()
    """CREATE came, and is not answered; data may follow it at once."""
    ATTACHING = auto()
    """ATTACH or PROOF came, and is not answered."""
    PROVING = auto()
    """ATTACHED was sent; PROOF is due."""
    OPEN = auto()
    REWINDING = auto()
    """REWIND was sent; data with RESTART is due."""
    FINISHING = auto()
    """FINISH came."""
    ASKING = auto()
    """QUERY, or CANCEL of an upload that this connection does not hold."""


_S = StreamState
_T = FrameType

_HOLDING: Final = {_S.CREATING, _S.ATTACHING, _S.PROVING, _S.OPEN, _S.REWINDING, _S.FINISHING}

ACCEPTS: Final[dict[FrameType, frozenset[StreamState]]] = {
    _T.DATA: frozenset({_S.CREATING, _S.OPEN}),
    _T.PROOF: frozenset({_S.PROVING}),
    _T.FINISH: frozenset({_S.CREATING, _S.OPEN}),
    _T.PAUSED: frozenset({_S.CREATING, _S.OPEN, _S.REWINDING, _S.FINISHING}),
    _T.CANCEL: frozenset(_HOLDING),
    _T.RELEASE: frozenset(_HOLDING),
}
"""The frames that may come on an open stream, and in which of its states."""

DROPS: Final = frozenset({_S.ATTACHING, _S.PROVING, _S.REWINDING})
"""In these states DATA and FINISH were in flight before the client could know better."""

_OPENS: Final = {
    _T.CREATE: _S.CREATING,
    _T.ATTACH: _S.ATTACHING,
    _T.QUERY: _S.ASKING,
    _T.CANCEL: _S.ASKING,
}
_CONNECTION: Final = frozenset({_T.AUTH, _T.PING, _T.PONG})
_CLOSES: Final = (m.Completed, m.Cancelled, m.Released, m.Status, m.Error)


class Chunk(NamedTuple):
    """DATA that fits its stream. Its CRC is not checked yet: the writer does that."""

    stream: int
    frame: bytes


class Received(NamedTuple):
    """A control message. ``stream`` is 0 for AUTH and PING."""

    stream: int
    message: m.Message


class Broken(NamedTuple):
    """The client broke one stream; send ``error`` on it, and let go of the upload."""

    stream: int
    error: UploadError


Event = Chunk | Received | Broken


@dataclass(slots=True)
class _Stream:
    state: StreamState
    limit: int
    expected: int = 0
    size: int | None = None
    pausing: bool = False
    rewound_to: int = -1
    rewinds: int = 0


class ServerProtocol:
    """One connection. ``hello`` is what the server has to say first: send :attr:`greeting`."""

    def __init__(self, hello: m.Hello, crc: CRC) -> None:
        self._hello = hello
        self._crc = crc
        self._streams: dict[int, _Stream] = {}
        self._highest = 0
        self._received = 0
        self._limit = hello.connection_limit
        self._silent = not hello.authenticated

    @property
    def greeting(self) -> bytes:
        return self._hello.to_frame(0, self._crc)

    @property
    def received(self) -> int:
        """Bytes of payload of all DATA frames: what LIMIT counts."""
        return self._received

    @property
    def limit(self) -> int:
        """The connection's limit, as the client was told."""
        return self._limit

    def is_open(self, stream: int) -> bool:
        return stream in self._streams

    def receive(self, frame: bytes) -> Event | None:
        """Take one message from the client and return what to do about it; None is nothing.

        Raises :class:`ProtocolViolation` or :class:`AuthenticationRequired`: send the error on stream 0 and
        close the connection. What was received before stays as it is.
        """
        try:
            header = parse_header(frame)
            if self._silent and header.type is not _T.AUTH:
                raise AuthenticationRequired
        except (MalformedFrame, AuthenticationRequired) as error:
            # One flipped bit must not look like a peer that one does not come back to.
            if len(frame) >= HEADER_SIZE and not is_intact(frame, self._crc):
                raise CorruptFrame from error
            raise
        if header.type is _T.DATA:
            return self._receive_data(header, frame)
        fields = parse_fields(frame, self._crc)
        if header.type not in m.FROM_CLIENT:
            raise UnexpectedMessage(type=header.type.name, state="from a client")
        return self._receive_control(header, m.parse_message(header.type, fields))

    def _receive_data(self, header: Header, frame: bytes) -> Event | None:
        length = len(frame) - HEADER_SIZE
        stream = self._streams.get(header.stream)
        end = header.offset + length
        if (
            stream is not None
            and (
                stream.state in ACCEPTS[_T.DATA]
                or (stream.state is _S.REWINDING and header.flags & Flag.RESTART)
            )
            and header.offset == stream.expected
            and end <= stream.limit
            and (stream.size is None or end <= stream.size)
        ):
            self._count(length)
            stream.expected = end
            if stream.state is _S.REWINDING:
                stream.state = _S.OPEN
            return Chunk(header.stream, frame)
        return self._receive_odd_data(header, frame, stream, end)

    def _receive_odd_data(
        self, header: Header, frame: bytes, stream: _Stream | None, end: int
    ) -> Event | None:
        """DATA that does not fit its stream: damaged, in flight, or wrong."""
        if not is_intact(frame, self._crc):
            raise CorruptFrame
        self._count(len(frame) - HEADER_SIZE)
        if stream is None:
            self._require_known(header.stream)
            return None
        if stream.state in DROPS:
            return None
        if stream.state not in ACCEPTS[_T.DATA]:
            raise UnexpectedMessage(type="DATA", state=stream.state.name)
        if end > stream.limit:
            raise FlowControlViolation(stream=header.stream, end=end, limit=stream.limit)
        if header.offset != stream.expected:
            return Broken(
                header.stream, WrongOffset(offset=header.offset, expected=stream.expected)
            )
        assert stream.size is not None
        return Broken(header.stream, SizeExceeded(end=end, size=stream.size))

    def _count(self, length: int) -> None:
        if self._received + length > self._limit:
            raise FlowControlViolation(stream=0, end=self._received + length, limit=self._limit)
        self._received += length

    def _require_known(self, stream: int) -> None:
        if stream == 0 or stream > self._highest:
            raise UnknownStream(stream=stream)

    def _receive_control(self, header: Header, message: m.Message) -> Event | None:
        kind, number = header.type, header.stream
        if kind in _CONNECTION:
            if number != 0:
                raise MalformedFrame(reason=f"{kind.name} belongs to stream 0")
            self._silent = False
            return None if kind is _T.PONG else Received(0, message)
        stream = self._streams.get(number)
        if stream is None and kind in _OPENS and number > self._highest:
            return self._open(number, kind, message)
        if stream is None:
            self._require_known(number)
            if kind in _OPENS and kind is not _T.CANCEL:
                raise UnexpectedMessage(type=kind.name, state="the stream id was used before")
            return None
        if kind is _T.FINISH and stream.state in DROPS:
            return None
        if stream.state not in ACCEPTS.get(kind, frozenset()):
            raise UnexpectedMessage(type=kind.name, state=stream.state.name)
        if kind is _T.PROOF:
            stream.state = _S.ATTACHING
        elif kind is _T.FINISH:
            stream.state = _S.FINISHING
        elif isinstance(message, m.Paused):
            self._receive_paused(stream, message)
        return Received(number, message)

    def _open(self, number: int, kind: FrameType, message: m.Message) -> Event:
        if kind is _T.CANCEL and isinstance(message, m.Cancel) and message.upload is None:
            raise UnknownStream(stream=number)
        if len(self._streams) >= self._hello.max_streams:
            raise TooManyStreams(max_streams=self._hello.max_streams)
        size = message.size if isinstance(message, m.Create) else None
        limit = self._hello.stream_limit if kind is _T.CREATE else 0
        self._streams[number] = _Stream(_OPENS[kind], limit, size=size)
        self._highest = number
        return Received(number, message)

    def _receive_paused(self, stream: _Stream, message: m.Paused) -> None:
        if not stream.pausing:
            raise UnexpectedMessage(type="PAUSED", state="no PAUSE was sent")
        stream.pausing = False
        if stream.state is not _S.REWINDING:
            if message.offset != stream.expected:
                raise UnexpectedMessage(type="PAUSED", state=f"data up to {stream.expected} came")
            stream.limit = message.offset

    def send(self, stream: int, message: m.Message) -> bytes:
        """The frame for a message, the stream's state changed accordingly.

        Raises :class:`CorruptChunks` instead of rewinding for the ninth time to one offset, and
        :class:`RuntimeError` where the shell is wrong.
        """
        if stream == 0:
            if isinstance(message, m.Limit):
                self._limit = max(self._limit, message.limit)
            return message.to_frame(0, self._crc)
        state = self._streams.get(stream)
        if state is None:
            raise RuntimeError(f"stream {stream} is not open")
        match message:
            case m.Created():
                if state.state is _S.CREATING:
                    state.state = _S.OPEN
                state.limit = max(state.limit, message.limit)
            case m.Attached():
                state.state = _S.PROVING
                state.size = message.size
                state.limit = 0
            case m.Ready():
                state.state = _S.OPEN
                state.expected = message.offset
                state.limit = message.limit
            case m.Ack():
                if not state.pausing:
                    state.limit = max(state.limit, message.limit)
            case m.Rewind():
                self._rewind(state, message)
            case m.Pause():
                state.pausing = True
            case _ if isinstance(message, _CLOSES):
                del self._streams[stream]
        return message.to_frame(stream, self._crc)

    def _rewind(self, stream: _Stream, message: m.Rewind) -> None:
        stream.rewinds = stream.rewinds + 1 if message.offset == stream.rewound_to else 1
        stream.rewound_to = message.offset
        if stream.rewinds > MAX_REWINDS:
            raise CorruptChunks(offset=message.offset, times=stream.rewinds)
        stream.state = _S.REWINDING
        stream.expected = message.offset
        stream.limit = message.limit
