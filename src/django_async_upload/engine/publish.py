"""From a verified part to a file of a storage: ``finalizing -> completed``, once, for any number of uploads together.

Each step takes a list; a list of one is the ordinary case, and small files that arrived whole come in groups: what
they share (a thread hop, a transaction, the sync of a folder) is done once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from django.core.files.storage import FileSystemStorage, Storage

from ..exceptions import NotFound, StorageFailed, UploadError
from ..models import CompletionEvent, UploadSession
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.state import State
from ..sessions.values import Change, Creation, Progress
from ..stores import publication
from ..stores.base import Writer
from .runtime import Runtime

logger = logging.getLogger("django_async_upload")

PATIENCE = 60.0
"""Seconds for which a commit of a publication waits for the database."""


class KnownKey(Exception):
    """The client's key has named an upload before."""


@dataclass(slots=True, eq=False)
class Publication:
    """One upload on its way from its part into its storage. In the end it has an ``event`` or an ``error``."""

    session: UploadSession
    writer: Writer
    name: str = ""
    """To publish under, where it is free."""
    owner: Owner | None = None
    """Checked once more when the name is committed."""
    digests: dict[str, str] = field(default_factory=dict)
    is_new: bool = False
    """No row was made yet, and no client was answered: it is inserted in ``finalizing``."""
    is_begun: bool = False
    """Another process may have begun the publication."""
    report: Callable[[Progress], None] = lambda progress: None
    """Called with the progress, from any thread."""
    path: str | None = None
    """The part's path, where it can be linked into its storage; None: it is copied."""
    error: Exception | None = None
    event: CompletionEvent | None = None

    @property
    def storage(self) -> Storage:
        return self.session.get_storage()

    def progressed(self, done: int) -> None:
        self.report(Progress("finalizing", done, self.writer.received))


class Publisher:
    """Brings verified parts into their storages, and their rows to ``completed``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store

    async def publish_one(self, item: Publication) -> CompletionEvent:
        """:meth:`publish` of one upload. Raises its error: :class:`TakenOver`, :class:`StorageFailed`, what
        :meth:`Owner.check` raises, and :class:`NotFound` where the row was deleted meanwhile."""
        await self.publish([item])
        return _event(item)

    async def resume_one(self, item: Publication) -> CompletionEvent:
        """Go on from ``finalizing``, after a crash in the middle. Raises as :meth:`publish_one`."""
        item.is_begun = True
        item.progressed(0)
        await self._go_on([item])
        return _event(item)

    async def publish(self, items: Sequence[Publication]) -> None:
        """Commit ``finalizing``, publish each under its name or one like it, commit ``completed``.

        ``finalizing`` names the file before it is there, so that a crash leaves no file that no row knows.
        """
        for item in items:
            item.progressed(0)
        await self._in_shares(self._sync, items)
        await self._store.run(self._choose_names, _good(items))
        await self._commit(_good(items))
        await self._go_on(_good(items))

    async def _go_on(self, items: Sequence[Publication]) -> None:
        """From ``finalizing`` on."""
        if unknown := [item for item in items if item.path is None]:
            await self._store.run(self._find_paths, unknown)
        await self._link([item for item in _good(items) if item.path is not None])
        for item in _good(items):
            if item.path is None:
                try:
                    await self._copy(item)
                except Exception as error:  # of a storage of the host's
                    item.error = error
        await self._complete(_good(items))

    # Before the commit --------------------------------------------------------------------------

    def _sync(self, items: Sequence[Publication]) -> list[Publication]:
        try:
            checkpoints = self._store.sync_all([item.writer for item in items])
        except UploadError as error:
            for item in items:
                item.error = error
            return []
        for item, checkpoint in zip(items, checkpoints, strict=True):
            item.session.size = item.writer.received
            item.session.digests = item.digests
            item.session.checkpoint = checkpoint
        return []

    def _choose_names(self, items: Sequence[Publication]) -> None:
        for item in items:
            try:
                item.session.stored_as = self._name(item)
            except Exception as error:  # a name that leaves the storage; a storage of the host's
                item.error = error

    def _name(self, item: Publication) -> str:
        storage = item.storage
        name = publication.checked_name(storage, item.name)
        # Where the part is no longer this writer's, the commit says who has taken the upload over.
        with suppress(StorageFailed):
            item.path = self._linkable_path(item)
        if item.path is None:
            return publication.own_name(name, item.session.pk)
        return publication.available_name(storage, name, max_length=publication.STORED_NAME_MAX)

    def _find_paths(self, items: Sequence[Publication]) -> None:
        for item in items:
            try:
                item.path = self._linkable_path(item)
            except UploadError as error:  # the part is not what it was
                item.error = error

    def _linkable_path(self, item: Publication) -> str | None:
        if not self._store.supports_path:
            return None
        path = item.writer.path()
        return path if publication.links_into(item.storage, path) else None

    async def _commit(self, items: Sequence[Publication]) -> None:
        """Have the rows name their files, in ``finalizing``."""
        new = [item for item in items if item.is_new]
        old = [item for item in items if not item.is_new]
        for item in new:
            item.session.state = State.FINALIZING
        creations = [Creation(item.session, cast("Owner", item.owner)) for item in new]
        for item, made in zip(new, await self._call(rows.create, creations, new), strict=True):
            if isinstance(made, UploadError):
                item.error = made
            elif made.pk != item.session.pk:
                item.error = KnownKey()
            else:  # this row, or another object of it after a COMMIT without an answer
                item.is_new = False
        changes = [self._change(item) for item in old]
        for item, error in zip(old, await self._call(rows.change, changes, old), strict=True):
            item.error = error
            if error is None:
                item.session.state = State.FINALIZING

    async def _commit_one(self, item: Publication) -> None:
        await self._commit([item])
        if item.error is not None:
            raise item.error

    @staticmethod
    def _change(item: Publication) -> Change:
        session = item.session
        checkpoint = session.checkpoint
        values = {
            "stored_as": session.stored_as,
            "size": session.size,
            "digests": session.digests,
            **rows.checkpoint_values(checkpoint),
        }
        return Change(session.pk, session.epoch, State.FINALIZING, values, item.owner)

    # The file in its storage --------------------------------------------------------------------

    async def _link(self, items: Sequence[Publication]) -> None:
        """Link each part to the first name that is free. Where the file system cannot, ``path`` becomes None."""
        while items:
            taken = await self._in_shares(self._link_share, items)
            if taken:
                await self._store.run(self._choose_free_names, taken)
                await self._commit(_good(taken))
            items = _good(taken)

    def _link_share(self, items: Sequence[Publication]) -> list[Publication]:
        """Link what can be linked; returns those whose names are taken."""
        taken = []
        linked = []
        unsynced: dict[str, None] = {}
        for item in items:
            try:
                directories = self._link_one(item)
            except publication.NotLinkable:
                item.path = None
            except Exception as error:  # one file delays no other
                item.error = error
            else:
                if directories is None:
                    taken.append(item)
                else:
                    linked.append(item)
                    unsynced |= dict.fromkeys(directories)
        try:
            publication.sync_names(unsynced)
        except StorageFailed as error:
            for item in linked:
                item.error = error
        return taken

    def _link_one(self, item: Publication) -> list[str] | None:
        """The directories to be synced; None where another file has the name."""
        assert item.path is not None
        storage, name = cast("FileSystemStorage", item.storage), item.session.stored_as
        durability = self._store.durability
        try:
            return publication.link(storage, item.path, name, durability=durability)
        except FileExistsError:
            # Ours already, where a crash came between the link and the commit; perhaps before the sync.
            if not publication.is_linked(storage, item.path, name):
                return None
            publication.sync_link(storage, name, durability=durability)
            return []

    def _choose_free_names(self, items: Sequence[Publication]) -> None:
        for item in items:
            try:
                item.session.stored_as = publication.available_name(
                    item.storage, item.session.stored_as, max_length=publication.STORED_NAME_MAX
                )
            except Exception as error:  # no room for a longer name
                item.error = error

    async def _copy(self, item: Publication) -> None:
        """Save a copy under a name that no other upload has: what is there is this upload's own."""
        loop = asyncio.get_running_loop()
        session, copies = item.session, self._runtime.copies
        name = publication.own_name(session.stored_as, session.pk)
        if item.is_begun or name != session.stored_as:
            session.stored_as = name
            await self._commit_one(item)  # raises where another process has completed it
        if item.is_begun:
            await loop.run_in_executor(copies, self._forget_copy, item)
        name = await loop.run_in_executor(copies, self._save, item)
        if name != session.stored_as:  # the storage names in its own way
            session.stored_as = name
            try:
                await self._commit_one(item)
            except UploadError:
                await loop.run_in_executor(copies, item.storage.delete, name)
                raise

    @staticmethod
    def _forget_copy(item: Publication) -> None:
        """Delete what a process that died in the middle left, whole or not."""
        if item.storage.exists(item.session.stored_as):
            item.storage.delete(item.session.stored_as)

    def _save(self, item: Publication) -> str:
        return publication.save(
            item.storage,
            item.session.stored_as,
            item.writer,
            item.progressed,
            durability=self._store.durability,
            max_length=publication.STORED_NAME_MAX,
        )

    # After it -----------------------------------------------------------------------------------

    async def _complete(self, items: Sequence[Publication]) -> None:
        sessions = [item.session for item in items]
        events = await self._call(rows.complete, sessions, items)
        for item, event in zip(items, events, strict=True):
            if isinstance(event, UploadError):
                item.error = event
            else:
                item.event = event
                item.session.state = State.COMPLETED
                item.session.completed_at = event.created_at
        deleted = [item for item in items if isinstance(item.error, NotFound)]
        await self._store.run(self._clean_up, _good(items), deleted)

    def _clean_up(self, completed: Sequence[Publication], deleted: Sequence[Publication]) -> None:
        """Delete the parts that are no longer needed, and the files of uploads whose rows were deleted meanwhile."""
        for item in deleted:
            storage, name = item.storage, item.session.stored_as
            if item.path is None or publication.is_linked(
                cast("FileSystemStorage", storage), item.path, name
            ):
                storage.delete(name)
        for item in (*completed, *deleted):
            item.writer.close()
            try:
                self._store.delete(item.writer.part)
            except UploadError:  # no row names it: the purge deletes it
                logger.exception("A part of upload %s could not be deleted", item.session.pk)

    # Sharing ------------------------------------------------------------------------------------

    async def _call(
        self, function: Any, arguments: Sequence[Any], items: Sequence[Publication]
    ) -> list[Any]:
        """Ask the database, in the turn of the owner where there is only one."""
        owners = {item.session.owner_key for item in items}
        owner = owners.pop() if len(owners) == 1 else ""
        return await self._runtime.database.call_many(
            function, arguments, owner=owner, patience=PATIENCE
        )

    async def _in_shares(
        self,
        work: Callable[[Sequence[Publication]], list[Publication]],
        items: Sequence[Publication],
    ) -> list[Publication]:
        """Where the work waits for the disk, have half of the store's threads wait together."""
        if len(items) == 1:
            return await self._store.run(work, items)
        threads = max(1, self._store.threads // 2) if self._store.durability == "fsync" else 1
        shares = [items[first::threads] for first in range(min(threads, len(items)))]
        found = await asyncio.gather(*(self._store.run(work, share) for share in shares))
        return [item for share in found for item in share]


def _good(items: Sequence[Publication]) -> list[Publication]:
    return [item for item in items if item.error is None]


def _event(item: Publication) -> CompletionEvent:
    if item.error is not None:
        raise item.error
    assert item.event is not None
    return item.event
