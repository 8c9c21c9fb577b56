"""How fast an owner's connections are read where what comes moves no upload on."""

from __future__ import annotations

from typing import Final

FRAMES_PER_SECOND: Final = 4000
"""Of one owner. A server takes some tens of microseconds for each frame, however short it is."""
BURST_SECONDS: Final = 0.25


class Pace:
    """Counts the frames of all connections of one owner; times are those of the event loop, in seconds."""

    def __init__(self) -> None:
        self._due = 0.0

    def delay(self, now: float) -> float:
        """Count a frame; for so long its connection is not to be read."""
        self._due = max(self._due, now - BURST_SECONDS) + 1 / FRAMES_PER_SECOND
        return max(0.0, self._due - now)
