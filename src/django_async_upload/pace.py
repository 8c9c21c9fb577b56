"""How fast an owner's connections are read where what comes moves no upload on."""

from __future__ import annotations

from typing import Final

FRAMES_PER_SECOND: Final = 2000
"""Of one owner. A server takes some tens of microseconds for each frame, however short it is."""
SHORT_CHUNK: Final = 16
"""So many frames a chunk that is not worth its way to the disk counts as, at most."""
QUESTION: Final = 24
"""And one that makes a task, asks the database and is answered."""
BURST_SECONDS: Final = 0.25


class Pace:
    """Counts the frames of all connections of one owner; times are those of the event loop, in seconds."""

    def __init__(self) -> None:
        self._due = 0.0

    def has_rested(self, now: float) -> bool:
        """Whether the owner has not sent as fast as he may for a while."""
        return now - self._due > BURST_SECONDS / 2

    def delay(self, now: float, frames: int) -> float:
        """Count frames; for so long their connection is not to be read."""
        self._due = max(self._due, now - BURST_SECONDS) + frames / FRAMES_PER_SECOND
        return max(0.0, self._due - now)
