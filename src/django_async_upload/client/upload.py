"""One upload as its program sees it: a handle that lives through lost connections."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Protocol

from crc32c import crc32c

from ..exceptions import (
    AuthenticationRequired,
    DigestMismatch,
    Draining,
    FileChanged,
    MetadataInvalid,
    NameRefused,
    TicketExpired,
    TypeRefused,
    UploadError,
    UploadFailed,
    UploadRefused,
)
from ..protocol import messages
from .backoff import Backoff
from .connection import Connection
from .conversation import Conversation, Progress
from .source import FileSource, Path, Source, open_source
from .state import Entry, StateFile
from .worker import Worker

logger = logging.getLogger("django_async_upload.client")


@dataclass(frozen=True, slots=True)
class UploadResult:
    """A completed upload."""

    id: str
    name: str
    """As the server cleaned it."""
    size: int
    crc32c: str
    """Of the whole file, 8 hex digits; compared with our own."""
    stored_as: str
    """The name in the server's storage."""
    digests: dict[str, str]
    seconds: float
    resumed: bool
    """It went on after a lost connection, or after an earlier program."""
    bytes_sent: int
    """Payload bytes that this program sent, those that had to be sent again included."""
    receipt: str | None = None
    """Signed by the server: post it to a form or an API of the site, in place of the file."""
    response: dict[str, Any] | None = None
    """The app's own answer, a JSON object; None where its endpoint gave none."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the caller of :meth:`UploadClient.start` asked for."""

    what: Path | BinaryIO
    name: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    content_type: str = ""
    on_progress: Callable[[Progress], object] | None = None
    sha256: bool = False


class Host(Protocol):
    """What an upload needs of its client."""

    url: str
    patience: float
    state: StateFile | None
    worker: Worker
    keys: set[str]
    ticket: str | None
    """The newest that was sent."""

    async def connected(self) -> Connection: ...

    def may_retry(self, error: UploadError) -> bool: ...

    async def renew(self, error: UploadError, used: str | None) -> None: ...

    def progressed(self) -> None: ...

    def admission(self) -> AbstractAsyncContextManager[object]:
        """Held while the file is open."""

    def turn(self) -> AbstractAsyncContextManager[object]:
        """Held while a file is sent that takes more than one breath."""


class Upload:
    """A running upload: await it for the :class:`UploadResult`, iterate over it for progress.

    Awaiting raises the :class:`UploadError` that ended it. When the awaiting task is cancelled, the
    upload stops and stays on the server, to be resumed.
    """

    def __init__(self, host: Host, job: Job) -> None:
        self._host = host
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._conversation: Conversation | None = None
        self._entry: Entry | None = None
        self._backoff = Backoff(host.patience)
        self._abandoned = False
        self._furthest = 0
        self._sent = 0
        self._resumed = False
        self._news: asyncio.Future[None] = self._loop.create_future()
        self.paused = False
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self.cancelled = False
        self.id: str | None = None
        """The server's id; None until it has answered."""
        self.progress = Progress()
        """The newest."""
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._tell())

    def __await__(self) -> Generator[Any, None, UploadResult]:
        return self.task.__await__()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """The newest progress, whenever there is some; ends with the upload and does not raise."""
        seen: Progress | None = None
        while True:
            if self.progress != seen:
                seen = self.progress
                yield seen
            elif self.task.done():
                return
            else:
                await asyncio.shield(self._news)

    @property
    def resumable(self) -> bool:
        """A later program can go on with it: it stands in the state file."""
        return self._entry is not None

    def pause(self) -> None:
        """Send no more until :meth:`resume`; what is under way arrives."""
        self.paused = True
        self._goes_on.clear()

    def resume(self) -> None:
        self.paused = False
        self._backoff.reset()
        self._goes_on.set()
        self._wake()

    async def cancel(self) -> bool:
        """Throw the upload away, here and on the server. Awaiting the upload then raises
        :class:`UploadOver`. False: it was too late, or had ended otherwise."""
        self.cancelled = True
        self._goes_on.set()
        self._wake()
        await asyncio.wait({self.task})
        if self.task.cancelled():
            return False
        error = self.task.exception()
        return isinstance(error, UploadFailed) and error.facts.get("state") == "cancelled"

    # What a conversation tells --------------------------------------------------------------------

    def identified(self, upload: str, *, at_once: bool) -> None:
        """The server named the upload. ``at_once``: everything has been sent, and it is as good as over."""
        self.id = upload
        entry, state = self._entry, self._host.state
        if entry is not None and state is not None and entry.upload != upload and not at_once:
            self._entry = replace(entry, upload=upload)
            state.change(self._entry)

    def went_on(self) -> None:
        """The server knew the upload from an earlier connection."""
        self._resumed = True

    def abandoned(self) -> None:
        """The source cannot go on, and the upload was cancelled on the server."""
        self._abandoned = True

    def report(self, progress: Progress) -> None:
        if progress.done > self._furthest or progress.phase not in ("waiting", "uploading"):
            # Something was gained that a lost connection does not take away.
            self._furthest = progress.done
            self._backoff.reset()
            self._host.progressed()
        self.progress = progress
        self._tell()
        if self._job.on_progress is not None:
            try:
                self._job.on_progress(progress)
            except Exception:  # it only observes
                logger.exception("on_progress failed for upload %s", self.id)

    # ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._conversation is not None:
            self._conversation.wake()

    def _more_to_read(self) -> None:
        """Called in the thread that reads a stream."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop was closed
            return

    def _tell(self) -> None:
        news, self._news = self._news, self._loop.create_future()
        news.set_result(None)

    async def _run(self) -> UploadResult:
        async with self._host.admission():
            return await self._upload()

    async def _upload(self) -> UploadResult:
        started = self._loop.time()
        job = self._job
        source = await self._host.worker.run(
            open_source, job.what, job.name, job.sha256, self._more_to_read
        )
        create = None
        try:
            create, fresh = await self._begin(source)
            if source.in_memory:
                completed = await self._send(source, create, fresh)
            else:
                async with self._host.turn():
                    completed = await self._send(source, create, fresh)
            await self._verify(source, completed)
        except UploadError as error:
            over = isinstance(error, UploadFailed | UploadRefused) and not error.retryable
            # A changed file is a decision to make: until then nothing is thrown away.
            if self._abandoned or (over and not isinstance(error, FileChanged)):
                self._forget()
            raise
        finally:
            source.close()
            if create is not None:
                self._host.keys.discard(create.key)
        self._forget()
        return UploadResult(
            id=completed.upload,
            name=completed.name,
            size=completed.size,
            crc32c=completed.crc32c,
            stored_as=completed.stored_as,
            digests=completed.digests,
            seconds=self._loop.time() - started,
            resumed=self._resumed,
            bytes_sent=self._sent,
            receipt=completed.receipt,
            response=completed.response,
        )

    async def _begin(self, source: Source) -> tuple[messages.Create, bool]:
        """CREATE's fields, and whether the key is a new one; the key is on the disk afterwards."""
        digest = "sha-256" if self._job.sha256 else None
        if not 0 < len(source.name) <= 1024:
            raise NameRefused("A name has 1 to 1,024 characters.")
        if len(self._job.content_type) > 255:
            raise TypeRefused(type=self._job.content_type)
        create = messages.Create(
            key=secrets.token_hex(16),
            name=source.name,
            size=source.size if isinstance(source, FileSource) else None,
            content_type=self._job.content_type,
            digest=digest,
            metadata=self._job.metadata,
        )
        try:
            create.to_frame(1, crc32c)
        except (TypeError, ValueError) as error:
            raise MetadataInvalid(reason=str(error)) from error
        state = self._host.state
        fresh = True
        if state is not None and isinstance(source, FileSource) and source.path is not None:
            await state.load()
            entry = self._recall(state, source, create)
            if entry is not None:
                create, fresh = replace(create, key=entry.key, metadata=entry.metadata), False
                self.id = entry.upload
                self._entry = entry
            else:
                assert source.identity is not None
                self._entry = Entry(
                    key=create.key,
                    url=self._host.url,
                    path=source.path,
                    identity=source.identity,
                    name=create.name,
                    content_type=create.content_type,
                    digest=digest,
                    metadata=create.metadata,
                )
                self._host.keys.add(create.key)
                await state.save(self._entry)
        self._host.keys.add(create.key)
        return create, fresh

    def _recall(
        self, state: StateFile, source: FileSource, create: messages.Create
    ) -> Entry | None:
        """What an earlier program began with this file. Raises :class:`FileChanged`."""
        found = None
        for entry in state.find(self._host.url, source.path or ""):
            if entry.key in self._host.keys:  # another upload of this program
                continue
            if entry.identity == source.identity:
                same = (entry.name, entry.content_type, entry.digest)
                if same == (create.name, create.content_type, create.digest):
                    found = entry
            elif entry.upload is None:
                state.remove(entry.key)
            else:
                raise FileChanged(
                    f"{entry.path} has changed since its upload {entry.upload} was begun. "
                    "Cancel that upload to begin again.",
                    upload=entry.upload,
                )
        return found

    def _forget(self) -> None:
        if self._entry is not None and self._host.state is not None:
            self._host.state.remove(self._entry.key)

    async def _send(
        self, source: Source, create: messages.Create, fresh: bool
    ) -> messages.Completed:
        """Converse on one connection after the other until the upload is over."""
        while True:
            connection = await self._host.connected()
            ticket = self._host.ticket
            conversation = Conversation(
                connection, self, source, create, self._host.worker, pipelined=fresh
            )
            self._conversation = conversation
            fresh = False
            try:
                return await conversation.run()
            except UploadError as error:
                await self._wait_to_retry(error, connection, ticket)
                await (
                    self._goes_on.wait()
                )  # paused, it needs no stream, and a server takes idle ones away
            finally:
                self._conversation = None
                self._sent += conversation.bytes_sent

    async def _wait_to_retry(
        self, error: UploadError, connection: Connection, ticket: str | None
    ) -> None:
        """Raises ``error`` where trying again cannot help, or patience is at an end."""
        if not self._host.may_retry(error):
            raise error
        if connection.error is not None or isinstance(error, Draining):
            return  # the client waits before it connects
        delay = self._backoff.delay(error)
        logger.info("%s: %s Trying again in %.1f s.", self._job.what, error, delay)
        await asyncio.sleep(delay)
        if isinstance(error, AuthenticationRequired | TicketExpired):
            await self._host.renew(error, ticket)

    async def _verify(self, source: Source, completed: messages.Completed) -> None:
        """Raises :class:`DigestMismatch` unless what was published is what was read here."""
        if completed.size != source.size:
            raise DigestMismatch(algorithm="size", actual=completed.size, expected=source.size)
        crc = await asyncio.to_thread(source.crc_at, completed.size)
        ours = {"crc32c": f"{crc:08x}", **source.digests}
        theirs = {"crc32c": completed.crc32c, **completed.digests}
        for algorithm, expected in ours.items():
            actual = theirs.get(algorithm, "missing")
            if actual != expected:
                raise DigestMismatch(algorithm=algorithm, actual=actual, expected=expected)
