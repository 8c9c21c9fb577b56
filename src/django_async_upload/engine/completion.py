"""Completion of uploads, once each: later requests wait for the result, or resume a publication after a crash."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from weakref import WeakValueDictionary

from django.utils import timezone

from ..exceptions import Busy, DataLost, TakenOver, UploadError
from ..failpoints import failpoint
from ..models import UploadSession
from ..sessions import rows
from ..sessions.policies import check_size
from ..sessions.state import ACTIVE, State
from ..sessions.values import Adoption, Facts, Progress
from ..stores.base import Writer
from .active import ActiveUpload
from .endings import Endings
from .outcomes import End, Published, end_of
from .publish import Finalization, Publisher
from .runtime import Runtime
from .verify import Hooks, verify

SILENT_SECONDS: Final = 30.0
"""Seconds after which a process that holds a part, and does not touch the row, counts as stopped: others touch the rows
that they verify or publish every ten seconds."""
TOUCHED_SECONDS: Final = 12.0
"""Seconds that such a process has to touch the row after all: if the clock was moved, every touch looks old."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""Seconds between looks at the row of an upload that another process verifies or publishes."""


class Completions:
    """Verifies and publishes uploads in this process."""

    def __init__(self, runtime: Runtime, endings: Endings) -> None:
        self._runtime = runtime
        self._endings = endings
        self._publisher = Publisher(runtime)
        self._running: dict[uuid.UUID, asyncio.Future[End]] = {}
        self._resumed: set[uuid.UUID] = set()
        """Publications of crashed processes that this process resumes."""
        self._turns: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()

    @property
    def publishing(self) -> list[uuid.UUID]:
        """Ids of the uploads that this process verifies or publishes."""
        return [*self._running, *self._resumed]

    def is_running(self, upload: uuid.UUID) -> bool:
        """Whether this process verifies or publishes an upload whose bytes it has received."""
        return upload in self._running

    async def wait(self, upload: uuid.UUID) -> End:
        """Wait for the result of an upload that :meth:`is_running`; raises its error."""
        return await asyncio.shield(self._running[upload])

    def turn(self, upload: uuid.UUID) -> asyncio.Lock:
        """A lock for taking an upload over, which exists as long as it is locked or awaited."""
        return self._turns.setdefault(upload, asyncio.Lock())

    async def complete(self, upload: ActiveUpload, facts: Facts, hooks: Hooks) -> End:
        """Verify and publish a written upload, once. This continues after the client has disconnected.

        An error that ``is_final`` ends the upload and deletes its part; after another one
        (:class:`SizeMismatch`, a quota of the host's) it can be attached again.
        """
        pk = upload.session.pk
        result = self._running[pk] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        began = asyncio.get_running_loop().time()
        try:
            end = await self._complete(upload, facts, hooks)
        except BaseException as error:
            known = isinstance(error, UploadError)
            result.set_exception(error if known else Busy(retry_after=1.0))
            raise
        else:
            if isinstance(end, Published):
                seconds = asyncio.get_running_loop().time() - began
                self._runtime.telemetry.time("completion.seconds", seconds)
            result.set_result(end)
            return end
        finally:
            del self._running[pk]

    async def _complete(self, upload: ActiveUpload, facts: Facts, hooks: Hooks) -> End:
        session = upload.session
        runtime = self._runtime
        try:
            check_size(facts.size, await hooks.admit())  # before the cost of hashing
            await upload.check_quota()
            part = await verify(upload, facts, hooks)
            await hooks.admit()  # again, since an inspection may have taken long
            name = upload.name or await hooks.name_of(session)
        except UploadError as error:
            if error.is_final:
                await self._endings.fail(session, error)
            raise
        if upload.is_cancelled:
            return end_of(await self._endings.end(session, State.CANCELLED))
        stale = upload.part.checkpoint.part
        began = asyncio.get_running_loop().time()
        item = Finalization(
            session, part.writer, name, hooks.owner, part.digests, report=upload.report
        )
        runtime.outbox.deliver(await self._publisher.publish_one(item))
        runtime.telemetry.time("publication.seconds", asyncio.get_running_loop().time() - began)
        runtime.telemetry.count("uploads.completed")
        if stale not in ("", part.writer.part):  # rewritten: no row names the old part any more
            await runtime.store.run(runtime.store.delete, stale)
        return Published(session)

    async def is_kept(self, session: UploadSession) -> bool:
        """Whether this process or another one verifies or publishes an upload.

        A holder that still receives bytes is asked to yield, and its answer is awaited for a limited time.
        """
        if self.is_running(session.pk) or await self._is_elsewhere(session):
            return True
        runtime = self._runtime
        if session.state not in ACTIVE or not (
            runtime.hints.holder(session.pk)
            or (runtime.bus.is_shared and await self._is_held(session))
        ):
            return False
        kept = await runtime.hints.ask_to_yield(session.pk, session.epoch)
        if kept is False:
            runtime.telemetry.count("uploads.taken_over", how="yielded")
        return bool(kept)

    async def _is_elsewhere(self, session: UploadSession) -> bool:
        """Whether the row is being verified or published: a process has touched it and holds the part."""
        if session.state not in (State.VERIFYING, State.FINALIZING):
            return False
        if not await self._is_held(session):
            return False
        is_silent = session.updated_at < timezone.now() - timedelta(seconds=SILENT_SECONDS)
        return not is_silent or await self._is_touched(session)

    async def _is_held(self, session: UploadSession) -> bool:
        """Whether a writer of any process has the upload's part open."""
        store = self._runtime.store
        return bool(session.part) and await store.run_slow(store.is_held, session.part)

    async def _is_touched(self, session: UploadSession) -> bool:
        """Whether the row is changed within :data:`TOUCHED_SECONDS`, whatever the time in it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TOUCHED_SECONDS
        while loop.time() < deadline:
            await asyncio.sleep(LONGEST_PAUSE)
            now = await self._runtime.database.call(rows.reload, session.pk)
            if now.updated_at != session.updated_at:
                return True
        return False

    async def result(self, session: UploadSession, report: Callable[[Progress], None]) -> End:
        """The end of an upload that is past writing: wait, or resume its publication after a crash.

        Waits for another process, too, as long as the upload :meth:`is_kept`. Raises the error that failed the upload,
        and :class:`Busy` where it has to be attached again.
        """
        pause = FIRST_PAUSE
        epoch = session.epoch
        while not self.is_running(session.pk) and await self.is_kept(session):
            phase = State.FINALIZING if session.state == State.FINALIZING else State.VERIFYING
            report(Progress(str(phase), 0, session.size or 0))
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
            session = await self._runtime.database.call(rows.reload, session.pk)
            if (
                session.epoch != epoch
            ):  # it has another holder, which is not to yield to this request
                break
        return await self.adopt(session, report)

    async def recover(self, session: UploadSession) -> End:
        """Resume a publication that no process has touched for long. Raises as :meth:`result`, and :class:`Busy` where
        another process holds the part, and touches the row or answers after all."""
        is_held = not self.is_running(session.pk) and await self._is_held(session)
        ask = self._runtime.hints.ask_to_yield
        if is_held and (await self._is_touched(session) or await ask(session.pk, session.epoch)):
            raise Busy(retry_after=1.0)
        return await self.adopt(session, lambda progress: None)

    async def adopt(self, session: UploadSession, report: Callable[[Progress], None]) -> End:
        """:meth:`result`, without a look at who else publishes: who was slower gets :class:`Busy`."""
        if self.is_running(session.pk):
            return await self.wait(session.pk)
        async with self.turn(session.pk):
            session = await self._runtime.database.call(rows.reload, session.pk)
            if session.state == State.FINALIZING:
                self._resumed.add(session.pk)
                try:
                    return await self._resume(session, report)
                finally:
                    self._resumed.discard(session.pk)
            if session.state in ACTIVE:  # the running completion was interrupted
                raise Busy(retry_after=1.0)
            return end_of(session)  # completed by the last holder of the lock

    async def _resume(self, session: UploadSession, report: Callable[[Progress], None]) -> End:
        runtime = self._runtime
        try:
            writer = await runtime.store.run_slow(self._open_whole, session)
            failpoint("resume.after_open")
        except DataLost as error:
            # Unless another process has adopted or completed it in the meantime.
            try:
                ended = await self._endings.end(
                    session, State.FAILED, error=error, epoch=session.epoch
                )
            except TakenOver:
                raise Busy(retry_after=1.0) from error
            return end_of(ended)
        try:
            adoption = Adoption(session.pk, session.epoch, writer.part)
            former, session = (
                session,
                await runtime.database.call(rows.adopt, adoption, owner=session.owner_key),
            )
            if former.part != writer.part:
                # By that name a process that is stopped now could still publish it when it wakes.
                await runtime.store.run(runtime.store.delete, former.part)
            item = Finalization(session, writer, digests=session.digests, report=report)
            event = await self._publisher.resume_one(item)
        except UploadError as error:
            await self._endings.note(session, error)  # by its new epoch, which no caller knows
            raise
        finally:
            await runtime.store.run(writer.close)
        runtime.outbox.deliver(event)
        return Published(session)

    def _open_whole(self, session: UploadSession) -> Writer:
        """Open the part of an upload in ``finalizing``, which was complete when its row was changed to that state."""
        store = self._runtime.store
        writer = store.adopt(session.checkpoint, size=session.size)
        if writer.position != (session.size, session.crc):
            writer.close()
            if writer.part != session.part:  # the store created a new part for a missing one
                store.delete(writer.part)
            raise DataLost(durable=session.durable, proved=writer.received)
        return writer
