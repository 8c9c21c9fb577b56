"""A queue that serves owners in turn: an owner with many items delays only their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """A queue that returns one item of each owner in turn, each owner's oldest first.

    ``owner`` is an :attr:`Owner.key <django_async_upload.sessions.owners.Owner.key>`; "" is the server itself.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, owner: str, item: Item) -> None:
        self._queues.setdefault(owner, deque()).append(item)
        self._length += 1

    def next(self, skip: Container[str] = ()) -> Item | None:
        """Remove and return the next item of an owner not in ``skip``; None where there is none."""
        for owner, queue in self._queues.items():
            if owner not in skip:
                item = queue.popleft()
                del self._queues[owner]
                if queue:
                    self._queues[owner] = queue  # moved to the end, after the others
                self._length -= 1
                return item
        return None

    def waiting(self, owner: str) -> int:
        """The number of an owner's items."""
        return len(self._queues.get(owner, ()))

    def take(self, most: int) -> list[Item]:
        """Remove and return at most ``most`` items, in the order of :meth:`next`."""
        taken: list[Item] = []
        while len(taken) < most and (item := self.next()) is not None:
            taken.append(item)
        return taken
