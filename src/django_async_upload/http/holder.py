"""Holders: an upload that requests write one after another, without a query for each."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

from ..admission import network_of
from ..endpoints import Endpoint
from ..engine import drain
from ..engine.attachment import Attachment, Outcome
from ..engine.flow import Flow
from ..engine.outcomes import Published, Released
from ..engine.service import UploadService
from ..exceptions import (
    Draining,
    InternalError,
    StorageFailed,
    TakenOver,
    TooManyConnections,
    UploadError,
    UploadInterrupted,
    UploadOver,
)
from ..models import Slot, UploadSession
from ..sessions.values import Facts, NewUpload, Progress, Proof, UploadAccess
from ..stores.base import Piece
from .body import Body
from .responses import Standing

LINGER_SECONDS: Final = 5.0
"""Seconds for which an upload is held for the next request. Then that one attaches it again."""

logger = logging.getLogger("django_async_upload")

_holders: WeakKeyDictionary[UploadService, dict[uuid.UUID, Holder]] = WeakKeyDictionary()


def holder_of(service: UploadService, hooks: Endpoint, upload: uuid.UUID) -> Holder | None:
    """The holder of an upload in this process, if it is held for this owner."""
    holder = _holders.get(service, {}).get(upload)
    if holder is None or holder.upload.is_lost or holder.hooks.endpoint != hooks.endpoint:
        return None
    if holder.hooks.owner.key != hooks.owner.key:
        return None
    holder.hooks = holder.attachment.hooks = hooks
    return holder


class Holder:
    """An upload from the first request that writes it until it is complete, or goes to another holder, or no request
    has come for :data:`LINGER_SECONDS`. It is the attachment's door, and one task."""

    def __init__(self, service: UploadService, hooks: Endpoint, *, held: int = 0) -> None:
        """``held`` are the bytes of memory of the request. Raises :class:`Busy`."""
        self.hooks = hooks
        self.attachment = Attachment(service, self, hooks, owner=hooks.owner.key, held=held)
        self.upload = self.attachment.upload
        self.end = 0
        """The offset up to which bytes were passed on to be written."""
        self._service = service
        self._registry = _holders.setdefault(service, {})
        self._news = asyncio.Event()
        self._is_ready = False
        self._outcome: Outcome | None = None
        self._error: UploadError | None = None
        self._is_over = False
        self._turn: Turn | None = None
        self._timer: asyncio.TimerHandle | None = None

    # Life ---------------------------------------------------------------------------------------

    def create(self, new: NewUpload) -> None:
        """Begin: create an upload, or attach to the one that has its key."""
        self._start(self.attachment.create(new, self.hooks.endpoint))

    def attach(self, upload: uuid.UUID) -> None:
        """Begin: take an upload over from its holder."""
        self._register(upload)
        self._start(
            self.attachment.attach(UploadAccess(upload, self.hooks.owner, self.hooks.endpoint))
        )

    def _start(self, work: Coroutine[Any, Any, Outcome]) -> None:
        drain.connections.add(self)
        drain.spawn(self._run(work))

    async def _run(self, work: Coroutine[Any, Any, Outcome]) -> None:
        slot = None
        try:
            try:
                slot = await self._take_slot()
            except BaseException:
                work.close()
                raise
            self._outcome = await work
        except UploadError as error:
            self._error = error
        except Exception:  # a bug of a host's hook, or of this app
            logger.exception("An upload over HTTP failed")
            self._error = InternalError()
        finally:
            await self.attachment.leave()
            if slot is not None:
                self._service.slots.free(slot)
            self._leave()
        session = self.attachment.session
        if self._error is not None and session is not None:
            await self._service.note(session, self._error)

    async def _take_slot(self) -> Slot:
        """Take a slot, if need be from an upload of the owner that only waits for its next request.

        Raises :class:`TooManyConnections`.
        """
        owner, address = self.hooks.owner.key, network_of(self.hooks.address)
        while True:
            try:
                return await self._service.slots.take(owner, address)
            except TooManyConnections:
                waiting = (
                    each
                    for each in self._registry.values()
                    if each._timer is not None and each.hooks.owner.key == owner
                )
                if (holder := next(waiting, None)) is None:
                    raise
                holder._release()
                await holder.over()

    def _register(self, upload: uuid.UUID) -> None:
        self._registry[upload] = self

    def _leave(self) -> None:
        self._is_over = True
        drain.connections.discard(self)
        self.forget()
        self._stop_waiting()
        if self._turn is not None:
            self._turn.stop(self._error or UploadInterrupted())
        self._tell()

    async def drain(self, retry_after: float) -> None:
        """Save the upload, and have its client come back later."""
        if self._turn is not None:
            self._turn.stop(Draining(retry_after=retry_after))
        self._release()
        with suppress(TimeoutError):  # one that is checked or published goes on
            async with asyncio.timeout(drain.CLOSING_SECONDS):
                await self.over()

    # From the attachment (as its door) ----------------------------------------------------------

    def created(self, session: UploadSession, flow: Flow) -> None:
        self._register(session.pk)
        self.ready(flow)

    def attached(self, session: UploadSession, flow: Flow) -> None:
        self._register(session.pk)  # an upload that was found by its key
        self.upload.prove(Proof(None))

    def ready(self, flow: Flow) -> None:
        self.end = flow.received
        self._is_ready = True
        self._tell()

    def acked(self) -> None:
        self._tell()

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        """A sync failed, and the part was written again up to its checkpoint."""
        self.end = offset
        if self._turn is not None:
            self._turn.stop(StorageFailed())
        self._tell()

    def pause(self) -> None:
        self.upload.flow.paused(self.end)

    def progressed(self, progress: Progress) -> None:
        """HTTP has no way to say so before the answer."""

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        self._news.set()

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    @property
    def is_finishing(self) -> bool:
        """Whether all bytes were received and the file is checked or published."""
        return self.upload.facts is not None

    # For requests -------------------------------------------------------------------------------

    async def prepared(self) -> Standing:
        """Wait until the upload can be written, or is published. Raises the :class:`UploadError` that prevents it."""
        while not self._is_ready and not self._is_over:
            await self._next_news()
        return await self.finished() if not self._is_ready else self._standing()

    async def finished(self) -> Standing:
        """Wait for the end of the upload, or of a partial one for its last byte. Raises its :class:`UploadError`."""
        await self.over()
        match self._outcome:
            case Published(session):
                return Standing(session, session.size or 0)
            case Released(durable) if self.is_finishing and self._error is None:
                partial = self.attachment.session
                assert partial is not None
                return Standing(partial, durable)  # a partial upload, which has all its bytes
            case Released() | None:
                raise self._error or UploadInterrupted
            case cancelled:
                raise UploadOver(state=cancelled.session.state)

    async def over(self) -> None:
        """Wait until the upload is left."""
        while not self._is_over:
            await self._next_news()

    async def turn(self) -> Turn:
        """End the request that writes now, if there is one, and wait until its bytes are written.

        Raises the :class:`UploadError` that ended the upload meanwhile.
        """
        if self._is_over:
            raise self._error or UploadInterrupted()
        turn = Turn(self)
        older, self._turn = self._turn, turn
        self._stop_waiting()
        if older is not None:
            older.stop(TakenOver())
        await turn.settle()
        return turn

    def leave(self, turn: Turn) -> None:
        """The request has ended: wait for the next one."""
        if self._turn is not turn:
            return
        self._turn = None
        if not self._is_over and self._is_ready and self.upload.facts is None:
            self.upload.flow.paused(self.end)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER_SECONDS, self._release)

    def _release(self) -> None:
        self._stop_waiting()
        self.forget()  # the next request attaches the upload again
        self.upload.release()

    def forget(self) -> None:
        """No later request finds it here: it reads the row."""
        for upload in [pk for pk, holder in self._registry.items() if holder is self]:
            del self._registry[upload]

    def _standing(self) -> Standing:
        session = self.attachment.session
        assert session is not None
        return Standing(session, self.end)


class Turn:
    """One request's turn to write an upload: until it ends, or a newer request has come. A context manager."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._flow = holder.upload.flow
        self._error: UploadError | None = None
        self.body: Body | None = None
        """The body that the request reads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._holder.leave(self)

    def stop(self, error: UploadError) -> None:
        """End the turn with an error: another request has it, or the upload has ended."""
        if self._error is None:
            self._error = error
            if self.body is not None:
                self.body.stop(error)
            self._holder._tell()

    def check(self) -> None:
        """Raise the error with which the turn was ended."""
        if self._error is not None:
            raise self._error

    async def write(self, data: bytes) -> None:
        """Pass on the next bytes, as fast as there is credit."""
        view = memoryview(data)
        while view:
            room = await self._room()
            piece, view = view[:room], view[room:]
            self._holder.end += len(piece)
            self._holder.upload.append(Piece(piece))

    async def _room(self) -> int:
        """Wait for credit; returns the bytes that may be passed on."""
        while (room := self._flow.limit - self._holder.end) <= 0:
            self.check()
            await self._holder._next_news()
        self.check()
        return room

    @property
    def standing(self) -> Standing:
        return self._holder._standing()

    @property
    def size(self) -> int | None:
        """Declared size of the file, bytes; None where it is unknown."""
        return self._holder.upload.queue.size

    async def declare(self, size: int) -> None:
        """The client declares the size now. Raises what :meth:`ActiveUpload.declare` raises."""
        await self._holder.upload.declare(size)

    async def settle(self) -> None:
        """Wait until all bytes that were passed on are written. Raises the error that prevents it."""
        holder = self._holder
        while self._flow.received < holder.end:
            self.check()
            await holder._next_news()
        self.check()

    async def save(self) -> Standing:
        """Wait until these bytes are durable, as far as the store's setting goes."""
        await self.settle()
        if self._flow.durable < self._holder.end:
            await self._holder.upload.checkpoints.make_now()
            self.check()
            if self._flow.durable < self._holder.end:
                raise StorageFailed
        return self.standing

    async def finish(self, digests: Mapping[str, str]) -> Standing:
        """All bytes are here: wait for the published file. ``digests`` are the client's, of the whole file."""
        await self.settle()
        facts = dict(digests)
        crc32c = facts.pop("crc32c", None)
        self._holder.upload.finish(Facts(self._holder.end, crc32c, facts))
        return await self._holder.finished()

    def cancel(self) -> None:
        """End the upload, which no request can ever find."""
        self._holder.upload.cancel()
