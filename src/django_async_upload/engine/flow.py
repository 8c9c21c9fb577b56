"""How far the bytes of an upload have come, and how far its client may send."""

from __future__ import annotations

from collections.abc import Callable

from .credit import FLOOR, LARGEST_WINDOW, Account


class Flow:
    """The four numbers that ACK, READY and REWIND tell the client. Nothing else moves the limit."""

    def __init__(self, account: Account, tell: Callable[[], None]) -> None:
        """``tell`` is called when an ACK has something to tell."""
        self._account = account
        self.received = 0
        """Bytes that were verified and written."""
        self.durable = 0
        """Bytes that survive a crash."""
        self.limit = FLOOR
        """The offset up to which the client may send."""
        self.chunk = FLOOR
        """The advised length of its chunks, bytes."""
        self._tell = tell

    def advance(self, received: int) -> None:
        """All bytes below ``received`` were written, and need no credit any more. Call :meth:`grant` next."""
        self._account.consume(received - self.received)
        self.received = received

    def keep(self, durable: int) -> None:
        """All bytes below ``durable`` are durable. Call :meth:`grant` next."""
        self.durable = max(self.durable, durable)

    def grant(self) -> None:
        """Raise the limit as far as the credit allows, and tell the client."""
        self._raise_limit()
        self._tell()

    def paused(self, offset: int) -> None:
        """The client paused at ``offset`` and returned the credit above it."""
        self._account.paused()
        self.limit = offset
        self.grant()

    def restart(self, offset: int) -> None:
        """The client has to send from ``offset`` on. The caller tells it."""
        self.received = self.limit = offset
        self._raise_limit()

    def resume(self) -> None:
        """The client has proved that its file is the same: it gets a head start. The caller tells it."""
        self._account.resume(self.received)
        self._raise_limit()

    def _raise_limit(self) -> None:
        unused = max(0, self.limit - self.received)
        granted = self._account.grant(unused)
        self.chunk = self._account.chunk(granted)
        limit = min(self.received + granted, self.durable + LARGEST_WINDOW)
        # Clients send as much as the limit allows: one that rose by less than a chunk would make their chunks short
        # for ever, the silly window syndrome of RFC 9293, section 3.8.6.2.
        if (chunks := (limit - self.limit) // self.chunk) > 0:
            self.limit += chunks * self.chunk
        elif unused < self.chunk:
            self.limit = max(self.limit, limit)
