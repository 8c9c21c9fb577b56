"""A queue that serves owners in turn: who asks for much waits behind himself, not in front of others."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """What waits, oldest first for each owner, one of each owner at a time.

    ``owner`` is an :attr:`Owner.key <django_async_upload.owners.Owner.key>`; "" is the server itself.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, owner: str, item: Item) -> None:
        self._queues.setdefault(owner, deque()).append(item)
        self._length += 1

    def take(self, most: int) -> list[Item]:
        """At most ``most`` items, in the order in which they are to be served."""
        taken: list[Item] = []
        while self._queues and len(taken) < most:
            owner = next(iter(self._queues))
            queue = self._queues.pop(owner)
            taken.append(queue.popleft())
            if queue:
                self._queues[owner] = queue  # to the end: the others come first
        self._length -= len(taken)
        return taken
