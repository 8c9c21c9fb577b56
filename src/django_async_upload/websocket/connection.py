"""One WebSocket connection carrying many uploads: dispatch, authentication, timeouts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

from crc32c import crc32c

from .. import __version__, conf
from ..admission import ConnectionSlot, client_address, log_origin, origin_is_trusted, origins
from ..concurrency import pace
from ..endpoints import Endpoint
from ..engine.credit import FLOOR, LARGEST_WINDOW
from ..engine.drain import CLOSING_SECONDS, connections, retry_after, spawn
from ..engine.service import UploadService, get_service
from ..exceptions import (
    AuthenticationRequired,
    Busy,
    Draining,
    FlowControlViolation,
    IdleTimeout,
    MalformedFrame,
    MetadataInvalid,
    SubprotocolRequired,
    UploadError,
)
from ..failpoints import failpoint
from ..login import Answer, Login
from ..models import Slot
from ..nodelay import set_nodelay
from ..notices import log_refused
from ..protocol import messages as m
from ..protocol.frames import SUBPROTOCOL
from ..protocol.server import Broken, Chunk, Control, ServerProtocol
from ..sessions import policies
from ..sessions.owners import Owner, look_up
from ..stores.base import Piece, Seal
from .cost import cost
from .errors import close_code, error_message, log_closed
from .life import Life
from .sender import Sender
from .stream import UploadStream

CONNECTION_WINDOW: Final = 2 * LARGEST_WINDOW
"""Bytes of DATA payload that may be in flight on one connection. LIMIT is sent at half of it, with a window left."""
AUTHENTICATION_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 2.0
"""Seconds that a client may take to answer the server's Close frame."""
GATHER_SECONDS: Final = 0.02
"""Seconds for which a small file's CREATE is deferred, so that its bytes and FINISH can be handled with it."""
MAX_IN_TURN: Final = 64
"""Messages of one connection per turn of the event loop."""
PATIENCE_SECONDS: Final = 0.005
"""A delay of reading shorter than this is skipped."""
THROTTLE_SECONDS: Final = 5.0
"""Seconds for which a connection may exceed the rate at which it is read, without a pause."""
MAX_QUERIES: Final = 8
"""QUERYs of one connection that run in the database at once; further ones wait."""
MAX_WATCHES: Final = 8
"""WATCHes of one connection at once; each may hold a standing of a thousand uploads."""


class Connection:
    """The WebSocket door of an endpoint: one connection."""

    service: UploadService

    def __init__(self, hooks: Endpoint) -> None:
        self.hooks = hooks

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve the connection."""
        self.scope = scope
        self._send = send
        set_nodelay(receive)
        self._life = Life()
        self._sender = Sender(send, self._newest)
        self._in_turn = 0
        self._behind = 0.0
        self._throttled_since: float | None = None
        listening = asyncio.create_task(self._listen(receive))
        try:
            await self._life.last(listening)
            listening.cancel()  # Granian sends no Close frame while the application awaits receive()
            await asyncio.wait({listening})
            if self._life.error is not None:
                await self._say_farewell(self._life.error, receive)
            elif not listening.cancelled():
                listening.result()  # raises its error
        finally:
            listening.cancel()
            self._end()  # cancelled, or failed: no "disconnect" will be received
            self._sender.stop()

    async def _listen(self, receive: Any) -> None:
        while not self._life.is_over:
            message = await receive()
            if message["type"] == "websocket.receive":  # every chunk: no coroutine of its own
                self._receive(message.get("bytes"))
            else:
                await self._dispatch(message)
            self._in_turn += 1
            if self._behind > PATIENCE_SECONDS or not self._in_turn % MAX_IN_TURN:
                await self._yield_to_others()

    async def _say_farewell(self, error: UploadError, receive: Any) -> None:
        """Send the error, close the connection, and give the client time to close its side."""
        self._sender.close(self._protocol.send(0, error_message(error)), close_code(error))
        if not await self._sender.ended(CLOSING_SECONDS):
            self._sender.cancel()  # the client does not read
            return
        # Hypercorn continues to read until the client or the application ends the connection.
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                message = await receive()
                while message["type"] != "websocket.disconnect":
                    await asyncio.sleep(0)  # a receive() that never waits would never time out
                    message = await receive()

    async def _dispatch(self, message: dict[str, Any]) -> None:
        """Handle a message from the ASGI server that opens or ends the connection.

        Not by Channels' consumer, which hops to the database's thread for every message: that costs
        more than writing the chunk (258 against 1,329 MiB/s at 64 KiB).
        """
        match message["type"]:
            case "websocket.connect":
                await self._connect()
            case "websocket.disconnect":
                self._end()

    async def _yield_to_others(self) -> None:
        """Yield to other tasks: a server with buffered messages never waits in ``receive()``."""
        seconds, self._behind = self._behind, 0.0
        await asyncio.sleep(seconds if seconds > PATIENCE_SECONDS else 0)

    async def _connect(self) -> None:
        self.service = get_service()
        self.service.start()
        self._streams: dict[int, UploadStream] = {}
        self._deferred: dict[int, asyncio.TimerHandle] = {}
        self.queries = asyncio.Semaphore(MAX_QUERIES)
        self._time = asyncio.get_running_loop().time
        self._heard = self._time()
        self._timer: asyncio.TimerHandle | None = None
        self._leaves_for: float | None = None
        """The ``retry_after`` of the DRAIN that was sent."""
        self.hooks.address = client_address(self.scope)
        self._slot = ConnectionSlot(self.hooks.address, self._evict)
        self._shared_slot: Slot | None = None
        self._login = self.hooks.login = Login(
            self.hooks.endpoint, self._look_up, self._take_slot, self._signed_in
        )
        self._pace = self.service.pace(self.counted_as)
        if not origin_is_trusted(self.scope):
            log_origin(self.scope, self.hooks.endpoint, self.hooks.address)
            self.service.telemetry.count("connections.closed", code="origin_refused")
            await self._send({"type": "websocket.close"})
            self._life.end()
            return
        self._life.begin()
        refusal = await self._enter()
        offered = SUBPROTOCOL in self.scope.get("subprotocols", [])
        failpoint("accept.before_send")
        await self._send(
            {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None}
        )
        failpoint("accept.after_send")
        self._protocol = ServerProtocol(self._hello(), crc32c)
        self._slot.owes_auth = True
        connections.add(self)
        if (seconds := retry_after()) is not None:  # draining started during the handshake
            refusal = Draining(retry_after=seconds)
        elif refusal is None and not offered:
            refusal = SubprotocolRequired(subprotocol=SUBPROTOCOL)
        if refusal is not None:
            self._end(refusal)
            return
        self._enqueue(self._protocol.greeting)
        self._login.limit(AUTHENTICATION_SECONDS, self._end)
        self._arm()

    async def _enter(self) -> UploadError | None:
        """Authenticate by the session cookie and take a connection slot. Returns the error to refuse the connection
        with, or None."""
        if (seconds := retry_after()) is not None:
            return Draining(retry_after=seconds)
        try:
            self._slot.enter()
            if (user := await self.hooks.user_of(self.scope)) is not None:
                await self._login.by_host(user)
            elif origins(self.scope):  # without one it is no browser: its cookie proves nothing
                await self._login.by_cookie(self.scope)
        except UploadError as error:
            return error
        return None

    def _evict(self, error: UploadError) -> None:
        """Close the connection, whose slot a newer one needs."""
        self._login.refuse(error)
        self._end(error)

    async def _look_up(self, credential: Any) -> Owner:
        return await self.service.database.call(look_up, credential, owner=self.counted_as)

    async def _take_slot(self, owner: Owner) -> None:
        """Count the connection as the owner's. Raises :class:`TooManyConnections`."""
        slot = await self.service.slots.take(owner.key, self._slot.address)
        if self._life.is_over:
            self.service.slots.free(slot)
            return
        self._shared_slot = slot
        self._slot.sign_in()

    def _signed_in(self, owner: Owner) -> None:
        self.hooks.owner = owner
        self._pace = self.service.pace(self.counted_as)

    @property
    def counted_as(self) -> str:
        """The key whose share of the server the connection uses: its owner, or before authentication its address."""
        return self._login.key or f"address:{self._slot.address}"

    def _hello(self) -> m.Hello:
        configured = conf.uploads()
        return m.Hello(
            connection_limit=CONNECTION_WINDOW,
            stream_limit=FLOOR,
            max_streams=configured.max_streams,
            authenticated=self._login.is_answered,
            auth_timeout=AUTHENTICATION_SECONDS,
            heartbeat=configured.idle_timeout / 3,
            server=f"django-resumable-upload/{__version__}",
            address=None if self.hooks.address is None else str(self.hooks.address),
        )

    def _end(self, error: UploadError | None = None) -> None:
        """End the connection, with an error to send or because the client has disconnected.

        Its uploads are saved, and those that have FINISH complete.
        """
        if not self._life.end(error):
            return
        connections.discard(self)
        self._slot.leave()
        if self._shared_slot is not None:
            self.service.slots.free(self._shared_slot)
        if self._timer is not None:
            self._timer.cancel()
        self._login.refuse(AuthenticationRequired())
        if error is not None:
            self.service.telemetry.count("connections.closed", code=error.code)
        for stream in list(self._streams.values()):
            stream.disconnected()
        for number in list(self._deferred):
            self._serve_deferred(number)
        if error is not None and not isinstance(
            error, Draining | IdleTimeout
        ):  # neither is a fault
            log_closed(error, self._login.key, self.hooks.endpoint, self.hooks.address)

    # Receiving ----------------------------------------------------------------------------------

    def _receive(self, frame: bytes | None) -> None:
        if not self._life.is_open:
            return
        self._heard = self._time()
        try:
            if frame is None:
                raise MalformedFrame(reason="a text message")
            event = self._protocol.receive(frame)
        except UploadError as error:
            self._end(error)
            return
        match event:
            case Chunk(number, payload, start, crc):
                stream = self._streams.get(number)
                upload = None if stream is None else stream.upload
                if upload is not None:
                    upload.append(Piece(payload, Seal(start, crc)))
            case Control(0, message):
                self._receive_own(message)
            case Control(number, message) if number in self._streams:
                self._streams[number].receive(message)
                self._serve_deferred(number)
            case Control(number, message):
                self._open_stream(number, message)
            case Broken(number, reason):
                upload = self._streams[number].upload
                if upload is not None:
                    upload.lose(reason)
        if frames := cost(event):
            if self._pace.has_rested(self._heard):
                self._throttled_since = None
            self._behind = self._pace.delay(self._heard, frames)
            if self._behind and not (
                isinstance(event, Control) and isinstance(event.message, m.Query)
            ):
                self._throttle()
        # For every frame: dropped bytes have left the window, too.
        self._replenish()

    def count_refusal(self) -> None:
        """Count a refused message as an expensive one."""
        self._behind = self._pace.delay(self._time(), pace.QUESTION)

    def _throttle(self) -> None:
        """Delay reading, with a limit: Daphne reads on meanwhile, and buffers. Streams limit the QUERYs."""
        if self._throttled_since is None:
            self._throttled_since = self._heard
        elif self._heard - self._throttled_since > THROTTLE_SECONDS:
            reason = "Too many frames without data were received for too long."
            self._end(FlowControlViolation(reason))

    def _receive_own(self, message: m.Message) -> None:
        if isinstance(message, m.Ping):
            self.send_message(0, m.Pong(message.nonce))
        elif isinstance(message, m.Auth):
            self._slot.owes_auth = False
            spawn(self._authenticate(message, self._login.expect()))

    def _open_stream(self, number: int, message: m.Message) -> None:
        try:
            if self._leaves_for is not None:  # the client has not read DRAIN yet
                raise Draining(retry_after=self._leaves_for)
            held = policies.check_metadata(message.metadata) if isinstance(message, m.Create) else 0
            if isinstance(message, m.Watch) and self._watches >= MAX_WATCHES:
                raise Busy(retry_after=1.0)
            stream = UploadStream(self, number, message, held=held)
        except (Busy, Draining, MetadataInvalid) as error:
            log_refused(error, self.counted_as, self.hooks.endpoint)
            self.service.telemetry.count("requests.failed", code=error.code)
            self.send_message(number, error_message(error))
            return
        self._streams[number] = stream
        if isinstance(message, m.Create) and message.size is not None and message.size <= FLOOR:
            self._defer(stream)
        else:
            spawn(self._run_stream(stream))

    @property
    def _watches(self) -> int:
        return sum(stream.is_watching for stream in self._streams.values())

    def _defer(self, stream: UploadStream) -> None:
        """Defer a CREATE: a small file's data and FINISH mostly follow at once, and can be handled with it."""
        loop = asyncio.get_running_loop()
        self._deferred[stream.number] = loop.call_later(
            GATHER_SECONDS, self._serve_deferred, stream.number
        )

    def _serve_deferred(self, number: int) -> None:
        timer = self._deferred.pop(number, None)
        if timer is not None:
            timer.cancel()
            spawn(self._run_stream(self._streams[number]))

    async def _run_stream(self, stream: UploadStream) -> None:
        try:
            await stream.run()
        finally:
            self._streams.pop(stream.number, None)
            self._sender.forget(stream.number)

    def _replenish(self) -> None:
        limit = self._protocol.received + CONNECTION_WINDOW
        if limit - self._protocol.limit >= CONNECTION_WINDOW // 2:
            self.send_message(0, m.Limit(limit))

    # Authentication -------------------------------------------------------------------------------

    async def _authenticate(self, auth: m.Auth, answer: Answer) -> None:
        """Handle AUTH: the first one, or one during uploads with a new ticket or login."""
        try:
            owner = await self._login.by_auth(auth.ticket, answer)
        except UploadError as error:
            self._end(error)
        else:
            if owner is not None:
                self.send_message(0, m.Authenticated(str(owner.user), owner.expires_in))

    # Sending ------------------------------------------------------------------------------------

    def send_message(self, stream: int, message: m.Message) -> None:
        """Queue a message; does nothing where the connection or the stream is closed."""
        if not self._life.is_open or (stream and not self._protocol.is_open(stream)):
            return
        self._enqueue(self._protocol.send(stream, message))

    def offer(self, stream: int) -> None:
        """Send a stream's newest message when the socket has room; it replaces one that was not sent yet."""
        if self._life.is_open:
            self._sender.offer(stream)

    def _newest(self, number: int) -> bytes | None:
        if not self._life.is_open or not self._protocol.is_open(number):
            return None
        message = self._streams[number].newest
        if message is None:
            return None
        if isinstance(message, m.Ack):
            self.service.telemetry.count("acks.sent")
        return self._protocol.send(number, message)

    def _enqueue(self, frame: bytes) -> None:
        if self._sender.is_full:
            self._end(FlowControlViolation("The client does not read messages."))
        else:
            self._sender.push(frame)

    async def drain(self, retry_after: float) -> None:
        """Save all uploads and close the connection; the client may reconnect after ``retry_after`` seconds."""
        self._leaves_for = retry_after
        failpoint("drain.before_send")
        self.send_message(0, m.Drain(retry_after))
        failpoint("drain.after_send")
        uploads = [stream.upload for stream in self._streams.values()]
        saving = [
            asyncio.create_task(upload.checkpoints.make_now())
            for upload in uploads
            if upload is not None
        ]
        if saving:
            await asyncio.wait(saving, timeout=CLOSING_SECONDS)
        failpoint("drain.after_save")
        self._end(Draining(retry_after=retry_after))
        await self._sender.ended(CLOSING_SECONDS)
        failpoint("drain.after_close")

    # Time ---------------------------------------------------------------------------------------

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = conf.uploads().idle_timeout
        if loop.time() - self._heard >= seconds:
            self._end(IdleTimeout(seconds=seconds))
        else:
            self._timer = loop.call_at(self._heard + seconds, self._arm)
