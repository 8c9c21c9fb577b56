"""What the uploads of one process share: store, database thread, credit, outbox, and turns at what is scarce."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Final
from weakref import WeakValueDictionary

from django.db import router

from .. import conf
from ..concurrency.pace import Pace
from ..concurrency.threads import DaemonExecutor
from ..models import UploadSession
from ..stores.base import Store
from ..stores.configured import make_store
from ..stores.disk import most_descriptors
from .credit import Budget, keep_freed_memory
from .database import Database
from .hints import Hints, LocalHints
from .outbox import Outbox
from .telemetry import Telemetry, configured_telemetry

SLOW_SYNC_REST: Final = 9
"""Times as long as a sync of little took, until its owner has the next one: he keeps the disk a tenth of the time."""


class Runtime:
    """The parts that every upload of an event loop uses."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or make_store()
        self.database = Database(router.db_for_write(UploadSession))
        self.budget = Budget(conf.uploads().memory_budget, self._places())
        self.outbox = Outbox(self.database)
        self.hints: Hints = LocalHints()
        self.telemetry: Telemetry = configured_telemetry()
        self._syncs: WeakValueDictionary[tuple[str, bool, bool], asyncio.Semaphore] = (
            WeakValueDictionary()
        )
        self._slow_turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        keep_freed_memory()

    def _places(self) -> int | None:
        """Uploads at once: half of the descriptors are for their files, the rest for sockets and the site."""
        descriptors = most_descriptors() if self.store.supports_path else None
        return None if descriptors is None else descriptors // 2

    @asynccontextmanager
    async def sync_turn(
        self, owner: str, *, is_slow: bool, rests: bool = True
    ) -> AsyncIterator[None]:
        """An owner's turn at syncing a part: half of the store's threads, so that others find one, too.

        Those of his uploads that bring little share a single one, which ``rests`` afterwards: a disk syncs a file of
        one byte no faster than one of megabytes, and all that it does meanwhile waits. What ends an upload has a turn
        of its own and does not rest.
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
        """An owner's turns at what may take long: half of the threads for that."""
        most = max(1, self.store.threads // 2)
        return self._slow_turns.setdefault(owner, asyncio.Semaphore(most))

    def pace(self, owner: str) -> Pace:
        """How fast the connections of an owner are read."""
        return self._paces.setdefault(owner, Pace())

    @cached_property
    def copies(self) -> DaemonExecutor:
        """Threads for copies into storages that cannot be linked into: never the chunks' threads.

        One that hangs does not keep the process from ending: another one resumes what it published.
        """
        return DaemonExecutor(conf.uploads().threads, "async-upload-publication")

    async def close(self, seconds: float) -> None:
        """Deliver what was claimed and end the threads; what hangs is waited for ``seconds`` seconds at most."""
        await self.outbox.close(seconds)
        if "copies" in self.__dict__:
            self.copies.shutdown(wait=False, cancel_futures=True)
        closing = DaemonExecutor(1, "async-upload-close").submit(self.store.close)
        await asyncio.wait({asyncio.wrap_future(closing)}, timeout=seconds)
        self.database.close()
