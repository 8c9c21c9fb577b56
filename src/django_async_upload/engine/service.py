"""The use cases: create, attach, write, finish, cancel. No Channels and no HTTP in here.

One :class:`UploadService` serves an event loop: it has the store, the database thread, the credit and the uploads
that this process holds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from django.core.signals import setting_changed
from django.db import router, transaction

from .. import conf, signals
from ..concurrency.pace import Pace
from ..concurrency.threads import DaemonExecutor
from ..exceptions import (
    Busy,
    DataLost,
    InternalError,
    StorageFailed,
    StorageFull,
    TakenOver,
    UploadError,
    UploadFailed,
)
from ..models import UploadSession
from ..notices import notice
from ..protocol import messages as m
from ..sessions import rows
from ..sessions.commits import after_commit
from ..sessions.holds import put_aside
from ..sessions.owners import Owner
from ..sessions.policies import check_size
from ..sessions.rows import Claim, Creation, Ending, TakeUp, Trouble
from ..sessions.state import ACTIVE, OVER, PUBLISHED, State
from ..stores.base import Store, Writer
from ..stores.configured import make_store
from ..stores.disk import most_descriptors
from .active import ActiveUpload, Listener
from .credit import Budget, keep_freed_memory
from .database import Database
from .outbox import Outbox
from .publish import Host, Publisher, verify
from .small import SmallFiles

logger = logging.getLogger("django_async_upload")

STUCK_SECONDS: Final = 60.0
"""After so long in ``finalizing`` an upload is looked at: its process may have died."""
RECOVERIES: Final = 4
"""Publications of processes that died that one process goes on with at the same time."""
LONGEST_REST: Final = 3600.0
"""Seconds until an upload whose publication fails again and again is tried once more."""
CLOSE_SECONDS: Final = 10.0
"""For how long :meth:`UploadService.close` waits for uploads, and then for receivers."""
SLOW_SYNC_REST: Final = 9
"""Times as long as a sync of little took, until its owner has the next one: he keeps the disk a tenth of the time."""
EVICTION_SECONDS: Final = 0.4
"""How long the newest connection waits for an older one of this process to let go of the file."""


class UploadService:
    """What the uploads of one process share."""

    def __init__(self, store: Store | None = None) -> None:
        configured = conf.uploads()
        self.store = store or make_store()
        self.database = Database(router.db_for_write(UploadSession))
        self.budget = Budget(configured.memory_budget, self._places())
        self.outbox = Outbox(self.database)
        self.active: dict[uuid.UUID, ActiveUpload] = {}
        self._results: dict[uuid.UUID, asyncio.Future[UploadSession]] = {}
        self._turns: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()
        self._syncs: WeakValueDictionary[tuple[str, bool, bool], asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._slow_turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        self.small_files = SmallFiles(self)
        keep_freed_memory()
        self._watch: asyncio.Task[None] | None = None
        self._publishing: set[uuid.UUID] = set()
        """Publications that this process has taken up: those whose writer ended with its process."""
        self._taking_up: asyncio.Task[None] | None = None
        self._recovering: dict[uuid.UUID, asyncio.Task[Any]] = {}
        self._resting: dict[uuid.UUID, tuple[float, int]] = {}
        """Uploads whose publication failed: until when (monotonic) they rest, and how often that was."""

    @asynccontextmanager
    async def sync_turn(
        self, owner: str, *, is_slow: bool, rests: bool = True
    ) -> AsyncIterator[None]:
        """An owner's turn at syncing a part: half of the store's threads, so that others find one, too.

        Those of his uploads that bring little share a single one, which ``rests`` afterwards: a disk syncs a file of
        one byte no faster than one of megabytes, and all that it does meanwhile waits. What ends an upload has a turn
        of its own and does not rest.
        """
        most = 1 if is_slow else max(1, self.store.threads // 2)
        turns = self._syncs.setdefault((owner, is_slow, rests), asyncio.Semaphore(most))
        await turns.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            if is_slow and rests:
                loop.call_later(SLOW_SYNC_REST * (loop.time() - began), turns.release)
            else:
                turns.release()

    def slow_turns(self, owner: str) -> asyncio.Semaphore:
        """An owner's turns at what may take long: half of the threads for that."""
        most = max(1, self.store.threads // 2)
        return self._slow_turns.setdefault(owner, asyncio.Semaphore(most))

    def pace(self, owner: str) -> Pace:
        """How fast the connections of an owner are read."""
        return self._paces.setdefault(owner, Pace())

    def _places(self) -> int | None:
        """Uploads at once: half of the descriptors are for their files, the rest for sockets and the site."""
        descriptors = most_descriptors() if self.store.supports_path else None
        return None if descriptors is None else descriptors // 2

    @cached_property
    def copies(self) -> DaemonExecutor:
        """Threads for copies into storages that cannot be linked into: never the chunks' threads.

        One that hangs does not keep the process from ending: another one goes on with what it published.
        """
        return DaemonExecutor(conf.uploads().threads, "async-upload-publication")

    def start(self) -> None:
        """Look after what processes that died left behind; at the first connection or by lifespan."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        """Every ten seconds, begin to deliver completions and to go on with publications that no process works on.

        Waits for neither: one slow copy or receiver delays only itself.
        """
        while True:
            await self._survive(self.outbox.take_up)
            await self._survive(self._give_sign_of_life)
            if self._taking_up is None or self._taking_up.done():
                self._taking_up = asyncio.create_task(self._survive(self._take_up))
            await asyncio.sleep(rows.CLAIM.total_seconds())

    async def _survive(self, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await look()
        except UploadError as error:
            notice("look after", logging.WARNING, "What was left could not be read: %s", error)
        except Exception:  # a bug, or the database's: the next look is another matter
            logger.exception("Looking after what was left behind failed")

    async def _give_sign_of_life(self) -> None:
        """Have other processes leave alone what this one publishes."""
        if busy := {*self._results, *self._publishing}:
            await self.database.call_many(rows.touch, list(busy))

    async def _take_up(self) -> None:
        old = time.monotonic() - 2 * LONGEST_REST  # tried long ago and not again: no longer there
        self._resting = {pk: rest for pk, rest in self._resting.items() if rest[0] > old}
        while True:
            while (room := RECOVERIES - len(self._recovering)) <= 0:
                await asyncio.wait(self._recovering.values(), return_when=asyncio.FIRST_COMPLETED)
            wanted = TakeUp(STUCK_SECONDS, room)
            sessions = await self.database.call(rows.take_up, wanted)
            for session in sessions:
                rests = self._resting.get(session.pk, (0.0, 0))[0] > time.monotonic()
                if not rests and session.pk not in self._recovering:
                    task = asyncio.create_task(self._recover(session))
                    self._recovering[session.pk] = task
            if len(sessions) < room:
                return

    async def _recover(self, session: UploadSession) -> None:
        """Go on with a publication; after a failure the upload rests, each time twice as long."""
        try:
            await self.result(session, lambda progress: None)
        except Busy:  # another process lives, and is at it
            logger.debug("Upload %s is published by another process", session.pk)
        except UploadFailed as error:
            logger.error("Upload %s is over: %s", session.pk, error)
        except Exception as error:  # of the host's storage, too: the others are another matter
            failures = self._resting.get(session.pk, (0.0, 0))[1] + 1
            rest = min(STUCK_SECONDS * 2**failures, LONGEST_REST)
            self._resting[session.pk] = (time.monotonic() + rest, failures)
            logger.error(
                "Upload %s could not be published, and is tried again in %.0f s: %r",
                session.pk,
                rest,
                error.__cause__ or error,
                exc_info=None if isinstance(error, UploadError) else error,
            )
            if isinstance(error, UploadError):
                await self.note(session, error)
        else:
            self._resting.pop(session.pk, None)
        finally:
            del self._recovering[session.pk]

    async def close(self) -> None:
        """Let go of every upload, deliver what was claimed, end the threads; what hangs is not waited for long."""
        for watching in (self._watch, self._taking_up):
            if watching is not None:
                watching.cancel()
        held = list(self.active.values())
        for upload in held:
            upload.release()
        ending = [asyncio.create_task(upload.closed.wait()) for upload in held]
        ending += self._recovering.values()
        if ending:
            _ended, late = await asyncio.wait(ending, timeout=CLOSE_SECONDS)
            if late:
                logger.warning("Uploads that were still at work at the end: %d", len(late))
            for task in late:
                task.cancel()
        await self.outbox.close(CLOSE_SECONDS)
        if "copies" in self.__dict__:
            self.copies.shutdown(wait=False, cancel_futures=True)
        closing = DaemonExecutor(1, "async-upload-close").submit(self.store.close)
        await asyncio.wait({asyncio.wrap_future(closing)}, timeout=CLOSE_SECONDS)
        self.database.close()

    def open(self, listener: Listener, owner: str, *, held: int = 0) -> ActiveUpload:
        """A queue for an upload that is about to be created or attached; ``owner`` is whose credit it uses.

        ``held`` bytes of memory go with it beside its queue. Raises :class:`Busy`.
        """
        upload = ActiveUpload(self, listener)
        upload.account = self.budget.open(
            owner, pause=listener.pause, evict=upload.evict, held=held
        )
        return upload

    async def create(
        self,
        upload: ActiveUpload,
        session: UploadSession,
        owner: Owner,
        max_size: int | None = None,
    ) -> UploadSession:
        """Insert the session and begin its upload; the session of an earlier create comes back as it is.

        Raises :class:`UploadRefused`, :class:`KeyReused` and :class:`ConnectionRefused`.
        """
        outcome = await self.database.call(rows.create, Creation(session, owner), owner=owner.key)
        if outcome.pk != session.pk or outcome.state != State.CREATED:
            return outcome
        # Also where another object came back: the COMMIT before a lost connection went through.
        upload.begin(session, max_size)
        self.active[session.pk] = upload
        return session

    async def forget(self, session: UploadSession) -> None:
        """Delete a session that has no part yet and that no client knows."""
        await self.database.call(rows.forget, session.pk, owner=session.owner_key)

    async def find(self, claim: Claim) -> UploadSession:
        """Raises :class:`NotFound`, for somebody else's upload too."""
        return await self.database.call(rows.find, claim, owner=claim.owner.key)

    async def attach(
        self, upload: ActiveUpload, claim: Claim, max_size: int | None = None
    ) -> UploadSession:
        """Take an upload over from whoever holds it.

        Afterwards ``upload`` has a writer and can go on; without one the upload is past that, and
        :meth:`result` has the answer. Raises what :func:`rows.claim` returns, :class:`DataLost` and
        :class:`StorageFailed`.
        """
        async with self._turn(claim.upload):
            session = await self.find(claim)
            if claim.upload in self._results or session.state not in ACTIVE:
                return await self._outcome(claim)
            await self._evict(claim.upload)
            outcome = await self.database.call(rows.claim, claim, owner=claim.owner.key)
            if outcome.state == State.UPLOADING:
                await self._open(upload, outcome, max_size)
            return outcome

    async def _outcome(self, claim: Claim) -> UploadSession:
        session = await self.find(claim)
        if session.state in PUBLISHED or claim.upload in self._results:
            return session
        raise rows.over(session)

    async def _open(
        self, upload: ActiveUpload, session: UploadSession, max_size: int | None
    ) -> None:
        try:
            writer = await self._open_part(session)
        except DataLost as error:
            await self.fail(session, error)
            raise
        upload.resume(session, max_size, writer)
        self.active[session.pk] = upload
        if writer.part != session.part or writer.received < session.durable:
            # Its bytes went to a new part, or are gone: write that down first.
            await upload.save(await self.store.run(writer.sync), State.UPLOADING)

    async def _open_part(self, session: UploadSession) -> Writer:
        if not session.part:
            return await self.store.run(self.store.create, session.size)
        async with self.slow_turns(session.owner_key):
            return await self.store.run_slow(self.store.open, session.checkpoint, size=session.size)

    async def _evict(self, pk: uuid.UUID) -> None:
        """The newest wins: an older connection of this process stops, and lets go of the file."""
        holder = self.active.get(pk)
        if holder is not None:
            holder.lose(TakenOver())
            with suppress(TimeoutError):
                # Not wait_for(): before Python 3.12 it may swallow a cancellation.
                async with asyncio.timeout(EVICTION_SECONDS):
                    await holder.closed.wait()

    def _turn(self, pk: uuid.UUID) -> asyncio.Lock:
        """One at a time takes an upload over. The lock lives as long as somebody has or awaits it."""
        return self._turns.setdefault(pk, asyncio.Lock())

    async def complete(self, upload: ActiveUpload, finish: m.Finish, host: Host) -> UploadSession:
        """Check and publish what was written. It happens once, and goes on when the client is gone.

        With an error that ``is_final`` the upload is over and its part deleted; after another one
        (:class:`SizeMismatch`, a quota of the host's) it can be attached again.
        """
        result = self._results[upload.session.pk] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            session = await self._complete(upload, finish, host)
        except BaseException as error:
            known = isinstance(error, UploadError)
            result.set_exception(error if known else Busy(retry_after=1.0))
            raise
        else:
            result.set_result(session)
            return session
        finally:
            del self._results[upload.session.pk]

    async def _complete(self, upload: ActiveUpload, finish: m.Finish, host: Host) -> UploadSession:
        session = upload.session
        try:
            check_size(finish.size, await host.admit())  # before hashing costs anything
            await upload.check_quota()
            digests = await verify(upload, finish, host)
            await host.admit()  # an inspection may have taken long
            name = upload.name or await host.get_name(session)
        except UploadError as error:
            if error.is_final:
                await self.fail(session, error)
            raise
        if upload.is_cancelled:
            return await self.end(session, State.CANCELLED)
        assert upload.writer is not None
        publisher = Publisher(self, session, upload.writer, upload.report)
        stale = upload.checkpoint.part
        self.outbox.deliver(await publisher.publish(name, host.owner, digests))
        if stale not in ("", upload.writer.part):  # rewritten since: no row names it any more
            await self.store.run(self.store.delete, stale)
        return session

    async def result(
        self, session: UploadSession, report: Callable[[m.Progress], None]
    ) -> UploadSession:
        """The published session of an upload that is past writing: wait, or go on after a crash.

        Raises what made it fail, and :class:`Busy` while another process is at it.
        """
        if session.state in PUBLISHED:
            return session
        if running := self._results.get(session.pk):
            return await asyncio.shield(running)
        async with self._turn(session.pk):
            session = await self.database.call(rows.read, session.pk)
            if session.state in PUBLISHED:  # by whoever had the turn before
                return session
            if session.state in OVER:
                raise rows.over(session)
            if session.state != State.FINALIZING:  # what ran was interrupted
                raise Busy(retry_after=1.0)
            self._publishing.add(session.pk)
            try:
                return await self._go_on(session, report)
            finally:
                self._publishing.discard(session.pk)

    async def _go_on(
        self, session: UploadSession, report: Callable[[m.Progress], None]
    ) -> UploadSession:
        try:
            writer = await self.store.run_slow(self._open_whole, session)
        except DataLost as error:
            ended = await self.end(session, State.FAILED, error=error)
            if ended.state in PUBLISHED:  # by another process, a moment ago
                return ended
            raise
        try:
            event = await Publisher(self, session, writer, report).go_on()
        finally:
            await self.store.run(writer.close)
        self.outbox.deliver(event)
        return session

    def _open_whole(self, session: UploadSession) -> Writer:
        """The part of an upload in ``finalizing``, which was whole when that was written down."""
        writer = self.store.open(session.checkpoint, size=session.size, steal=False)
        if writer.position != (session.size, session.crc):
            writer.close()
            if writer.part != session.part:  # a new one in place of one that is gone
                self.store.delete(writer.part)
            raise DataLost(durable=session.durable, proved=writer.received)
        return writer

    async def cancel(self, claim: Claim) -> UploadSession:
        """Throw an upload away, whoever holds it; one that is published comes back as it is."""
        session = await self.find(claim)
        if running := self._results.get(session.pk):
            if holder := self.active.get(session.pk):
                holder.cancel()
            with suppress(UploadError):
                return await asyncio.shield(running)
        ended = await self.end(session, State.CANCELLED)
        if ended.state == State.FINALIZING:  # its process died: too late to stop it
            return await self.result(ended, lambda progress: None)
        return ended

    async def discard(self, session: UploadSession) -> UploadSession:
        """Throw a finished upload away, with its file.

        One that the host has bound, or that a request is saving at this moment, comes back as it is. Raises
        :class:`NotFound`.
        """
        discarded, changed = await self.database.call(
            rows.discard, session.pk, owner=session.owner_key
        )
        if changed:
            await self._withdraw(discarded)
            await signals.send(signals.upload_cancelled, discarded)
        return discarded

    async def _withdraw(self, session: UploadSession) -> None:
        loop = asyncio.get_running_loop()
        try:
            aside = await loop.run_in_executor(self.copies, put_aside, session)
            await self.database.call(rows.withdrawn, session.pk, owner=session.owner_key)
            if aside is not None:
                await self.store.run(os.unlink, aside)
        except Exception:  # of the host's storage: the purge tries again
            logger.exception("The file of upload %s could not be deleted", session.pk)

    async def fail(self, session: UploadSession, error: UploadError) -> None:
        """The holder of the upload gives it up for good."""
        await self.end(session, State.FAILED, error=error, epoch=session.epoch)

    async def note(self, session: UploadSession, error: UploadError) -> None:
        """Have the row say what the server could not do, for the admin. Raises nothing."""
        if isinstance(error, StorageFailed | StorageFull | InternalError):
            with suppress(UploadError):
                trouble = Trouble(session.pk, session.epoch, error)
                await self.database.call(rows.note, trouble, owner=session.owner_key)

    async def end(
        self,
        session: UploadSession,
        to: State,
        *,
        error: UploadError | None = None,
        epoch: int | None = None,
    ) -> UploadSession:
        """Bring an upload to an end and delete its part; raises :class:`TakenOver` for an old holder."""
        ending = Ending(session.pk, to, error=error, epoch=epoch)
        ended, changed = await self.database.call(rows.end, ending, owner=session.owner_key)
        holder = self.active.get(session.pk)
        parts = {ended.part} if changed else set()
        if holder is not None and ended.state in OVER:
            holder.lose(rows.over(ended))
            if holder.writer is not None:  # the row may not have its part's name yet
                parts.add(holder.writer.part)
        for part in parts - {""}:
            await self.store.run(self.store.delete, part)
        if not changed:
            return ended
        if to is State.CANCELLED:
            await signals.send(signals.upload_cancelled, ended)
        elif to is State.FAILED:
            await signals.send(signals.upload_failed, ended, error=rows.over(ended))
        return ended

    def was_ended(self, sessions: Sequence[UploadSession]) -> None:
        """Somebody brought these to an end: those that this process holds stop now, not at their next checkpoint."""
        for session in sessions:
            if holder := self.active.get(session.pk):
                holder.lose(rows.over(session))

    async def leave(self, upload: ActiveUpload) -> None:
        """Let go of an upload in whatever state it is. Cannot fail."""
        await upload.close()
        session = getattr(upload, "session", None)
        if session is not None and self.active.get(session.pk) is upload:
            del self.active[session.pk]


_services: WeakKeyDictionary[asyncio.AbstractEventLoop, UploadService] = WeakKeyDictionary()


def get_service() -> UploadService:
    """The service of the running event loop, made at first use."""
    loop = asyncio.get_running_loop()
    service = _services.get(loop)
    if service is None:
        service = _services[loop] = UploadService()
    return service


def end(pks: Iterable[uuid.UUID], to: State) -> list[UploadSession]:
    """Cancel or expire uploads on behalf of the host, whoever holds them. Synchronous; returns those it ended.

    Uploads that are published, in publication or over stay as they are. After the commit of the caller's
    transaction parts are deleted, signals sent, and holders told: in this process at once, in another one
    when they next write down what they have and find their epoch gone.
    """
    using = router.db_for_write(UploadSession)
    with transaction.atomic(using=using):
        outcomes = rows.end([Ending(pk, to) for pk in pks])
    ended = [each[0] for each in outcomes if not isinstance(each, UploadError) and each[1]]
    after_commit(using, _after_end, ended)
    return ended


def _after_end(ended: Sequence[UploadSession]) -> None:
    for loop, service in list(_services.items()):
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(service.was_ended, ended)
    store = make_store()
    try:
        for part in {session.part for session in ended} - {""}:
            store.delete(part)
    finally:
        store.close()
    signal = {State.CANCELLED: signals.upload_cancelled, State.EXPIRED: signals.upload_expired}
    for session in ended:
        signals.send_and_wait(signal[State(session.state)], session)


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("ASYNC_UPLOAD", "STORAGES", "MEDIA_ROOT", "DATABASES"):
        _services.clear()


setting_changed.connect(_forget)
