"""How the holder of an upload learns that it has to stop, although it receives nothing.

The truth is in the database and in the store. If a message is lost, the holder finds at its next look at the rows, or
at its next checkpoint, that its epoch is outdated.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from ..exceptions import UploadError
from ..notices import notice
from ..sessions import rows
from ..sessions.values import HolderQuery
from .bus import Bus, Message
from .database import Database

logger = logging.getLogger("django_async_upload")

LOOK_SECONDS: Final = 1.0
"""Seconds between looks at the rows of the uploads that this process holds."""
YIELD_SECONDS: Final = 0.4
"""Seconds that the newest connection waits for an older one to save the upload and close its part."""


class Holder(Protocol):
    """The writer of an upload in this process. Methods must not block, and must not raise."""

    closed: asyncio.Event
    """Set when it has closed the part."""

    def lose(self, error: UploadError) -> None:
        """Stop with this error: the upload has another holder, or has ended."""

    def yields(self) -> bool:
        """Save the upload and stop, for a newer connection; returns False for one that is complete: it is kept."""


class _Held(NamedTuple):
    epoch: int
    holder: Holder


class Hints:
    """Messages to the holders of uploads, in this process and, over a shared bus, in others.

    What the bus did not bring is read from the rows: one query a second, while this process holds an upload.
    """

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._held: dict[uuid.UUID, _Held] = {}
        self._waiting: dict[uuid.UUID, set[asyncio.Future[bool]]] = {}
        """Of each upload that was asked for, those who wait for the answer: whether it is kept."""
        self._watching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        bus.subscribe("yield", self._asked)
        bus.subscribe("yielded", self._answered)
        bus.subscribe("ended", self._ended)

    def register(self, upload: uuid.UUID, epoch: int, holder: Holder) -> None:
        """Register the holder of an upload."""
        self._held[upload] = _Held(epoch, holder)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def unregister(self, upload: uuid.UUID, holder: Holder) -> None:
        """Unregister this holder, unless a newer one was registered."""
        if self.holder(upload) is holder:
            del self._held[upload]

    def holder(self, upload: uuid.UUID) -> Holder | None:
        """The holder in this process."""
        return held.holder if (held := self._held.get(upload)) is not None else None

    async def ask_to_yield(self, upload: uuid.UUID, epoch: int) -> bool | None:
        """Ask the holder with this epoch, or an older one, to save the upload and close the part.

        Returns whether it keeps the upload, because it is complete and being verified or published; None where there
        was no answer within :data:`YIELD_SECONDS`: the holder is gone, stopped or late.
        """
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(upload, set())
        waiting.add(answer)
        self._bus.publish("yield", {"upload": str(upload), "epoch": epoch})
        try:
            with suppress(TimeoutError):
                # Not wait_for(): before Python 3.12 it may swallow a cancellation.
                async with asyncio.timeout(YIELD_SECONDS):
                    return await answer
        finally:
            waiting.discard(answer)
            if not waiting:
                self._waiting.pop(upload, None)
        return None

    def tell_holder(self, upload: uuid.UUID, reason: UploadError) -> None:
        """Stop the holder of an upload that has ended. One in another process looks at its row at once."""
        if (holder := self.holder(upload)) is not None:
            holder.lose(reason)
        else:
            self._bus.publish("ended", {"upload": str(upload)})

    def close(self) -> None:
        """Forget all holders."""
        self._held.clear()
        for task in (self._watching, *self._tasks):
            if task is not None:
                task.cancel()

    # Messages -----------------------------------------------------------------------------------

    def _asked(self, message: Message) -> None:
        upload = uuid.UUID(message["upload"])
        held = self._held.get(upload)
        if held is None or held.epoch > message["epoch"]:
            return
        if held.holder.yields():
            self._spawn(self._answer_when_closed(upload, held.holder))
        else:
            self._bus.publish("yielded", {"upload": str(upload), "kept": True})

    async def _answer_when_closed(self, upload: uuid.UUID, holder: Holder) -> None:
        await holder.closed.wait()
        self._bus.publish("yielded", {"upload": str(upload), "kept": False})

    def _answered(self, message: Message) -> None:
        for answer in self._waiting.get(uuid.UUID(message["upload"]), ()):
            if not answer.done():
                answer.set_result(bool(message["kept"]))

    def _ended(self, message: Message) -> None:
        upload = uuid.UUID(message["upload"])
        if (held := self._held.get(upload)) is not None:
            self._spawn(self._look([(upload, held)]))

    # Looks at the rows --------------------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            while self._held:
                await asyncio.sleep(LOOK_SECONDS)
                await self._look(list(self._held.items()))
        finally:
            self._watching = None

    async def _look(self, held: Sequence[tuple[uuid.UUID, _Held]]) -> None:
        """Tell the holders whose epoch is outdated."""
        queries = [HolderQuery(upload, each.epoch) for upload, each in held]
        try:
            reasons = await self._database.call_many(rows.check_holders, queries)
        except UploadError as error:
            notice("holders", logging.WARNING, "The rows of held uploads were not read: %s", error)
        except Exception:  # a bug, or an error of the database: the next look may succeed
            logger.exception("The rows of held uploads were not read")
        else:
            for (_, each), reason in zip(held, reasons, strict=True):
                if reason is not None:
                    each.holder.lose(reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
