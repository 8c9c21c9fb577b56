"""The pieces of an upload that wait to be written, and the batches in which they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..stores.base import Piece
from .flow import Flow

MAX_PIECES: Final = 4096
"""Limit of queued pieces: credit limits only payload, and this a flood of one-byte chunks."""
BATCH_BYTES: Final = 2 * 1024 * 1024
"""Bytes that are written together, without waiting for more: these, or a quarter of the credit."""
BATCH_SECONDS: Final = 0.003
"""Seconds that the writer waits for so many."""


class Queue:
    """The queue of one upload. A door fills it, and the upload's task takes batches from it."""

    def __init__(self, flow: Flow, wake: Callable[[], None]) -> None:
        """``wake`` is called when a batch may be due."""
        self.pieces: list[Piece] = []
        self.size: int | None = None
        """Declared size of the file, bytes; None where it is unknown."""
        self._flow = flow
        self._wake = wake
        self._queued = 0
        """Bytes of the pieces."""
        self._has_ended = False
        """Whether the client sends no more, so that nothing waits for more."""
        self._waits_no_more = False
        """Whether the pieces wait for no more: they were enough, or have waited for :data:`BATCH_SECONDS`."""
        self._timer: asyncio.TimerHandle | None = None

    def put(self, piece: Piece) -> bool:
        """Add the next bytes; returns False where there is no room for one more piece."""
        if len(self.pieces) >= MAX_PIECES:
            return False
        self.pieces.append(piece)
        self._queued += len(piece.payload)
        if self.is_due:
            # They stay due: no timer runs, and the limit may rise before the writer looks.
            self._waits_no_more = True
            self._wake()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(BATCH_SECONDS, self._stop_waiting)
        return True

    def end(self) -> None:
        """The client sends no more: what is queued is due."""
        self._has_ended = True
        self._wake()

    @property
    def is_due(self) -> bool:
        """Whether a batch is written now: a thread hop costs as much as writing a few hundred KiB."""
        if not self.pieces:
            return False
        flow, queued = self._flow, self._queued
        return (
            self._waits_no_more
            or self._has_ended
            or queued >= BATCH_BYTES
            or queued >= (flow.limit - flow.received) // 4
            or queued + flow.received == self.size
        )

    def take_batch(self) -> list[Piece]:
        """Take the pieces, but little more than :data:`BATCH_BYTES`: the client has credit again after each batch."""
        if self._queued <= BATCH_BYTES:
            return self._take_all()
        count = size = 0
        while size < BATCH_BYTES:
            size += len(self.pieces[count].payload)
            count += 1
        batch, self.pieces = self.pieces[:count], self.pieces[count:]
        self._queued -= size
        self._waits_no_more = True  # the rest waits while this is written
        return batch

    def clear(self) -> None:
        """Discard the pieces: the client sends them again, and more."""
        self._take_all()
        self._has_ended = False

    def _take_all(self) -> list[Piece]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces, self.pieces = self.pieces, []
        self._queued = 0
        self._waits_no_more = False
        return pieces

    def _stop_waiting(self) -> None:
        self._timer = None
        self._waits_no_more = True
        self._wake()
