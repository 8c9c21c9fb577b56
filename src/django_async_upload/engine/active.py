"""An upload that this process writes: the task that takes its pieces from the queue to the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from .. import signals
from ..exceptions import (
    Busy,
    InternalError,
    SizeMismatch,
    StorageFailed,
    TakenOver,
    UploadError,
    UploadFailed,
)
from ..models import UploadSession
from ..notices import about
from ..sessions import rows
from ..sessions.policies import check_size, smallest
from ..sessions.quotas import Growth
from ..sessions.state import State
from ..sessions.values import Change, Facts, Progress, Proof, Stop
from ..stores.base import Checkpoint, Piece, Writer
from .checkpoints import Checkpoints
from .flow import Flow
from .part import UploadPart
from .queue import Queue
from .runtime import Runtime
from .slowness import Slowness
from .taps import Tap, Taps

logger = logging.getLogger("django_async_upload")

EVICTED_SECONDS: Final = 5.0
"""Seconds after which a client whose upload was evicted may retry."""
MAX_REWRITES: Final = 3
"""Number of rewrites into a new part after failed syncs, before the upload is interrupted."""


class UploadListener(Protocol):
    """Callbacks of an upload to its door. They must not block, and must not raise unless stated."""

    def acked(self) -> None:
        """A number of the upload's :class:`Flow` changed."""

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        """The client must send again from ``offset``. Raises :class:`CorruptChunks` after too many rewinds."""

    def pause(self) -> None:
        """The client should pause and return unused credit."""


class ActiveUpload:
    """An upload whose client is connected, and the task that writes it.

    The door calls :meth:`append`, :meth:`finish`, :meth:`cancel`, :meth:`release` and :meth:`lose`, which return
    at once; :meth:`write` is the task. It ends when all bytes and FINISH were received, or with an error.
    """

    session: UploadSession

    def __init__(
        self, runtime: Runtime, listener: UploadListener, owner: str, *, held: int = 0
    ) -> None:
        """``owner`` is the key whose credit is used, ``held`` the bytes of memory that the request takes in addition.

        Raises :class:`Busy`.
        """
        self.runtime = runtime
        self.listener = listener
        self.account = runtime.budget.open(owner, pause=listener.pause, evict=self.evict, held=held)
        self.max_size: int | None = None
        self.flow = Flow(self.account, listener.acked)
        self.part = UploadPart(runtime)
        self.taps = Taps(runtime, "", (), self._tap_failed)
        self.closed = asyncio.Event()
        """Set when the part is closed."""
        self.name = ""
        """The name to publish under, where the endpoint was asked before the normal path."""
        self.progress: Progress | None = None
        """Progress of the checks and the publication, after FINISH."""
        self.facts: Facts | None = None
        """The client's facts about the whole file, once FINISH was received."""
        self._wake = asyncio.Event()
        self.queue = Queue(self.flow, self._wake.set)
        self.checkpoints = Checkpoints(
            runtime, self.part, self.flow, wake=self._wake.set, lose=self.lose
        )
        self._is_complete = False
        self._slowness = Slowness(self.account, self.flow, self.queue, self.lose)
        self._proof: Proof | None = None
        self._stop: Stop | None = None
        self._lost: UploadError | None = None
        self._rewrites = 0

    # For the door -------------------------------------------------------------------------------

    def append(self, piece: Piece) -> None:
        """Queue the next bytes."""
        if self._lost is not None:  # its credit may be granted to another upload already
            return
        if not self.queue.put(piece):
            self.lose(Busy(retry_after=1.0))

    def finish(self, facts: Facts) -> None:
        """The client has sent all bytes."""
        self.facts = facts
        self.queue.end()

    def cancel(self) -> None:
        self._stop = Stop.CANCEL
        self.queue.end()

    def release(self) -> None:
        """Stop writing; the upload stays unfinished: the client asked for that, or its connection was lost."""
        self._stop = self._stop or Stop.RELEASE
        self.queue.end()

    def lose(self, error: UploadError) -> None:
        """Stop at once with ``error``: the upload has another holder, or has ended."""
        self._lost = self._lost or error
        self._wake.set()

    def yields(self) -> bool:
        """Stop for a newer connection; returns False, and continues, where all bytes and FINISH were received."""
        if not self._is_complete:
            self.lose(TakenOver())
        return not self._is_complete

    @property
    def is_lost(self) -> bool:
        """Whether this upload has to stop with an error."""
        return self._lost is not None

    def raise_if_lost(self) -> None:
        """Raise the error with which this upload has to stop, if there is one."""
        if self._lost is not None:
            raise self._lost

    def evict(self) -> None:
        """Stop, because another upload needs the credit. The upload can be attached again."""
        self.lose(Busy(retry_after=EVICTED_SECONDS))

    def prove(self, proof: Proof) -> None:
        self._proof = proof
        self._wake.set()

    def report(self, progress: Progress) -> None:
        """Update :attr:`progress`. Thread-safe."""
        self.progress = progress

    # The beginning ------------------------------------------------------------------------------

    def begin(self, session: UploadSession, max_size: int | None, taps: Sequence[Tap] = ()) -> None:
        """Start a new upload. Its part is created with the first bytes, or by :meth:`reserve`."""
        self.session = self.part.session = session
        self.max_size = max_size
        self.queue.size = session.size
        self.taps = Taps(self.runtime, session.owner_key, taps, self._tap_failed)
        self.checkpoints.begin()

    def resume(
        self,
        session: UploadSession,
        max_size: int | None,
        writer: Writer,
        taps: Sequence[Tap] = (),
    ) -> None:
        """Continue an existing upload. Call :meth:`forget_queued` when the client is notified."""
        self.begin(session, smallest(max_size, session.field_max_size), taps)
        self.taps.miss()  # the state of taps is not saved: they read the file again at the end
        self.part.resume(writer)
        # Less than in the row only after a crash of the machine with durability "os".
        self.flow.keep(min(session.durable, writer.received))
        self.flow.keep(self.part.durable(writer.received))
        self.flow.restart(writer.received)

    def forget_queued(self) -> None:
        """Discard data and FINISH that were received before the client knew the offset to continue at."""
        self.queue.clear()
        self.facts = None

    async def reserve(self) -> None:
        """Create the part now, so that a full disk is an error before any byte is sent.

        The row names it at once: the first byte may take long, and the purge deletes parts that no row names.
        """
        try:
            writer = await self.part.made()
        except UploadError:
            # The client has no answer yet: the upload must not count against its owner's quotas.
            await self.runtime.database.call(
                rows.delete_new, self.session.pk, owner=self.session.owner_key
            )
            raise
        await self.checkpoints.save(Checkpoint(writer.part, token=writer.token), State.UPLOADING)

    async def declare(self, size: int) -> None:
        """The client declares the size of a file that it began without one.

        Raises :class:`SizeMismatch` where that contradicts what is known, and the refusal of a file that is too large.
        """
        session, received = self.session, self.flow.received
        if session.size is not None or size < received:
            if size != session.size:
                raise SizeMismatch(size=size, received=received, declared=session.size)
            return
        check_size(size, self.max_size)
        await self.checkpoints.make_now()  # what is in the row is counted
        self.raise_if_lost()
        before = self.part.checkpoint.offset
        growth = Growth(session.owner_key, session.address, before, size)
        change = Change(session.pk, session.epoch, State.UPLOADING, {"size": size}, growth=growth)
        await self.runtime.database.call(rows.change, change, owner=session.owner_key)
        session.size = self.queue.size = size

    async def proof(self) -> Proof | Stop:
        """Wait for the client's proof, or its wish to stop. Raises the error that ended the upload in the meantime."""
        while True:
            self.raise_if_lost()
            if self._stop is not None:
                return self._stop
            if self._proof is not None:
                return self._proof
            self._wake.clear()
            await self._wake.wait()

    async def go_back_to_checkpoint(self) -> None:
        """Discard the bytes above the checkpoint, since the client proved only the durable ones."""
        self.flow.restart(await self.part.truncate())

    # The task -----------------------------------------------------------------------------------

    async def write(self) -> Facts | Stop:
        """Write pieces until the client has sent FINISH, or stops; returns the facts, or how it stops.

        All pieces received before are written then, unless the client cancels. Raises :class:`TakenOver` and other
        :class:`UploadError`; call :meth:`close` in any case.
        """
        self._slowness.start()
        try:
            return await self._write_to_the_end()
        finally:
            self._slowness.stop()

    async def _write_to_the_end(self) -> Facts | Stop:
        while True:
            self.raise_if_lost()
            if self.checkpoints.sync_failed:
                await self._rewrite()
            elif self._stop is Stop.CANCEL:
                return self._stop
            elif self.queue.is_due:
                await self._write_queued()
            elif self.facts is not None:
                self.account.complete()
                self._is_complete = True
                return self.facts
            elif self._stop is not None:
                return self._stop
            else:
                self.checkpoints.make_if_due()
                self._wake.clear()
                await self._wake.wait()

    async def _write_queued(self) -> None:
        pieces = self.queue.take_batch()
        part, flow = self.part, self.flow
        good = await self.runtime.store.run(part.append, pieces)
        assert part.writer is not None
        offset = flow.received
        flow.advance(part.writer.received)
        self.runtime.telemetry.count("bytes.received", flow.received - offset)
        flow.keep(part.durable(flow.received))
        check_size(flow.received, self.max_size)
        flow.grant()
        await self.taps.feed(pieces[:good])
        if signals.chunk_received.receivers:
            for piece in pieces[:good]:
                size = len(piece.payload)
                await signals.send(signals.chunk_received, self.session, offset=offset, size=size)
                offset += size
        if good < len(pieces):
            self._rewind("corrupt_chunk")
        self.checkpoints.make_if_due()

    async def _rewrite(self) -> None:
        """After a failed sync, go back to the last checkpoint in a new part.

        A failed fdatasync must never be tried again: https://wiki.postgresql.org/wiki/Fsync_Errors
        """
        self.checkpoints.sync_failed = False
        self._rewrites += 1
        if self._rewrites > MAX_REWRITES:
            raise StorageFailed
        await self.taps.caught_up()
        await self.checkpoints.finish()
        self.flow.restart(await self.part.rewrite())
        self.taps.miss()
        self._rewind("storage_error")

    def _rewind(self, code: str) -> None:
        self.forget_queued()
        self.listener.rewound(self.flow.received, self.flow.durable, self.flow.limit, code)

    def _tap_failed(self, error: Exception) -> None:
        if not isinstance(error, UploadError):
            extra = about(self.session, code="internal_error")
            logger.error("A tap of upload %s failed", self.session.pk, exc_info=error, extra=extra)
            error = InternalError()
        self.lose(error)

    # The end ------------------------------------------------------------------------------------

    @property
    def is_cancelled(self) -> bool:
        return self._stop is Stop.CANCEL

    async def check_quota(self) -> None:
        """Count all received bytes against the quotas. Raises the refusal of an upload of unknown size."""
        if self.session.size is None:
            await self.checkpoints.make_now()
            self.raise_if_lost()

    async def interrupt(self) -> int:
        """Make the received bytes durable, for the next holder; returns ``durable``.

        Called when the client leaves, or a newer connection takes the upload over: this holder may change the row until
        the newer one raises the epoch. Raises nothing: the resume proves bytes again that could not be saved.
        """
        await self.checkpoints.finish()
        if not isinstance(self._lost, UploadFailed):
            await self.checkpoints.make_last()
        return self.flow.durable

    async def close(self) -> None:
        """Close the part and free the credit, even if the task is cancelled."""
        self.taps.miss()
        try:
            try:
                await self.checkpoints.finish()
            finally:
                await self.part.close()
        finally:
            self.closed.set()  # the next holder does not wait for a tap
            try:
                await self.taps.caught_up()  # its bytes are paid for until then
            finally:
                self.account.close()
