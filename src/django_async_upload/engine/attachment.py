"""Attachments: one client's work on one upload, from its creation or resumption to the answer that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from .. import signals
from ..exceptions import DigestMismatch, FileChanged, SizeMismatch, StorageFailed, UploadError
from ..failpoints import failpoint
from ..models import UploadSession
from ..sessions import rows
from ..sessions.state import State
from ..sessions.values import Change, Facts, NewUpload, Progress, Proof, Stop, UploadAccess
from .active import ActiveUpload, UploadListener
from .credit import FLOOR
from .flow import Flow
from .outcomes import Attached, Created, End, Finishing, Known, Published, Released, end_of
from .service import UploadService
from .small import SmallFile
from .verify import CRC32C, Hooks

PROGRESS_SECONDS: Final = 1.0
"""Seconds between reports of progress after the last byte."""


class Door(UploadListener, Protocol):
    """Callbacks of an attachment to its door. They must not block, and must not raise unless stated."""

    def created(self, session: UploadSession, flow: Flow) -> None:
        """The upload was created: the client may send up to its limit."""

    def attached(self, session: UploadSession, flow: Flow) -> None:
        """The upload was attached: the client has to prove that its file is the same."""

    def ready(self, flow: Flow) -> None:
        """The proof is correct: the client may send from ``flow.received`` on."""

    def progressed(self, progress: Progress) -> None:
        """Progress of the checks and the publication, once a second."""


Outcome = End | Released
"""The result of an attachment."""


class Attachment:
    """Runs an upload on behalf of one client. A door decides nothing: it passes the client's data to ``upload``, and
    sends the client the callbacks and the result."""

    def __init__(
        self, service: UploadService, door: Door, hooks: Hooks, *, owner: str, held: int = 0
    ) -> None:
        """``owner`` is the key whose credit is used, ``held`` the bytes of memory that go with the request.

        Raises :class:`Busy`.
        """
        self._service = service
        self._door = door
        self.hooks = hooks
        """Those of the owner's newest login."""
        self.upload = ActiveUpload(service, door, owner, held=held)
        self.session: UploadSession | None = None
        """The upload's row, once it exists."""

    async def leave(self) -> None:
        """Leave the upload in any state. Raises nothing; to be called in any case."""
        await self._service.leave(self.upload)

    async def create(self, new: NewUpload, endpoint: str) -> Outcome:
        """Create an upload, or attach to the existing one with its key. Raises an :class:`UploadError`."""
        return await self._answered(await self._create(new, endpoint))

    async def attach(self, access: UploadAccess) -> Outcome:
        """Take an upload over from its holder, and resume it. Raises an :class:`UploadError`."""
        return await self._answered(await self._attach(access))

    async def _create(self, new: NewUpload, endpoint: str) -> Outcome:
        upload, service = self.upload, self._service
        session, max_size = await self.hooks.new_session(new)
        if service.small_files.takes(session, upload, self.hooks):
            upload.name = await self.hooks.name_of(session)
            facts = upload.facts
            assert facts is not None
            small = SmallFile(
                session, self.hooks.owner, upload.queue.pieces, facts.crc32c, upload.name
            )
            if await service.small_files.publish(small):
                service.watching.touch(session)
                return Published(session)
        taps = self.hooks.get_taps(session)
        match await service.create(upload, session, self.hooks.owner, max_size, taps):
            case Known(found):
                return await self._attach(UploadAccess(found.pk, self.hooks.owner, endpoint))
            case Created(session):
                return await self._begin(session)

    async def _begin(self, session: UploadSession) -> Outcome:
        upload, service = self.upload, self._service
        self.session = session
        if session.size is not None and session.size > FLOOR:
            await upload.reserve()
        self._door.created(session, upload.flow)
        service.telemetry.count("uploads.created")
        failpoint("started.before_signal")
        await signals.send(signals.upload_started, session)
        failpoint("started.after_signal")
        return await self._write()

    async def _attach(self, access: UploadAccess) -> Outcome:
        upload, service = self.upload, self._service
        max_size = await self.hooks.admit()
        found = await service.attach(upload, access, max_size, self.hooks.get_taps)
        self.session = found.session
        match found:
            case Published():
                return found
            case Finishing(session):
                return await self._reporting(service.result(session, upload.report))
            case Attached(session):
                return await self._resume(session)

    async def _resume(self, session: UploadSession) -> Outcome:
        upload, service = self.upload, self._service
        upload.forget_queued()
        self._door.attached(session, upload.flow)
        proof = await upload.proof()
        if isinstance(proof, Proof):
            await self._check(proof)
            upload.flow.resume()
            self._door.ready(upload.flow)
            service.telemetry.count("uploads.resumed")
            failpoint("resumed.before_signal")
            await signals.send(signals.upload_resumed, session, offset=upload.flow.received)
            failpoint("resumed.after_signal")
        return await self._write()

    async def _check(self, proof: Proof) -> None:
        """Check the client's proof that its file is the same. Raises :class:`FileChanged`."""
        upload = self.upload
        if proof.durable_crc32c is None:
            return
        received, durable = upload.flow.received, upload.flow.durable
        if proof.received_crc32c == f"{upload.part.crc(received):08x}":
            return
        if proof.durable_crc32c != f"{upload.part.crc(durable):08x}":
            await upload.interrupt()
            raise FileChanged(offset=durable)
        if durable < received:
            await upload.go_back_to_checkpoint()

    async def _write(self) -> Outcome:
        upload, service = self.upload, self._service
        try:
            end = await upload.write()
        except Exception as error:
            if isinstance(error, UploadError) and error.is_final:
                await service.fail(upload.session, error)
            else:
                await upload.interrupt()
            raise
        if end is Stop.CANCEL:
            return end_of(await service.end(upload.session, State.CANCELLED))
        if end is Stop.RELEASE:
            return Released(await upload.interrupt())
        assert not isinstance(end, Stop)
        if upload.session.is_partial:
            return await self._keep(end)
        try:
            return await self._reporting(service.complete(upload, end, self.hooks))
        except Exception as error:  # also of a hook: the upload can be attached again
            if not (isinstance(error, UploadError) and error.is_final):
                await upload.interrupt()
            raise

    async def _keep(self, facts: Facts) -> Outcome:
        """Leave a partial upload, which has all its bytes, for the concatenation."""
        upload, session = self.upload, self.upload.session
        received, declared = upload.flow.received, session.size
        await upload.check_quota()
        durable = await upload.interrupt()
        upload.raise_if_lost()
        if durable < received:
            raise StorageFailed
        if received != facts.size or declared not in (None, received):
            raise SizeMismatch(size=facts.size, received=received, declared=declared)
        actual = f"{upload.part.crc(received):08x}" if received else "00000000"
        if facts.crc32c not in (None, actual):
            error = DigestMismatch(algorithm=CRC32C, actual=actual, expected=facts.crc32c)
            await self._service.fail(session, error)
            raise error
        if declared is None:
            change = Change(session.pk, session.epoch, State.INTERRUPTED, {"size": received})
            await self._service.database.call(rows.change, change, owner=session.owner_key)
            session.size = received
        return Released(durable)

    async def _answered(self, outcome: Outcome) -> Outcome:
        """Add the app's own answer to a published upload."""
        if not isinstance(outcome, Published) or not self.hooks.responds:
            return outcome
        size = outcome.session.size or 0
        self.upload.report(Progress("finalizing", size, size))
        return await self._reporting(self._service.answered(outcome, self.hooks))

    async def _reporting(self, work: Coroutine[Any, Any, End]) -> End:
        """Report progress until the work is done."""
        task = asyncio.create_task(work)
        while not (await asyncio.wait({task}, timeout=PROGRESS_SECONDS))[0]:
            if self.upload.progress is not None:
                self._door.progressed(self.upload.progress)
        return task.result()
