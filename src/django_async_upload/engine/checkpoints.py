"""When an upload makes its checkpoints: one at a time, after so many bytes or seconds, and where it is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from .credit import WINDOW

CHECKPOINT_BYTES: Final = 8 * WINDOW
"""Bytes after which a checkpoint is due. A resume reads the bytes above it again: some hundredths of a second."""
UNDURABLE_BYTES: Final = WINDOW // 2
"""Bytes that are not durable, half a window, at which a checkpoint is due, so that the sender never waits for one."""
CHECKPOINT_SECONDS: Final = 1.0
SLOW_BYTES: Final = 256 * 1024
"""An upload that received fewer bytes since its last checkpoint waits four times as long for the next one."""
SLOWEST_SECONDS: Final = 32.0


def is_slow(unsaved: int) -> bool:
    """Whether an upload with so many bytes since its last checkpoint makes fewer of them."""
    return unsaved < SLOW_BYTES


class Checkpoints:
    """The schedule of one upload, and the task of its current checkpoint."""

    def __init__(self, make: Callable[[bool], Awaitable[None]], wake: Callable[[], None]) -> None:
        """``make`` makes a checkpoint, and handles its errors; it is called with whether it may rest before it, for
        slow uploads of the owner. ``wake`` is called after it, and when the next one is due."""
        self._make = make
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self.awaits_turn = False
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

    def make_if_due(self, unsaved: int, undurable: int) -> None:
        """Start a checkpoint, or the timer for it. ``unsaved`` are the bytes since the last one, ``undurable`` those
        that the client must keep."""
        if self._task is not None or not unsaved:
            return
        now = time.monotonic()
        if unsaved >= CHECKPOINT_BYTES or undurable >= UNDURABLE_BYTES or now >= self._due:
            self._start(unsaved, rests=True)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._due - now, self._ring)

    async def make_now(self, unsaved: int) -> None:
        """Make a checkpoint where none is running, without rest."""
        if unsaved:
            self._start(unsaved, rests=False)
            await self.finish_checkpoint()

    async def finish_checkpoint(self) -> None:
        """Wait for a running checkpoint; cancel one that waits for its turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (task := self._task) is not None:
            if self.awaits_turn:  # the caller makes a later checkpoint
                self.awaits_turn = False
                task.cancel()
            await asyncio.wait({task})
            if self._task is task:  # cancelled before it ran
                self._task = None

    def _ring(self) -> None:
        self._timer = None
        self._wake()

    def _start(self, unsaved: int, *, rests: bool) -> None:
        self._task = asyncio.create_task(self._run(is_slow(unsaved), rests=rests))

    async def _run(self, was_slow: bool, *, rests: bool) -> None:
        try:
            await self._make(rests)
        finally:
            self._task = None
            # A thousand uploads of a byte per second must not keep the disk busy with their syncs.
            longer = min(4 * self._seconds, SLOWEST_SECONDS)
            self._seconds = longer if was_slow else CHECKPOINT_SECONDS
            self._due = time.monotonic() + self._seconds
            self._wake()
