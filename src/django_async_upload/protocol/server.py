"""The server's half of protocol 1, sans I/O: frames in, events out, without a clock.

The shell passes every message to :meth:`ServerProtocol.receive` and handles the returned event. It encodes every
outgoing message by :meth:`ServerProtocol.send`, which updates the state of the streams, and must send the frames in the
order in which they were returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    CHECKED_SIZE,
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
"""Maximum number of rewinds to one offset; then the stream ends with ``corrupt_chunks``."""


LEAST_DROPPED: Final = 1024
"""The least number of bytes that a dropped frame counts as."""
IN_FLIGHT_SLACK: Final = 16 * 1024
"""Bytes that dropped frames of one stream may count beyond its credit: FINISH, CANCEL, and shorter chunks."""


class ServerStreamState(Enum):
    """States of an open stream. Closed streams are forgotten."""

    CREATING = auto()
    """CREATE was received and is not answered; data may follow it at once."""
    ATTACHING = auto()
    """ATTACH or PROOF was received and is not answered."""
    PROVING = auto()
    """ATTACHED was sent; PROOF is due."""
    OPEN = auto()
    REWINDING = auto()
    """REWIND was sent; data with RESTART is due."""
    FINISHING = auto()
    """FINISH came."""
    ASKING = auto()
    """QUERY, or CANCEL on a new stream, was received and is not answered."""
    WATCHING = auto()
    """WATCH was received; CHANGED answers it until RELEASE."""
    ENDING = auto()
    """CANCEL or RELEASE was received, or the client violated the stream's rules; the answer is due."""


_S = ServerStreamState
_T = FrameType
# Python 3.11 finds a member by its class in half a microsecond: the hot path uses names of the module.
_DATA: Final = FrameType.DATA
_REWINDING: Final = ServerStreamState.REWINDING

_HOLDING: Final = frozenset(
    {_S.CREATING, _S.ATTACHING, _S.PROVING, _S.OPEN, _S.REWINDING, _S.FINISHING}
)

ACCEPTS: Final[dict[FrameType, frozenset[ServerStreamState]]] = {
    _T.DATA: frozenset({_S.CREATING, _S.OPEN}),
    _T.PROOF: frozenset({_S.PROVING}),
    _T.FINISH: frozenset({_S.CREATING, _S.OPEN}),
    _T.PAUSED: _HOLDING,
    _T.CANCEL: _HOLDING,
    _T.RELEASE: _HOLDING | {_S.WATCHING},
}
"""The frames that are allowed on an open stream, and the states that allow them. While ENDING all are dropped."""
_TAKES_DATA: Final = ACCEPTS[_DATA]

DROPS: Final = frozenset({_S.ATTACHING, _S.PROVING, _S.REWINDING, _S.ENDING})
"""States in which DATA and FINISH may have been in flight when the state changed: they are dropped."""

_OPENS: Final = {
    _T.CREATE: _S.CREATING,
    _T.ATTACH: _S.ATTACHING,
    _T.QUERY: _S.ASKING,
    _T.WATCH: _S.WATCHING,
    _T.CANCEL: _S.ASKING,
}
_CONNECTION: Final = frozenset({_T.AUTH, _T.PING, _T.PONG})
_CLOSES: Final = (m.Completed, m.Cancelled, m.Released, m.Status, m.Error)


class Chunk(NamedTuple):
    """DATA that is allowed on its stream. Its CRC is not checked yet: the store's writer does that."""

    stream: int
    payload: memoryview
    start: int
    """CRC-32C of the header, with which that of the payload begins."""
    crc: int
    """CRC-32C of the header and the payload, as the sender says."""
    offset: int


class Control(NamedTuple):
    """A control message. ``stream`` is 0 for AUTH and PING."""

    stream: int
    message: m.Message


class Broken(NamedTuple):
    """The client violated the rules of one stream: release the upload and send ``error``. Later frames are dropped."""

    stream: int
    error: UploadError


Event = Chunk | Control | Broken


@dataclass(slots=True)
class _Stream:
    state: ServerStreamState
    limit: int
    expected: int = 0
    size: int | None = None
    pausing: bool = False
    promised: int = 0
    """The highest limit sent to the client."""
    rewound_to: int = -1
    rewinds: int = 0


class ServerProtocol:
    """The protocol state of one connection. First send :attr:`greeting`, which encodes ``hello``."""

    def __init__(self, hello: m.Hello, crc: CRC) -> None:
        self._hello = hello
        self._crc = crc
        self._streams: dict[int, _Stream] = {}
        self._highest = 0
        self._received = 0
        self._limit = hello.connection_limit
        self._silent = not hello.authenticated
        self._authenticating = False
        self._in_flight = 0
        """Bytes that may still be in flight to streams that no longer accept data: see :meth:`_drop`."""

    @property
    def greeting(self) -> bytes:
        return self._hello.to_frame(0, self._crc)

    @property
    def received(self) -> int:
        """Bytes of payload of all DATA frames received, which LIMIT limits."""
        return self._received

    @property
    def limit(self) -> int:
        """The connection's limit, as sent to the client."""
        return self._limit

    def is_open(self, stream: int) -> bool:
        return stream in self._streams

    def receive(self, frame: bytes) -> Event | None:
        """Receive one message from the client; returns the event to handle, or None.

        Raises :class:`ProtocolViolation` or :class:`AuthenticationRequired`: send the error on stream 0 and
        close the connection. The state of the streams is unchanged.
        """
        try:
            header = parse_header(frame)
            if self._silent and header.type is not _T.AUTH:
                raise AuthenticationRequired
        except (MalformedFrame, AuthenticationRequired) as error:
            # A flipped bit must be retryable, unlike a violation.
            if len(frame) >= HEADER_SIZE and not is_intact(frame, self._crc):
                raise CorruptFrame from error
            raise
        if header.type is _DATA:
            return self._receive_data(header, frame)
        fields = parse_fields(frame, self._crc)
        if header.type not in m.FROM_CLIENT:
            raise UnexpectedMessage(type=header.type.name, state="from a client")
        return self._receive_control(header, m.parse_message(header.type, fields))

    def _receive_data(self, header: Header, frame: bytes) -> Event | None:
        length = len(frame) - HEADER_SIZE
        stream = self._streams.get(header.stream)
        end = header.offset + length
        received = self._received + length
        if (
            stream is not None
            and _takes_data(stream, header)
            and header.offset == stream.expected
            and end <= stream.limit
            and (stream.size is None or end <= stream.size)
            and received <= self._limit
        ):
            self._received = received
            stream.expected = end
            if stream.state is _REWINDING:
                stream.state = _S.OPEN
            return Chunk(
                header.stream,
                memoryview(frame)[HEADER_SIZE:],
                self._crc(frame[:CHECKED_SIZE], 0),
                header.crc,
                header.offset,
            )
        if not is_intact(frame, self._crc):
            raise CorruptFrame
        if received > self._limit:
            raise FlowControlViolation(stream=0, end=received, limit=self._limit)
        event = self._judge_data(header, stream, end)
        self._received = received
        return event

    def _judge_data(self, header: Header, stream: _Stream | None, end: int) -> Broken | None:
        """Handle intact DATA that is not allowed: drop it if it was in flight, else it is a violation."""
        if stream is None:
            self._require_known(header.stream, "DATA")
            self._drop(end - header.offset)
            return None
        if not _takes_data(stream, header):
            if stream.state in DROPS:
                self._drop(end - header.offset)
                return None
            raise UnexpectedMessage(type="DATA", state=stream.state.name)
        if end > stream.limit:
            raise FlowControlViolation(stream=header.stream, end=end, limit=stream.limit)
        error: UploadError
        if header.offset != stream.expected:
            error = WrongOffset(offset=header.offset, expected=stream.expected)
        else:
            error = SizeExceeded(end=end, size=stream.size)
        stream.state = _S.ENDING
        return Broken(header.stream, error)

    def _drop(self, length: int) -> None:
        """Count a frame that was in flight when the stream stopped accepting data.

        There cannot be more of these than the credit that was granted, and a few without payload. Raises
        :class:`FlowControlViolation` beyond that: otherwise a client could keep the server busy for ever.
        """
        left = self._in_flight - max(length, LEAST_DROPPED)
        if left < 0:
            raise FlowControlViolation(
                "More data was received for streams that accept none than can have been in flight."
            )
        self._in_flight = left

    def _require_known(self, stream: int, name: str) -> None:
        if stream == 0:
            raise MalformedFrame(reason=f"{name} does not belong to stream 0")
        if stream > self._highest:
            raise UnknownStream(stream=stream)

    def _receive_control(self, header: Header, message: m.Message) -> Event | None:
        kind, number = header.type, header.stream
        if kind in _CONNECTION:
            if number != 0:
                raise MalformedFrame(reason=f"{kind.name} belongs to stream 0")
            if kind is _T.AUTH:
                if self._authenticating:
                    raise UnexpectedMessage(type="AUTH", state="the last one is not answered")
                self._authenticating = True
                self._silent = False
            return None if kind is _T.PONG else Control(0, message)
        stream = self._streams.get(number)
        if stream is None and kind in _OPENS and number > self._highest:
            return self._open(number, kind, message)
        if stream is None:
            self._require_known(number, kind.name)
            if kind in _OPENS and kind is not _T.CANCEL:
                raise UnexpectedMessage(type=kind.name, state="the stream id was used before")
            self._drop(0)
            return None
        if stream.state is _S.ENDING or (kind is _T.FINISH and stream.state in DROPS):
            self._drop(0)
            return None
        if stream.state not in ACCEPTS.get(kind, frozenset()):
            raise UnexpectedMessage(type=kind.name, state=stream.state.name)
        if kind is _T.PROOF:
            stream.state = _S.ATTACHING
        elif kind is _T.FINISH:
            stream.state = _S.FINISHING
        elif kind in (_T.CANCEL, _T.RELEASE):
            stream.state = _S.ENDING
        elif isinstance(message, m.Paused):
            self._receive_paused(stream, message)
        return Control(number, message)

    def _open(self, number: int, kind: FrameType, message: m.Message) -> Event:
        if kind is _T.CANCEL and isinstance(message, m.Cancel) and message.upload is None:
            raise UnknownStream(stream=number)
        if len(self._streams) >= self._hello.max_streams:
            raise TooManyStreams(max_streams=self._hello.max_streams)
        size = message.size if isinstance(message, m.Create) else None
        limit = self._hello.stream_limit if kind is _T.CREATE else 0
        self._streams[number] = _Stream(_OPENS[kind], limit, size=size, promised=limit)
        self._in_flight += limit + IN_FLIGHT_SLACK
        self._highest = number
        return Control(number, message)

    def _receive_paused(self, stream: _Stream, message: m.Paused) -> None:
        if not stream.pausing:
            raise UnexpectedMessage(type="PAUSED", state="no PAUSE was sent")
        if stream.state not in DROPS:  # otherwise a later message has set another limit
            if message.offset != stream.expected:
                raise UnexpectedMessage(
                    type="PAUSED", state=f"data up to {stream.expected} was received"
                )
            stream.limit = message.offset
        stream.pausing = False

    def send(self, stream: int, message: m.Message) -> bytes:
        """Encode a message as a frame, and update the stream's state.

        Raises :class:`CorruptChunks` instead of the ninth rewind to one offset, :class:`RuntimeError` for a message
        that the state does not allow, and :class:`ValueError` for one that cannot be encoded: then nothing has changed.
        """
        if stream == 0:
            if isinstance(message, m.Limit):
                self._limit = max(self._limit, message.limit)
            elif isinstance(message, m.Authenticated):
                self._authenticating = False
            return message.to_frame(0, self._crc)
        entry = self._streams.get(stream)
        if entry is None:
            raise RuntimeError(f"stream {stream} is not open")
        if isinstance(message, _CLOSES):
            frame = message.to_frame(stream, self._crc)  # may raise, before the state changes
            del self._streams[stream]
            return frame
        if isinstance(message, m.Ack) and entry.pausing:
            # PAUSED may be in flight: credit beyond its offset would make it a violation.
            message = replace(message, limit=min(message.limit, entry.expected))
        elif entry.state is not _S.ENDING:
            self._change(entry, message)
            self._in_flight += max(0, entry.limit - entry.promised)
            entry.promised = max(entry.limit, entry.promised)
        return message.to_frame(stream, self._crc)

    def _change(self, stream: _Stream, message: m.Message) -> None:
        match message:
            case m.Created():
                if stream.state is _S.CREATING:
                    stream.state = _S.OPEN
                stream.limit = max(stream.limit, message.limit)
            case m.Attached():
                stream.state = _S.PROVING
                stream.size = message.size
                stream.limit = 0
            case m.Ready():
                stream.state = _S.OPEN
                stream.expected = message.offset
                stream.limit = message.limit
            case m.Ack():
                stream.limit = max(stream.limit, message.limit)
            case m.Rewind():
                self._rewind(stream, message)
            case m.Pause():
                stream.pausing = True

    def _rewind(self, stream: _Stream, message: m.Rewind) -> None:
        rewinds = stream.rewinds + 1 if message.offset == stream.rewound_to else 1
        if rewinds > MAX_REWINDS:
            raise CorruptChunks(offset=message.offset, times=rewinds)
        self._in_flight += max(0, stream.limit - message.offset)
        stream.rewinds = rewinds
        stream.rewound_to = message.offset
        stream.state = _S.REWINDING
        stream.expected = message.offset
        stream.limit = message.limit


def _takes_data(stream: _Stream, header: Header) -> bool:
    """Whether the stream accepts this DATA: always while open for data, after a REWIND only with RESTART."""
    return stream.state in _TAKES_DATA or (
        stream.state is _REWINDING
        and header.flags & Flag.RESTART != 0
        and header.offset == stream.expected
    )
