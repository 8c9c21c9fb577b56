"""From FINISH to the published file: ``verifying -> finalizing -> completed``, once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from typing import TYPE_CHECKING, Final, Protocol, cast

from django.core.files import File
from django.core.files.storage import FileSystemStorage

from ..exceptions import DigestMismatch, NotFound, SizeMismatch, StorageFailed, UploadError
from ..models import CompletionEvent, UploadSession
from ..protocol import messages as m
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.rows import Change, checkpoint_values
from ..sessions.state import State
from ..stores import publication
from ..stores.base import Checkpoint, Writer
from .active import ActiveUpload

if TYPE_CHECKING:
    from .service import UploadService

PIECE: Final = 4 * 1024 * 1024


class Host(Protocol):
    """What the host has a say in: the consumer."""

    owner: Owner

    async def admit(self) -> int | None:
        """The largest file of the owner, bytes. Raises :class:`PermissionRefused` where he may upload no longer."""

    async def get_name(self, session: UploadSession) -> str:
        """The name to publish under, before it is made free."""

    @property
    def inspects(self) -> bool:
        """Whether :meth:`inspect` wants to see whole files."""

    async def inspect(self, session: UploadSession, file: File[bytes]) -> None:
        """Refuse the whole file by raising an :class:`UploadRefused`."""


async def verify(upload: ActiveUpload, finish: m.Finish, host: Host) -> dict[str, str]:
    """Check size, CRC, digest and the host's inspection; returns the digests.

    Raises :class:`SizeMismatch` (the upload can go on), :class:`DigestMismatch` and what the inspection
    raises (it has failed).
    """
    await upload.settle()
    session = upload.session
    expected_size = finish.size if session.size is None else session.size
    if not upload.received == finish.size == expected_size:
        raise SizeMismatch(size=finish.size, received=upload.received, declared=session.size)
    if upload.writer is None:  # no byte came: an empty file
        upload.writer = await upload.store.run(upload.store.create, 0)
    assert upload.writer is not None
    actual = f"{upload.writer.crc:08x}"
    if actual != finish.crc32c:
        raise DigestMismatch(algorithm=m.CRC32C, actual=actual, expected=finish.crc32c)
    digests = await _check_digest(upload, finish) if session.digest else {}
    if host.inspects:
        await _enter_verifying(upload, "inspecting")
        await host.inspect(session, part_file(upload.writer, session.name))
    return digests


async def _check_digest(upload: ActiveUpload, finish: m.Finish) -> dict[str, str]:
    algorithm = upload.session.digest
    await upload.hashed()
    if upload.sha256 is None:
        await _enter_verifying(upload, "verifying")
        upload.sha256 = hashlib.sha256()
        async with upload.service.slow_turns(upload.session.owner_key):
            await upload.store.run_slow(_hash_again, upload, upload.sha256)
    actual = upload.sha256.hexdigest()
    if algorithm not in finish.digests:
        promised = f"FINISH brought no {algorithm}, which CREATE promised."
        raise DigestMismatch(promised, algorithm=algorithm, actual=actual)
    expected = finish.digests[algorithm]
    if actual != expected:
        raise DigestMismatch(algorithm=algorithm, actual=actual, expected=expected)
    return {algorithm: actual}


def _hash_again(upload: ActiveUpload, digest: hashlib._Hash) -> None:
    assert upload.writer is not None
    done = 0
    for piece in upload.writer.read(size=PIECE):
        digest.update(piece)
        done += len(piece)
        upload.progress = m.Progress("verifying", done, upload.received)


async def _enter_verifying(upload: ActiveUpload, phase: str) -> None:
    upload.progress = m.Progress(phase, 0, upload.received)
    if upload.session.state != State.VERIFYING:
        change = Change(upload.session.pk, upload.session.epoch, State.VERIFYING)
        await upload.service.database.call(rows.change, change, owner=upload.session.owner_key)
        upload.session.state = State.VERIFYING


def part_file(writer: Writer, name: str) -> File[bytes]:
    """A part as a read-only Django file, for the inspection hook: read it in a thread."""
    return File(BufferedReader(publication.PartReader(writer), PIECE), name)


class Publisher:
    """Brings a verified part into its storage, and the row to ``completed``."""

    def __init__(
        self,
        service: UploadService,
        session: UploadSession,
        writer: Writer,
        report: Callable[[m.Progress], None],
    ) -> None:
        self.service = service
        self.session = session
        self.writer = writer
        self.storage = session.get_storage()
        self._is_recovery = True
        """Another process may have begun to publish it."""
        self._report = report
        self._progressed(0)

    async def publish(self, name: str, owner: Owner, digests: dict[str, str]) -> CompletionEvent:
        """Commit ``finalizing``, publish under ``name`` or one like it, commit ``completed``.

        ``finalizing`` names the file before it is there, so that a crash leaves no file that no row knows.
        Raises :class:`TakenOver`, :class:`StorageFailed` and what :meth:`Owner.check` raises.
        """
        checkpoint = await self.service.store.run(self.writer.sync)
        self.session.size = self.writer.received
        self.session.digests = digests
        name = publication.checked_name(self.storage, name)
        is_linkable = False
        # Where the part is no longer this writer's, the commit says who has taken the upload over.
        with suppress(StorageFailed):
            is_linkable = await self.service.store.run(self._linkable_path) is not None
        if not is_linkable:
            name = publication.own_name(name, self.session.pk)
        await self._commit(name, checkpoint, owner)
        self._is_recovery = False
        return await self.go_on()

    async def go_on(self) -> CompletionEvent:
        """From ``finalizing`` on; also after a crash in the middle.

        Raises :class:`NotFound` where the row was deleted meanwhile: its file goes, too.
        """
        run = self.service.store.run
        path = await run(self._linkable_path)
        if path is None or not await self._link(path):
            path = None
            await self._copy()
        try:
            event = await self.service.database.call(
                rows.complete, self.session, owner=self.session.owner_key, patience=60.0
            )
        except NotFound:
            await run(self._withdraw, path)
            await run(self._forget_part)
            raise
        self.session.state = State.COMPLETED
        self.session.completed_at = event.created_at
        await run(self._forget_part)
        return event

    def _linkable_path(self) -> str | None:
        if not self.service.store.supports_path:
            return None
        path = self.writer.path()
        return path if publication.links_into(self.storage, path) else None

    async def _commit(
        self, name: str, checkpoint: Checkpoint | None = None, owner: Owner | None = None
    ) -> None:
        values = {
            "stored_as": name,
            "size": self.session.size,
            "digests": self.session.digests,
            **(checkpoint_values(checkpoint) if checkpoint else {}),
        }
        change = Change(self.session.pk, self.session.epoch, State.FINALIZING, values, owner)
        await self.service.database.call(
            rows.change, change, owner=self.session.owner_key, patience=60.0
        )
        self.session.state = State.FINALIZING
        self.session.stored_as = name
        if checkpoint:
            self.session.part, self.session.crc = checkpoint.part, checkpoint.crc
            self.session.durable = checkpoint.offset

    async def _link(self, path: str) -> bool:
        """Link the part to the first name that is free; False where the file system cannot."""
        run = self.service.store.run
        try:
            while not await run(self._try_link, path):
                await self._commit(await run(self._free_name))
        except publication.NotLinkable:
            return False
        return True

    def _try_link(self, path: str) -> bool:
        name, storage = self.session.stored_as, cast("FileSystemStorage", self.storage)
        try:
            publication.link(storage, path, name, durability=self.service.store.durability)
        except FileExistsError:
            # Ours already, where a crash came between the link and the commit; perhaps before the sync.
            if not publication.is_linked(storage, path, name):
                return False
            publication.sync_link(storage, name, durability=self.service.store.durability)
        return True

    def _withdraw(self, path: str | None) -> None:
        """Take the published name back, of a part that was linked at ``path`` (None: copied)."""
        if path is None or publication.is_linked(
            cast("FileSystemStorage", self.storage), path, self.session.stored_as
        ):
            self.storage.delete(self.session.stored_as)

    def _free_name(self) -> str:
        return publication.available_name(
            self.storage, self.session.stored_as, max_length=publication.STORED_NAME_MAX
        )

    async def _copy(self) -> None:
        """Save a copy under a name that no other upload has: what is there is this upload's own."""
        loop = asyncio.get_running_loop()
        name = publication.own_name(self.session.stored_as, self.session.pk)
        if self._is_recovery or name != self.session.stored_as:
            await self._commit(name)  # raises where another process has completed it
        if self._is_recovery:
            await loop.run_in_executor(self.service.copies, self._forget_copy)
        name = await loop.run_in_executor(self.service.copies, self._save)
        if name != self.session.stored_as:  # the storage names in its own way
            try:
                await self._commit(name)
            except UploadError:
                await loop.run_in_executor(self.service.copies, self.storage.delete, name)
                raise

    def _forget_copy(self) -> None:
        """What a process that died in the middle left, whole or not."""
        if self.storage.exists(self.session.stored_as):
            self.storage.delete(self.session.stored_as)

    def _save(self) -> str:
        return publication.save(
            self.storage,
            self.session.stored_as,
            self.writer,
            self._progressed,
            durability=self.service.store.durability,
            max_length=publication.STORED_NAME_MAX,
        )

    def _progressed(self, done: int) -> None:
        self._report(m.Progress("finalizing", done, self.writer.received))

    def _forget_part(self) -> None:
        self.writer.close()
        self.service.store.delete(self.writer.part)
