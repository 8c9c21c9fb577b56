"""Small files that arrived whole before anybody was answered: many share a transaction and a thread hop.

Thousands of small files would spend their time in transactions and thread hops of their own. (Rule: transitions that
nobody has been answered for may share one transaction.) Whatever is unusual about a file, the ordinary way takes
it from where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, cast

from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import FileSystemStorage

from .. import signals
from ..concurrency.turns import Turns
from ..exceptions import NotFound, UploadError
from ..models import UploadSession
from ..protocol import messages as m
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.rows import Creation
from ..sessions.state import State
from ..stores import publication
from ..stores.base import Checkpoint, Writer
from .active import ActiveUpload

if TYPE_CHECKING:
    from .service import UploadService

logger = logging.getLogger("django_async_upload")

MAX_BATCH: Final = 256


@dataclass(slots=True, eq=False)
class SmallFile:
    """A file whose CREATE, data and FINISH are all here."""

    session: UploadSession
    owner: Owner
    upload: ActiveUpload
    name: str
    """To publish under, where it is free."""
    writer: Writer | None = None
    is_created: bool = False
    """Its row is in the database, in ``finalizing``."""
    is_linked: bool = False
    published: asyncio.Future[bool] = field(default_factory=asyncio.Future)


class SmallFiles:
    """Collects small files while others are on their way to the disk, and publishes them together."""

    def __init__(self, service: UploadService) -> None:
        self._service = service
        self._waiting: Turns[SmallFile] = Turns()
        self._draining: asyncio.Task[None] | None = None

    def takes(self, session: UploadSession, finish: m.Finish | None) -> bool:
        """Whether nothing about the upload asks for the ordinary way."""
        return (
            finish is not None
            and finish.size == session.size
            and not session.digest
            and self._service.store.supports_path
            and isinstance(session.get_storage(), FileSystemStorage)
            and not signals.upload_started.has_listeners(UploadSession)
            and not signals.chunk_received.has_listeners(UploadSession)
        )

    async def publish(self, file: SmallFile) -> bool:
        """True when the session is completed; False when nothing happened and the ordinary way is to go.

        Raises what refuses the upload.
        """
        self._waiting.add(file.owner.key, file)
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await file.published

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting.take(MAX_BATCH)
                try:
                    await self._publish(batch)
                except Exception as error:  # the ordinary way meets it again, one by one
                    logger.warning("Small files go one by one: %r", error)
                for file in batch:
                    if not file.published.done():
                        file.published.set_result(False)
        finally:
            # Not in a callback of the task: a file that came before it ran would wait for ever.
            self._draining = None

    async def _publish(self, batch: list[SmallFile]) -> None:
        service = self._service
        try:
            await service.store.run(self._write, batch)
            written = [file for file in batch if file.writer is not None]
            await self._share(self._sync, written)
            created = await self._create(written)
            await self._share(self._link, created)
            linked = [file for file in created if file.is_linked]
            sessions = [file.session for file in linked]
            events = await service.database.call_many(rows.complete, sessions)
            for file, event in zip(linked, events, strict=True):
                if isinstance(event, NotFound):  # deleted meanwhile, by the host
                    await service.store.run(self._withdraw, file)
                    file.published.set_exception(event)
                elif not isinstance(event, UploadError):
                    file.session.state = State.COMPLETED
                    file.session.completed_at = event.created_at
                    service.outbox.deliver(event)
                    file.published.set_result(True)
        finally:
            await service.store.run(self._close, batch)

    def _write(self, batch: Sequence[SmallFile]) -> None:
        """A part for each file that is what its sender says it is."""
        for file in batch:
            # The ordinary way meets it again, and tells.
            with contextlib.suppress(UploadError, SuspiciousFileOperation):
                self._write_one(file)

    def _write_one(self, file: SmallFile) -> None:
        session, frames = file.session, file.upload.queued
        storage = session.get_storage()
        writer = self._service.store.create(None)
        try:
            good = writer.append(frames) if frames else 0
            finish = file.upload.finishing
            assert finish is not None
            if (
                good < len(frames)
                or writer.received != session.size
                or f"{writer.crc:08x}" != finish.crc32c
                or not publication.links_into(storage, writer.path())
            ):
                return
            # The link may still meet a file of this name: the ordinary way finds another one.
            session.stored_as = publication.available_name(
                storage,
                publication.checked_name(storage, file.name),
                max_length=publication.STORED_NAME_MAX,
            )
            session.state = State.FINALIZING
            file.writer = writer
        finally:
            if file.writer is None:
                writer.close()
                self._service.store.delete(writer.part)

    async def _create(self, files: list[SmallFile]) -> list[SmallFile]:
        creations = [Creation(file.session, file.owner) for file in files]
        outcomes = await self._service.database.call_many(rows.create, creations)
        created = []
        for file, outcome in zip(files, outcomes, strict=True):
            if isinstance(outcome, UploadError):
                file.published.set_exception(outcome)
            elif outcome.pk == file.session.pk:  # or another object, after a COMMIT without answer
                file.is_created = True
                created.append(file)
        return created

    async def _share(
        self, work: Callable[[Sequence[SmallFile]], None], files: Sequence[SmallFile]
    ) -> None:
        """Where it waits for the disk, have half of the store's threads wait together."""
        store = self._service.store
        threads = max(1, store.threads // 2) if store.durability == "fsync" else 1
        shares = [files[first::threads] for first in range(min(threads, len(files)))]
        async with asyncio.TaskGroup() as group:
            for share in shares:
                group.create_task(store.run(work, share))

    def _sync(self, files: Sequence[SmallFile]) -> None:
        writers = [file.writer for file in files if file.writer is not None]
        checkpoints = self._service.store.sync_all(writers)
        for file, checkpoint in zip(files, checkpoints, strict=True):
            for column, value in rows.checkpoint_values(checkpoint).items():
                setattr(file.session, column, value)

    def _link(self, files: Sequence[SmallFile]) -> None:
        durability = self._service.store.durability
        linked: list[SmallFile] = []
        unsynced: dict[str, None] = {}
        for file in files:
            assert file.writer is not None
            storage = cast("FileSystemStorage", file.session.get_storage())
            with contextlib.suppress(FileExistsError, UploadError):
                directories = publication.link_unsynced(
                    storage, file.writer.path(), file.session.stored_as, durability=durability
                )
                unsynced |= dict.fromkeys(directories)
                linked.append(file)
        publication.sync_names(unsynced)
        for file in linked:
            file.is_linked = True

    def _withdraw(self, file: SmallFile) -> None:
        file.is_created = False
        file.session.get_storage().delete(file.session.stored_as)

    def _close(self, files: Sequence[SmallFile]) -> None:
        """The parts of files that are published, or that no row names, are no longer needed."""
        for file in files:
            if file.writer is not None:
                file.writer.close()
                if file.session.state == State.COMPLETED or not file.is_created:
                    self._service.store.delete(file.writer.part)
                if not file.is_created:  # the ordinary way begins from nothing
                    file.session.state, file.session.stored_as = State.CREATED, ""
                    for column, value in rows.checkpoint_values(Checkpoint("")).items():
                        setattr(file.session, column, value)
