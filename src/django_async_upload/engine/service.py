"""The use cases: create, attach, find, cancel and end uploads, for any transport.

One :class:`UploadService` serves an event loop.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.core.signals import setting_changed
from django.db import router, transaction

from .. import signals
from ..concurrency.pace import Rates
from ..exceptions import Busy, DataLost, UploadError
from ..failpoints import failpoint
from ..models import UploadSession
from ..sessions import rows
from ..sessions.commits import after_commit
from ..sessions.owners import Owner
from ..sessions.state import ACTIVE, PUBLISHED, State
from ..sessions.values import Creation, Ending, UploadAccess
from ..stores.base import Store, Writer
from ..stores.configured import make_store
from .active import ActiveUpload
from .answers import Answers
from .completion import Completions
from .endings import Endings
from .gauges import Gauges
from .outcomes import Attached, Created, End, Finishing, Known, Published, end_of
from .recovery import Recovery
from .runtime import Runtime
from .small import SmallFiles
from .taps import Tap
from .watching import Watching
from .worker import Worker

logger = logging.getLogger("django_async_upload")

CLOSE_SECONDS: Final = 10.0
"""Seconds that :meth:`UploadService.close` waits for uploads, and then for receivers."""
LOCK_SECONDS: Final = 3.0
"""Seconds that the newest connection waits for an older one that did not answer to close the part, before the bytes are
copied to a part of its own. A process that runs learns of the new epoch within :data:`.hints.LOOK_SECONDS`."""
MAX_TAKEOVERS, TAKEOVER_SECONDS = 30, 1.0
"""How often an upload may be attached at once in this process, and the seconds after which it may be once more."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
"""Seconds between tries to open the part meanwhile."""


class UploadService(Runtime):
    """The uploads of one event loop."""

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(store)
        self.active: dict[uuid.UUID, ActiveUpload] = {}
        """The uploads that clients are connected to."""
        self.small_files = SmallFiles(self)
        endings = Endings(self, self.active)
        self._completions = Completions(self, endings)
        self._recovery = Recovery(self, self._completions, endings)
        self._takeovers = Rates(MAX_TAKEOVERS, TAKEOVER_SECONDS)
        self.watching = Watching(self.database, self.bus, self.active)
        self._gauges = Gauges(self, self.active, self.watching)
        self._worker = Worker(self.database.alias, self.active, self.budget, self.bus)
        self.complete = self._completions.complete
        self.result = self._completions.result
        self._endings = endings
        self.end = endings.end
        self.fail = endings.fail
        self.note = endings.note
        self._answers = Answers(self.database)
        self.answered = self._answers.answered

    def start(self) -> None:
        """Start the recovery, the gauges, what watchers need, and to answer commands; called at each connection and by
        lifespan."""
        self._recovery.start()
        self._gauges.start()
        self.watching.start()
        self._worker.start()

    async def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Release every upload, deliver the claimed events, end the threads; waits only for a limited time."""
        held = list(self.active.values())
        for upload in held:
            upload.release()
        ending: list[asyncio.Task[Any]] = [
            asyncio.create_task(upload.closed.wait()) for upload in held
        ]
        self._gauges.stop()
        self.watching.stop()
        self._worker.stop()
        ending += self._recovery.stop()
        ending += self._answers.running
        if ending:
            _ended, late = await asyncio.wait(ending, timeout=CLOSE_SECONDS)
            if late:
                logger.warning("Uploads still running at shutdown: %d", len(late))
            for task in late:
                task.cancel()
        await super().close(seconds)

    async def create(
        self,
        upload: ActiveUpload,
        session: UploadSession,
        owner: Owner,
        max_size: int | None = None,
        taps: Sequence[Tap] = (),
    ) -> Created | Known:
        """Insert the session and start its upload, unless its key is known.

        Raises :class:`UploadRefused`, :class:`KeyReused` and :class:`ConnectionRefused`.
        """
        outcome = await self.database.call(rows.create, Creation(session, owner), owner=owner.key)
        if outcome.pk != session.pk or outcome.state != State.CREATED:
            return Known(outcome)
        # Also for another object of the same row: an earlier COMMIT, whose answer was lost, succeeded.
        upload.begin(session, max_size, taps)
        self._register(upload, session)
        return Created(session)

    async def find(self, access: UploadAccess) -> UploadSession:
        """Read an upload. Raises :class:`NotFound`, also for another owner's."""
        return await self.database.call(rows.find, access, owner=access.owner.key)

    async def attach(
        self,
        upload: ActiveUpload,
        access: UploadAccess,
        max_size: int | None = None,
        get_taps: Callable[[UploadSession], Sequence[Tap]] = lambda session: (),
    ) -> Attached | Finishing | Published:
        """Take an upload over from its holder, unless it is past writing: then :meth:`result` has the answer.

        Raises what :func:`rows.take_over` returns, :class:`DataLost` and :class:`StorageFailed`.
        """
        async with self._completions.turn(access.upload):
            session = await self.find(access)
            if session.state in ACTIVE:
                self._limit_takeovers(access.upload)
            if await self._completions.is_kept(session):
                return Finishing(session)
            session = await self.database.call(rows.take_over, access, owner=access.owner.key)
            if session.state in PUBLISHED:
                return Published(session)
            if session.state == State.FINALIZING:
                return Finishing(session)
            await self._open(upload, session, max_size, get_taps(session))
            return Attached(session)

    async def _open(
        self,
        upload: ActiveUpload,
        session: UploadSession,
        max_size: int | None,
        taps: Sequence[Tap],
    ) -> None:
        # Before the part is open: during the wait for it, a still newer holder may come.
        self.hints.register(session.pk, session.epoch, upload)
        try:
            writer = await self._open_part(session, upload)
        except BaseException as error:
            self.hints.unregister(session.pk, upload)
            if isinstance(error, DataLost):
                await self.fail(session, error)
            raise
        upload.resume(session, max_size, writer, taps)
        self._register(upload, session)
        failpoint("attach.after_open")
        if writer.part != session.part or writer.received < session.durable:
            # Its bytes are in a new part, or lost: save that first.
            await upload.checkpoints.save(await upload.part.sync(), State.UPLOADING)

    async def _open_part(self, session: UploadSession, upload: ActiveUpload) -> Writer:
        """Open the part as soon as its old holder has closed it; of one that does not, a copy.

        Raises the error with which ``upload`` has to stop meanwhile.
        """
        if not session.part:
            return await self.store.run(self.store.create, session.size)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_SECONDS
        pause = FIRST_PAUSE
        while True:
            steal = loop.time() >= deadline
            try:
                async with self.slow_turns(session.owner_key):
                    writer = await self.store.run_slow(
                        self.store.open, session.checkpoint, size=session.size, steal=steal
                    )
            except Busy:
                if steal:
                    raise
            else:
                if pause > FIRST_PAUSE:
                    how = "waited" if writer.part == session.part else "copied"
                    self.telemetry.count("uploads.taken_over", how=how)
                return writer
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
            upload.raise_if_lost()

    def _limit_takeovers(self, upload: uuid.UUID) -> None:
        """Count a takeover. Raises :class:`Busy` for a client that takes an upload from another one again and again."""
        wait = self._takeovers.delay(upload, asyncio.get_running_loop().time())
        if wait:
            raise Busy(retry_after=wait)

    def _register(self, upload: ActiveUpload, session: UploadSession) -> None:
        self.active[session.pk] = upload
        self.hints.register(session.pk, session.epoch, upload)
        self.watching.touch(session)

    async def leave(self, upload: ActiveUpload) -> None:
        """Leave an upload in any state. Raises nothing."""
        await upload.close()
        session = getattr(upload, "session", None)
        if session is not None:
            self.hints.unregister(session.pk, upload)
            if self.active.get(session.pk) is upload:
                del self.active[session.pk]
            self.watching.touch(session)

    async def cancel(self, access: UploadAccess) -> End:
        """Cancel an upload that any connection may hold; a published one stays. Raises the error of a failed one."""
        session = await self.find(access)
        if self._completions.is_running(session.pk):
            if holder := self.active.get(session.pk):
                holder.cancel()
            with suppress(UploadError):
                return await self._completions.wait(session.pk)
        ended = await self.end(session, State.CANCELLED)
        self.watching.touch(session)
        if ended.state == State.FINALIZING:  # its process crashed: too late to cancel
            return await self.result(ended, lambda progress: None)
        return end_of(ended)

    async def discard(self, session: UploadSession) -> End:
        """Cancel a completed upload, and delete its file; one that is bound, or that a request holds, stays published.

        Raises :class:`NotFound`.
        """
        end = await self._endings.discard(session)
        self.watching.touch(session)
        return end


_services: WeakKeyDictionary[asyncio.AbstractEventLoop, UploadService] = WeakKeyDictionary()


def get_service() -> UploadService:
    """The service of the running event loop, created on first use."""
    loop = asyncio.get_running_loop()
    service = _services.get(loop)
    if service is None:
        service = _services[loop] = UploadService()
    return service


def end(pks: Iterable[uuid.UUID], to: State) -> list[UploadSession]:
    """Cancel or expire uploads on behalf of the host, whether connections hold them or not. Returns those it ended.

    Uploads that are published, in publication or ended are unchanged. After the commit of the caller's
    transaction parts are deleted, signals sent, and holders notified: those in this process at once, those in another
    one over the bus, or when it looks at its rows the next time, within a second.
    """
    using = router.db_for_write(UploadSession)
    with transaction.atomic(using=using):
        outcomes = rows.end([Ending(pk, to) for pk in pks])
        failpoint("host_end.before_commit")
    ended = [each[0] for each in outcomes if not isinstance(each, UploadError) and each[1]]
    after_commit(using, _after_end, ended)
    return ended


def _after_end(ended: Sequence[UploadSession]) -> None:
    failpoint("host_end.after_commit")
    for loop, service in list(_services.items()):
        for session in ended:
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(
                    service.hints.tell_holder, session.pk, rows.error_of(session)
                )
                loop.call_soon_threadsafe(service.watching.touch, session)
    store = make_store()
    try:
        for part in {session.part for session in ended} - {""}:
            store.delete(part)
        failpoint("host_end.after_unlink")
    finally:
        store.close()
    signal = {State.CANCELLED: signals.upload_cancelled, State.EXPIRED: signals.upload_expired}
    for session in ended:
        failpoint("host_end.before_signal")
        signals.send_and_wait(signal[State(session.state)], session)
        failpoint("host_end.after_signal")


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("ASYNC_UPLOAD", "STORAGES", "MEDIA_ROOT", "DATABASES"):
        _services.clear()


setting_changed.connect(_forget)
