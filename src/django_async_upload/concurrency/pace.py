"""How fast an owner's connections are read when their frames carry little or no data."""

from __future__ import annotations

from typing import Final

FRAMES_PER_SECOND: Final = 2000
"""Read from one owner at most. A server takes some tens of microseconds for each frame, however short it is."""
SHORT_CHUNK: Final = 16
"""A chunk too short to be worth a write counts as so many frames, at most."""
QUESTION: Final = 24
"""A message that makes a task, asks the database and is answered counts as so many frames."""
BURST_SECONDS: Final = 0.25


class Pace:
    """Counts the frames of all connections of one owner; times are those of the event loop, in seconds."""

    def __init__(self) -> None:
        self._due = 0.0

    def has_rested(self, now: float) -> bool:
        """Whether the owner has sent more slowly than he may for a while."""
        return now - self._due > BURST_SECONDS / 2

    def delay(self, now: float, frames: int) -> float:
        """Count ``frames`` frames; returns for how many seconds their connection must not be read."""
        self._due = max(self._due, now - BURST_SECONDS) + frames / FRAMES_PER_SECOND
        return max(0.0, self._due - now)
