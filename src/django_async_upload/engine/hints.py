"""How the holder of an upload learns that it has to stop, although it receives nothing.

The truth is in the database and in the store. If a hint is lost, the holder finds at its next look at the rows, or at
its next checkpoint, that its epoch is outdated.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from ..exceptions import UploadError
from ..notices import notice
from ..sessions import rows
from ..sessions.values import HolderQuery
from .database import Database

logger = logging.getLogger("django_async_upload")

LOOK_SECONDS: Final = 1.0
"""Seconds between looks at the rows of the uploads that this process holds."""


class Hints(Protocol):
    """Messages to the holders of uploads. Methods must not block, and must not raise."""

    def register(self, upload: uuid.UUID, epoch: int, lose: Callable[[UploadError], None]) -> None:
        """Register this process as holder of an upload; ``lose`` is called with the reason when it has to stop."""

    def unregister(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        """Unregister the holder with this ``lose``."""

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        """Ask the holder of an upload to stop: it was taken over, or has ended."""

    def close(self) -> None:
        """Forget all holders."""


class _Holder(NamedTuple):
    epoch: int
    lose: Callable[[UploadError], None]


class LocalHints:
    """Hints within one process. What another process did is read from the rows: one query a second, while this process
    holds an upload."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holders: dict[uuid.UUID, _Holder] = {}
        self._watching: asyncio.Task[None] | None = None

    def register(self, upload: uuid.UUID, epoch: int, lose: Callable[[UploadError], None]) -> None:
        self._holders[upload] = _Holder(epoch, lose)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def unregister(self, upload: uuid.UUID, lose: Callable[[UploadError], None]) -> None:
        holder = self._holders.get(upload)
        if holder is not None and holder.lose == lose:
            del self._holders[upload]

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        if holder := self._holders.get(upload):
            holder.lose(reason)

    def close(self) -> None:
        self._holders.clear()
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        try:
            while self._holders:
                await asyncio.sleep(LOOK_SECONDS)
                await self._look()
        finally:
            self._watching = None

    async def _look(self) -> None:
        """Tell the holders whose epoch is outdated."""
        holders = list(self._holders.items())
        queries = [HolderQuery(upload, holder.epoch) for upload, holder in holders]
        try:
            reasons = await self._database.call_many(rows.check_holders, queries)
        except UploadError as error:
            notice("holders", logging.WARNING, "The rows of held uploads were not read: %s", error)
        except Exception:  # a bug, or an error of the database: the next look may succeed
            logger.exception("The rows of held uploads were not read")
        else:
            for (_, holder), reason in zip(holders, reasons, strict=True):
                if reason is not None:
                    holder.lose(reason)
