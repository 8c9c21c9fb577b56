"""Hints between processes, which only save time: nothing depends on their arrival.

The truth is in the database and in the store. If a hint is lost, a holder that was not asked to stop finds at its next
checkpoint that its epoch is outdated.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Protocol

from ..exceptions import UploadError


class Hints(Protocol):
    """Messages to the holders of uploads. Methods must not block, and must not raise."""

    def register(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        """Register this process as holder of an upload; ``lose`` is called with the reason when it has to stop."""

    def unregister(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        """Unregister the holder with this ``lose``."""

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        """Ask the holder of an upload to stop: it was taken over, or has ended."""


class LocalHints:
    """Hints within one process."""

    def __init__(self) -> None:
        self._holders: dict[uuid.UUID, Callable[[UploadError], None]] = {}

    def register(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        self._holders[upload] = lose

    def unregister(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        if self._holders.get(upload) == lose:
            del self._holders[upload]

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        if lose := self._holders.get(upload):
            lose(reason)
