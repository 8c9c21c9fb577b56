"""A limit on the rate at which an owner's frames with little or no data are read."""

from __future__ import annotations

from typing import Final

FRAMES_PER_SECOND: Final = 2000
"""Frames read from one owner. A server needs some tens of microseconds per frame, however short it is."""
SHORT_CHUNK: Final = 16
"""Number of frames, at most, that a chunk too short to be worth a write counts as."""
QUESTION: Final = 24
"""Number of frames that a message counts as which starts a task, queries the database and is answered."""
BURST_SECONDS: Final = 0.25


class Pace:
    """Counts the frames of all connections of one owner; times are those of the event loop, in seconds."""

    def __init__(self) -> None:
        self._due = 0.0

    def has_rested(self, now: float) -> bool:
        """Whether the owner has stayed below the limit for a while."""
        return now - self._due > BURST_SECONDS / 2

    def delay(self, now: float, frames: int) -> float:
        """Count ``frames`` frames; returns the seconds for which their connection must not be read."""
        self._due = max(self._due, now - BURST_SECONDS) + frames / FRAMES_PER_SECOND
        return max(0.0, self._due - now)
