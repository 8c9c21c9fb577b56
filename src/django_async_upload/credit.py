"""Credit: how far ahead each upload of a process may be sent, so that all of them fit its memory.

Every open stream has a floor. Above it, it is promised what it consumed in the last second, at most a window,
within its fair share of the budget. Promises are absolute offsets and cannot be taken back silently: a stream
that holds more than the floor and sends nothing is asked to pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .exceptions import Busy

FLOOR: Final = 16 * 1024
WINDOW: Final = 8 * 1024 * 1024
LARGEST_CHUNK: Final = 512 * 1024 - 4096
"""Advised, bytes. A frame may be twice as long, but an ASGI server assembles a message by copying what it has of it."""
CHUNK_SECONDS: Final = 0.2
"""A chunk should take about this long at the measured rate."""

_PAGE: Final = 4096


def keep_freed_memory() -> None:
    """Have malloc keep what the last messages were made of for the next ones.

    glibc gives a freed block of more than 128 KiB back to the kernel, and each message pays for fresh ones. The largest
    block that was ever freed raises that threshold, and what is kept to twice as much (mallopt(3), M_MMAP_THRESHOLD).
    So one is freed, whose pages were never touched. Elsewhere this does nothing.
    """
    bytearray(2 * WINDOW)


class Budget:
    """The credit of one process, in bytes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.promised = 0
        self.accounts: set[Account] = set()

    @property
    def fair_share(self) -> int:
        # Of half the budget: what is on its way may take as much again in the server, whose buffers do not shrink.
        return max(FLOOR, self.total // 2 // max(1, len(self.accounts)))

    def open(self, pause: Callable[[], None]) -> Account:
        """A new account with the floor. Raises :class:`Busy` where not even that is left.

        ``pause`` is called when the stream should give its unused credit back.
        """
        if self.promised + FLOOR > self.total:
            self.reclaim()
            raise Busy(retry_after=1.0)
        account = Account(self, pause)
        self.accounts.add(account)
        return account

    def reclaim(self) -> None:
        """Ask those who hold credit and do not use it to pause."""
        now = time.monotonic()
        for account in self.accounts:
            if account.promised > FLOOR and account.rate(now) == 0 and not account.is_pausing:
                account.is_pausing = True
                account.pause()


class Account:
    """The credit of one upload."""

    def __init__(self, budget: Budget, pause: Callable[[], None]) -> None:
        self.budget = budget
        self.pause = pause
        self.is_pausing = False
        self.promised = 0
        self._second = time.monotonic()
        self._current = 0
        self._previous = 0
        self._promise(FLOOR)

    def rate(self, now: float) -> int:
        """Bytes consumed in a second: the better of this one, so far, and the last."""
        age = now - self._second
        if age >= 1.0:
            self._previous = self._current if age < 2.0 else 0
            self._current = 0
            self._second = now
        return max(self._previous, self._current)

    def consume(self, size: int) -> None:
        """``size`` promised bytes came and were written."""
        self.rate(time.monotonic())
        self._current += size
        self._promise(max(FLOOR, self.promised - size))

    def grant(self, unused: int) -> int:
        """How far beyond what was received the limit may be now, bytes; never less than ``unused``.

        ``unused`` is how far it is already.
        """
        if self.is_pausing:
            return unused
        rate = self.rate(time.monotonic())
        wanted = min(max(rate, FLOOR), WINDOW, self.budget.fair_share)
        room = self.budget.total - self.budget.promised + self.promised
        if wanted > room:
            self.budget.reclaim()
        granted = max(unused, min(wanted, room))
        self._promise(max(FLOOR, granted))
        return granted

    def chunk(self, granted: int) -> int:
        """The advised chunk size, bytes: a fifth of a second's worth, and several to a grant."""
        size = min(int(self.rate(time.monotonic()) * CHUNK_SECONDS), granted // 4, LARGEST_CHUNK)
        return max(FLOOR, size // _PAGE * _PAGE)

    def paused(self) -> None:
        """The stream gave its unused credit back."""
        self.is_pausing = False
        self._promise(FLOOR)

    def close(self) -> None:
        self.budget.promised -= self.promised
        self.promised = 0
        self.budget.accounts.discard(self)

    def _promise(self, size: int) -> None:
        self.budget.promised += size - self.promised
        self.promised = size
