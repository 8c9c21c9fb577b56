"""The handle of one upload, which survives lost connections."""

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
from .connection import ClientConnection
from .conversation import Conversation, Progress
from .draft import Draft
from .slices import HttpConversation
from .source import FileSource, Path, Source, open_source
from .state import Entry, StateFile
from .worker import Worker

logger = logging.getLogger("django_async_upload.client")


@dataclass(frozen=True, slots=True)
class UploadResult:
    """A completed upload."""

    id: str
    name: str
    """The file's name, as cleaned by the server."""
    size: int
    crc32c: str
    """CRC-32C of the whole file, 8 hex digits, which equals the client's own."""
    stored_as: str
    """The name in the server's storage."""
    digests: dict[str, str]
    seconds: float
    resumed: bool
    """Whether it was resumed after a lost connection, or from an earlier program."""
    bytes_sent: int
    """Payload bytes that this program sent, including those sent again."""
    receipt: str | None = None
    """A signed receipt: post it to a form or an API of the site, in place of the file."""
    response: dict[str, Any] | None = None
    """The app's own answer, a JSON object; None where its endpoint gave none."""


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of :meth:`UploadClient.start`."""

    what: Path | BinaryIO
    name: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    content_type: str = ""
    on_progress: Callable[[Progress], object] | None = None
    sha256: bool = False


class ClientServices(Protocol):
    """The part of the client that an upload uses."""

    url: str
    patience: float
    state: StateFile | None
    worker: Worker
    keys: set[str]
    ticket: str | None
    """The ticket that was sent last."""

    async def connected(self) -> ClientConnection | Draft: ...

    def may_retry(self, error: UploadError) -> bool: ...

    async def renew(self, error: UploadError, used: str | None) -> None: ...

    def progressed(self) -> None: ...

    def file_slot(self) -> AbstractAsyncContextManager[object]:
        """A slot for an open file."""

    def transfer_slot(self) -> AbstractAsyncContextManager[object]:
        """A slot for sending a large file."""


class Upload:
    """A running upload: await it for the :class:`UploadResult`, iterate over it for progress.

    Awaiting raises the :class:`UploadError` that ended it. If the awaiting task is cancelled, the
    upload stops, but stays on the server and can be resumed.
    """

    def __init__(self, client: ClientServices, job: Job) -> None:
        self._client = client
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._conversation: Conversation | HttpConversation | None = None
        self._path: str | None = None
        """The upload's path over HTTP."""
        self._entry: Entry | None = None
        self._backoff = Backoff(client.patience)
        self._abandoned = False
        self._furthest = 0
        self._sent = 0
        self._resumed = False
        self._changed: asyncio.Future[None] = self._loop.create_future()
        self.paused = False
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self.cancelled = False
        self.id: str | None = None
        """The upload's id; None until the server has answered."""
        self.progress = Progress()
        """The latest progress."""
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._notify())

    def __await__(self) -> Generator[Any, None, UploadResult]:
        return self.task.__await__()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """Iterate over the latest progress, until the upload ends. Raises nothing."""
        seen: Progress | None = None
        while True:
            if self.progress != seen:
                seen = self.progress
                yield seen
            elif self.task.done():
                return
            else:
                await asyncio.shield(self._changed)

    @property
    def resumable(self) -> bool:
        """Whether a later program can resume it: it is in the state file."""
        return self._entry is not None

    def pause(self) -> None:
        """Send no more data until :meth:`resume`. Data in flight still arrives."""
        self.paused = True
        self._unpaused.clear()
        self._wake()

    def resume(self) -> None:
        self.paused = False
        self._backoff.reset()
        self._unpaused.set()
        self._wake()

    async def cancel(self) -> bool:
        """Cancel the upload, here and on the server; awaiting it then raises :class:`UploadOver`.
        Returns False where it has completed, or ended otherwise."""
        self.cancelled = True
        self._unpaused.set()
        self._wake()
        await asyncio.wait({self.task})
        if self.task.cancelled():
            return False
        error = self.task.exception()
        return isinstance(error, UploadFailed) and error.facts.get("state") == "cancelled"

    # For the conversation -------------------------------------------------------------------------

    def identified(self, upload: str, *, all_sent: bool) -> None:
        """The server sent the upload's id. ``all_sent``: all data was sent before, so the state file needs no id."""
        self.id = upload
        entry, state = self._entry, self._client.state
        if entry is not None and state is not None and entry.upload != upload and not all_sent:
            self._entry = replace(entry, upload=upload)
            state.change(self._entry)

    def found_again(self) -> None:
        """The server has the upload from an earlier connection."""
        self._resumed = True

    def abandoned(self) -> None:
        """The source cannot be read further, and the upload was cancelled on the server."""
        self._abandoned = True

    def report(self, progress: Progress) -> None:
        if progress.done > self._furthest or progress.phase not in ("waiting", "uploading"):
            # Progress that survives a lost connection.
            self._furthest = progress.done
            self._backoff.reset()
            self._client.progressed()
        self.progress = progress
        self._notify()
        if self._job.on_progress is not None:
            try:
                self._job.on_progress(progress)
            except Exception:  # the callback only observes
                logger.exception("on_progress failed for upload %s", self.id)

    # ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._conversation is not None:
            self._conversation.wake()

    def _source_ready(self) -> None:
        """Called by the thread that reads a stream, when it has more."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop was closed
            return

    def _notify(self) -> None:
        changed, self._changed = self._changed, self._loop.create_future()
        changed.set_result(None)

    async def _run(self) -> UploadResult:
        async with self._client.file_slot():
            return await self._upload()

    async def _upload(self) -> UploadResult:
        started = self._loop.time()
        job = self._job
        source = await self._client.worker.run(
            open_source, job.what, job.name, job.sha256, self._source_ready
        )
        create = None
        try:
            create, fresh = await self._prepare(source)
            if source.in_memory:
                completed = await self._send(source, create, fresh)
            else:
                async with self._client.transfer_slot():
                    completed = await self._send(source, create, fresh)
            await self._verify(source, completed)
        except UploadError as error:
            over = isinstance(error, UploadFailed | UploadRefused) and not error.retryable
            # Where the file changed, the user has to decide: until then nothing is deleted.
            if self._abandoned or (over and not isinstance(error, FileChanged)):
                self._remove_entry()
            raise
        finally:
            source.close()
            if create is not None:
                self._client.keys.discard(create.key)
        self._remove_entry()
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

    async def _prepare(self, source: Source) -> tuple[messages.Create, bool]:
        """Store the key in the state file; returns CREATE and whether its key is new."""
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
        state = self._client.state
        fresh = True
        if state is not None and isinstance(source, FileSource) and source.path is not None:
            await state.load()
            entry = self._find_entry(state, source, create)
            if entry is not None:
                create, fresh = replace(create, key=entry.key, metadata=entry.metadata), False
                self.id = entry.upload
                self._entry = entry
            else:
                assert source.identity is not None
                self._entry = Entry(
                    key=create.key,
                    url=self._client.url,
                    path=source.path,
                    identity=source.identity,
                    name=create.name,
                    content_type=create.content_type,
                    digest=digest,
                    metadata=create.metadata,
                )
                self._client.keys.add(create.key)
                await state.save(self._entry)
        self._client.keys.add(create.key)
        return create, fresh

    def _find_entry(
        self, state: StateFile, source: FileSource, create: messages.Create
    ) -> Entry | None:
        """The entry of an earlier program for this file. Raises :class:`FileChanged`."""
        found = None
        for entry in state.find(self._client.url, source.path or ""):
            if entry.key in self._client.keys:  # another upload of this program
                continue
            if entry.identity == source.identity:
                same = (entry.name, entry.content_type, entry.digest)
                if same == (create.name, create.content_type, create.digest):
                    found = entry
            elif entry.upload is None:
                state.remove(entry.key)
            else:
                raise FileChanged(
                    f"{entry.path} has changed since its upload {entry.upload} started. "
                    "Cancel that upload to start again.",
                    upload=entry.upload,
                )
        return found

    def _remove_entry(self) -> None:
        if self._entry is not None and self._client.state is not None:
            self._client.state.remove(self._entry.key)

    async def _send(
        self, source: Source, create: messages.Create, fresh: bool
    ) -> messages.Completed:
        """Send the upload on one connection after the other until it ends."""
        while True:
            door = await self._client.connected()
            ticket = self._client.ticket
            conversation = self._converse(door, source, create, fresh)
            self._conversation = conversation
            fresh = False
            try:
                return await conversation.run()
            except UploadError as error:
                await self._wait_to_retry(error, door, ticket)
                # While paused it needs no stream; a server may close idle ones.
                await self._unpaused.wait()
            finally:
                self._conversation = None
                self._sent += conversation.bytes_sent
                if isinstance(conversation, HttpConversation):
                    self._path = conversation.path

    def _converse(
        self,
        door: ClientConnection | Draft,
        source: Source,
        create: messages.Create,
        fresh: bool,
    ) -> Conversation | HttpConversation:
        worker = self._client.worker
        if isinstance(door, ClientConnection):
            return Conversation(door, self, source, create, worker, pipelined=fresh)
        return HttpConversation(
            door,
            self,
            source,
            create,
            worker,
            fresh=fresh,
            path=self._path,
            patience=self._client.patience,
        )

    async def _wait_to_retry(
        self, error: UploadError, door: ClientConnection | Draft, ticket: str | None
    ) -> None:
        """Wait before a retry. Raises ``error`` where a retry cannot succeed, or patience is exceeded."""
        if not self._client.may_retry(error):
            raise error
        if isinstance(door, ClientConnection) and (door.error or isinstance(error, Draining)):
            return  # the client waits before it connects
        delay = self._backoff.delay(error)
        logger.info("%s: %s Retrying in %.1f s.", self._job.what, error, delay)
        await asyncio.sleep(delay)
        if isinstance(error, AuthenticationRequired | TicketExpired):
            await self._client.renew(error, ticket)

    async def _verify(self, source: Source, completed: messages.Completed) -> None:
        """Raises :class:`DigestMismatch` unless the published file equals the source."""
        if completed.size != source.size:
            raise DigestMismatch(algorithm="size", actual=completed.size, expected=source.size)
        crc = await asyncio.to_thread(source.crc_at, completed.size)
        ours = {"crc32c": f"{crc:08x}", **source.digests}
        theirs = {"crc32c": completed.crc32c, **completed.digests}
        for algorithm, expected in ours.items():
            actual = theirs.get(algorithm, "missing")
            if actual != expected:
                raise DigestMismatch(algorithm=algorithm, actual=actual, expected=expected)
