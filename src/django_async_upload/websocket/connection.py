"""One WebSocket connection carrying many uploads: dispatch, authentication, timeouts."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import Any, Final

from channels.consumer import AsyncConsumer
from channels.exceptions import StopConsumer
from crc32c import crc32c
from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase

from .. import __version__, conf
from ..admission import Place, client_address, origin_is_trusted, origins, own_origin
from ..concurrency import pace
from ..endpoints import Endpoint
from ..engine.credit import FLOOR, LARGEST_WINDOW
from ..engine.drain import FAREWELL_SECONDS, connections, retry_after, spawn
from ..engine.service import UploadService, get_service
from ..exceptions import (
    AuthenticationRequired,
    AuthenticationTimeout,
    Busy,
    ConnectionRefused,
    Draining,
    FlowControlViolation,
    IdleTimeout,
    MalformedFrame,
    MetadataInvalid,
    SubprotocolRequired,
    TicketInvalid,
    UploadError,
)
from ..notices import notice
from ..protocol import messages as m
from ..protocol.frames import HEADER_SIZE, SUBPROTOCOL
from ..protocol.server import Broken, Chunk, Event, Received, ServerProtocol
from ..sessions import policies
from ..sessions.owners import Owner, look_up
from ..stores.base import Piece, Seal
from ..tickets import read_ticket
from .errors import close_code, error_message
from .sender import Sender
from .stream import UploadStream

logger = logging.getLogger("django_async_upload")

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
HELD_SECONDS: Final = 5.0
"""Seconds for which a connection may exceed the rate at which it is read, without a pause."""
SHORT_FRAME: Final = 4096
"""Bytes. Clients, which are advised at least 16 KiB, send shorter frames only at the end of a file."""
MAX_QUERIES: Final = 8
"""QUERYs of one connection that run in the database at once; further ones wait."""


class Connection(Endpoint, AsyncConsumer):  # type: ignore[misc]
    """The WebSocket door of an endpoint."""

    service: UploadService

    @property
    def hooks(self) -> Endpoint:
        """The host's hooks."""
        return self

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one connection. Not by Channels' loop, which creates a task per message to wait for a layer, too."""
        self.scope = scope
        self.base_send = send
        self._serving = asyncio.current_task()
        self._is_cut = False
        self._gone = True  # until it has come
        self._in_turn = 0
        self._behind = 0.0
        self._held_since: float | None = None
        try:
            while True:
                await self.dispatch(await receive())
                await self._give_way()
        except StopConsumer:
            pass
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            # An ASGI server drops the connection when the application ends.
            await self._sender.ended(FAREWELL_SECONDS)
        finally:
            if not self._gone:  # cancelled, or failed: no "disconnect" will be received
                await self._disconnect()

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Handle a message from the ASGI server.

        Not by Channels' dispatch, which hops to the database's thread for every message: that costs
        more than writing the chunk (258 against 1,329 MiB/s at 64 KiB).
        """
        match message["type"]:
            case "websocket.receive":
                await self._receive(message.get("bytes"))
            case "websocket.connect":
                await self._connect()
            case "websocket.disconnect":
                await self._disconnect()
                raise StopConsumer

    async def _give_way(self) -> None:
        """Yield to other tasks: a server with buffered messages never waits in ``receive()``."""
        self._in_turn += 1
        if self._behind > PATIENCE_SECONDS:
            seconds, self._behind = self._behind, 0.0
            await asyncio.sleep(seconds)
        elif self._in_turn % MAX_IN_TURN == 0:
            await asyncio.sleep(0)

    async def _connect(self) -> None:
        self.service = get_service()
        self.service.start()
        self._streams: dict[int, UploadStream] = {}
        self._held: dict[int, asyncio.TimerHandle] = {}
        self._sender = Sender(self.send, self._newest_ack)
        self.queries = asyncio.Semaphore(MAX_QUERIES)
        self._gone = False
        self._login = self._new_login()
        self._logins = 0
        self._heard = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle | None = None
        self.address = client_address(self.scope)
        self._place = Place(self.address, self._send_away)
        self._pace = self.service.pace(self.counted_as)
        if not origin_is_trusted(self.scope):
            self._gone = True
            self._sender.stop()
            self._log_origin()
            await self.send({"type": "websocket.close"})
            return
        refusal = await self._enter()
        offered = SUBPROTOCOL in self.scope.get("subprotocols", [])
        await self.send(
            {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None}
        )
        self._protocol = ServerProtocol(self._hello(), crc32c)
        self._place.is_open = True
        connections.add(self)
        if (seconds := retry_after()) is not None:  # draining started during the handshake
            refusal = Draining(retry_after=seconds)
        elif refusal is None and not offered:
            refusal = SubprotocolRequired(subprotocol=SUBPROTOCOL)
        if refusal is not None:
            await self._shut(refusal)
            return
        self._enqueue(self._protocol.greeting)
        if not self._login.done():
            loop = asyncio.get_running_loop()
            loop.call_later(AUTHENTICATION_SECONDS, self._login_is_late, self._login)
        self._arm()

    async def _enter(self) -> UploadError | None:
        """Authenticate by the session cookie and take a connection slot. Returns the error to refuse the connection
        with, or None."""
        if (seconds := retry_after()) is not None:
            return Draining(retry_after=seconds)
        try:
            self._place.enter()
            if origins(self.scope):  # without one it is no browser: its cookie proves nothing
                await self._log_in()
        except UploadError as error:
            return error
        return None

    async def _log_in(self) -> None:
        try:
            owner = await self.service.database.call(
                look_up, self._session() or self.scope, owner=self.counted_as
            )
        except ConnectionRefused:
            return  # the client may send a ticket
        self._place.sign_in(owner.key)
        self.owner = owner
        self._logins = 1
        self._pace = self.service.pace(self.counted_as)
        self._login.set_result(owner)

    def _send_away(self, error: UploadError) -> None:
        """Close the connection, whose slot a newer one needs."""
        if not self._login.done():
            self._login.set_exception(error)
        spawn(self._shut(error))

    def _log_origin(self) -> None:
        notice(
            "origin",
            logging.WARNING,
            "A WebSocket from Origin %s was refused. It is neither the server's own (%s) nor in "
            "CSRF_TRUSTED_ORIGINS. Behind a proxy, that must pass the Host header on, and where it ends TLS "
            "SECURE_PROXY_SSL_HEADER must be set.",
            ", ".join(map(ascii, origins(self.scope))),
            own_origin(self.scope) or "none: the Host is not in ALLOWED_HOSTS",
        )

    @staticmethod
    def _new_login() -> asyncio.Future[Owner]:
        """A future for the result of an AUTH."""
        login: asyncio.Future[Owner] = asyncio.get_running_loop().create_future()
        login.add_done_callback(lambda done: done.cancelled() or done.exception())
        return login

    @property
    def counted_as(self) -> str:
        """The key whose share of the server the connection uses: its owner, or before authentication its address."""
        if self._logins:
            return self.owner.key
        return f"address:{self._place.address}"

    def _hello(self) -> m.Hello:
        configured = conf.uploads()
        return m.Hello(
            connection_limit=CONNECTION_WINDOW,
            stream_limit=FLOOR,
            max_streams=configured.max_streams,
            authenticated=self._login.done(),
            auth_timeout=AUTHENTICATION_SECONDS,
            heartbeat=configured.idle_timeout / 3,
            server=f"django-resumable-upload/{__version__}",
            address=None if self.address is None else str(self.address),
        )

    def _session(self) -> SessionBase | None:
        """The session of the cookie, to be read from the database: the one in the scope is outdated."""
        session = self.scope.get("session")
        if session is None:
            return None
        engine = import_module(settings.SESSION_ENGINE)
        key = session.session_key
        # A cookie may contain any text, and databases refuse a NUL.
        return engine.SessionStore(key if key and key.isprintable() else None)  # type: ignore[no-any-return]

    async def _disconnect(self) -> None:
        """The connection was lost: save its uploads, and let those that have FINISH complete."""
        self._gone = True
        connections.discard(self)
        self._place.leave()
        if self._timer is not None:
            self._timer.cancel()
        if not self._login.done():
            self._login.set_exception(AuthenticationRequired())
        for stream in list(self._streams.values()):
            stream.disconnected()
        for number in list(self._held):
            self._serve_held(number)
        self._sender.stop()

    # Receiving ----------------------------------------------------------------------------------

    async def _receive(self, frame: bytes | None) -> None:
        if self._gone:
            return
        self._heard = asyncio.get_running_loop().time()
        try:
            if frame is None:
                raise MalformedFrame(reason="a text message")
            event = self._protocol.receive(frame)
        except UploadError as error:
            await self._shut(error)
            return
        match event:
            case Chunk(number, payload, start, crc):
                stream = self._streams.get(number)
                if stream is not None and stream.upload is not None:
                    stream.upload.append(Piece(payload, Seal(start, crc)))
            case Received(0, message):
                self._receive_own(message)
            case Received(number, message) if number in self._streams:
                self._streams[number].receive(message)
                self._serve_held(number)
            case Received(number, message):
                self._open_stream(number, message)
            case Broken(number, reason):
                upload = self._streams[number].upload
                if upload is not None:
                    upload.lose(reason)
        if cost := _cost(event):
            if self._pace.has_rested(self._heard):
                self._held_since = None
            self._behind = self._pace.delay(self._heard, cost)
            if self._behind and not (
                isinstance(event, Received) and isinstance(event.message, m.Query)
            ):
                await self._hold_back()
        # For every frame: dropped bytes have left the window, too.
        self._replenish()

    def slow_down(self) -> None:
        """Count a refused message as an expensive one."""
        now = asyncio.get_running_loop().time()
        self._behind = self._pace.delay(now, pace.QUESTION)

    async def _hold_back(self) -> None:
        """Delay reading, with a limit: Daphne reads on meanwhile, and buffers. Streams limit the QUERYs."""
        if self._held_since is None:
            self._held_since = self._heard
        elif self._heard - self._held_since > HELD_SECONDS:
            reason = "Too many frames without data were received for too long."
            await self._shut(FlowControlViolation(reason))

    def _receive_own(self, message: m.Message) -> None:
        if isinstance(message, m.Ping):
            self.send_message(0, m.Pong(message.nonce))
        elif isinstance(message, m.Auth):
            if self._login.done():  # later messages depend on the answer to this AUTH
                self._login = self._new_login()
            spawn(self._authenticate(message, self._login))

    def _open_stream(self, number: int, message: m.Message) -> None:
        try:
            held = policies.check_metadata(message.metadata) if isinstance(message, m.Create) else 0
            stream = UploadStream(self, number, message, held=held)
        except (Busy, MetadataInvalid) as error:
            self.send_message(number, error_message(error))
            return
        self._streams[number] = stream
        if isinstance(message, m.Create) and message.size is not None and message.size <= FLOOR:
            self._hold(stream)
        else:
            spawn(self._run_stream(stream))

    def _hold(self, stream: UploadStream) -> None:
        """Defer a CREATE: a small file's data and FINISH mostly follow at once, and can be handled with it."""
        loop = asyncio.get_running_loop()
        self._held[stream.number] = loop.call_later(GATHER_SECONDS, self._serve_held, stream.number)

    def _serve_held(self, number: int) -> None:
        timer = self._held.pop(number, None)
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

    async def authenticated(self) -> Owner:
        """Wait for the answer to the last AUTH. Raises :class:`ConnectionRefused`."""
        return await asyncio.shield(self._login)

    async def reload_owner(self) -> Owner:
        """The owner as now in the database: permissions are looked up, not remembered.

        The user is a new object, so that no permission is cached. Raises :class:`ConnectionRefused`.
        """
        await self.authenticated()
        logins = self._logins
        owner = await self.service.database.call(look_up, self.owner, owner=self.counted_as)
        if logins == self._logins:  # no AUTH with a newer ticket was received in the meantime
            self.owner = owner
        return owner

    async def _authenticate(self, auth: m.Auth, login: asyncio.Future[Owner]) -> None:
        """Handle AUTH: the first one, or one during uploads with a new ticket or login."""
        try:
            if auth.ticket is None and not self._logins:
                raise AuthenticationRequired
            owner = await self.service.database.call(
                look_up,
                self.owner if auth.ticket is None else self._ticket(auth),
                owner=self.counted_as,
            )
            if login.done():  # too late, or the client has disconnected
                return
            if not self._logins:
                self._place.sign_in(owner.key)
            elif owner.key != self.owner.key:
                raise TicketInvalid
        except UploadError as error:
            if not login.done():
                login.set_exception(error)
            await self._shut(error)
            return
        self.owner = owner
        self._logins += 1
        self._pace = self.service.pace(self.counted_as)
        login.set_result(owner)
        self.send_message(0, m.Authenticated(str(owner.user), owner.expires_in))

    def _ticket(self, auth: m.Auth) -> Any:
        assert auth.ticket is not None
        return read_ticket(auth.ticket, endpoint=self.endpoint)

    def _login_is_late(self, login: asyncio.Future[Owner]) -> None:
        if not login.done():
            error = AuthenticationTimeout(seconds=AUTHENTICATION_SECONDS)
            login.set_exception(error)
            spawn(self._shut(error))

    # Sending ------------------------------------------------------------------------------------

    def send_message(self, stream: int, message: m.Message) -> None:
        """Queue a message; does nothing where the connection or the stream is closed."""
        if self._gone or (stream and not self._protocol.is_open(stream)):
            return
        self._enqueue(self._protocol.send(stream, message))

    def ack(self, stream: int) -> None:
        """Queue an ACK of a stream, which replaces one that was not sent yet."""
        if not self._gone:
            self._sender.ack(stream)

    def _newest_ack(self, number: int) -> bytes | None:
        if self._gone or not self._protocol.is_open(number):
            return None
        return self._protocol.send(number, self._streams[number].newest_ack)

    def _enqueue(self, frame: bytes) -> None:
        if self._sender.is_full:
            spawn(self._shut(FlowControlViolation("The client does not read messages.")))
        else:
            self._sender.push(frame)

    async def _shut(self, error: UploadError) -> None:
        """Send the error and close the connection."""
        if self._gone:
            return
        if not isinstance(error, Draining | IdleTimeout):  # neither of these is an error
            who = self.owner.key if self._logins else "an unknown user"
            notice(
                error.code,
                logging.WARNING,
                "A connection of %s from %s was closed: %s, %s",
                who,
                self.address or "an unknown address",
                error.code,
                error,
            )
        self._sender.close(self._protocol.send(0, error_message(error)), close_code(error))
        await self._disconnect()
        if asyncio.current_task() is not self._serving:
            self._cut()  # Granian sends no Close frame while the application awaits receive()
        if not await self._sender.ended(FAREWELL_SECONDS):
            self._sender.cancel()  # the client does not read
            self._cut()
        # Hypercorn continues to read until the client or the application ends the connection.
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._cut)

    def _cut(self) -> None:
        """Stop receiving; the application ends when the sender has ended."""
        assert self._serving is not None
        if not self._is_cut:
            self._is_cut = True
            self._serving.cancel()

    async def drain(self, retry_after: float) -> None:
        """Save all uploads and close the connection; the client may reconnect after ``retry_after`` seconds."""
        self.send_message(0, m.Drain(retry_after))
        uploads = [stream.upload for stream in self._streams.values()]
        saving = [asyncio.create_task(upload.flush()) for upload in uploads if upload is not None]
        if saving:
            await asyncio.wait(saving, timeout=FAREWELL_SECONDS)
        await self._shut(Draining(retry_after=retry_after))

    # Time ---------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._gone:
            return
        loop = asyncio.get_running_loop()
        seconds = conf.uploads().idle_timeout
        if loop.time() - self._heard >= seconds:
            spawn(self._shut(IdleTimeout(seconds=seconds)))
        else:
            self._timer = loop.call_at(self._heard + seconds, self._arm)


def _cost(event: Event | None) -> int:
    """The number of frames that an event counts as for the limit of frames with little or no data."""
    match event:
        case Chunk(_number, payload, offset=offset):
            missing = SHORT_FRAME - HEADER_SIZE - len(payload)
            is_short = missing > 0 and offset
            return pace.SHORT_CHUNK * missing // SHORT_FRAME if is_short else 0
        case Received(_number, m.Create() | m.Attach() | m.Proof() | m.Finish()):
            return 0
        case Received(_number, m.Query() | m.Auth() | m.Cancel()):
            return pace.QUESTION
    return 1
