"""One open connection, which shares a wire and the connection's credit fairly among uploads."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from crc32c import crc32c

from ..exceptions import (
    AuthenticationRequired,
    Busy,
    ConnectionLost,
    ConnectionRefused,
    ProtocolViolation,
    SubprotocolRequired,
    UploadError,
)
from ..protocol import messages
from ..protocol.client import ClientProtocol
from ..protocol.frames import HEADER_SIZE, SUBPROTOCOL
from ..protocol.messages import Message
from .source import Cut
from .transport import Connect, Target, Wire

logger = logging.getLogger("django_async_upload.client")

_QUEUED_SECONDS: Final = 2.5
"""Seconds of data in flight at most: PONGs queue behind it, and servers give up after 20 s."""
_QUEUED_FLOOR: Final = 256 * 1024
_HELLO_SECONDS: Final = 10.0
_SILENT_HEARTBEATS: Final = 3
"""Number of heartbeats without a message from the server after which the connection is dead."""

# Errors for close codes without an ERROR before them; any other code is a lost connection.
CLOSE_CODES: Final[dict[int, type[UploadError]]] = {
    **dict.fromkeys((1002, 1003, 1007, 1009, 4400), ProtocolViolation),
    4401: AuthenticationRequired,
    4406: SubprotocolRequired,
}


class StreamListener(Protocol):
    """Callbacks for the owner of a stream."""

    def message_received(self, message: Message) -> None: ...

    def cut_sent(self, cut: Cut) -> None:
        """A cut left the queue: it was written to the wire, or discarded because it was void."""

    def wake(self) -> None:
        """A stream or credit is available, or the connection has ended: check again."""


@dataclass(slots=True)
class _Queued:
    stream: int
    rewinds: int
    reserved: int
    cut: Cut
    listener: StreamListener


class _Departure(NamedTuple):
    """The end of a written cut, in bytes of the connection, and the bytes acknowledged at that time."""

    end: int
    at: float
    arrived: int


class ClientConnection:
    """A connection, created by :meth:`open`. ``error`` is None until it ends.

    No method waits for a stream or credit: the connection wakes the listener when there is some. ``stall`` is the
    number of seconds after which the connection fails if the server owes a message on a stream and sends none on any.
    """

    def __init__(self, stall: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.protocol = ClientProtocol(crc32c)
        self.error: UploadError | None = None
        self.lost = self._loop.create_future()
        """Done when the connection has ended; its result is None."""
        self.retry_after: float | None = None
        """Seconds after which to reconnect, where the server gave a number."""
        self.on_authenticated: Callable[[messages.Authenticated], None] | None = None
        self._wire: Wire | None = None
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._listeners: dict[int, StreamListener] = {}
        self._waiting_for_slot: deque[StreamListener] = deque()
        self._waiting_for_credit: deque[StreamListener] = deque()
        self._queue: deque[_Queued] = deque()
        self._reserved = 0
        self._rate: float | None = None
        self._departures: deque[_Departure] = deque()
        self._received_at = self._sent_at = self._loop.time()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._stall = stall
        self._served_at = self._received_at
        """When the server last sent a message on a stream, or owed none."""
        self._busy_timer: asyncio.TimerHandle | None = None
        """Runs while the server is busy: no stream is opened until it fires."""
        self._authenticating = False
        self._next_ticket: list[str | None] = []

    @classmethod
    async def open(cls, connect: Connect, target: Target, stall: float) -> ClientConnection:
        """Connect and wait for HELLO. Raises :class:`ConnectionLost`, and the server's error."""
        connection = cls(stall)
        connection._wire = await connect(target, connection)
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                await asyncio.wait(
                    {connection._hello, connection.lost}, return_when=asyncio.FIRST_COMPLETED
                )
        except TimeoutError:
            connection._fail(ConnectionLost("The server did not send HELLO."))
        except BaseException:
            connection.abort()
            raise
        if connection.error is not None:
            raise connection.error
        if connection.hello.heartbeat > 0:
            connection._check_heartbeat()
        return connection

    @property
    def hello(self) -> messages.Hello:
        return self._hello.result()

    @property
    def usable(self) -> bool:
        """Whether new streams may be opened."""
        return self.error is None and not self.protocol.draining

    @property
    def encode(self) -> Callable[..., list[bytes]]:
        return self._open_wire.encode

    # For uploads ----------------------------------------------------------------------------------

    def authenticate(self, ticket: str | None) -> None:
        """Send AUTH, at once or after the answer to the last one."""
        if self._authenticating:
            self._next_ticket = [ticket]
        else:
            self._authenticating = True
            self._write(self.protocol.send_auth(ticket))

    def open_stream(
        self, listener: StreamListener, send: Callable[[], tuple[int, bytes]]
    ) -> int | None:
        """Open a stream by a ``send_*`` method of the protocol. Returns its id, or None while the maximum is
        open, or the server is busy."""
        if self._busy_timer is not None or len(self.protocol.streams) >= self.hello.max_streams:
            if listener not in self._waiting_for_slot:
                self._waiting_for_slot.append(listener)
            return None
        stream, frame = send()
        self._listeners[stream] = listener
        self._write(frame)
        return stream

    def send(self, frame: bytes) -> None:
        """Write a control frame that a ``send_*`` method of the protocol has just returned."""
        self._write(frame)

    def reserve(self, listener: StreamListener, stream: int, ahead: int, wanted: int) -> int:
        """Reserve credit for at most ``wanted`` bytes of ``stream``, beyond the ``ahead`` that are prepared already.

        Returns the reserved bytes, which count as used until they are sent or :meth:`release` returns them; 0 where
        there is no credit now.
        """
        shared = self.protocol.limit - self.protocol.sent - self._reserved
        size = min(wanted, self.protocol.credit(stream) - ahead, shared)
        if size <= 0:
            if shared <= 0 and listener not in self._waiting_for_credit:
                self._waiting_for_credit.append(listener)
            return 0
        self._reserved += size
        return size

    def release(self, size: int) -> None:
        """Undo :meth:`reserve`."""
        self._reserved -= size
        if size:
            self._wake(self._waiting_for_credit)

    def submit(
        self, listener: StreamListener, stream: int, rewinds: int, reserved: int, cut: Cut
    ) -> None:
        """Queue a cut, to be sent in order as soon as the wire has room."""
        self._queue.append(_Queued(stream, rewinds, reserved, cut, listener))
        self._pump()

    def remove_listener(self, stream: int) -> None:
        """Remove the listener of ``stream``."""
        self._listeners.pop(stream, None)

    def close(self) -> None:
        """Start the closing handshake; ``lost`` is done when the server has answered."""
        if self.error is None and self._wire is not None:
            self._wire.close(1000)

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    # For the wire ---------------------------------------------------------------------------------

    def message_received(self, message: bytes) -> None:
        if self.error is not None:
            return
        self._received_at = self._loop.time()
        try:
            event = self.protocol.receive(message)
        except ProtocolViolation as error:
            logger.warning("The server violated the protocol: %s", error)
            self._fail(error)
            return
        for frame in self.protocol.replies():
            self._write(frame)
        if event is None:
            return
        if event.stream == 0:
            self._handle(event.message)
        else:
            self._served_at = self._received_at
            if isinstance(event.message, messages.Error) and event.message.code == Busy.code:
                self._wait_while_busy(event.message.retry_after or 0)
            listener = self._listeners.get(event.stream)
            if event.stream not in self.protocol.streams:
                self._listeners.pop(event.stream, None)
                self._wake(self._waiting_for_slot)
            if listener is not None:
                listener.message_received(event.message)
        self._measure()
        self._pump()

    def wire_writable(self) -> None:
        self._pump()

    def wire_lost(self, code: int, error: UploadError | None) -> None:
        if self.error is None:
            reason = CLOSE_CODES.get(code, ConnectionLost)
            facts = {"subprotocol": SUBPROTOCOL} if reason is SubprotocolRequired else {}
            self._end(error or reason(close=code, **facts))

    # ----------------------------------------------------------------------------------------------

    @property
    def _open_wire(self) -> Wire:
        assert self._wire is not None
        return self._wire

    def _handle(self, message: Message) -> None:
        match message:
            case messages.Hello():
                self._hello.set_result(message)
            case messages.Limit():
                self._served_at = self._received_at
                self._wake(self._waiting_for_credit)
            case messages.Drain(retry_after=seconds):
                self.retry_after = seconds
                # The server closes the connection; if it does not, the client does.
                self._loop.call_later(
                    seconds + _HELLO_SECONDS,
                    self._fail,
                    ConnectionLost("The server is restarting."),
                )
                self._wake_all()
            case messages.Authenticated():
                self._authenticating = False
                while self._next_ticket:
                    self.authenticate(self._next_ticket.pop())
                if self.on_authenticated is not None:
                    self.on_authenticated(message)
            case messages.Error():
                error = message.to_exception()
                if type(error) is not UploadError:  # on stream 0 the code decides, not `retryable`
                    error.retryable = type(error).retryable
                self._fail(error)

    def _wait_while_busy(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        if self._busy_timer is None or self._busy_timer.when() < until:
            if self._busy_timer is not None:
                self._busy_timer.cancel()
            self._busy_timer = self._loop.call_at(until, self._end_busy)

    def _end_busy(self) -> None:
        self._busy_timer = None
        self._wake(self._waiting_for_slot)

    def _write(self, frame: bytes) -> None:
        if self.error is None:
            self._sent_at = self._loop.time()
            wire = self._open_wire
            wire.write(wire.encode(frame[:HEADER_SIZE], frame[HEADER_SIZE:]))

    def _pump(self) -> None:
        """Send queued cuts in order, as far as the wire and the limit of data in flight allow."""
        while self._queue and self.error is None and not self._open_wire.congested:
            item = self._queue[0]
            stream = self.protocol.streams.get(item.stream)
            void = (
                stream is None
                or stream.rewinds != item.rewinds
                or stream.sent != item.cut.start
                or self.protocol.credit(item.stream) < item.cut.end - item.cut.start
            )
            if not void and not self._has_room(item.reserved):
                return
            self._queue.popleft()
            if not void:
                offset = item.cut.start
                for size, pieces in item.cut.messages:
                    self.protocol.record_data(item.stream, offset, size)
                    self._open_wire.write(pieces)
                    offset += size
                self._sent_at = self._loop.time()
                arrived = self.protocol.sent - self.protocol.in_flight
                self._departures.append(_Departure(self.protocol.sent, self._sent_at, arrived))
            self.release(item.reserved)
            item.listener.cut_sent(item.cut)

    def _has_room(self, size: int) -> bool:
        if self._rate is None or self.protocol.in_flight == 0:
            return True
        most = max(_QUEUED_FLOOR, self._rate * _QUEUED_SECONDS)
        return self.protocol.in_flight + size <= most

    def _measure(self) -> None:
        """Measure the delivery rate: the bytes acknowledged between a cut's departure and its acknowledgement.

        See draft-cheng-iccrg-delivery-rate-estimation. The estimate is valid for a wire that is not full, so
        a limit that is too low corrects itself. It rises at once and falls slowly.
        """
        now, arrived = self._loop.time(), self.protocol.sent - self.protocol.in_flight
        newest = None
        while self._departures and self._departures[0].end <= arrived:
            newest = self._departures.popleft()
        if newest is None or now <= newest.at:
            return
        rate = (arrived - newest.arrived) / (now - newest.at)
        if self._rate is None or rate >= self._rate:
            self._rate = rate
        else:
            self._rate += (rate - self._rate) / 8

    def _check_heartbeat(self) -> None:
        """Send a PING when nothing was received or sent for a heartbeat. Fail the connection after three heartbeats
        of silence, and where the server answers, but serves no stream."""
        seconds = self.hello.heartbeat
        now = self._loop.time()
        silence = now - self._received_at
        if silence >= _SILENT_HEARTBEATS * seconds:
            self._fail(ConnectionLost(f"The server was silent for {silence:.0f} s."))
            return
        if not self.protocol.awaits:
            self._served_at = now
        elif now - self._served_at >= self._stall:
            self._fail(ConnectionLost(f"The server served no upload for {self._stall:.0f} s."))
            return
        if silence >= seconds or now - self._sent_at >= seconds:
            self._write(self.protocol.send_ping())
        self._heartbeat = self._loop.call_later(seconds / 4, self._check_heartbeat)

    def _fail(self, error: UploadError) -> None:
        """End the connection with an error, and close the wire."""
        if self.error is None:
            self._end(error)
            if isinstance(error, ConnectionLost):
                self.abort()
            elif self._wire is not None:
                self._wire.close(1000 if isinstance(error, ConnectionRefused) else 4400)

    def _end(self, error: UploadError) -> None:
        self.error = error
        for timer in (self._heartbeat, self._busy_timer):
            if timer is not None:
                timer.cancel()
        if not self.lost.done():
            self.lost.set_result(None)
        self._queue.clear()
        self._wake_all()

    def _wake_all(self) -> None:
        self._wake(self._waiting_for_slot)
        self._wake(self._waiting_for_credit)
        for listener in list(self._listeners.values()):
            listener.wake()

    def _wake(self, waiting: deque[StreamListener]) -> None:
        for _ in range(len(waiting)):
            waiting.popleft().wake()
