"""The parts that the uploads of one process share: store, database thread, credit, outbox, and turns of owners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Final
from weakref import WeakValueDictionary

from django.db import router

from .. import conf
from ..concurrency.apart import HostThreads
from ..concurrency.pace import Pace
from ..concurrency.threads import DaemonExecutor
from ..models import UploadSession
from ..stores.base import Store
from ..stores.configured import make_store
from ..stores.disk import most_descriptors
from .bus import Bus
from .credit import Budget, keep_freed_memory
from .database import Database
from .hints import Hints
from .layer import make_bus
from .outbox import Outbox
from .slots import Slots
from .telemetry import Telemetry, configured_telemetry

SLOW_SYNC_REST: Final = 9
"""Pause after a slow upload's sync, in multiples of its duration: such an owner uses the disk a tenth of the time."""


class Runtime:
    """The parts that every upload of an event loop uses."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or make_store()
        self.database = Database(router.db_for_write(UploadSession))
        self.budget = Budget(conf.uploads().memory_budget, self._max_uploads())
        self.outbox = Outbox(self.database)
        self.bus: Bus = make_bus(self.database.alias)
        self.hints = Hints(self.database, self.bus)
        self.telemetry: Telemetry = configured_telemetry()
        self.tap_threads = HostThreads("async-upload-taps")
        self._syncs: WeakValueDictionary[tuple[str, bool, bool], asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._slow_turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        self.slots = Slots(self.database, self.pace)
        keep_freed_memory()

    def _max_uploads(self) -> int | None:
        """The limit of open uploads: half of the descriptors are for their files, the rest for sockets and the site."""
        descriptors = most_descriptors() if self.store.supports_path else None
        return None if descriptors is None else descriptors // 2

    @asynccontextmanager
    async def sync_turn(
        self, owner: str, *, is_slow: bool, rests: bool = True
    ) -> AsyncIterator[None]:
        """Wait for an owner's turn to sync a part: an owner may use half of the store's threads.

        The owner's slow uploads share one turn, which ``rests`` afterwards: the disk syncs a file with one new byte no
        faster than one with megabytes, and other writes wait meanwhile. A sync that ends an upload has a turn of its
        own and does not rest.
        """
        most = 1 if is_slow else max(1, self.store.threads // 2)
        turns = self._syncs.setdefault((owner, is_slow, rests), asyncio.Semaphore(most))
        await turns.acquire()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            if is_slow and rests:
                loop.call_later(SLOW_SYNC_REST * (loop.time() - began), turns.release)
            else:
                turns.release()

    def slow_turns(self, owner: str) -> asyncio.Semaphore:
        """An owner's turns for slow work: half of the threads for it."""
        most = max(1, self.store.threads // 2)
        return self._slow_turns.setdefault(owner, asyncio.Semaphore(most))

    def pace(self, owner: str) -> Pace:
        """The limit on the rate at which an owner's connections are read."""
        return self._paces.setdefault(owner, Pace())

    @cached_property
    def copies(self) -> DaemonExecutor:
        """Threads for copies into storages that cannot be linked into, apart from the threads of chunks.

        A copy that hangs does not keep the process from exiting: another process resumes the publication.
        """
        return DaemonExecutor(conf.uploads().threads, "async-upload-publication")

    async def close(self, seconds: float) -> None:
        """Deliver the claimed events and end the threads; waits at most ``seconds`` seconds for calls that hang."""
        self.hints.close()
        await self.bus.close()
        await self.slots.close()
        await self.outbox.close(seconds)
        if "copies" in self.__dict__:
            self.copies.shutdown(wait=False, cancel_futures=True)
        self.tap_threads.close()
        closing = DaemonExecutor(1, "async-upload-close").submit(self.store.close)
        await asyncio.wait({asyncio.wrap_future(closing)}, timeout=seconds)
        self.database.close()
