"""The slots of a process's connections: taken and freed in the database, and renewed there every 15 seconds."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..concurrency.pace import Pace
from ..exceptions import TooManyConnections, UploadError
from ..models import Slot
from ..notices import notice
from ..sessions import slots as rows
from .database import Database
from .drain import spawn

logger = logging.getLogger("django_async_upload")

RENEW_SECONDS: Final = 15.0
"""Seconds between renewals: two of them may fail before :data:`.sessions.slots.LEASE` is over."""


class Slots:
    """The slots that connections of this process have."""

    def __init__(self, database: Database, pace: Callable[[str], Pace]) -> None:
        self.held: dict[uuid.UUID, Slot] = {}
        self._database = database
        self._get_pace = pace
        self._paces: dict[str, Pace] = {}
        """Those of the owners of :attr:`held`."""
        self._process = uuid.uuid4()
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, owner: str, address: str | None) -> Slot:
        """Take a slot for an owner's connection. Raises :class:`TooManyConnections`, :class:`DatabaseUnavailable`."""
        slot = Slot(process=self._process, owner_key=owner, address=address)
        try:
            processes = await self._database.call(rows.take, slot, owner=owner)
        except TooManyConnections:
            raise
        except BaseException:  # it may be taken even so
            self._spawn_free(slot)
            raise
        self.held[slot.pk] = slot
        self._share(owner, processes)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        return slot

    def free(self, slot: Slot) -> None:
        """Free a slot; returns at once."""
        if self.held.pop(slot.pk, None):
            self._spawn_free(slot)

    def _spawn_free(self, slot: Slot) -> None:
        spawn(self._free(slot))

    async def _free(self, slot: Slot) -> None:
        with suppress(UploadError):  # then it lapses
            await self._database.call(rows.free, slot.pk, owner=slot.owner_key)

    async def close(self) -> None:
        """Free all slots."""
        if self._renewing is not None:
            self._renewing.cancel()
        held, self.held = list(self.held), {}
        with suppress(UploadError):
            await self._database.call_many(rows.free, held, patience=0.0)

    async def _renew(self) -> None:
        try:
            while self.held:
                await asyncio.sleep(RENEW_SECONDS)
                await self._renew_once()
        finally:
            self._renewing = None

    async def _renew_once(self) -> None:
        try:
            processes = await self._database.call(rows.renew, list(self.held.values()))
        except UploadError as error:
            notice("slots", logging.WARNING, "The slots of connections were not renewed: %s", error)
        except Exception:  # a bug, or an error of the database: the next renewal may succeed
            logger.exception("The slots of connections were not renewed")
        else:
            owners = {slot.owner_key for slot in self.held.values()}
            self._paces = {owner: pace for owner, pace in self._paces.items() if owner in owners}
            for owner in owners:
                self._share(owner, processes.get(owner, 1))

    def _share(self, owner: str, processes: int) -> None:
        """Divide the owner's pace among the processes that the owner is connected to."""
        self._paces.setdefault(owner, self._get_pace(owner)).processes = processes
