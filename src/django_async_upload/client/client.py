"""The client: many uploads on one connection, and reconnecting when that is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl as tls
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from inspect import isawaitable
from typing import Any, BinaryIO, Final, Self

from ..exceptions import (
    AuthenticationRequired,
    ConnectionLost,
    ConnectionRefused,
    TicketExpired,
    UploadError,
    UploadOver,
)
from ..protocol import messages
from ..protocol.messages import Message
from .backoff import Backoff
from .connection import ClientConnection
from .conversation import Progress
from .draft import Draft, websocket_url
from .source import Cut, Path
from .state import StateFile
from .transport import Connect, Target, connect
from .upload import Job, Upload, UploadResult
from .watching import Watcher
from .worker import Worker

logger = logging.getLogger("django_async_upload.client")

Ticket = str | Callable[[], str | Awaitable[str]]

TICKET_VARIABLE: Final = "ASYNC_UPLOAD_TICKET"

_OPEN_FILES: Final = 128
_BUSY: Final = frozenset({429, 503})
"""Statuses of a handshake that say: later. They are no reason to upload over HTTP."""
_CLOSE_SECONDS: Final = 3.0
_STALL_SECONDS: Final = 60.0
"""Seconds after which the client reconnects, if the server owes messages on streams and sends none."""


class UploadClient:
    """A client of one endpoint. Use it as ``async with UploadClient(url, ...) as client``.

    ``url`` is the endpoint's, ``ws://`` or ``wss://``; with ``http://`` or ``https://``, or with ``http``, uploads go
    over HTTP. ``http`` None: where a WebSocket is refused. ``ticket`` is a ticket, or a function (sync or async) that
    returns a new one whenever the client connects or a ticket expires.
    Without a ticket and a cookie the client uses the environment variable ``ASYNC_UPLOAD_TICKET``.
    ``cookie`` is a Cookie header, ``sessionid=...``.

    ``state`` is the file that stores unfinished uploads of files, so that a later program can resume
    them: a path, True for the default below ``XDG_STATE_HOME``, False for none. ``patience`` is the
    number of seconds for which the client retries without any progress. At most ``jobs`` large files
    are sent at once; any number of small ones share the connection.
    """

    def __init__(
        self,
        url: str,
        *,
        ticket: Ticket | None = None,
        cookie: str | None = None,
        state: Path | bool = True,
        patience: float = 300.0,
        jobs: int = 4,
        ssl: tls.SSLContext | None = None,
        http: bool | None = None,
        connect: Connect = connect,
    ) -> None:
        if ticket is None and cookie is None:
            ticket = os.environ.get(TICKET_VARIABLE) or None
        headers = {} if cookie is None else {"Cookie": cookie}
        if any("\r" in value or "\n" in value for value in headers.values()):
            raise ValueError("A cookie has no line breaks.")
        is_http = url.partition("://")[0] in ("http", "https")
        self.url = websocket_url(url)  # the same upload, whichever way it takes
        self._http = True if is_http else http
        self.patience = patience
        self.keys: set[str] = set()
        self.can_renew = callable(ticket)
        self._ticket = ticket
        self._target = Target(self.url, headers, ssl)
        self._connect_wire = connect
        self._state_path: Path | bool = state
        self._jobs = jobs

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.worker = Worker("async-upload")
        self.state = self._make_state()
        self._large = asyncio.Semaphore(self._jobs)
        self._open = asyncio.Semaphore(_OPEN_FILES)
        self._backoff = Backoff(self.patience)
        self._connection: ClientConnection | None = None
        self._draft: Draft | None = None
        self._connecting: asyncio.Task[ClientConnection | Draft] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._tickets = asyncio.Lock()
        self.ticket: str | None = None
        self._uploads: set[Upload] = set()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop running uploads, which can be resumed, write the state file and close the connection."""
        tasks: list[asyncio.Task[Any]] = [upload.task for upload in self._uploads]
        tasks += [task for task in (self._connecting, self._renewing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._renewal is not None:
            self._renewal.cancel()
        if self._connection is not None:
            self._connection.close()
            await asyncio.wait({self._connection.lost}, timeout=_CLOSE_SECONDS)
            self._connection.abort()
        if self._draft is not None:
            self._draft.close()
        self.worker.stop()
        if self.state is not None:
            await self.state.flush()

    # Uploads --------------------------------------------------------------------------------------

    async def upload(
        self,
        what: Path | BinaryIO,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        taker: str | None = None,
        content_type: str = "",
        on_progress: Callable[[Progress], object] | None = None,
        sha256: bool = False,
    ) -> UploadResult:
        """Upload a path or an open binary file, and return when the server has published it.

        ``taker`` is who takes the finished file on the server: "form", "api" (a request that posts its receipt)
        or "receiver", the server's default.
        Raises the :class:`UploadError` that ended it, and :class:`OSError` where the file cannot be
        read. If the call is cancelled, the upload stays on the server and can be resumed.
        """
        return await self.start(
            what,
            name=name,
            metadata=metadata,
            taker=taker,
            content_type=content_type,
            on_progress=on_progress,
            sha256=sha256,
        )

    def start(
        self,
        what: Path | BinaryIO,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        taker: str | None = None,
        content_type: str = "",
        on_progress: Callable[[Progress], object] | None = None,
        sha256: bool = False,
    ) -> Upload:
        """Start an upload and return its handle at once; see :meth:`upload`."""
        sent = {**(metadata or {}), **({"taker": taker} if taker else {})}
        job = Job(what, name, sent, content_type, on_progress, sha256)
        upload = Upload(self, job)
        self._uploads.add(upload)
        upload.task.add_done_callback(lambda _: self._uploads.discard(upload))
        return upload

    async def status(self, upload: str) -> messages.Status:
        """Query the server for the state of an upload. Raises :class:`NotFound` among others."""
        answer = await self._request(
            lambda c: c.protocol.send_query(upload), lambda draft: draft.status(upload)
        )
        assert isinstance(answer, messages.Status)
        return answer

    async def watch(
        self, *uploads: str, everyone: bool = False
    ) -> AsyncGenerator[messages.Status, None]:
        """Follow uploads: yields the standing of each as it is now, and then whenever it changes, at most four times
        a second::

            async for standing in client.watch(upload):
                print(standing.state, standing.received or standing.durable, standing.size)

        Follows the uploads with these ids, and ends when all of them have ended. Without ids it never ends, and follows
        all of the owner's uploads that are under way or begin later; with ``everyone`` those of all owners. Of what a
        program does not take in time it gets the newest.

        Raises :class:`NotFound` for an upload that does not exist or may not be watched, :class:`PermissionRefused`
        where ``everyone`` is not allowed, :class:`ConnectionRefused` over HTTP, and the error that no retry can help.
        """
        scope = "all" if everyone else "uploads" if uploads else "own"
        watcher, backoff = Watcher(scope, uploads), Backoff(self.patience)
        while not watcher.is_over:
            connection = await self.connected()
            if isinstance(connection, Draft):
                raise ConnectionRefused("Uploads can be watched over a WebSocket only.")
            try:
                while not watcher.is_over:
                    await watcher.run(connection)
                    while (standing := watcher.take()) is not None:
                        yield standing
            except UploadError as error:
                if not self.may_retry(error):
                    raise
                if watcher.was_heard:
                    watcher.was_heard = False
                    backoff.reset()
                await asyncio.sleep(backoff.delay(error))
            finally:
                watcher.leave(connection)

    async def cancel(self, upload: str, *, finished: bool = False) -> None:
        """Cancel an unfinished upload, or with ``finished`` also a completed one that is not taken yet.

        Raises :class:`UploadOver` where it has completed, or is taken.
        """
        answer = await self._request(
            lambda c: c.protocol.send_cancel_of(upload, finished=finished),
            lambda draft: draft.cancel_of(upload, finished=finished),
        )
        if isinstance(answer, messages.Completed):
            raise UploadOver(state="completed")
        if self.state is not None:
            await self.state.load()
            for entry in self.state.entries():
                if entry.upload == upload and entry.url == self.url:
                    self.state.remove(entry.key)

    # Services for uploads -------------------------------------------------------------------------

    def file_slot(self) -> AbstractAsyncContextManager[object]:
        return self._open

    def transfer_slot(self) -> AbstractAsyncContextManager[object]:
        return self._large

    def progressed(self) -> None:
        self._backoff.reset()

    def may_retry(self, error: UploadError) -> bool:
        """Whether this program can make the same attempt succeed later."""
        return error.retryable and (self.can_renew or not needs_login(error))

    async def connected(self) -> ClientConnection | Draft:
        """The open connection, or requests over HTTP; connects if needed. Raises an error that no retry can help."""
        if self._draft is not None:
            return self._draft
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        return await asyncio.shield(self._connecting)

    async def renew(self, error: UploadError, used: str | None) -> None:
        """Use a new ticket, if ``used``, which the server refused with ``error``, is still the newest.

        Raises ``error`` where there is no other ticket.
        """
        async with self._tickets:
            connection = self._connection
            is_open = connection is not None and connection.usable
            if not (is_open or self._draft) or self.ticket != used:
                return
            ticket = await self._fresh_ticket()
            if ticket == used:
                raise error
            self.ticket = ticket
            if connection is not None and is_open:
                connection.authenticate(ticket)

    # ----------------------------------------------------------------------------------------------

    def _make_state(self) -> StateFile | None:
        if isinstance(self._state_path, bool):
            return StateFile() if self._state_path else None
        return StateFile(self._state_path)

    def _connect_ended(self, connecting: asyncio.Task[ClientConnection | Draft]) -> None:
        self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # retrieved: callers that wait get it

    async def _connect(self) -> ClientConnection | Draft:
        if self._http:
            return await self._over_http()
        previous = self._connection
        refusal: UploadError | None = None
        if previous is not None:
            await asyncio.wait({previous.lost})  # after DRAIN the server closes the connection
            refusal = previous.error or ConnectionLost()
            if not self.may_retry(refusal):
                raise refusal
            await asyncio.sleep(self._backoff.delay(refusal, previous.retry_after))
        while True:
            try:
                ticket = await self._fresh_ticket()
                if needs_login(refusal) and ticket == self.ticket:
                    assert refusal is not None
                    raise refusal  # the server would refuse the same ticket again
                connection = await ClientConnection.open(
                    self._connect_wire, self._target, min(_STALL_SECONDS, self.patience)
                )
                self._authenticate(connection, ticket)
            except UploadError as error:
                if self._http is None and await self._reaches_http(error):
                    logger.info("%s Uploading over HTTP.", error)
                    return await self._over_http()
                if error is refusal or not self.may_retry(error):
                    raise
                refusal = error
                delay = self._backoff.delay(error)
                logger.info("%s Retrying in %.1f s.", error, delay)
                await asyncio.sleep(delay)
            else:
                self._connection = connection
                return connection

    async def _over_http(self) -> Draft:
        self.ticket = await self._fresh_ticket()
        self._draft = self._make_draft()
        return self._draft

    def _make_draft(self) -> Draft:
        return Draft(self._target, lambda: self.ticket, min(_STALL_SECONDS, self.patience))

    async def _reaches_http(self, error: UploadError) -> bool:
        """Whether uploads get through over HTTP where a WebSocket does not."""
        status = error.facts.get("status")
        is_refused = isinstance(error, ConnectionRefused) and status is not None
        # Later, a lost connection is more likely a network that is gone.
        is_lost = isinstance(error, ConnectionLost) and self._connection is None
        if not (is_refused or is_lost) or status in _BUSY:
            return False
        draft = self._make_draft()
        try:
            return await draft.is_spoken()
        finally:
            draft.close()

    def _authenticate(self, connection: ClientConnection, ticket: str | None) -> None:
        """Send AUTH as the first frame. Raises :class:`AuthenticationRequired` without a ticket or login."""
        if ticket is None and not connection.hello.authenticated:
            connection.close()
            raise AuthenticationRequired
        connection.on_authenticated = self._authenticated
        self.ticket = ticket
        if ticket is not None:
            connection.authenticate(ticket)

    async def _fresh_ticket(self) -> str | None:
        if not callable(self._ticket):
            return self._ticket
        ticket = self._ticket()
        return await ticket if isawaitable(ticket) else ticket

    def _authenticated(self, message: messages.Authenticated) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        renewable = self.can_renew or self._ticket is None
        if message.expires_in is not None and renewable:
            seconds = max(1.0, 0.8 * message.expires_in)
            self._renewal = self._loop.call_later(seconds, self._renew_now)

    def _renew_now(self) -> None:
        self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        """Send AUTH before the ticket or the login expires."""
        async with self._tickets:
            if self._connection is not None and self._connection.usable:
                self.ticket = await self._fresh_ticket()
                self._connection.authenticate(self.ticket)

    async def _request(
        self,
        send: Callable[[ClientConnection], tuple[int, bytes]],
        ask: Callable[[Draft], Awaitable[Message]],
    ) -> Message:
        """Send a request on a new stream, or over HTTP, and return the answer; retried when the connection is lost."""
        backoff = Backoff(self.patience)
        while True:
            door, ticket = await self.connected(), self.ticket
            try:
                if isinstance(door, Draft):
                    return await ask(door)
                return await _Request().run(door, lambda: send(door))  # noqa: B023  (awaited in this round)
            except UploadError as error:
                if not self.may_retry(error):
                    raise
                await asyncio.sleep(backoff.delay(error))
                if isinstance(door, Draft) and needs_login(error):
                    await self.renew(error, ticket)


def needs_login(error: UploadError | None) -> bool:
    """Whether the error requires another ticket or login."""
    return isinstance(error, AuthenticationRequired | TicketExpired)


class _Request:
    """A request on a stream of its own, which the answer closes."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._last: Message | None = None

    def message_received(self, message: Message) -> None:
        self._last = message
        self._changed.set()

    def cut_sent(self, cut: Cut) -> None:
        raise AssertionError("a request has no data")

    def wake(self) -> None:
        self._changed.set()

    async def run(
        self, connection: ClientConnection, send: Callable[[], tuple[int, bytes]]
    ) -> Message:
        stream = None
        while True:
            match self._last:
                case messages.Error() as error:
                    raise error.to_exception()
                case messages.Status() | messages.Cancelled() | messages.Completed() as answer:
                    return answer
            if connection.error is not None:
                raise connection.error
            self._changed.clear()
            stream = stream or connection.open_stream(self, send)
            await self._changed.wait()


def upload_file(
    what: Path | BinaryIO,
    url: str,
    *,
    ticket: Ticket | None = None,
    cookie: str | None = None,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    taker: str | None = None,
    content_type: str = "",
    on_progress: Callable[[Progress], object] | None = None,
    sha256: bool = False,
    state: Path | bool = True,
) -> UploadResult:
    """Upload one file from synchronous code; see :class:`UploadClient`."""

    async def run() -> UploadResult:
        async with UploadClient(url, ticket=ticket, cookie=cookie, state=state) as client:
            return await client.upload(
                what,
                name=name,
                metadata=metadata,
                taker=taker,
                content_type=content_type,
                on_progress=on_progress,
                sha256=sha256,
            )

    return asyncio.run(run())
