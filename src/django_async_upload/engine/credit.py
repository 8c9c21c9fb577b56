"""Credit: how far ahead the client of each upload may send, so that all uploads fit into a process's memory.

Every open upload has the credit of a floor. Above that it gets what it consumed in the last second, or in its first
second four times what it has consumed, at most the largest window and its fair share of the budget: owners with
uploads that recently needed more than the floor share equally, then each owner's uploads. No owner has more than
:data:`OWNER_PART`; the rest is for others. Credit is granted as absolute offsets and cannot be taken back silently: a
stream with far more than it uses is asked to pause, and closed if it does not answer. Where no floor is left, an
owner with few uploads gets the floor of an upload of the owner with the most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..exceptions import Busy

Key = TypeVar("Key")
Value = TypeVar("Value")

FLOOR: Final = 16 * 1024
WINDOW: Final = 8 * 1024 * 1024
"""Bytes beyond ``durable`` that every client may send; HELLO announces it."""
LARGEST_WINDOW: Final = 4 * WINDOW
"""Bytes beyond ``durable`` where the budget has room: at 100 ms of delay 8 MiB are 84 MB/s, 32 MiB are 335 MB/s."""
LARGEST_CHUNK: Final = 512 * 1024 - 4096
"""Largest advised chunk, bytes. A frame may be twice as long, but ASGI servers copy what they assemble."""
CHUNK_SECONDS: Final = 0.4
"""Seconds that a chunk should take at the measured rate."""
RAMP: Final = 4
"""How much more than it has consumed an upload may send in its first second: four times as much with each answer."""
HEAD_START: Final = 512 * 1024
"""Bytes that the client of a resumed upload may send at once, but no more than the server has of the file already.

With a floor it would have to gather speed again after each cut of its network."""
OWNER_PART: Final = 0.75
"""The part of the budget, and of the number of uploads, that one owner may have, even if others are idle."""
FLOORS_PART: Final = 0.125
"""The part of the budget that is left for the floors of new uploads: running ones may exceed their fair share."""
MOVING_SECONDS: Final = 2.0
"""Seconds without a byte after which an upload no longer counts for the shares of credit."""
IDLE_SECONDS: Final = 10.0
"""Seconds without a byte after which an upload may lose its floor to another upload of its owner."""
PAUSE_SECONDS: Final = 5.0
"""Seconds that a client may take to answer PAUSE."""

_PAGE: Final = 4096
_RECLAIM_SECONDS: Final = 0.1
_SLACK: Final = 4
"""Seconds of credit, at the stream's rate, that the stream may keep unused."""


def keep_freed_memory() -> None:
    """Raise glibc's mmap threshold, so that malloc reuses the memory of messages.

    glibc returns freed blocks of more than 128 KiB to the kernel, and each message pays for new pages. Freeing a larger
    block raises this threshold to its size, and the trim threshold to twice that (mallopt(3), M_MMAP_THRESHOLD). So
    this frees a block whose pages were never touched. With another libc it does nothing.
    """
    bytearray(2 * WINDOW)


class Budget:
    """The credit of one process: ``total`` bytes, for at most ``max_uploads`` uploads at once (None: any number)."""

    def __init__(self, total: int, max_uploads: int | None = None) -> None:
        self.total = total
        self.max_uploads = max_uploads
        self.promised = 0
        self.accounts: set[Account] = set()
        self._shares: dict[str, Share] = {}
        self._moving: dict[Share, float] = {}
        self._pausing: dict[Account, float] = {}
        self._reclaimed = 0.0

    def open(
        self,
        owner: str,
        *,
        pause: Callable[[], None],
        evict: Callable[[], None],
        held: int = 0,
    ) -> Account:
        """Open an account for an upload of ``owner``: it takes the floor, and ``held`` bytes while it is open.

        ``pause`` is called when the client should return unused credit, ``evict`` when the stream must end, after
        its account was closed. Raises :class:`Busy` where not even the floor is left.
        """
        account = Account(self, pause, evict)
        account.enter(owner, FLOOR, held)
        return account

    def make_room(self, owner: str, size: int) -> Share:
        """Make room for one more account and ``size`` bytes; returns the owner's share. Raises :class:`Busy`."""
        share = self._shares.get(owner) or Share(self, owner)
        while not self._fits(share, size):
            self.reclaim()
            if self._fits(share, size):
                break
            idlest = self._idlest(share)
            if idlest is None:
                raise Busy(retry_after=1.0)
            idlest.evict()
        return self._shares.setdefault(owner, share)

    def forget(self, share: Share) -> None:
        """Remove the share of an owner whose last account was closed."""
        self._moving.pop(share, None)
        del self._shares[share.owner]

    def fair_share(self, account: Account, now: float) -> int:
        """The fair share of an account, bytes: divided among owners first, then among uploads, of active ones only."""
        share = account.share
        owners = _count_moving(self._moving, now, share)
        uploads = _count_moving(share.moving, now, account)
        # Half of the budget is shared: the ASGI server buffers bytes in flight once more, and keeps its buffers.
        return max(FLOOR, self.total // 2 // owners // uploads)

    def moved(self, account: Account, now: float) -> None:
        _note(account.share.moving, account, now)
        _note(self._moving, account.share, now)

    def room(self, share: Share) -> int:
        """Bytes that an owner may still get."""
        return min(self.total - self.promised, int(self.total * OWNER_PART) - share.promised)

    def reclaim(self) -> None:
        """Ask streams with far more credit than they use to pause, and end those that did not answer in time."""
        now = time.monotonic()
        if now - self._reclaimed < _RECLAIM_SECONDS:
            return
        self._reclaimed = now
        for account, since in list(self._pausing.items()):
            if now - since < PAUSE_SECONDS:
                break
            account.evict()
        for account in [each for each in self.accounts if each.is_wasting(now)]:
            self._pausing[account] = now
            account.is_pausing = True
            account.pause()

    def answered(self, account: Account) -> None:
        """Note that the stream has paused or ended."""
        account.is_pausing = False
        self._pausing.pop(account, None)

    def _fits(self, share: Share, wanted: int) -> bool:
        if self.room(share) < wanted:
            return False
        return self.max_uploads is None or (
            len(self.accounts) < self.max_uploads
            and len(share.accounts) < max(1, int(self.max_uploads * OWNER_PART))
        )

    def _idlest(self, share: Share) -> Account | None:
        """The account whose floor this owner may get: one of the owner with the most, or an idle one of its own."""
        shares = [*self._shares.values(), share]
        richest = max(shares, key=lambda each: len(each.accounts))
        if len(richest.accounts) > len(share.accounts) + 1:
            return richest.idlest
        own = share.idlest
        if own is not None and time.monotonic() - own.moved_at >= IDLE_SECONDS:
            return own
        return None


class Share:
    """The part of the budget that the uploads of one owner have."""

    def __init__(self, budget: Budget, owner: str) -> None:
        self.budget = budget
        self.owner = owner
        self.promised = 0
        self.accounts: dict[Account, None] = {}
        """Ordered by the time of their last bytes, the latest last."""
        self.moving: dict[Account, float] = {}

    @property
    def idlest(self) -> Account | None:
        """The account without a byte for the longest time, of those that still expect bytes."""
        return next((each for each in self.accounts if not each.is_complete), None)


class Account:
    """The credit of one upload. ``promised`` are the bytes of the budget that it takes."""

    share: Share

    def __init__(
        self, budget: Budget, pause: Callable[[], None], evict: Callable[[], None]
    ) -> None:
        self.budget = budget
        self.pause = pause
        self.is_pausing = False
        self.is_complete = False
        """Whether all bytes were received."""
        self.promised = 0
        self.moved_at = time.monotonic()
        self._evict = evict
        self._held = 0
        self._began = self._second = self.moved_at
        self._current = 0
        self._previous = 0
        self._head_start = 0
        self.consumed = 0
        """Bytes that were received and written, those that were sent again too."""

    @property
    def is_open(self) -> bool:
        return self in self.budget.accounts

    def enter(self, owner: str, credit: int, held: int) -> None:
        """Join an owner's share. Raises :class:`Busy`."""
        self.share = self.budget.make_room(owner, credit + held)
        self.share.accounts[self] = None
        self.budget.accounts.add(self)
        self._held = held
        self._promise(credit)

    def rate(self, now: float) -> int:
        """Bytes consumed per second: the larger of the current second's, so far, and the last second's."""
        age = now - self._second
        if age >= 1.0:
            self._head_start = 0
            self._previous = self._current if age < 2.0 else 0
            self._current = 0
            self._second = now
        return max(self._previous, self._current)

    @property
    def _ramp(self) -> int:
        return RAMP if self._second == self._began else 1

    def is_wasting(self, now: float) -> bool:
        """Whether it has much more credit than it uses, and was not asked to pause yet."""
        credit = self.promised - self._held
        return not self.is_pausing and credit > max(FLOOR, _SLACK * self.rate(now))

    def consume(self, size: int) -> None:
        """Count ``size`` bytes that were received and written."""
        now = time.monotonic()
        self.rate(now)
        self._current += size
        self.moved_at = now
        self.consumed += size
        if self.is_open:
            _note(self.share.accounts, self, None)
            # Who needs no more than the floor has no share above it: a thousand slow uploads, or small files, do not
            # slow down a large one.
            if self.rate(now) > FLOOR:
                self.budget.moved(self, now)
        self._promise(max(FLOOR, self.promised - self._held - size))

    def resume(self, received: int) -> None:
        """Count from now, and give an upload of which ``received`` bytes are here already its head start."""
        self._began = self._second = time.monotonic()
        self._head_start = min(received, HEAD_START)

    def grant(self, unused: int) -> int:
        """Grant credit: returns the bytes by which the limit may exceed the bytes received.

        ``unused`` are those by which it exceeds them now; the result is never less.
        """
        if self.is_pausing or not self.is_open:
            return unused
        now = time.monotonic()
        rate = max(self.rate(now) * self._ramp, FLOOR, self._head_start)
        wanted = min(rate, LARGEST_WINDOW, self.budget.fair_share(self, now))
        left = self.budget.room(self.share) - int(self.budget.total * FLOORS_PART)
        room = max(0, left) + self.promised - self._held
        if wanted > room:
            self.budget.reclaim()
        granted = max(unused, min(wanted, room))
        self._promise(max(FLOOR, granted))
        return granted

    def chunk(self, granted: int) -> int:
        """The advised chunk size, bytes: two fifths of a second at the measured rate.

        There are two chunks to a grant: the second one is sent while the first is written. A grant below the largest
        chunk is one chunk: with so many uploads the server is never idle, and each chunk costs it as much processor
        time as some hundred KiB. In the first second the rate is :data:`RAMP` times that of the time since the upload
        began.
        """
        now = time.monotonic()
        self.rate(now)
        current = self._current / max(now - self._second, CHUNK_SECONDS)
        most = granted if granted <= LARGEST_CHUNK else min(granted // 2, LARGEST_CHUNK)
        size = min(int(max(self._previous, current) * self._ramp * CHUNK_SECONDS), most)
        return max(FLOOR, size // _PAGE * _PAGE)

    def paused(self) -> None:
        """Count the unused credit as returned by the client."""
        self.budget.answered(self)
        self._promise(FLOOR)

    def move(self, owner: str) -> None:
        """Move to the share of the owner, once authenticated. Raises :class:`Busy` where that has no room."""
        if self.is_open and owner != self.share.owner:
            credit, held = self.promised - self._held, self._held
            self.close()
            self.enter(owner, credit, held)

    def complete(self) -> None:
        """All bytes were received: until it closes, the account takes only its ``held`` bytes."""
        self.is_complete = True
        self.budget.answered(self)
        self._promise(0)

    def evict(self) -> None:
        """End a stream whose floor another upload needs, or that did not pause. Its credit is free at once."""
        self.close()
        self._evict()

    def close(self) -> None:
        if not self.is_open:
            return
        self.budget.answered(self)
        self._held = 0
        self._promise(0)
        self.budget.accounts.discard(self)
        self.share.moving.pop(self, None)
        del self.share.accounts[self]
        if not self.share.accounts:
            self.budget.forget(self.share)

    def _promise(self, credit: int) -> None:
        if self.is_open:
            change = self._held + credit - self.promised
            self.budget.promised += change
            self.share.promised += change
            self.promised += change


def _note(ordered: dict[Key, Value], key: Key, value: Value) -> None:
    """Set a key, and move it to the end."""
    ordered.pop(key, None)
    ordered[key] = value


def _count_moving(moving: dict[Key, float], now: float, own: Key) -> int:
    """Count those with recent bytes, ``own`` in any case; removes the others."""
    while moving:
        oldest = next(iter(moving))
        if now - moving[oldest] < MOVING_SECONDS:
            break
        del moving[oldest]
    return len(moving) + (own not in moving)
