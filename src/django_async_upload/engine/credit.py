"""Credit: how far ahead each upload of a process may be sent, so that all of them fit its memory.

Every open upload has the credit of a floor. Above that it is promised what it consumed in the last second, at most the
largest window and its fair share of the budget: owners whose uploads moved lately share alike, then each one's uploads.
No owner has more than :data:`OWNER_PART`; the rest is for others. Promises are absolute offsets and cannot be taken
back silently: a stream that holds far more than it uses is asked to pause, and closed if it does not answer. Where no
floor is left, an owner with few uploads gets the floor of an upload of the owner with the most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Final, TypeVar

from ..exceptions import Busy

Key = TypeVar("Key")
Value = TypeVar("Value")

FLOOR: Final = 16 * 1024
WINDOW: Final = 8 * 1024 * 1024
"""Bytes that every client may be ahead of ``durable``; HELLO announces it."""
LARGEST_WINDOW: Final = 4 * WINDOW
"""Bytes that it may be ahead where the budget has room: at 100 ms of delay 8 MiB are 84 MB/s, 32 MiB are 335 MB/s."""
LARGEST_CHUNK: Final = 512 * 1024 - 4096
"""Advised, bytes. A frame may be twice as long, but an ASGI server assembles a message by copying what it has of it."""
CHUNK_SECONDS: Final = 0.2
"""A chunk should take about this long at the measured rate."""
OWNER_PART: Final = Fraction(3, 4)
"""Of the budget and of the places: what one owner may have, however idle the others are."""
MOVING_SECONDS: Final = 2.0
"""An upload without a byte for so long leaves its share of the credit to the others."""
IDLE_SECONDS: Final = 10.0
"""After so long without a byte an upload loses its floor where its owner needs it for another upload."""
PAUSE_SECONDS: Final = 5.0
"""How long a client may take to answer PAUSE."""

_PAGE: Final = 4096
_RECLAIM_SECONDS: Final = 0.1
_SLACK: Final = 4
"""Credit for so many seconds, at the stream's rate, is not called back."""


def keep_freed_memory() -> None:
    """Have malloc reuse the memory of the last messages for the next ones.

    glibc gives a freed block of more than 128 KiB back to the kernel, and each message pays for fresh ones. The largest
    block that was ever freed raises that threshold, and what is kept to twice as much (mallopt(3), M_MMAP_THRESHOLD).
    So one is freed, whose pages were never touched. Elsewhere this does nothing.
    """
    bytearray(2 * WINDOW)


class Budget:
    """The credit of one process: ``total`` bytes, for at most ``places`` uploads at once (None: any number)."""

    def __init__(self, total: int, places: int | None = None) -> None:
        self.total = total
        self.places = places
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
        """A new account of ``owner``: it takes the floor, and ``held`` bytes for as long as it is open.

        ``pause`` is called when the stream should give its unused credit back, ``evict`` when it must end: its
        account is closed already. Raises :class:`Busy` where not even the floor is left.
        """
        account = Account(self, pause, evict)
        account.enter(owner, FLOOR, held)
        return account

    def make_room(self, owner: str, size: int) -> Share:
        """The share of an owner, in which one more account and ``size`` bytes have room. Raises :class:`Busy`."""
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
        """The last account of an owner is closed."""
        self._moving.pop(share, None)
        del self._shares[share.owner]

    def fair_share(self, account: Account, now: float) -> int:
        """What an account may be promised, bytes: shared by owners first, then by uploads; only moving ones count."""
        share = account.share
        owners = _count_moving(self._moving, now, share)
        uploads = _count_moving(share.moving, now, account)
        # Of half the budget: what is on its way may take as much again in the server, whose buffers do not shrink.
        return max(FLOOR, self.total // 2 // owners // uploads)

    def moved(self, account: Account, now: float) -> None:
        _note(account.share.moving, account, now)
        _note(self._moving, account.share, now)

    def room(self, share: Share) -> int:
        """Bytes that may still be promised to an owner."""
        return min(self.total - self.promised, int(self.total * OWNER_PART) - share.promised)

    def reclaim(self) -> None:
        """Ask streams that hold far more credit than they use to pause, and end those that did not answer in time."""
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
        """The stream paused or has ended."""
        account.is_pausing = False
        self._pausing.pop(account, None)

    def _fits(self, share: Share, wanted: int) -> bool:
        if self.room(share) < wanted:
            return False
        return self.places is None or (
            len(self.accounts) < self.places
            and len(share.accounts) < max(1, int(self.places * OWNER_PART))
        )

    def _idlest(self, share: Share) -> Account | None:
        """The account whose floor this owner may have: one of the owner with the most, or an idle one of his own."""
        shares = [*self._shares.values(), share]
        richest = max(shares, key=lambda each: len(each.accounts))
        if len(richest.accounts) > len(share.accounts) + 1:
            return richest.idlest
        own = share.idlest
        if own is not None and time.monotonic() - own.moved_at >= IDLE_SECONDS:
            return own
        return None


class Share:
    """What the uploads of one owner have of the budget."""

    def __init__(self, budget: Budget, owner: str) -> None:
        self.budget = budget
        self.owner = owner
        self.promised = 0
        self.accounts: dict[Account, None] = {}
        """Ordered by when they last moved, the latest last."""
        self.moving: dict[Account, float] = {}

    @property
    def idlest(self) -> Account | None:
        """The one that has not moved for the longest time, of those that still take bytes."""
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
        """All bytes came: it takes no more of them."""
        self.promised = 0
        self.moved_at = time.monotonic()
        self._evict = evict
        self._held = 0
        self._second = self.moved_at
        self._current = 0
        self._previous = 0
        self._consumed = 0

    @property
    def is_open(self) -> bool:
        return self in self.budget.accounts

    def enter(self, owner: str, credit: int, held: int) -> None:
        """Take part in an owner's share. Raises :class:`Busy`."""
        self.share = self.budget.make_room(owner, credit + held)
        self.share.accounts[self] = None
        self.budget.accounts.add(self)
        self._held = held
        self._promise(credit)

    def rate(self, now: float) -> int:
        """Bytes consumed in a second: the better of this one, so far, and the last."""
        age = now - self._second
        if age >= 1.0:
            self._previous = self._current if age < 2.0 else 0
            self._current = 0
            self._second = now
        return max(self._previous, self._current)

    def is_wasting(self, now: float) -> bool:
        """Whether it holds much more credit than it uses, and was not asked to pause yet."""
        credit = self.promised - self._held
        return not self.is_pausing and credit > max(FLOOR, _SLACK * self.rate(now))

    def consume(self, size: int) -> None:
        """``size`` promised bytes came and were written."""
        now = time.monotonic()
        self.rate(now)
        self._current += size
        self.moved_at = now
        self._consumed += size
        if self.is_open:
            _note(self.share.accounts, self, None)
            # What fits the floor takes no part of what is above it: small files do not slow a large one down.
            if self._consumed > FLOOR:
                self.budget.moved(self, now)
        self._promise(max(FLOOR, self.promised - self._held - size))

    def grant(self, unused: int) -> int:
        """How far the limit may be beyond the bytes received, in bytes.

        ``unused`` is how far it is already; the result is never less.
        """
        if self.is_pausing or not self.is_open:
            return unused
        now = time.monotonic()
        rate = max(self.rate(now), FLOOR)
        wanted = min(rate, LARGEST_WINDOW, self.budget.fair_share(self, now))
        room = self.budget.room(self.share) + self.promised - self._held
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
        self.budget.answered(self)
        self._promise(FLOOR)

    def move(self, owner: str) -> None:
        """Move to the share of the owner, now that it is known. Raises :class:`Busy` where he has his part already."""
        if self.is_open and owner != self.share.owner:
            credit, held = self.promised - self._held, self._held
            self.close()
            self.enter(owner, credit, held)

    def complete(self) -> None:
        """No more bytes come: the account takes only its ``held`` bytes until it closes."""
        self.is_complete = True
        self.budget.answered(self)
        self._promise(0)

    def evict(self) -> None:
        """End the stream, whose floor another needs or which did not pause. Its credit is free at once."""
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
    """Put a key to the end."""
    ordered.pop(key, None)
    ordered[key] = value


def _count_moving(moving: dict[Key, float], now: float, own: Key) -> int:
    """How many moved lately, ``own`` included in any case; removes the others."""
    while moving:
        oldest = next(iter(moving))
        if now - moving[oldest] < MOVING_SECONDS:
            break
        del moving[oldest]
    return len(moving) + (own not in moving)
