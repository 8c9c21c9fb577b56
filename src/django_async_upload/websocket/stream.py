"""One stream of a connection, which carries one upload or one request."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Final, Protocol

from ..endpoints import Endpoint
from ..engine.active import ActiveUpload
from ..engine.attachment import Attachment, Outcome
from ..engine.flow import Flow
from ..engine.outcomes import Cancelled, Published, Released
from ..engine.service import UploadService
from ..engine.watching import Standing, Watch, standing_of
from ..exceptions import (
    ByteQuotaExceeded,
    InternalError,
    PermissionRefused,
    SessionQuotaExceeded,
    UploadError,
)
from ..failpoints import failpoint
from ..models import UploadSession
from ..notices import log_refused
from ..protocol import messages as m
from ..receipts import receipt_of
from ..sessions.state import State
from ..sessions.values import Facts, NewUpload, Progress, Proof, UploadAccess, WatchScope
from .errors import error_message

CHANGED_BYTES: Final = 60_000
"""The largest CHANGED, bytes: a little less than a control frame may have."""

logger = logging.getLogger("django_async_upload")


class Peer(Protocol):
    """The part of the connection that a stream uses."""

    service: UploadService
    queries: asyncio.Semaphore
    """Limits the QUERYs that run in the database at once."""

    @property
    def hooks(self) -> Endpoint:
        """The host's hooks."""

    @property
    def counted_as(self) -> str:
        """The key whose share of the server the connection uses."""

    def send_message(self, stream: int, message: m.Message) -> None:
        """Queue a message; does nothing where the connection or the stream is closed."""

    def offer(self, stream: int) -> None:
        """Send the :attr:`UploadStream.newest` message of a stream when the socket has room."""

    def count_refusal(self) -> None:
        """Count a refused message as an expensive one."""


class UploadStream:
    """Translates between the messages of one stream and the use cases; decides nothing.

    Opened by CREATE, ATTACH, QUERY, WATCH or CANCEL; :meth:`run` answers with the message that closes it.
    """

    def __init__(self, peer: Peer, number: int, opening: m.Message, *, held: int = 0) -> None:
        """``held`` are the bytes of memory of the opening message. Raises :class:`Busy`."""
        self.number = number
        self._peer = peer
        self._service = peer.service
        self._opening = opening
        self._flows = False
        self._attachment: Attachment | None = None
        self._watch: Watch | None = None
        self._is_left = False
        if isinstance(opening, m.Create | m.Attach):
            self._attachment = Attachment(
                peer.service, self, peer.hooks, owner=peer.counted_as, held=held
            )

    @property
    def upload(self) -> ActiveUpload | None:
        """The upload that receives the stream's data; None for QUERY, WATCH and CANCEL."""
        return None if self._attachment is None else self._attachment.upload

    @property
    def _upload_id(self) -> str | None:
        """The id of the upload that the stream is about, where it has one."""
        session = self._attachment.session if self._attachment is not None else None
        return getattr(self._opening, "upload", None) if session is None else str(session.pk)

    # From the client ----------------------------------------------------------------------------

    def receive(self, message: m.Message) -> None:
        """Handle a control message on the open stream."""
        upload = self.upload
        if upload is None:
            self._stop_watching()
            return
        match message:
            case m.Proof():
                upload.prove(Proof(message.durable_crc32c, message.received_crc32c))
            case m.Finish():
                upload.finish(Facts(message.size, message.crc32c, message.digests))
            case m.Paused():
                upload.flow.paused(message.offset)
            case m.Cancel():
                upload.cancel()
            case m.Release():
                upload.release()

    def disconnected(self) -> None:
        """The connection was lost: keep the received bytes, and complete the upload if FINISH was received."""
        if self.upload is not None:
            self.upload.release()
        self._stop_watching()

    @property
    def is_watching(self) -> bool:
        return isinstance(self._opening, m.Watch)

    def _stop_watching(self) -> None:
        self._is_left = True
        if self._watch is not None:
            self._watch.stop()

    # From the attachment (as its door) ----------------------------------------------------------

    def created(self, session: UploadSession, flow: Flow) -> None:
        failpoint("created.before_send")
        self._send(m.Created(str(session.pk), session.name, flow.limit, flow.chunk))
        self._flows = True

    def attached(self, session: UploadSession, flow: Flow) -> None:
        failpoint("attached.before_send")
        self._send(
            m.Attached(
                str(session.pk),
                session.name,
                flow.durable,
                flow.received,
                session.size,
                session.digest or None,
            )
        )

    def ready(self, flow: Flow) -> None:
        failpoint("ready.before_send")
        self._send(m.Ready(flow.received, flow.durable, flow.limit, flow.chunk))
        self._flows = True

    def acked(self) -> None:
        if self._flows:
            self._peer.offer(self.number)

    @property
    def newest(self) -> m.Ack | m.Changed | None:
        """The message that was offered, as of now."""
        if self._watch is not None:
            return self._newest_changes(self._watch)
        failpoint("ack.before_send")
        upload = self.upload
        assert upload is not None
        flow = upload.flow
        return m.Ack(flow.received, flow.durable, flow.limit, flow.chunk)

    def _newest_changes(self, watch: Watch) -> m.Changed | None:
        if not watch.has_news:
            return None
        standings, missing = watch.take(_size_of, CHANGED_BYTES)
        if watch.has_news:
            self._peer.offer(self.number)
        return m.Changed(
            [_status_of(each).to_fields() for each in standings], list(map(str, missing))
        )

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        self._send(m.Rewind(offset, durable, limit, code))

    def pause(self) -> None:
        if self._flows:
            self._send(m.Pause())

    def progressed(self, progress: Progress) -> None:
        self._send(m.Progress(*progress))

    def _send(self, message: m.Message) -> None:
        self._peer.send_message(self.number, message)

    # The task -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the stream until it ends."""
        error: UploadError | None = None
        try:
            closing = await self._serve()
        except UploadError as failure:
            error, closing = failure, error_message(failure)
            if isinstance(failure, SessionQuotaExceeded | ByteQuotaExceeded):
                self._peer.count_refusal()  # a refusal costs as much as an upload
            log_refused(
                failure, self._peer.counted_as, self._peer.hooks.endpoint, upload=self._upload_id
            )
        except Exception:  # a bug of a host's hook, or of this app
            error = InternalError()
            extra = {
                "code": error.code,
                "owner": self._peer.counted_as,
                "endpoint": self._peer.hooks.endpoint,
                "upload": self._upload_id,
            }
            logger.exception("Upload stream %s failed", self.number, extra=extra)
            closing = error_message(error)
        if error is not None:
            self._service.telemetry.count("requests.failed", code=error.code)
        failpoint("answer.before_send")
        try:
            self._send(closing)
        except ValueError:  # it cannot be encoded: a text too long, or with half a character
            logger.exception("The answer on upload stream %s could not be sent", self.number)
            self._send(error_message(InternalError()))
        session = self._attachment.session if self._attachment is not None else None
        if error is not None and session is not None:
            await self._service.note(session, error)

    async def _serve(self) -> m.Message:
        try:
            owner = await self._peer.hooks.authenticated()
            if self.upload is not None:
                self.upload.account.move(owner.key)
            return await self._answer(self._opening)
        finally:
            if self._attachment is not None:
                await self._attachment.leave()

    async def _answer(self, opening: m.Message) -> m.Message:
        match opening:
            case m.Create():
                assert self._attachment is not None
                endpoint = self._peer.hooks.endpoint
                return ended_message(await self._attachment.create(_new_upload(opening), endpoint))
            case m.Attach(upload=upload):
                assert self._attachment is not None
                return ended_message(await self._attachment.attach(self._access(upload)))
            case m.Query(upload=upload):
                async with self._peer.queries:
                    return status_message(await self._service.find(self._access(upload)))
            case m.Watch():
                await self._follow(opening)
                return m.Released(0)
            case m.Cancel(upload=str(upload), finished=finished):
                end = await self._service.cancel(self._access(upload))
                if finished and end.session.state == State.COMPLETED:
                    if not await self._peer.hooks.is_discardable(end.session):
                        raise PermissionRefused
                    end = await self._service.discard(end.session)
                return ended_message(await self._service.answered(end, self._peer.hooks))
        raise AssertionError(opening)

    async def _follow(self, opening: m.Watch) -> None:
        """Tell the client of the uploads that it watches, until it leaves."""
        self._watch = self._service.watching.watch(
            self._peer.hooks,
            self._peer.hooks.endpoint,
            WatchScope(opening.scope),
            map(uuid.UUID, opening.uploads),
            lambda: self._peer.offer(self.number),
        )
        if self._is_left:
            self._watch.stop()
        await self._watch.run()

    def _access(self, upload: str) -> UploadAccess:
        hooks = self._peer.hooks
        return UploadAccess(uuid.UUID(upload), hooks.owner, hooks.endpoint)


def _new_upload(create: m.Create) -> NewUpload:
    return NewUpload(
        key=create.key,
        name=create.name,
        size=create.size,
        content_type=create.content_type,
        metadata=create.metadata,
        digest=create.digest,
    )


def ended_message(outcome: Outcome) -> m.Message:
    """The answer to FINISH, RELEASE or CANCEL."""
    match outcome:
        case Published(session):
            return completed_message(session)
        case Cancelled(session):
            return m.Cancelled(str(session.pk))
        case Released(durable):
            return m.Released(durable)


def completed_message(session: UploadSession) -> m.Completed:
    return m.Completed(
        upload=str(session.pk),
        name=session.name,
        size=session.size or 0,
        crc32c=session.crc32c,
        stored_as=session.stored_as,
        digests={each: session.digests[each] for each in m.DIGESTS if each in session.digests},
        receipt=receipt_of(session),
        response=session.response or None,
    )


def status_message(session: UploadSession) -> m.Status:
    return _status_of(standing_of(session))


def _status_of(standing: Standing) -> m.Status:
    return m.Status(
        upload=str(standing.upload),
        state=str(standing.state),
        name=standing.name,
        durable=standing.durable,
        size=standing.size,
        stored_as=standing.stored_as,
        error=standing.error,
        received=standing.received if standing.received > standing.durable else None,
    )


def _size_of(standing: Standing) -> int:
    """The most bytes that an upload takes in CHANGED: its texts in UTF-8, and the rest."""
    return 4 * (len(standing.name) + len(standing.stored_as or "")) + 400
