"""An upload that this process holds: one task takes its chunks from the queue to the disk."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from .. import signals
from ..exceptions import Busy, InternalError, StorageFailed, UploadError, UploadFailed
from ..models import UploadSession
from ..protocol import messages as m
from ..protocol.frames import HEADER_SIZE
from ..sessions import rows
from ..sessions.policies import check_size, smallest
from ..sessions.quotas import Growth
from ..sessions.rows import Change
from ..sessions.state import State
from ..stores.base import Checkpoint, Store, Writer
from ..stores.disk import boot_id
from .credit import FLOOR, LARGEST_WINDOW, WINDOW, Account

if TYPE_CHECKING:
    from .service import UploadService

logger = logging.getLogger("django_async_upload")

CHECKPOINT_BYTES: Final = 8 * WINDOW
"""A checkpoint is due after this many bytes. A resume reads again what is above it: some hundredths of a second."""
UNDURABLE_BYTES: Final = WINDOW // 2
"""And when so many are not durable: at half a window, so that the sender never waits for it."""
CHECKPOINT_SECONDS: Final = 1.0
SLOW_BYTES: Final = 256 * 1024
"""An upload that brought less since its last checkpoint waits four times as long for the next one."""
SLOWEST_SECONDS: Final = 32.0
MAX_QUEUED: Final = 4096
"""Frames that wait to be written. Credit counts payload: a flood of one-byte chunks is held by this."""
MAX_UNHASHED: Final = 8
"""Frames that the digest may be behind the writing."""
EVICTED_SECONDS: Final = 5.0
"""When a client may come back whose upload had to make room for others."""
MAX_REWRITES: Final = 3
"""How often a failing disk is given a new file before the upload is interrupted."""


class Listener(Protocol):
    """Whoever talks with the client. None of these may block or raise but where it says so."""

    def acked(self) -> None:
        """``received``, ``durable``, ``limit`` or ``chunk`` of the upload changed."""

    def rewound(self, offset: int, durable: int, limit: int, code: str) -> None:
        """Data from ``offset`` on must come again. Raises :class:`CorruptChunks` after too many."""

    def pause(self) -> None:
        """The credit that is not used is wanted back."""


class ActiveUpload:
    """The queue of one upload, the task that empties it, and what is known of its bytes.

    The shell calls :meth:`append`, :meth:`finish`, :meth:`cancel`, :meth:`release` and :meth:`lose`, which return
    at once; :meth:`write` is the task. It ends when all bytes are there and FINISH came, or with an error.
    """

    account: Account
    """Its credit."""

    def __init__(self, service: UploadService, listener: Listener) -> None:
        self.service = service
        self.listener = listener
        self.session: UploadSession
        self.max_size: int | None = None
        self.writer: Writer | None = None
        self.received = 0
        self.durable = 0
        self.limit = FLOOR
        self.chunk = FLOOR
        self.sha256: hashlib._Hash | None = None
        self.closed = asyncio.Event()
        """Set when the part is let go of."""
        self.name = ""
        """To publish under, once the host was asked: a small file's before it turned out to be unusual."""
        self.progress: m.Progress | None = None
        """After FINISH: how far the checks and the publication are."""
        self._frames: list[bytes] = []
        self._wake = asyncio.Event()
        self._proof: m.Proof | None = None
        self._finish: m.Finish | None = None
        self._wish: type[m.Cancel | m.Release] | None = None
        self._lost: UploadError | None = None
        self._hashing: asyncio.Task[None] | None = None
        self._unhashed: list[bytes] = []
        self._checkpoint = Checkpoint("")
        self._checkpointing: asyncio.Task[None] | None = None
        self._awaits_turn = False
        """The checkpoint that was begun waits for others of its owner."""
        self._checkpoint_due = 0.0
        self._checkpoint_seconds = CHECKPOINT_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._sync_failed = False
        self._rewrites = 0

    @property
    def store(self) -> Store:
        return self.service.store

    # What the shell says ------------------------------------------------------------------------

    def append(self, frame: bytes) -> None:
        """Queue a DATA frame that the protocol let in."""
        if len(self._frames) >= MAX_QUEUED:
            self.lose(Busy(retry_after=1.0))
        if self._lost is not None:  # its credit may be another upload's already
            return
        self._frames.append(frame)
        self._wake.set()

    def finish(self, message: m.Finish) -> None:
        self._finish = message
        self._wake.set()

    def cancel(self) -> None:
        self._wish = m.Cancel
        self._wake.set()

    def release(self) -> None:
        """Leave the upload as it is: the client asked for it, or its connection is gone."""
        self._wish = self._wish or m.Release
        self._wake.set()

    def lose(self, error: UploadError) -> None:
        """Stop at once: somebody else holds the upload, or it is over."""
        self._lost = self._lost or error
        self._wake.set()

    def evict(self) -> None:
        """Others need the memory that is kept for the upload: it can be attached again."""
        self.lose(Busy(retry_after=EVICTED_SECONDS))

    def prove(self, message: m.Proof) -> None:
        self._proof = message
        self._wake.set()

    def report(self, progress: m.Progress) -> None:
        """How far the checks and the publication are; may be called from any thread."""
        self.progress = progress

    def paused(self, offset: int) -> None:
        """The client stopped at ``offset`` and gave the credit above it back."""
        self.account.paused()
        self.limit = offset
        self._grant()
        self.listener.acked()

    # The task -----------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Checkpoint:
        """The last one that was written down."""
        return self._checkpoint

    @property
    def durable_crc(self) -> int:
        """CRC-32C of the first ``durable`` bytes of an upload that was attached."""
        assert self.writer is not None
        return self.writer.crc if self.durable == self.received else self._checkpoint.crc

    @property
    def queued(self) -> list[bytes]:
        """The frames that wait to be written."""
        return self._frames

    @property
    def finishing(self) -> m.Finish | None:
        """FINISH, once it came."""
        return self._finish

    @property
    def is_cancelled(self) -> bool:
        return self._wish is m.Cancel

    def begin(self, session: UploadSession, max_size: int | None) -> None:
        """A new upload: the part is made with the first bytes, or by :meth:`reserve`."""
        self.session = session
        self.max_size = max_size
        if session.digest:
            self.sha256 = hashlib.sha256()
        self._checkpoint_due = time.monotonic() + CHECKPOINT_SECONDS

    def resume(self, session: UploadSession, max_size: int | None, writer: Writer) -> None:
        """An upload that was begun before. Call :meth:`forget_queued` when the client is told."""
        self.begin(session, smallest(max_size, session.field_max_size))
        self.sha256 = None  # its state cannot be saved: the file is read again at the end
        self.writer = writer
        self._checkpoint = session.checkpoint
        self.received = writer.received
        # Less than the row says only where durability "os" met a crash of the machine, which it does not outlive.
        self.durable = min(session.durable, writer.received)
        self._settle_written()
        self.limit = self.received
        self._grant()

    def forget_queued(self) -> None:
        """Data and FINISH that came before the client knew where to go on are void."""
        self._frames.clear()
        self._finish = None

    async def reserve(self) -> None:
        """Make the part now, so that a full disk is an error before any byte is sent.

        Its name is written down at once: nothing may come for long, and the purge takes what no row names.
        """
        try:
            self.writer = await self.store.run(self.store.create, self.session.size)
        except UploadError:
            # The client has had no answer: neither the upload nor its size shall count against its owner.
            await self.service.forget(self.session)
            raise
        await self.save(Checkpoint(self.writer.part, boot_id=boot_id()), State.UPLOADING)

    async def proof(self) -> m.Proof | type[m.Cancel | m.Release]:
        """The client's PROOF, or what it wants instead. Raises what ended the upload meanwhile."""
        while True:
            if self._lost is not None:
                raise self._lost
            if self._wish is not None:
                return self._wish
            if self._proof is not None:
                return self._proof
            self._wake.clear()
            await self._wake.wait()

    async def go_back_to_checkpoint(self) -> None:
        """Only what is durable was proved: throw away what is above."""
        assert self.writer is not None
        await self.store.run(self.writer.truncate, self._checkpoint)
        self.received = self.writer.received
        self.limit = self.received
        self._grant()

    async def write(self) -> m.Finish | type[m.Cancel | m.Release]:
        """Write what comes until FINISH, CANCEL or RELEASE, and return which.

        At FINISH and RELEASE everything that came before is written. Raises :class:`TakenOver` and other
        :class:`UploadError`; call :meth:`close` in any case.
        """
        while True:
            if self._lost is not None:
                raise self._lost
            if self._sync_failed:
                await self._go_back()
            elif self._wish is m.Cancel:
                return self._wish
            elif self._frames:
                await self._write_queued()
            elif self._finish is not None:
                self.account.complete()
                return self._finish
            elif self._wish is not None:
                return self._wish
            else:
                self._checkpoint_if_due()
                self._wake.clear()
                await self._wake.wait()

    async def _write_queued(self) -> None:
        frames, self._frames = self._frames, []
        good = await self._append(frames)
        assert self.writer is not None
        offset, self.received = self.received, self.writer.received
        self._settle_written()
        check_size(self.received, self.max_size)
        self.account.consume(self.received - offset)
        self._grant()
        self.listener.acked()
        if signals.chunk_received.has_listeners(UploadSession):
            for frame in frames[:good]:
                size = len(frame) - HEADER_SIZE
                await signals.send(signals.chunk_received, self.session, offset=offset, size=size)
                offset += size
        if good < len(frames):
            self._rewind(self.received, "corrupt_chunk")
        self._checkpoint_if_due()

    async def _append(self, frames: list[bytes]) -> int:
        if self.sha256 is None:
            return await self.store.run(self._append_in_thread, frames)
        # The digest is computed beside the next write, never in front of one.
        good = await self.store.run(self._append_in_thread, frames)
        if len(self._unhashed) > MAX_UNHASHED:
            await self.hashed()
        self._unhashed += frames[:good]
        if self._hashing is None:
            self._hashing = asyncio.create_task(self._hash_written())
        return good

    def _append_in_thread(self, frames: Sequence[bytes]) -> int:
        if self.writer is None:
            self.writer = self.store.create(self.session.size)
        return self.writer.append(frames)

    async def _hash_written(self) -> None:
        try:
            while self._unhashed:
                frames, self._unhashed = self._unhashed, []
                await self.store.run(self._hash, frames)
        finally:
            self._hashing = None

    def _hash(self, frames: Sequence[bytes]) -> None:
        assert self.sha256 is not None
        for frame in frames:
            self.sha256.update(memoryview(frame)[HEADER_SIZE:])

    async def hashed(self) -> None:
        """Wait until the digest covers what was written."""
        if self._hashing is not None:
            await self._hashing

    def _grant(self) -> None:
        unused = max(0, self.limit - self.received)
        granted = self.account.grant(unused)
        self.limit = max(self.limit, min(self.received + granted, self.durable + LARGEST_WINDOW))
        self.chunk = self.account.chunk(granted)

    def _rewind(self, offset: int, code: str) -> None:
        self.forget_queued()
        self.listener.rewound(offset, self.durable, self.limit, code)

    # Checkpoints --------------------------------------------------------------------------------

    def _checkpoint_if_due(self) -> None:
        ahead = self.received - self._checkpoint.offset
        if self._checkpointing is not None or not ahead:
            return
        now = time.monotonic()
        if (
            ahead >= CHECKPOINT_BYTES
            or self.received - self.durable >= UNDURABLE_BYTES
            or now >= self._checkpoint_due
        ):
            self._checkpointing = asyncio.create_task(self._run_checkpoint())
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._checkpoint_due - now, self._timer_rang)

    def _timer_rang(self) -> None:
        self._timer = None
        self._wake.set()

    async def _run_checkpoint(self, *, rests: bool = True) -> None:
        is_slow = self._is_slow
        try:
            assert self.writer is not None
            checkpoint = await self._sync(rests=rests)
            await self.save(checkpoint, State.UPLOADING)
        except StorageFailed:
            self._sync_failed = True
        except UploadError as error:
            self.lose(error)
        except Exception:
            logger.exception("A checkpoint of upload %s failed", self.session.pk)
            self.lose(InternalError())
        finally:
            self._checkpointing = None
            # A thousand uploads of a byte a second must not keep the disk from syncing what others sent.
            self._checkpoint_seconds = (
                min(4 * self._checkpoint_seconds, SLOWEST_SECONDS)
                if is_slow
                else CHECKPOINT_SECONDS
            )
            self._checkpoint_due = time.monotonic() + self._checkpoint_seconds
            self._wake.set()

    @property
    def _is_slow(self) -> bool:
        return self.received - self._checkpoint.offset < SLOW_BYTES

    async def _sync(self, *, rests: bool) -> Checkpoint:
        assert self.writer is not None
        owner = self.session.owner_key
        self._awaits_turn = True
        async with self.service.sync_turn(owner, is_slow=self._is_slow, rests=rests):
            self._awaits_turn = False
            return await self.store.run(self.writer.sync)

    async def save(self, checkpoint: Checkpoint, state: State) -> None:
        """Write a checkpoint down; from then on it is durable. Raises what ended the lease."""
        values = rows.checkpoint_values(checkpoint)
        growth = None
        if self.session.size is None and state is State.UPLOADING:
            before = self._checkpoint.offset
            growth = Growth(self.session.owner_key, self.session.address, before, checkpoint.offset)
        change = Change(self.session.pk, self.session.epoch, state, values, growth=growth)
        await self.service.database.call(
            rows.change, change, owner=self.session.owner_key, patience=60.0
        )
        stale, self._checkpoint = self._checkpoint, checkpoint
        if stale.part and stale.part != checkpoint.part:
            await self.store.run(self.store.delete, stale.part)
        self.durable = max(self.durable, checkpoint.offset)
        self._settle_written()
        self._grant()
        self.listener.acked()

    def _settle_written(self) -> None:
        """What was written may be durable already, now that the row names the part."""
        assert self.writer is not None
        if self._checkpoint.part == self.writer.part:
            # A write that is still under way may have settled more than anybody was told of.
            self.durable = max(self.durable, min(self.received, self.writer.settled))

    async def flush(self) -> None:
        """Have everything received written down now, and acked."""
        await self.settle()
        if self.writer is not None and self.received > self._checkpoint.offset:
            self._checkpointing = asyncio.create_task(self._run_checkpoint(rests=False))
            await self.settle()

    async def check_quota(self) -> None:
        """Count everything received. Raises what refuses an upload that turned out larger than was declared."""
        if self.session.size is None:
            await self.flush()
            if self._lost is not None:
                raise self._lost

    async def settle(self) -> None:
        """Wait for the checkpoint that runs; one that waits for its turn is given up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (checkpointing := self._checkpointing) is not None:
            if self._awaits_turn:  # what follows makes more durable
                self._awaits_turn = False
                checkpointing.cancel()
            await asyncio.wait({checkpointing})
            if self._checkpointing is checkpointing:  # it was cancelled before it ran
                self._checkpointing = None

    async def _go_back(self) -> None:
        """After a failed sync nothing above the last checkpoint counts: begin there, in a new file.

        A failed fdatasync must never be tried again: https://wiki.postgresql.org/wiki/Fsync_Errors
        """
        self._sync_failed = False
        self._rewrites += 1
        if self._rewrites > MAX_REWRITES:
            raise StorageFailed
        await self.hashed()
        await self.settle()
        assert self.writer is not None
        async with self.service.slow_turns(self.session.owner_key):
            await self.store.run_slow(self.writer.rewrite, self._checkpoint)
        self.received = self.limit = self.writer.received
        self._grant()
        self.sha256 = None
        self._rewind(self.received, "storage_error")

    # The end ------------------------------------------------------------------------------------

    async def interrupt(self) -> int:
        """Make durable what was received, for whoever resumes; returns ``durable``.

        Used when the client leaves, or a newer connection wants the upload: the row is this one's until the newer
        one has claimed it, and the epoch refuses what comes later. Raises nothing: what could not be
        saved is proved again at the resume.
        """
        await self.settle()
        holds = not isinstance(self._lost, UploadFailed)
        if self.writer is not None and holds and not self._sync_failed:
            try:
                await self.save(await self._sync(rests=False), State.INTERRUPTED)
            except UploadError as error:
                self.lose(error)
            except Exception:  # of the database's, say: the resume proves the bytes again
                logger.exception("Upload %s could not be saved", self.session.pk)
                self.lose(InternalError())
        return self.durable

    async def close(self) -> None:
        """Let go of the part and of the credit, also where it is cancelled."""
        try:
            await self.settle()
            if self._hashing is not None:
                await asyncio.wait({self._hashing})
        finally:
            try:
                if self.writer is not None:
                    await self.store.run(self.writer.close)
            finally:
                self.account.close()
                self.closed.set()
