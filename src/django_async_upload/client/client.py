"""The client: many uploads on one connection, which is opened again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl as tls
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from inspect import isawaitable
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from ..exceptions import (
    AuthenticationRequired,
    ConnectionLost,
    TicketExpired,
    UploadError,
    UploadOver,
)
from ..protocol import messages
from ..protocol.messages import Message
from .backoff import Backoff
from .connection import Connection, error_of
from .conversation import Progress
from .source import Cut, Path
from .state import StateFile
from .transport import Connect, Endpoint, connect
from .upload import Job, Upload, UploadResult
from .worker import Worker

logger = logging.getLogger("django_async_upload.client")

Ticket = str | Callable[[], str | Awaitable[str]]

TICKET_VARIABLE: Final = "ASYNC_UPLOAD_TICKET"

_OPEN_FILES: Final = 128
_CLOSE_SECONDS: Final = 3.0
_STALL_SECONDS: Final = 60.0
"""After so long without a word on any stream that waits for one, another connection is tried."""


class UploadClient:
    """Uploads to one endpoint. Use it as ``async with UploadClient(url, ...) as client``.

    ``url`` is the endpoint's, ``ws://`` or ``wss://``. ``ticket`` is a ticket, or a function
    (plain or async) that returns a fresh one whenever the client connects or a ticket runs out;
    without a ticket and a cookie it is taken from the environment, ``ASYNC_UPLOAD_TICKET``.
    ``cookie`` is a Cookie header, ``sessionid=...``.

    ``state`` is the file that remembers unfinished uploads of files, so that a later program can go
    on: a path, True for the default one below ``XDG_STATE_HOME``, False for none. ``patience`` is
    for how many seconds without any progress the client tries again. At most ``jobs`` large files
    are sent at once; small ones share the connection in any number.
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
        connect: Connect = connect,
    ) -> None:
        if ticket is None and cookie is None:
            ticket = os.environ.get(TICKET_VARIABLE) or None
        headers = {} if cookie is None else {"Cookie": cookie}
        if any("\r" in value or "\n" in value for value in headers.values()):
            raise ValueError("A cookie has no line breaks.")
        self.url = url
        self.patience = patience
        self.keys: set[str] = set()
        self.can_renew = callable(ticket)
        self._ticket = ticket
        self._cookie = cookie
        self._endpoint = Endpoint(url, headers, ssl)
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
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._tickets = asyncio.Lock()
        self.ticket: str | None = None
        self._uploads: set[Upload] = set()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop what still runs (it can be resumed), say goodbye, and write the state file."""
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
        self.worker.stop()
        if self.state is not None:
            await self.state.flush()

    # What it is for -------------------------------------------------------------------------------

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
        """Upload a path or an open binary file, and return when it is published.

        ``taker`` is who takes the finished file at the server: "form", "api" (a call that brings its receipt)
        or "receiver", which is what a server takes it for where nothing is said.
        Raises the :class:`UploadError` that ended it, and :class:`OSError` where the file cannot be
        read. Cancelling the call leaves the upload on the server, to be resumed.
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
        """Begin an upload and return its handle at once; see :meth:`upload`."""
        sent = {**(metadata or {}), **({"taker": taker} if taker else {})}
        job = Job(what, name, sent, content_type, on_progress, sha256)
        upload = Upload(self, job)
        self._uploads.add(upload)
        upload.task.add_done_callback(lambda _: self._uploads.discard(upload))
        return upload

    async def status(self, upload: str) -> messages.Status:
        """What the server knows about an upload. Raises :class:`NotFound` among others."""
        answer = await self._ask(lambda c: c.protocol.send_query(upload))
        assert isinstance(answer, messages.Status)
        return answer

    async def cancel(self, upload: str, *, finished: bool = False) -> None:
        """Throw an upload away: an unfinished one, or with ``finished`` also one whose file is not taken yet.

        Raises :class:`UploadOver` where it has completed, or its file is taken.
        """
        answer = await self._ask(lambda c: c.protocol.send_cancel_of(upload, finished=finished))
        if isinstance(answer, messages.Completed):
            raise UploadOver(state="completed")
        if self.state is not None:
            await self.state.load()
            for entry in self.state.entries():
                if entry.upload == upload and entry.url == self.url:
                    self.state.remove(entry.key)

    # What an upload needs -------------------------------------------------------------------------

    def admission(self) -> AbstractAsyncContextManager[object]:
        return self._open

    def turn(self) -> AbstractAsyncContextManager[object]:
        return self._large

    def progressed(self) -> None:
        self._backoff.reset()

    def may_retry(self, error: UploadError) -> bool:
        """Whether the same attempt can succeed later, without anybody but this program doing something."""
        return error.retryable and (self.can_renew or not needs_login(error))

    async def connected(self) -> Connection:
        """The connection, opened if need be. Raises what makes that hopeless."""
        if self._connection is not None and self._connection.usable:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        return await asyncio.shield(self._connecting)

    async def renew(self, error: UploadError, used: str | None) -> None:
        """Send AUTH with a fresh ticket, where ``used``, which was refused with ``error``, is still the newest.

        Raises ``error`` where there is no other ticket.
        """
        async with self._tickets:
            connection = self._connection
            if connection is None or not connection.usable or self.ticket != used:
                return
            ticket = await self._fresh_ticket()
            if ticket == used:
                raise error
            self.ticket = ticket
            connection.authenticate(ticket)

    # ----------------------------------------------------------------------------------------------

    def _make_state(self) -> StateFile | None:
        if isinstance(self._state_path, bool):
            return StateFile() if self._state_path else None
        return StateFile(self._state_path)

    def _connect_ended(self, connecting: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # whoever waits has it

    async def _connect(self) -> Connection:
        previous = self._connection
        refusal: UploadError | None = None
        if previous is not None:
            await asyncio.wait({previous.lost})  # a restart was announced: the server closes
            refusal = previous.error or ConnectionLost()
            if not self.may_retry(refusal):
                raise refusal
            await asyncio.sleep(self._backoff.delay(refusal, previous.retry_after))
        while True:
            try:
                ticket = await self._fresh_ticket()
                if needs_login(refusal) and ticket == self.ticket:
                    assert refusal is not None
                    raise refusal  # the same ticket gets the same answer
                connection = await Connection.open(
                    self._connect_wire, self._endpoint, min(_STALL_SECONDS, self.patience)
                )
                self._welcome(connection, ticket)
            except UploadError as error:
                if error is refusal or not self.may_retry(error):
                    raise
                refusal = error
                delay = self._backoff.delay(error)
                logger.info("%s Trying again in %.1f s.", error, delay)
                await asyncio.sleep(delay)
            else:
                self._connection = connection
                return connection

    def _welcome(self, connection: Connection, ticket: str | None) -> None:
        """Say who we are, as the first frame. Raises :class:`AuthenticationRequired`."""
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
        """Send AUTH before the ticket or the login runs out."""
        async with self._tickets:
            if self._connection is not None and self._connection.usable:
                self.ticket = await self._fresh_ticket()
                self._connection.authenticate(self.ticket)

    async def _ask(self, send: Callable[[Connection], tuple[int, bytes]]) -> Message:
        """One question, on a stream of its own; asked again when the connection is lost."""
        backoff = Backoff(self.patience)
        while True:
            connection = await self.connected()
            try:
                return await _Question().ask(connection, lambda: send(connection))  # noqa: B023
            except UploadError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(backoff.delay(error))


def needs_login(error: UploadError | None) -> bool:
    """Whether only another ticket or login helps."""
    return isinstance(error, AuthenticationRequired | TicketExpired)


class _Question:
    """Something asked on a stream of its own, and the frame that closes it."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._last: Message | None = None

    def message_received(self, message: Message) -> None:
        self._last = message
        self._changed.set()

    def cut_sent(self, cut: Cut) -> None:
        raise AssertionError("a question has no data")

    def wake(self) -> None:
        self._changed.set()

    async def ask(self, connection: Connection, send: Callable[[], tuple[int, bytes]]) -> Message:
        stream = None
        while True:
            match self._last:
                case messages.Error() as error:
                    raise error_of(error)
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
    """Upload one file from a program without an event loop; see :class:`UploadClient`."""

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
