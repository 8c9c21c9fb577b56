"""One stream: one attachment of one upload to one connection."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from .. import signals
from ..engine.active import ActiveUpload
from ..engine.credit import FLOOR
from ..engine.service import UploadService
from ..engine.small import SmallFile
from ..exceptions import (
    ByteQuotaExceeded,
    FileChanged,
    InternalError,
    PermissionRefused,
    SessionQuotaExceeded,
    UploadError,
    UploadRefused,
)
from ..models import UploadSession
from ..notices import notice
from ..protocol import messages as m
from ..receipts import receipt_of
from ..sessions.rows import Claim, over
from ..sessions.state import OVER, PUBLISHED, State

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger("django_async_upload")

PROGRESS_SECONDS: Final = 1.0


class UploadStream:
    """Translates between the messages of one stream and the service; decides nothing.

    Opened by CREATE, ATTACH, QUERY or CANCEL; :meth:`run` answers with the message that closes it.
    """

    def __init__(
        self, connection: Connection, number: int, opening: m.Message, *, held: int = 0
    ) -> None:
        """``held`` are the bytes that the opening message takes. Raises :class:`Busy`."""
        self.connection = connection
        self.number = number
        self.service: UploadService = connection.service
        self.upload: ActiveUpload | None = None
        self._opening = opening
        self._session: UploadSession | None = None  # once it is known to be there
        self._flows = False
        if isinstance(opening, m.Create | m.Attach):
            self.upload = self.service.open(self, connection.counted_as, held=held)

    # What the client sends ----------------------------------------------------------------------

    def receive(self, message: m.Message) -> None:
        """A control message on the open stream."""
        assert self.upload is not None
        match message:
            case m.Proof():
                self.upload.prove(message)
            case m.Finish():
                self.upload.finish(message)
            case m.Paused():
                self.upload.paused(message.offset)
            case m.Cancel():
                self.upload.cancel()
            case m.Release():
                self.upload.release()

    def disconnected(self) -> None:
        """Nobody listens any longer: keep what came, and finish what was asked for."""
        if self.upload is not None:
            self.upload.release()

    # What the upload says (a Listener) ----------------------------------------------------------

    def acked(self) -> None:
        if self._flows:
            self.connection.ack(self)

    @property
    def newest_ack(self) -> m.Ack:
        assert self.upload is not None
        upload = self.upload
        return m.Ack(upload.received, upload.durable, upload.limit, upload.chunk)

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        self._send(m.Rewind(offset, durable, limit, code))

    def pause(self) -> None:
        if self._flows:
            self._send(m.Pause())

    def _send(self, message: m.Message) -> None:
        self.connection.send_message(self.number, message)

    # The task -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the stream to its end."""
        error: UploadError | None = None
        try:
            closing = await self._serve()
        except UploadError as failure:
            error, closing = failure, error_message(failure)
            if isinstance(failure, SessionQuotaExceeded | ByteQuotaExceeded):
                self.connection.slow_down()  # to find that out costs as much as to let it in
            self._log(failure)
        except Exception:  # of a host's hook, or ours
            logger.exception("Upload stream %s failed", self.number)
            error = InternalError()
            closing = error_message(error)
        try:
            self._send(closing)
        except ValueError:  # no frame can be made of it: a text too long, or with half a character
            logger.exception("The answer on upload stream %s could not be told", self.number)
            self._send(error_message(InternalError()))
        if error is not None and self._session is not None:
            await self.service.note(self._session, error)

    def _log(self, error: UploadError) -> None:
        """A refusal is no error, but the operator should see many of one kind."""
        if isinstance(error, UploadRefused):
            who = self.connection.owner.key
            notice(error.code, logging.INFO, "An upload of %s was refused: %s", who, error)

    async def _serve(self) -> m.Message:
        try:
            owner = await self.connection.authenticated()
            if self.upload is not None:
                self.upload.account.move(owner.key)
            match self._opening:
                case m.Query(upload=upload):
                    async with self.connection.queries:
                        return status_message(await self.service.find(self._claim(upload)))
                case m.Cancel(upload=str(upload), finished=finished):
                    session = await self.service.cancel(self._claim(upload))
                    if finished and session.state == State.COMPLETED:
                        session = await self._discard(session)
                    return ended_message(session)
                case m.Create():
                    return await self._create(self._opening)
                case m.Attach():
                    return await self._attach(uuid.UUID(self._opening.upload))
            raise AssertionError(self._opening)
        finally:
            if self.upload is not None:
                await self.service.leave(self.upload)

    def _claim(self, upload: str | uuid.UUID) -> Claim:
        return Claim(uuid.UUID(str(upload)), self.connection.owner, self.connection.endpoint)

    async def _discard(self, session: UploadSession) -> UploadSession:
        if not await self.connection.may_discard(session):
            raise PermissionRefused
        return await self.service.discard(session)

    async def _create(self, create: m.Create) -> m.Message:
        assert self.upload is not None
        session, max_size = await self.connection.new_session(create)
        small_files = self.service.small_files
        if not self.connection.inspects and small_files.takes(session, self.upload.finishing):
            self.upload.name = await self.connection.get_name(session)
            small = SmallFile(session, self.connection.owner, self.upload, self.upload.name)
            if await small_files.publish(small):
                return completed_message(session)
        found = await self.service.create(self.upload, session, self.connection.owner, max_size)
        if found is not session:
            return await self._attach(found.pk)
        self._session = session
        if session.size is not None and session.size > FLOOR:
            await self.upload.reserve()
        self._send(m.Created(str(session.pk), session.name, self.upload.limit, self.upload.chunk))
        self._flows = True
        await signals.send(signals.upload_started, session)
        return await self._write()

    async def _attach(self, pk: uuid.UUID) -> m.Message:
        assert self.upload is not None
        max_size = await self.connection.admit()
        session = await self.service.attach(self.upload, self._claim(pk), max_size)
        self._session = session
        if self.upload.writer is None:
            return ended_message(await self._result(session))
        self.upload.forget_queued()
        self._send(
            m.Attached(
                str(session.pk),
                session.name,
                self.upload.durable,
                self.upload.received,
                session.size,
                session.digest or None,
            )
        )
        proof = await self.upload.proof()
        if isinstance(proof, m.Proof):
            await self._check(proof)
            self._send(
                m.Ready(
                    self.upload.received,
                    self.upload.durable,
                    self.upload.limit,
                    self.upload.chunk,
                )
            )
            self._flows = True
            offset = self.upload.received
            await signals.send(signals.upload_resumed, session, offset=offset)
        return await self._write()

    async def _check(self, proof: m.Proof) -> None:
        """The file that goes on is the one that was begun. Raises :class:`FileChanged`."""
        upload = self.upload
        assert upload is not None
        assert upload.writer is not None
        if proof.received_crc32c == f"{upload.writer.crc:08x}":
            return
        if proof.durable_crc32c != f"{upload.durable_crc:08x}":
            offset = upload.durable
            await upload.interrupt()
            raise FileChanged(offset=offset)
        if upload.durable < upload.received:
            await upload.go_back_to_checkpoint()

    async def _write(self) -> m.Message:
        upload = self.upload
        assert upload is not None
        try:
            wish = await upload.write()
        except Exception as error:
            if isinstance(error, UploadError) and error.is_final:
                await self.service.fail(upload.session, error)
            else:
                await upload.interrupt()
            raise
        if wish is m.Cancel:
            return ended_message(await self.service.end(upload.session, State.CANCELLED))
        if wish is m.Release:
            return m.Released(await upload.interrupt())
        assert isinstance(wish, m.Finish)
        try:
            work = self.service.complete(upload, wish, self.connection)
            return ended_message(await self._reporting(work))
        except (
            Exception
        ) as error:  # what a host's hook raised, too: the upload can be attached again
            if not (isinstance(error, UploadError) and error.is_final):
                await upload.interrupt()
            raise

    async def _result(self, session: UploadSession) -> UploadSession:
        return await self._reporting(self.service.result(session, self._report))

    def _report(self, progress: m.Progress) -> None:
        assert self.upload is not None
        self.upload.progress = progress

    async def _reporting(self, work: Coroutine[Any, Any, UploadSession]) -> UploadSession:
        """Tell the client how far the work is until it is done."""
        assert self.upload is not None
        task = asyncio.create_task(work)
        while not (await asyncio.wait({task}, timeout=PROGRESS_SECONDS))[0]:
            if self.upload.progress is not None:
                self._send(self.upload.progress)
        return task.result()


def ended_message(session: UploadSession) -> m.Message:
    """The answer to FINISH or CANCEL: what became of the upload."""
    if session.state in PUBLISHED:
        return completed_message(session)
    if session.state == State.CANCELLED:
        return m.Cancelled(str(session.pk))
    return error_message(over(session))


def completed_message(session: UploadSession) -> m.Completed:
    return m.Completed(
        upload=str(session.pk),
        name=session.name,
        size=session.size or 0,
        crc32c=session.crc32c,
        stored_as=session.stored_as,
        digests=session.digests,
        receipt=receipt_of(session),
    )


def status_message(session: UploadSession) -> m.Status:
    return m.Status(
        upload=str(session.pk),
        state=str(session.state),
        name=session.name,
        durable=session.durable,
        size=session.size,
        stored_as=session.stored_as if session.is_completed else None,
        error=session.error or None if session.state in OVER else None,
    )


def error_message(error: UploadError) -> m.Error:
    facts = {
        name: fact
        for name, fact in error.facts.items()
        if name != "retry_after" and fact is not None
    }
    return m.Error(error.code, error.message, error.retryable, error.retry_after, facts)
