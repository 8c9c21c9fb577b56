"""One open connection: the protocol, a wire, and the fair division of both among the uploads."""

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
    from_code,
)
from ..protocol import messages
from ..protocol.client import ClientProtocol
from ..protocol.frames import HEADER_SIZE, SUBPROTOCOL
from ..protocol.messages import Message
from .source import Cut
from .transport import Connect, Endpoint, Wire

logger = logging.getLogger("django_async_upload.client")

_QUEUED_SECONDS: Final = 2.5
"""What the socket may hold, by time: PONGs wait behind it, and servers give up after 20 s."""
_QUEUED_FLOOR: Final = 256 * 1024
_HELLO_SECONDS: Final = 10.0
_SILENCES: Final = 3
"""So many heartbeats without a sound from the server mean that the connection is dead."""

# What a close code means where no ERROR came before it; all others are lost connections.
CLOSE_CODES: Final[dict[int, type[UploadError]]] = {
    **dict.fromkeys((1002, 1003, 1007, 1009, 4400), ProtocolViolation),
    4401: AuthenticationRequired,
    4406: SubprotocolRequired,
}


class Listener(Protocol):
    """Who holds a stream."""

    def message_received(self, message: Message) -> None: ...

    def cut_sent(self, cut: Cut) -> None:
        """A cut left the queue: it is on its way, or was thrown away because it is void."""

    def wake(self) -> None:
        """A slot, credit or the end of the connection: look again."""


@dataclass(slots=True)
class _Queued:
    stream: int
    rewinds: int
    reserved: int
    cut: Cut
    listener: Listener


class _Departure(NamedTuple):
    """The end of a cut that left, counted over the connection, and what had arrived by then."""

    end: int
    at: float
    arrived: int


class Connection:
    """Made by :meth:`open`. ``error`` is None as long as it lives.

    Uploads never wait here: what they cannot have now they are woken for. ``stall`` is after how many seconds
    the connection is given up on which the server owes a word on a stream, and says none on any.
    """

    def __init__(self, stall: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.protocol = ClientProtocol(crc32c)
        self.error: UploadError | None = None
        self.lost = self._loop.create_future()
        """Done when the connection is over; its result is None."""
        self.retry_after: float | None = None
        """Seconds, where the server said when to come back."""
        self.on_authenticated: Callable[[messages.Authenticated], None] | None = None
        self._wire: Wire | None = None
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._listeners: dict[int, Listener] = {}
        self._waiting_for_slot: deque[Listener] = deque()
        self._waiting_for_credit: deque[Listener] = deque()
        self._queue: deque[_Queued] = deque()
        self._reserved = 0
        self._rate: float | None = None
        self._departures: deque[_Departure] = deque()
        self._heard_at = self._said_at = self._loop.time()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._stall = stall
        self._served_at = self._heard_at
        """When the server said something on a stream, or owed nothing."""
        self._busy: asyncio.TimerHandle | None = None
        """The server is: no stream is opened until it fires."""
        self._authenticating = False
        self._next_ticket: list[str | None] = []

    @classmethod
    async def open(cls, connect: Connect, endpoint: Endpoint, stall: float) -> Connection:
        """Connect and wait for HELLO. Raises :class:`ConnectionLost` and what the server says."""
        connection = cls(stall)
        connection._wire = await connect(endpoint, connection)
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                await asyncio.wait(
                    {connection._hello, connection.lost}, return_when=asyncio.FIRST_COMPLETED
                )
        except TimeoutError:
            connection._fail(ConnectionLost("The server did not say hello."))
        except BaseException:
            connection.abort()
            raise
        if connection.error is not None:
            raise connection.error
        if connection.hello.heartbeat > 0:
            connection._beat()
        return connection

    @property
    def hello(self) -> messages.Hello:
        return self._hello.result()

    @property
    def usable(self) -> bool:
        """New streams may be opened."""
        return self.error is None and not self.protocol.draining

    @property
    def encode(self) -> Callable[..., list[bytes]]:
        return self._open_wire.encode

    # What uploads say -----------------------------------------------------------------------------

    def authenticate(self, ticket: str | None) -> None:
        """Send AUTH, at once or when the last one is answered."""
        if self._authenticating:
            self._next_ticket = [ticket]
        else:
            self._authenticating = True
            self._write(self.protocol.send_auth(ticket))

    def open_stream(self, listener: Listener, send: Callable[[], tuple[int, bytes]]) -> int | None:
        """A new stream, opened by a ``send_*`` method of the protocol; None while all are taken, or the
        server is busy."""
        if self._busy is not None or len(self.protocol.streams) >= self.hello.max_streams:
            if listener not in self._waiting_for_slot:
                self._waiting_for_slot.append(listener)
            return None
        stream, frame = send()
        self._listeners[stream] = listener
        self._write(frame)
        return stream

    def send(self, frame: bytes) -> None:
        """Write a control frame that a ``send_*`` method of the protocol made just now."""
        self._write(frame)

    def reserve(self, listener: Listener, stream: int, ahead: int, wanted: int) -> int:
        """Bytes that may be made ready for ``stream`` beside the ``ahead`` that are ready already.

        They count as used until they are sent, or given back by :meth:`give_back`. 0: wait.
        """
        shared = self.protocol.limit - self.protocol.sent - self._reserved
        size = min(wanted, self.protocol.credit(stream) - ahead, shared)
        if size <= 0:
            if shared <= 0 and listener not in self._waiting_for_credit:
                self._waiting_for_credit.append(listener)
            return 0
        self._reserved += size
        return size

    def give_back(self, size: int) -> None:
        """Undo :meth:`reserve`."""
        self._reserved -= size
        if size:
            self._wake(self._waiting_for_credit)

    def submit(
        self, listener: Listener, stream: int, rewinds: int, reserved: int, cut: Cut
    ) -> None:
        """Send a cut as soon as the wire has room and it is its turn."""
        self._queue.append(_Queued(stream, rewinds, reserved, cut, listener))
        self._pump()

    def forget(self, stream: int) -> None:
        """Nobody listens to ``stream`` any longer."""
        self._listeners.pop(stream, None)

    def close(self) -> None:
        """Say goodbye; ``lost`` is done when the other side has."""
        if self.error is None and self._wire is not None:
            self._wire.close(1000)

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    # What the wire says ---------------------------------------------------------------------------

    def message_received(self, message: bytes) -> None:
        if self.error is not None:
            return
        self._heard_at = self._loop.time()
        try:
            event = self.protocol.receive(message)
        except ProtocolViolation as error:
            logger.warning("The server broke the protocol: %s", error)
            self._fail(error)
            return
        for frame in self.protocol.replies():
            self._write(frame)
        if event is None:
            return
        if event.stream == 0:
            self._take(event.message)
        else:
            self._served_at = self._heard_at
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
            self._over(error or reason(close=code, **facts))

    # ----------------------------------------------------------------------------------------------

    @property
    def _open_wire(self) -> Wire:
        assert self._wire is not None
        return self._wire

    def _take(self, message: Message) -> None:
        match message:
            case messages.Hello():
                self._hello.set_result(message)
            case messages.Limit():
                self._served_at = self._heard_at
                self._wake(self._waiting_for_credit)
            case messages.Drain(retry_after=seconds):
                self.retry_after = seconds
                # The server closes; a server that forgets to is left after the same time again.
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
                error = error_of(message)
                if type(error) is not UploadError:  # here the code goes before `retryable`
                    error.retryable = type(error).retryable
                self._fail(error)

    def _wait_while_busy(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        if self._busy is None or self._busy.when() < until:
            if self._busy is not None:
                self._busy.cancel()
            self._busy = self._loop.call_at(until, self._busy_no_longer)

    def _busy_no_longer(self) -> None:
        self._busy = None
        self._wake(self._waiting_for_slot)

    def _write(self, frame: bytes) -> None:
        if self.error is None:
            self._said_at = self._loop.time()
            wire = self._open_wire
            wire.write(wire.encode(frame[:HEADER_SIZE], frame[HEADER_SIZE:]))

    def _pump(self) -> None:
        """Send what is queued, in turn, as far as the wire and the clock allow."""
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
                self._said_at = self._loop.time()
                arrived = self.protocol.sent - self.protocol.in_flight
                self._departures.append(_Departure(self.protocol.sent, self._said_at, arrived))
            self.give_back(item.reserved)
            item.listener.cut_sent(item.cut)

    def _has_room(self, size: int) -> bool:
        if self._rate is None or self.protocol.in_flight == 0:
            return True
        most = max(_QUEUED_FLOOR, self._rate * _QUEUED_SECONDS)
        return self.protocol.in_flight + size <= most

    def _measure(self) -> None:
        """How fast bytes arrive: what arrived between the departure and the arrival of the newest ones.

        The delivery rate of draft-cheng-iccrg-delivery-rate-estimation: it needs no full wire, so a cap that
        is too low shows a rate that lifts it. It rises at once and falls slowly.
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

    def _beat(self) -> None:
        """Ask when nothing was heard or said for a heartbeat; give up after three in silence, and where the
        server answers, but serves no stream."""
        seconds = self.hello.heartbeat
        now = self._loop.time()
        silence = now - self._heard_at
        if silence >= _SILENCES * seconds:
            self._fail(ConnectionLost(f"The server was silent for {silence:.0f} s."))
            return
        if not self.protocol.awaits:
            self._served_at = now
        elif now - self._served_at >= self._stall:
            self._fail(ConnectionLost(f"The server served no upload for {self._stall:.0f} s."))
            return
        if silence >= seconds or now - self._said_at >= seconds:
            self._write(self.protocol.send_ping())
        self._heartbeat = self._loop.call_later(seconds / 4, self._beat)

    def _fail(self, error: UploadError) -> None:
        """End the connection because of what was, or was not, received."""
        if self.error is None:
            self._over(error)
            if isinstance(error, ConnectionLost):
                self.abort()
            elif self._wire is not None:
                self._wire.close(1000 if isinstance(error, ConnectionRefused) else 4400)

    def _over(self, error: UploadError) -> None:
        self.error = error
        for timer in (self._heartbeat, self._busy):
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

    def _wake(self, waiting: deque[Listener]) -> None:
        for _ in range(len(waiting)):
            waiting.popleft().wake()


def error_of(message: messages.Error) -> UploadError:
    """The exception for an ERROR."""
    facts = dict(message.facts)
    if message.retry_after is not None:
        facts["retry_after"] = message.retry_after
    error = from_code(message.code, message.message, facts)
    error.retryable = message.retryable
    return error
