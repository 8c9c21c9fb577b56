"""Publication of verified parts as files of a storage: ``finalizing -> completed``, for lists of uploads.

Each step takes a list. A list of one is the ordinary case; small files that were received whole are published in
groups, which share thread hops, transactions and the sync of a folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from ..exceptions import Busy, NotFound, StorageFailed, UploadError
from ..failpoints import failpoint
from ..models import CompletionEvent, UploadSession
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.state import State
from ..sessions.values import Change, Creation, Progress
from ..stores.base import Writer
from ..stores.publication.base import Finished, NameTaken, Publication, Unsuited
from ..stores.publication.copy import CopyPublication
from ..stores.publication.link import LinkPublication
from ..stores.publication.names import checked_name, is_own_name
from .runtime import Runtime

logger = logging.getLogger("django_async_upload")

PATIENCE = 60.0
"""Seconds for which a commit of a publication waits for the database."""


class KnownKey(Exception):
    """The client's key belongs to an existing upload."""


@dataclass(slots=True, eq=False)
class Finalization:
    """The publication of one upload. At the end it has an ``event`` or an ``error``."""

    session: UploadSession
    writer: Writer
    name: str = ""
    """The name to publish under, if it is free."""
    owner: Owner | None = None
    """The owner, checked again when the name is committed."""
    digests: dict[str, str] = field(default_factory=dict)
    is_new: bool = False
    """Whether there is no row yet, and no answer to the client: the row is inserted in ``finalizing``."""
    is_resumed: bool = False
    """Whether an earlier attempt may have published the file."""
    report: Callable[[Progress], None] = lambda progress: None
    """Called with the progress, in any thread."""
    publication: Publication | None = None
    """The publication that suits it."""
    unsuited: list[Publication] = field(default_factory=list)
    """Publications that turned out not to suit the part."""
    error: Exception | None = None
    event: CompletionEvent | None = None

    _part: Finished | None = None

    @property
    def part(self) -> Finished:
        """The part under the name that the row has now."""
        session = self.session
        if self._part is None:
            storage = session.get_storage()
            self._part = Finished(self.writer, storage, session.pk, "", self.progressed)
        self._part.name = session.stored_as
        self._part.attempt = session.epoch if self.is_resumed else 0
        return self._part

    def progressed(self, done: int) -> None:
        self.report(Progress("finalizing", done, self.writer.received))


class Publisher:
    """Publishes verified parts in their storages, and changes their rows to ``completed``."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store
        self._publications: list[Publication] = [
            LinkPublication(runtime.store),
            CopyPublication(runtime.store),
        ]
        """The first one that suits a part publishes it."""

    async def publish_one(self, item: Finalization) -> CompletionEvent:
        """:meth:`publish` one upload. Raises its error: :class:`TakenOver`, :class:`StorageFailed`, those of
        :meth:`Owner.check`, and :class:`NotFound` where the row was deleted in the meantime."""
        await self.publish([item])
        return _event(item)

    async def resume_one(self, item: Finalization) -> CompletionEvent:
        """Resume the publication of an upload in ``finalizing``, after a crash. Raises as :meth:`publish_one`."""
        item.is_resumed = True
        item.progressed(0)
        await self._continue_finalizing([item])
        return _event(item)

    async def publish(self, items: Sequence[Finalization]) -> None:
        """Commit ``finalizing``, publish each under its name or a similar one, commit ``completed``.

        In ``finalizing`` the row names the file before it exists, so that a crash leaves no file without a row.
        """
        for item in items:
            item.progressed(0)
        await self._in_shares(self._prepare, items)
        failpoint("publish.before_commit")
        await self._commit(_without_error(items))
        failpoint("publish.after_commit")
        await self._continue_finalizing(_without_error(items))

    async def _continue_finalizing(self, items: Sequence[Finalization]) -> None:
        """Continue with uploads in ``finalizing``."""
        if undecided := [item for item in items if item.publication is None]:
            await self._store.run(self._choose_publications, undecided)
            again = [
                item
                for item in _without_error(undecided)
                if item.publication and item.publication.copies
            ]
            await self._store.run_slow(self._withdraw_earlier, again)
            await self._store.run(self._rename, _without_error(again))
            await self._commit(_without_error(again))
        await self._publish_files(_without_error(items))
        await self._complete(_without_error(items))

    # Before the commit --------------------------------------------------------------------------

    def _prepare(self, items: Sequence[Finalization]) -> None:
        self._sync(items)
        self._choose_names(_without_error(items))

    def _sync(self, items: Sequence[Finalization]) -> None:
        try:
            failpoint("publish.before_sync")
            checkpoints = self._store.sync_all([item.writer for item in items])
            failpoint("publish.after_sync")
        except UploadError as error:
            for item in items:
                item.error = error
            return
        for item, checkpoint in zip(items, checkpoints, strict=True):
            item.session.size = item.writer.received
            item.session.digests = item.digests
            item.session.checkpoint = checkpoint

    def _choose_names(self, items: Sequence[Finalization]) -> None:
        for item in items:
            try:
                part = item.part
                item.session.stored_as = part.name = checked_name(part.storage, item.name)
                # If the part has another writer now, the commit raises the reason.
                with suppress(StorageFailed):
                    item.publication = self._suitable(part)
                    item.session.stored_as = item.publication.first_name(part)
                    if item.is_new and item.publication.copies:
                        item.error = Unsuited()  # a copy would delay the others of its group
            except (
                Exception
            ) as error:  # a name that leaves the storage, or an error of the host's storage
                item.error = error

    def _choose_publications(self, items: Sequence[Finalization]) -> None:
        for item in items:
            try:
                item.publication = self._suitable(item.part)
            except Exception as error:  # the part was changed
                item.error = error

    def _suitable(self, part: Finished, unsuited: Sequence[Publication] = ()) -> Publication:
        suitable = (each for each in self._publications if each not in unsuited)
        return next(each for each in suitable if each.suits(part))

    async def _commit(self, items: Sequence[Finalization]) -> None:
        """Commit the names of the files, and ``finalizing``, in the rows."""
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
            else:  # this row, or the same row read again after a COMMIT without an answer
                item.is_new = False
        changes = [self._change(item) for item in old]
        for item, error in zip(old, await self._call(rows.change, changes, old), strict=True):
            item.error = error
            if error is None:
                item.session.state = State.FINALIZING

    @staticmethod
    def _change(item: Finalization) -> Change:
        session = item.session
        values = {
            "stored_as": session.stored_as,
            "size": session.size,
            "digests": session.digests,
            **rows.checkpoint_values(session.checkpoint),
        }
        return Change(session.pk, session.epoch, State.FINALIZING, values, item.owner)

    # The file in its storage --------------------------------------------------------------------

    async def _publish_files(self, items: Sequence[Finalization]) -> None:
        """Publish the parts: in each round those without a file yet, under another name or by another publication."""
        while items:
            results = await self._publish_parts(items)
            failpoint("publish.after_files")
            renamed, again = [], []
            for item, result in zip(items, results, strict=True):
                if isinstance(result, Unsuited):
                    item.unsuited.append(cast("Publication", item.publication))
                    item.publication = None
                    again.append(item)
                elif isinstance(result, NameTaken):
                    again.append(item)
                elif isinstance(result, Exception):
                    item.error = result
                elif result != item.session.stored_as:  # the storage chose another name
                    item.session.stored_as = result
                    renamed.append(item)
            await self._commit(renamed)
            if lost := [item for item in renamed if item.error is not None]:
                await self._store.run_slow(self._withdraw, lost)
            if again:
                await self._store.run(self._rename, again)
                await self._commit(_without_error(again))
            items = _without_error(again)

    async def _publish_parts(self, items: Sequence[Finalization]) -> list[str | Exception]:
        """Publish parts: copies one per thread of their own pool, the others in shares."""
        found: dict[Finalization, str | Exception] = {}

        def publish(share: Sequence[Finalization]) -> None:
            publication = cast("Publication", share[0].publication)
            found.update(
                zip(share, publication.publish([item.part for item in share]), strict=True)
            )

        loop = asyncio.get_running_loop()
        copied = [item for item in items if item.publication and item.publication.copies]
        linked = [item for item in items if item not in copied]
        copies = (loop.run_in_executor(self._runtime.copies, publish, [item]) for item in copied)
        await _all((self._in_shares(publish, linked), *copies))
        return [found[item] for item in items]

    def _rename(self, items: Sequence[Finalization]) -> None:
        for item in items:
            try:
                if item.publication is None:
                    item.publication = self._suitable(item.part, item.unsuited)
                item.session.stored_as = item.publication.next_name(item.part)
            except Exception as error:  # no room for a longer name
                item.error = error

    # After publication --------------------------------------------------------------------------

    async def _complete(self, items: Sequence[Finalization]) -> None:
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
        adopted = [item for item in items if isinstance(item.error, Busy)]
        # The link of an adopted publication is the file that the other process completes; a copy is of no use.
        copies = [item for item in adopted if cast("Publication", item.publication).copies]
        if deleted or copies:
            await self._store.run_slow(self._withdraw, [*deleted, *copies])
        await self._store.run(self._clean_up, [*_without_error(items), *deleted])

    @staticmethod
    def _withdraw_earlier(items: Sequence[Finalization]) -> None:
        """Delete the copies of earlier attempts, each of which had a name of its own."""
        for item in items:
            if not is_own_name(item.session.stored_as, item.session.pk):
                continue  # it was to be a link, and may be another file
            try:
                cast("Publication", item.publication).withdraw(item.part)
            except Exception as error:  # of the host's storage: tried again later
                item.error = error

    @staticmethod
    def _withdraw(items: Sequence[Finalization]) -> None:
        for item in items:
            try:
                cast("Publication", item.publication).withdraw(item.part)
            except Exception:  # of the host's storage
                logger.exception("The file of upload %s could not be deleted", item.session.pk)

    def _clean_up(self, items: Sequence[Finalization]) -> None:
        """Delete parts that are no longer needed."""
        for item in items:
            item.writer.close()
            try:
                self._store.delete(item.writer.part)
            except UploadError:  # no row names the part: the purge deletes it
                logger.exception("A part of upload %s could not be deleted", item.session.pk)
            failpoint("complete.after_unlink")

    # Sharing ------------------------------------------------------------------------------------

    async def _call(
        self, function: Any, arguments: Sequence[Any], items: Sequence[Finalization]
    ) -> list[Any]:
        """Call the database, in the owner's turn if all items have the same owner."""
        owners = {item.session.owner_key for item in items}
        owner = owners.pop() if len(owners) == 1 else ""
        return await self._runtime.database.call_many(
            function, arguments, owner=owner, patience=PATIENCE
        )

    async def _in_shares(
        self, work: Callable[[Sequence[Finalization]], None], items: Sequence[Finalization]
    ) -> None:
        """Divide work that waits for the disk among half of the store's threads."""
        threads = max(1, self._store.threads // 2) if self._store.durability == "fsync" else 1
        shares = [items[first::threads] for first in range(min(threads, len(items)))]
        if len(shares) == 1:
            await self._store.run(work, shares[0])
        else:
            await _all(self._store.run(work, share) for share in shares)


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all of it, also where some raises: the caller closes the parts that the others still work on."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _without_error(items: Sequence[Finalization]) -> list[Finalization]:
    return [item for item in items if item.error is None]


def _event(item: Finalization) -> CompletionEvent:
    if item.error is not None:
        raise item.error
    assert item.event is not None
    return item.event
