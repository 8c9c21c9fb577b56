"""An upload that this process writes: a task that takes its pieces from a queue to the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from .. import signals
from ..exceptions import Busy, InternalError, StorageFailed, UploadError, UploadFailed
from ..models import UploadSession
from ..sessions import rows
from ..sessions.policies import check_size, smallest
from ..sessions.quotas import Growth
from ..sessions.state import State
from ..sessions.values import Change, Facts, Progress, Proof, Stop
from ..stores.base import Checkpoint, Piece, Store, Writer
from .checkpoints import Checkpoints, is_slow
from .credit import FLOOR, LARGEST_WINDOW, Account
from .runtime import Runtime
from .taps import Tap, Taps

logger = logging.getLogger("django_async_upload")

MAX_QUEUED: Final = 4096
"""Limit of queued pieces: credit limits only payload, and this a flood of one-byte chunks."""
EVICTED_SECONDS: Final = 5.0
"""Seconds after which a client whose upload was evicted may retry."""
BATCH_BYTES: Final = 2 * 1024 * 1024
"""Bytes that are written together, without waiting for more: these, or a quarter of the credit."""
BATCH_SECONDS: Final = 0.003
"""Seconds that the writer waits for so many."""
MAX_REWRITES: Final = 3
"""Number of rewrites into a new part after failed syncs, before the upload is interrupted."""


class UploadListener(Protocol):
    """Callbacks of an upload to its door. They must not block, and must not raise unless stated."""

    def acked(self) -> None:
        """``received``, ``durable``, ``limit`` or ``chunk`` of the upload changed."""

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        """The client must send again from ``offset``. Raises :class:`CorruptChunks` after too many rewinds."""

    def pause(self) -> None:
        """The client should pause and return unused credit."""


class ActiveUpload:
    """The queue of one upload, the task that writes it, and the state of its bytes.

    The door calls :meth:`append`, :meth:`finish`, :meth:`cancel`, :meth:`release` and :meth:`lose`, which return
    at once; :meth:`write` is the task. It ends when all bytes and FINISH were received, or with an error.
    """

    account: Account
    """Its credit."""

    def __init__(self, runtime: Runtime, listener: UploadListener) -> None:
        self.runtime = runtime
        self.listener = listener
        self.session: UploadSession
        self.max_size: int | None = None
        self.writer: Writer | None = None
        self.received = 0
        self.durable = 0
        self.limit = FLOOR
        self.chunk = FLOOR
        self.taps = Taps(runtime.store, (), self._tap_failed)
        self.closed = asyncio.Event()
        """Set when the part is closed."""
        self.name = ""
        """The name to publish under, where the endpoint was asked before the normal path."""
        self.progress: Progress | None = None
        """Progress of the checks and the publication, after FINISH."""
        self._pieces: list[Piece] = []
        self._queued = 0
        """Bytes of the queued pieces."""
        self._batching: asyncio.TimerHandle | None = None
        self._waited = False
        """Whether the queued pieces have waited for :data:`BATCH_SECONDS`."""
        self._size: int | None = None
        """Declared size of the file, bytes; None where it is unknown."""
        self._wake = asyncio.Event()
        self._proof: Proof | None = None
        self._facts: Facts | None = None
        self._stop: Stop | None = None
        self._lost: UploadError | None = None
        self._checkpoint = Checkpoint("")
        self._checkpoints = Checkpoints(self._make_checkpoint, self._wake.set)
        self._sync_failed = False
        self._rewrites = 0

    @property
    def store(self) -> Store:
        return self.runtime.store

    # For the door -------------------------------------------------------------------------------

    def append(self, piece: Piece) -> None:
        """Queue the next bytes."""
        if len(self._pieces) >= MAX_QUEUED:
            self.lose(Busy(retry_after=1.0))
        if self._lost is not None:  # its credit may be granted to another upload already
            return
        self._pieces.append(piece)
        self._queued += len(piece.payload)
        if self._is_worth_a_hop:
            self._wake.set()
        elif self._batching is None:
            self._wait_for_more()

    def finish(self, facts: Facts) -> None:
        """The client has sent all bytes."""
        self._facts = facts
        self._wake.set()

    def cancel(self) -> None:
        self._stop = Stop.CANCEL
        self._wake.set()

    def release(self) -> None:
        """Stop writing; the upload stays unfinished: the client asked for that, or its connection was lost."""
        self._stop = self._stop or Stop.RELEASE
        self._wake.set()

    def lose(self, error: UploadError) -> None:
        """Stop at once with ``error``: the upload has another holder, or has ended."""
        self._lost = self._lost or error
        self._wake.set()

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

    def paused(self, offset: int) -> None:
        """The client paused at ``offset`` and returned the credit above it."""
        self.account.paused()
        self.limit = offset
        self._grant()
        self.listener.acked()

    # The task -----------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Checkpoint:
        """The last checkpoint saved in the row."""
        return self._checkpoint

    @property
    def durable_crc(self) -> int:
        """CRC-32C of the first ``durable`` bytes of a resumed upload."""
        assert self.writer is not None
        return self.writer.crc if self.durable == self.received else self._checkpoint.crc

    @property
    def received_crc(self) -> int:
        """CRC-32C of the first ``received`` bytes of an upload that was attached."""
        assert self.writer is not None
        return self.writer.crc

    @property
    def part(self) -> str:
        """The part's name; empty where none is made yet."""
        return "" if self.writer is None else self.writer.part

    async def made_part(self) -> Writer:
        """The part with all that came; it is made here where no byte came."""
        if self.writer is None:
            self.writer = await self.store.run(self.store.create, 0)
        return self.writer

    @property
    def queued(self) -> list[Piece]:
        """The queued pieces."""
        return self._pieces

    @property
    def facts(self) -> Facts | None:
        """The client's facts about the whole file, once FINISH was received."""
        return self._facts

    @property
    def is_cancelled(self) -> bool:
        return self._stop is Stop.CANCEL

    def begin(self, session: UploadSession, max_size: int | None, taps: Sequence[Tap] = ()) -> None:
        """Start a new upload. Its part is created with the first bytes, or by :meth:`reserve`."""
        self.session = session
        self.max_size = max_size
        self._size = session.size
        self.taps = Taps(self.store, taps, self._tap_failed)
        self._checkpoints.begin()

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
        self.writer = writer
        self._checkpoint = session.checkpoint
        self.received = writer.received
        # Less than in the row only after a crash of the machine with durability "os".
        self.durable = min(session.durable, writer.received)
        self._advance_durable()
        self.limit = self.received
        self._grant()

    def forget_queued(self) -> None:
        """Discard data and FINISH that were received before the client knew the offset to continue at."""
        self._take_queued()
        self._facts = None

    async def reserve(self) -> None:
        """Create the part now, so that a full disk is an error before any byte is sent.

        The row names it at once: the first byte may take long, and the purge deletes parts that no row names.
        """
        try:
            self.writer = await self.store.run(self.store.create, self.session.size)
        except UploadError:
            # The client has no answer yet: the upload must not count against its owner's quotas.
            await self.runtime.database.call(
                rows.delete_new, self.session.pk, owner=self.session.owner_key
            )
            raise
        await self.save(Checkpoint(self.writer.part, token=self.writer.token), State.UPLOADING)

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
        assert self.writer is not None
        await self.store.run(self.writer.truncate, self._checkpoint)
        self.received = self.writer.received
        self.limit = self.received
        self._grant()

    async def write(self) -> Facts | Stop:
        """Write pieces until the client has sent FINISH, or stops; returns the facts, or how it stops.

        All pieces received before are written then, unless the client cancels. Raises :class:`TakenOver` and other
        :class:`UploadError`; call :meth:`close` in any case.
        """
        while True:
            self.raise_if_lost()
            if self._sync_failed:
                await self._go_back()
            elif self._stop is Stop.CANCEL:
                return self._stop
            elif self._pieces and self._is_worth_a_hop:
                await self._write_queued()
            elif self._facts is not None:
                self.account.complete()
                return self._facts
            elif self._stop is not None:
                return self._stop
            else:
                self._checkpoint_if_due()
                self._wake.clear()
                await self._wake.wait()

    @property
    def _is_worth_a_hop(self) -> bool:
        """Whether the queued pieces are written now: a thread hop costs as much as writing a few hundred KiB."""
        return (
            self._waited
            or self._facts is not None
            or self._stop is not None
            or self._queued >= min(BATCH_BYTES, (self.limit - self.received) // 4)
            or self.received + self._queued == self._size
        )

    def _wait_for_more(self) -> None:
        loop = asyncio.get_running_loop()
        self._batching = loop.call_later(BATCH_SECONDS, self._stop_waiting)

    def _stop_waiting(self) -> None:
        self._batching = None
        self._waited = True
        self._wake.set()

    def _take_queued(self) -> list[Piece]:
        if self._batching is not None:
            self._batching.cancel()
            self._batching = None
        pieces, self._pieces = self._pieces, []
        self._queued = 0
        self._waited = False
        return pieces

    def _take_batch(self) -> list[Piece]:
        """The queued pieces, but little more than :data:`BATCH_BYTES`: the client has credit again after each batch."""
        if self._queued <= BATCH_BYTES:
            return self._take_queued()
        count = size = 0
        while size < BATCH_BYTES:
            size += len(self._pieces[count].payload)
            count += 1
        batch, self._pieces = self._pieces[:count], self._pieces[count:]
        self._queued -= size
        self._waited = True  # the rest waits while this is written
        return batch

    async def _write_queued(self) -> None:
        pieces = self._take_batch()
        good = await self.store.run(self._append, pieces)
        assert self.writer is not None
        offset, self.received = self.received, self.writer.received
        self._advance_durable()
        check_size(self.received, self.max_size)
        self.account.consume(self.received - offset)
        self._grant()
        self.listener.acked()
        await self.taps.feed(pieces[:good])
        if signals.chunk_received.has_listeners(UploadSession):
            for piece in pieces[:good]:
                size = len(piece.payload)
                await signals.send(signals.chunk_received, self.session, offset=offset, size=size)
                offset += size
        if good < len(pieces):
            self._rewind(self.received, "corrupt_chunk")
        self._checkpoint_if_due()

    def _append(self, pieces: Sequence[Piece]) -> int:
        if self.writer is None:
            self.writer = self.store.create(self.session.size)
        return self.writer.append(pieces)

    def _tap_failed(self, error: Exception) -> None:
        if not isinstance(error, UploadError):
            logger.error("A tap of upload %s failed", self.session.pk, exc_info=error)
            error = InternalError()
        self.lose(error)

    def _grant(self) -> None:
        unused = max(0, self.limit - self.received)
        granted = self.account.grant(unused)
        self.chunk = self.account.chunk(granted)
        limit = min(self.received + granted, self.durable + LARGEST_WINDOW)
        # Clients send as much as the limit allows: one that rose by less than a chunk would make their chunks short
        # for ever, the silly window syndrome of RFC 9293, section 3.8.6.2.
        if (chunks := (limit - self.limit) // self.chunk) > 0:
            self.limit += chunks * self.chunk
        elif unused < self.chunk:
            self.limit = max(self.limit, limit)

    def _rewind(self, offset: int, code: str) -> None:
        self.forget_queued()
        self.listener.rewound(offset, self.durable, self.limit, code)

    # Checkpoints --------------------------------------------------------------------------------

    @property
    def _unsaved(self) -> int:
        """Bytes since the last checkpoint."""
        return self.received - self._checkpoint.offset

    def _checkpoint_if_due(self) -> None:
        self._checkpoints.make_if_due(self._unsaved, self.received - self.durable)

    async def _make_checkpoint(self, rests: bool) -> None:
        try:
            checkpoint = await self._sync(rests=rests)
            await self.save(checkpoint, State.UPLOADING)
        except StorageFailed:
            self._sync_failed = True
        except UploadError as error:
            self.lose(error)
        except Exception:  # a bug, or the database's: the client is told, and may resume
            logger.exception("A checkpoint of upload %s failed", self.session.pk)
            self.lose(InternalError())

    async def _sync(self, *, rests: bool) -> Checkpoint:
        assert self.writer is not None
        owner = self.session.owner_key
        self._checkpoints.awaits_turn = True
        async with self.runtime.sync_turn(owner, is_slow=is_slow(self._unsaved), rests=rests):
            self._checkpoints.awaits_turn = False
            return await self.store.run(self.writer.sync)

    async def save(self, checkpoint: Checkpoint, state: State) -> None:
        """Save a checkpoint in the row, which makes its bytes durable. Raises the error that ended the upload."""
        values = rows.checkpoint_values(checkpoint)
        growth = None
        if self.session.size is None and state is State.UPLOADING:
            before = self._checkpoint.offset
            growth = Growth(self.session.owner_key, self.session.address, before, checkpoint.offset)
        change = Change(self.session.pk, self.session.epoch, state, values, growth=growth)
        await self.runtime.database.call(
            rows.change, change, owner=self.session.owner_key, patience=60.0
        )
        stale, self._checkpoint = self._checkpoint, checkpoint
        if stale.part and stale.part != checkpoint.part:
            await self.store.run(self.store.delete, stale.part)
        self.durable = max(self.durable, checkpoint.offset)
        self._advance_durable()
        self._grant()
        self.listener.acked()

    def _advance_durable(self) -> None:
        """Advance ``durable`` to the bytes that are durable without a checkpoint, now that the row names the part."""
        assert self.writer is not None
        if self._checkpoint.part == self.writer.part:
            # A running write may have made more bytes durable than were acked.
            self.durable = max(self.durable, min(self.received, self.writer.durable_unsynced))

    async def flush(self) -> None:
        """Make a checkpoint of all received bytes now, and ack it."""
        await self.finish_checkpoint()
        if self.writer is not None:
            await self._checkpoints.make_now(self._unsaved)

    async def check_quota(self) -> None:
        """Count all received bytes against the quotas. Raises the refusal of an upload of unknown size."""
        if self.session.size is None:
            await self.flush()
            self.raise_if_lost()

    async def finish_checkpoint(self) -> None:
        """Wait for a running checkpoint; cancel one that waits for its turn."""
        await self._checkpoints.finish_checkpoint()

    async def _go_back(self) -> None:
        """After a failed sync, go back to the last checkpoint in a new part.

        A failed fdatasync must never be tried again: https://wiki.postgresql.org/wiki/Fsync_Errors
        """
        self._sync_failed = False
        self._rewrites += 1
        if self._rewrites > MAX_REWRITES:
            raise StorageFailed
        await self.taps.caught_up()
        await self.finish_checkpoint()
        assert self.writer is not None
        async with self.runtime.slow_turns(self.session.owner_key):
            await self.store.run_slow(self.writer.rewrite, self._checkpoint)
        self.received = self.limit = self.writer.received
        self._grant()
        self.taps.miss()
        self._rewind(self.received, "storage_error")

    # The end ------------------------------------------------------------------------------------

    async def interrupt(self) -> int:
        """Make the received bytes durable, for the next holder; returns ``durable``.

        Called when the client leaves, or a newer connection takes the upload over: this holder may change the row until
        the newer one raises the epoch. Raises nothing: the resume proves bytes again that could not be saved.
        """
        await self.finish_checkpoint()
        holds = not isinstance(self._lost, UploadFailed)
        if self.writer is not None and holds and not self._sync_failed:
            try:
                await self.save(await self._sync(rests=False), State.INTERRUPTED)
            except UploadError as error:
                self.lose(error)
            except Exception:  # for example of the database: the resume proves the bytes again
                logger.exception("Upload %s could not be saved", self.session.pk)
                self.lose(InternalError())
        return self.durable

    async def close(self) -> None:
        """Close the part and free the credit, even if the task is cancelled."""
        try:
            await self.finish_checkpoint()
            self.taps.miss()
            await self.taps.caught_up()
        finally:
            try:
                if self.writer is not None:
                    await self.store.run(self.writer.close)
            finally:
                self.account.close()
                self.closed.set()
