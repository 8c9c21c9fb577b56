"""Limits on rates: of an owner's frames with little or no data, and of events that concern one of many things."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

FRAMES_PER_SECOND: Final = 2000
"""Frames read from one owner, at all processes. A server needs some tens of microseconds per frame, however short."""
SHORT_CHUNK: Final = 16
"""Number of frames, at most, that a chunk too short to be worth a write counts as."""
QUESTION: Final = 24
"""Number of frames that a message counts as which starts a task, queries the database and is answered."""
BURST_SECONDS: Final = 0.25


class Pace:
    """Counts the frames of all connections of one owner; times are those of the event loop, in seconds."""

    processes = 1
    """The number of processes that the owner is connected to: each of them reads its part."""

    def __init__(self) -> None:
        self._due = 0.0

    def has_rested(self, now: float) -> bool:
        """Whether the owner has stayed below the limit for a while."""
        return now - self._due > BURST_SECONDS / 2

    def delay(self, now: float, frames: int) -> float:
        """Count ``frames`` frames; returns the seconds for which their connection must not be read."""
        seconds = frames * self.processes / FRAMES_PER_SECOND
        self._due = max(self._due, now - BURST_SECONDS) + seconds
        return max(0.0, self._due - now)


class Rates:
    """Limits how often something happens to each of many things: ``burst`` times at once, then every ``seconds``."""

    def __init__(self, burst: int, seconds: float) -> None:
        self._burst_seconds = burst * seconds
        self._seconds = seconds
        self._due: dict[Hashable, float] = {}
        """When each is back at its full burst. Those that are due are forgotten."""

    def delay(self, key: Hashable, now: float) -> float:
        """Count one event; for one that comes too early returns the seconds until it may, and does not count it."""
        due = max(self._due.pop(key, now), now) + self._seconds
        while self._due and (oldest := next(iter(self._due.items())))[1] <= now:
            del self._due[oldest[0]]
        wait = due - now - self._burst_seconds
        self._due[key] = due if wait <= 0 else due - self._seconds
        return max(0.0, wait)
