"""The checkpoints of an upload: one at a time, after so many bytes or seconds, and where it is asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from ..exceptions import InternalError, StorageFailed, UploadError
from ..notices import about
from ..sessions.state import State
from ..stores.base import Checkpoint
from .credit import WINDOW
from .flow import Flow
from .part import UploadPart
from .runtime import Runtime

logger = logging.getLogger("django_async_upload")

CHECKPOINT_BYTES: Final = 8 * WINDOW
"""Bytes after which a checkpoint is due. A resume reads the bytes above it again: some hundredths of a second."""
UNDURABLE_BYTES: Final = WINDOW // 2
"""Bytes that are not durable, half a window, at which a checkpoint is due, so that the sender never waits for one."""
CHECKPOINT_SECONDS: Final = 1.0
SLOW_BYTES: Final = 256 * 1024
"""An upload that received fewer bytes since its last checkpoint waits four times as long for the next one."""
SLOWEST_SECONDS: Final = 32.0


class Checkpoints:
    """The schedule of one upload's checkpoints, the task of the current one, and what it changes."""

    def __init__(
        self,
        runtime: Runtime,
        part: UploadPart,
        flow: Flow,
        *,
        wake: Callable[[], None],
        lose: Callable[[UploadError], None],
    ) -> None:
        """``wake`` is called after a checkpoint, and when the next one is due; ``lose`` with an error of one."""
        self.sync_failed = False
        """Whether the part has to be written again, since a sync of it failed."""
        self._runtime = runtime
        self._part = part
        self._flow = flow
        self._wake = wake
        self._lose = lose
        self._task: asyncio.Task[None] | None = None
        self._awaits_turn = False
        """Whether the current checkpoint waits for other uploads of the owner."""
        self._due = 0.0
        self._seconds = CHECKPOINT_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_scheduled(self) -> bool:
        """Whether the next one has a time."""
        return self._timer is not None

    def begin(self) -> None:
        """Count the seconds to the first checkpoint from now."""
        self._due = time.monotonic() + CHECKPOINT_SECONDS

    def make_if_due(self) -> None:
        """Start a checkpoint, or the timer for it."""
        unsaved = self._unsaved
        if self._task is not None or not unsaved:
            return
        now = time.monotonic()
        undurable = self._flow.received - self._flow.durable
        if unsaved >= CHECKPOINT_BYTES or undurable >= UNDURABLE_BYTES or now >= self._due:
            self._start(rests=True)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._due - now, self._ring)

    async def make_now(self) -> None:
        """Make a checkpoint of all received bytes, without rest."""
        await self.finish()
        if self._unsaved:
            self._start(rests=False)
            await self.finish()

    async def make_last(self) -> None:
        """Make the checkpoint of an upload that is interrupted, unless its part has to be written again."""
        if self._part.writer is not None and not self.sync_failed:
            await self._make(State.INTERRUPTED, rests=False)

    async def save(self, checkpoint: Checkpoint, state: State) -> None:
        """Save a checkpoint in the row, which makes its bytes durable. Raises the error that ended the upload."""
        await self._part.save(checkpoint, state)
        self._flow.keep(checkpoint.offset)
        self._flow.keep(self._part.durable(self._flow.received))
        self._flow.grant()

    async def finish(self) -> None:
        """Wait for a running checkpoint; cancel one that waits for its turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (task := self._task) is not None:
            if self._awaits_turn:  # the caller makes a later checkpoint
                self._awaits_turn = False
                task.cancel()
            await asyncio.wait({task})
            if self._task is task:  # cancelled before it ran
                self._task = None

    @property
    def _unsaved(self) -> int:
        """Bytes since the last checkpoint."""
        return self._flow.received - self._part.checkpoint.offset

    @property
    def _is_slow(self) -> bool:
        """Whether the upload received so little that it makes fewer checkpoints."""
        return self._unsaved < SLOW_BYTES

    def _ring(self) -> None:
        self._timer = None
        self._wake()

    def _start(self, *, rests: bool) -> None:
        self._task = asyncio.create_task(self._run(was_slow=self._is_slow, rests=rests))

    async def _run(self, *, was_slow: bool, rests: bool) -> None:
        try:
            await self._make(State.UPLOADING, rests=rests)
        finally:
            self._task = None
            # A thousand uploads of a byte per second must not keep the disk busy with their syncs.
            longer = min(4 * self._seconds, SLOWEST_SECONDS)
            self._seconds = longer if was_slow else CHECKPOINT_SECONDS
            self._due = time.monotonic() + self._seconds
            self._wake()

    async def _make(self, state: State, *, rests: bool) -> None:
        try:
            await self.save(await self._sync(rests=rests), state)
        except StorageFailed:
            self.sync_failed = True
        except UploadError as error:
            self._lose(error)
        except Exception:  # a bug, or the database's: the client is told, and may resume
            session = self._part.session
            extra = about(session, code="internal_error")
            logger.exception("A checkpoint of upload %s failed", session.pk, extra=extra)
            self._lose(InternalError())

    async def _sync(self, *, rests: bool) -> Checkpoint:
        """Sync the part in the owner's turn, and rest before the next turn of a slow upload where it ``rests``."""
        owner = self._part.session.owner_key
        self._awaits_turn = True
        async with self._runtime.sync_turn(owner, is_slow=self._is_slow, rests=rests):
            self._awaits_turn = False
            return await self._part.sync()
