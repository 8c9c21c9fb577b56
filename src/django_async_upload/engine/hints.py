"""Hints between processes: they make things faster, and nothing depends on their arrival.

The truth is in the database and in the store. A hint that is lost costs time: a holder that was not asked to let go of
an upload finds its epoch gone when it next writes a checkpoint.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Protocol

from ..exceptions import UploadError


class Hints(Protocol):
    """How the holders of uploads hear of each other. Must not block, must not raise."""

    def hold(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        """This process holds the upload from now on; ``lose`` is called with the reason when it is to let go."""

    def let_go(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        """The holder with this ``lose`` no longer holds the upload."""

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        """Ask whoever holds the upload to let go of it: it was taken over, or has ended."""


class LocalHints:
    """Hints within one process."""

    def __init__(self) -> None:
        self._holders: dict[uuid.UUID, Callable[[UploadError], None]] = {}

    def hold(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        self._holders[upload] = lose

    def let_go(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        if self._holders.get(upload) == lose:
            del self._holders[upload]

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        if lose := self._holders.get(upload):
            lose(reason)
