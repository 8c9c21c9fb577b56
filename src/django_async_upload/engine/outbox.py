"""Delivery of ``upload_completed``: after the commit, at least once, until it succeeds or is given up loudly."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from django.db import router
from django.db.models import F, Q, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from .. import signals
from ..concurrency.turns import Turns
from ..exceptions import UploadError
from ..models import CompletionEvent, UploadSession
from ..sessions.values import CLAIM
from .database import Database

Result = TypeVar("Result")

logger = logging.getLogger("django_async_upload")

AT_ONCE: Final = 16
"""Deliveries that run at the same time in one process."""
AT_ONCE_PER_OWNER: Final = 8
"""At most so many of them are for the uploads of one owner: other owners have the rest."""
MOST_WAITING: Final = 1000
"""Events of one owner that a process holds at most. A process that has room takes up the others."""
BATCH: Final = 100

ATTEMPTS: Final = 20
"""After so many attempts an event is given up; with the pauses below that takes some eleven hours."""
FIRST_PAUSE: Final = timedelta(seconds=10)
"""After the first attempt that failed; each pause is twice as long as the one before."""
LONGEST_PAUSE: Final = timedelta(hours=1)
MOST_ERROR: Final = 500
"""Characters of what receivers raised that the row keeps."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt."""

    event: uuid.UUID
    attempts: int
    error: str = ""


class Outbox:
    """Sends the events that this process has claimed, and takes up those that no process delivered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[uuid.UUID, asyncio.Future[bool]] = {}
        """What this process has claimed, waiting or running. The result says whether it was delivered."""
        self._waiting: Turns[CompletionEvent] = Turns()
        self._running: set[asyncio.Task[bool]] = set()
        self._owners: Counter[str] = Counter()
        self._renewing: asyncio.Task[None] | None = None

    def deliver(self, event: CompletionEvent) -> asyncio.Future[bool] | None:
        """Call the receivers soon; the caller has claimed the event, and need not wait.

        The result says whether all of them succeeded. None where there is nothing to do, or too much: then the claim
        lapses, and a process that has room takes the event up.
        """
        if event.delivered_at is not None:  # by another process, or there are no receivers
            return None
        if event.pk in self._held:
            return self._held[event.pk]
        owner = event.session.owner_key
        if self._waiting.waiting(owner) >= MOST_WAITING:
            return None
        future = self._held[event.pk] = asyncio.get_running_loop().create_future()
        self._waiting.add(owner, event)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        self._begin()
        return future

    async def take_up(self) -> None:
        """Begin to deliver what processes that died left behind, and what is due after a failure."""
        while (room := BATCH - len(self._held)) > 0:
            events = await self._database.call(claim_due, room)
            for event in events:
                self.deliver(event)
            if len(events) < room:
                return

    async def deliver_due(self) -> int:
        """Deliver all that is due, and wait for it; returns how many deliveries succeeded."""
        count = 0
        while events := await self._database.call(claim_due, BATCH):
            count += sum(await self._finish(events))
        return count

    async def send_again(self, uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Deliver the completions of these uploads once more, under the same ids; returns the uploads that succeeded.

        Left out are uploads that have not completed, and completions that are being delivered.
        """
        sent: set[uuid.UUID] = set()
        for start in range(0, len(uploads), BATCH):
            events = await self._database.call(claim_again, uploads[start : start + BATCH])
            outcomes = zip(events, await self._finish(events), strict=True)
            sent.update(event.session_id for event, succeeded in outcomes if succeeded)
        return sent

    async def _finish(self, events: Sequence[CompletionEvent]) -> list[bool]:
        futures = [self.deliver(event) for event in events]
        return [future is not None and await future for future in futures]

    async def join(self) -> None:
        """Wait for what is being delivered, and for what waits for that."""
        while self._held:
            await asyncio.wait(list(self._held.values()))

    async def close(self, seconds: float) -> None:
        """Deliver what is held, within ``seconds``; other processes take up what is left."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.join()
        left = []
        while (event := self._waiting.next()) is not None:
            left.append(event.pk)
        if left:
            with suppress(UploadError):  # then their claims lapse
                await self._database.call_many(let_go, left, patience=0.0)
        if self._held:
            logger.warning("Completions that were not delivered at the end: %d", len(self._held))
        for task in self._running:
            task.cancel()
        if self._renewing is not None:
            self._renewing.cancel()

    # One event ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin as many deliveries as may run at once, owners in turn."""
        while len(self._running) < AT_ONCE:
            busy = {owner for owner, count in self._owners.items() if count >= AT_ONCE_PER_OWNER}
            event = self._waiting.next(skip=busy)
            if event is None:
                return
            owner = event.session.owner_key
            self._owners[owner] += 1
            task = asyncio.create_task(self._deliver(event))
            self._running.add(task)
            task.add_done_callback(partial(self._ended, event))

    def _ended(self, event: CompletionEvent, task: asyncio.Task[bool]) -> None:
        self._running.discard(task)
        owner = event.session.owner_key
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
        future = self._held.pop(event.pk)
        if task.cancelled():
            future.cancel()
        else:
            future.set_result(task.result())
        if not self._held and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
        self._begin()

    async def _deliver(self, event: CompletionEvent) -> bool:
        """Whether all receivers succeeded and the row says so."""
        try:
            failures = await signals.send(
                signals.upload_completed, event.session, event_id=event.pk
            )
            outcome = Outcome(event.pk, event.attempts, "; ".join(failures)[:MOST_ERROR])
            if await self._database.call(note, outcome, patience=60.0):
                logger.error(
                    "Completion %s of upload %s is given up after %d attempts, until it is sent again: %s",
                    event.pk,
                    event.session_id,
                    event.attempts,
                    outcome.error,
                )
        except UploadError as error:  # it will be delivered again
            logger.error("Completion %s was delivered, but not noted: %s", event.pk, error)
            return False
        except Exception:  # a bug: the other events are delivered nevertheless, and this one again
            logger.exception("Completion %s could not be delivered", event.pk)
            return False
        return not failures

    async def _renew(self) -> None:
        """Keep claimed what waits and what runs."""
        while True:
            await asyncio.sleep(CLAIM.total_seconds() / 3)
            try:
                await self._database.call_many(renew, list(self._held))
            except UploadError as error:  # the database is away: others may deliver these
                logger.warning("Claims of completions could not be renewed: %s", error)


def send_again(uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """As :meth:`Outbox.send_again`, from synchronous code outside of a transaction."""
    return _run(lambda outbox: outbox.send_again(uploads))


def deliver_due(*, given_up: bool = False) -> int:
    """As :meth:`Outbox.deliver_due`, from synchronous code. ``given_up``: also what was given up."""

    async def deliver(outbox: Outbox) -> int:
        if given_up:
            await outbox._database.call(revive, None)
        return await outbox.deliver_due()

    return _run(deliver)


def _run(work: Callable[[Outbox], Coroutine[Any, Any, Result]]) -> Result:
    async def run() -> Result:
        database = Database(router.db_for_write(UploadSession))
        try:
            return await work(Outbox(database))
        finally:
            database.close()

    return signals.run(run())


def claim_due(items: Sequence[int]) -> list[list[CompletionEvent]]:
    """Claim up to that many events that are due for each caller: owners in turn, the oldest first."""
    now = timezone.now()
    claimed = []
    for count in items:
        turn = Window(RowNumber(), partition_by=F("session__owner_key"), order_by="due_at")
        due = CompletionEvent.objects.due(now).annotate(turn=turn).order_by("turn", "due_at")
        pks = list(due.values_list("pk", flat=True)[:count])
        claimed.append(CompletionEvent.objects.claim(pks, now + CLAIM))
    return claimed


def claim_again(items: Sequence[Sequence[uuid.UUID]]) -> list[list[CompletionEvent]]:
    """Claim the events of these uploads, delivered, given up or resting, for each caller; attempts are counted anew."""
    now = timezone.now()
    claimed = []
    for uploads in items:
        events = CompletionEvent.objects.filter(session__in=uploads)
        is_over = ~Q(delivered_at=None) | ~Q(given_up_at=None)
        events.filter(is_over | Q(due_at__gt=now + CLAIM)).update(**_ANEW, due_at=now)
        pks = list(events.due(now).order_by("created_at").values_list("pk", flat=True))
        claimed.append(CompletionEvent.objects.claim(pks, now + CLAIM))
    return claimed


_ANEW: Final = {"delivered_at": None, "given_up_at": None, "attempts": 0, "error": ""}


def revive(items: Sequence[None]) -> list[None]:
    """Have all events that were given up delivered again."""
    CompletionEvent.objects.given_up().update(**_ANEW, due_at=timezone.now())
    return [None] * len(items)


def renew(items: Sequence[uuid.UUID]) -> list[None]:
    """Keep claimed what is still being delivered."""
    until = timezone.now() + CLAIM
    held = CompletionEvent.objects.filter(pk__in=items, delivered_at=None, due_at__lt=until)
    held.update(due_at=until)
    return [None] * len(items)


def let_go(items: Sequence[uuid.UUID]) -> list[None]:
    """Give back what was claimed and not begun: it is due for any process, and no attempt is counted."""
    held = CompletionEvent.objects.filter(pk__in=items, delivered_at=None, attempts__gt=0)
    held.update(due_at=timezone.now(), attempts=F("attempts") - 1)
    return [None] * len(items)


def note(items: Sequence[Outcome]) -> list[bool]:
    """Record what became of attempts; returns for each whether it failed and was the last one."""
    now = timezone.now()
    return [_note(item, now) for item in items]


def _note(item: Outcome, now: datetime) -> bool:
    event = CompletionEvent.objects.filter(pk=item.event)
    if not item.error:
        event.update(delivered_at=now, given_up_at=None, error="")
        return False
    if item.attempts >= ATTEMPTS:
        return bool(event.filter(delivered_at=None).update(given_up_at=now, error=item.error))
    pause = min(FIRST_PAUSE * 2 ** (item.attempts - 1), LONGEST_PAUSE)
    event.filter(delivered_at=None).update(due_at=now + pause, error=item.error)
    return False
