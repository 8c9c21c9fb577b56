"""Delivery of ``upload_completed``: after the commit, at least once, until it succeeds or the attempts are used up."""

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
from django.db.models import Count, F, Max, Min, Q, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from .. import signals
from ..concurrency.turns import Turns
from ..exceptions import UploadError
from ..failpoints import failpoint
from ..models import CompletionEvent, UploadSession
from ..notices import about
from ..sessions.values import CLAIM
from .database import Database

Result = TypeVar("Result")

logger = logging.getLogger("django_async_upload")

AT_ONCE: Final = 16
"""Deliveries that run at the same time in one process."""
AT_ONCE_PER_OWNER: Final = 8
"""The most of these deliveries for uploads of one owner: the rest is for other owners."""
MOST_WAITING: Final = 1000
"""The most events of one owner that a process claims. Another process can deliver the others."""
BATCH: Final = 100

ATTEMPTS: Final = 20
"""Number of attempts after which an event is given up; with the pauses below this takes some eleven hours."""
FIRST_PAUSE: Final = timedelta(seconds=10)
"""Pause after the first failed attempt; each further pause is twice as long."""
LONGEST_PAUSE: Final = timedelta(hours=1)
MOST_ERROR: Final = 500
"""Characters of the receivers' errors that the row keeps."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt."""

    event: uuid.UUID
    attempts: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The events that are not delivered."""

    waiting: int
    """Events that are due, claimed, or wait for their next attempt."""
    age: float
    """Seconds since the oldest of these was committed; 0 where none waits."""
    attempts: int
    """The most attempts that one of these has had."""
    dead: int
    """Events that were given up."""


class Outbox:
    """Delivers the events that this process has claimed, and claims those that no process delivered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claimed: dict[uuid.UUID, asyncio.Future[bool]] = {}
        """The claimed events, queued or running. The future's result is whether the event was delivered."""
        self._waiting: Turns[CompletionEvent] = Turns()
        self._running: set[asyncio.Task[bool]] = set()
        self._owners: Counter[str] = Counter()
        self._renewing: asyncio.Task[None] | None = None

    def deliver(self, event: CompletionEvent) -> asyncio.Future[bool] | None:
        """Schedule delivery of an event. The caller must have its claim.

        The future's result is whether all receivers succeeded. Returns None where there are no receivers, or too many
        events: then the claim expires, and another process can deliver the event.
        """
        if event.delivered_at is not None:  # by another process, or there are no receivers
            return None
        if event.pk in self._claimed:
            return self._claimed[event.pk]
        owner = event.session.owner_key
        if self._waiting.waiting(owner) >= MOST_WAITING:
            return None
        future = self._claimed[event.pk] = asyncio.get_running_loop().create_future()
        self._waiting.add(owner, event)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        self._begin()
        return future

    async def claim_and_deliver(self) -> None:
        """Claim events that crashed processes left, and those due after a failure, and start their delivery."""
        while (room := BATCH - len(self._claimed)) > 0:
            events = await self._database.call(claim_due, room)
            for event in events:
                self.deliver(event)
            if len(events) < room:
                return

    async def deliver_due(self) -> int:
        """Deliver all due events, and wait; returns the number of successful deliveries."""
        count = 0
        while events := await self._database.call(claim_due, BATCH):
            count += sum(await self._finish(events))
        return count

    async def send_again(self, uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Deliver the completions of these uploads again, with the same ids; returns the uploads that succeeded.

        Uploads that have not completed, and completions that are being delivered, are skipped.
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
        """Wait for all running and queued deliveries."""
        while self._claimed:
            await asyncio.wait(list(self._claimed.values()))

    async def close(self, seconds: float) -> None:
        """Deliver the claimed events within ``seconds``; other processes deliver the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.join()
        left = []
        while (event := self._waiting.next()) is not None:
            left.append(event.pk)
        if left:
            with suppress(UploadError):  # then their claims expire
                await self._database.call_many(release_claims, left, patience=0.0)
        if self._claimed:
            logger.warning("Completions not delivered at shutdown: %d", len(self._claimed))
        for task in self._running:
            task.cancel()
        if self._renewing is not None:
            self._renewing.cancel()

    # One event ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start as many deliveries as may run at once, owners in turn."""
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
        future = self._claimed.pop(event.pk)
        if task.cancelled():
            future.cancel()
        else:
            future.set_result(task.result())
        if not self._claimed and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
        self._begin()

    async def _deliver(self, event: CompletionEvent) -> bool:
        """Deliver an event; returns whether all receivers succeeded and the row records it."""
        try:
            failpoint("deliver.before_signal")
            failures = await signals.send(
                signals.upload_completed, event.session, event_id=event.pk
            )
            failpoint("deliver.after_signal")
            outcome = Outcome(event.pk, event.attempts, "; ".join(failures)[:MOST_ERROR])
            if await self._database.call(note, outcome, patience=60.0):
                logger.error(
                    "Completion %s of upload %s was given up after %d attempts; an administrator can send it again: %s",
                    event.pk,
                    event.session_id,
                    event.attempts,
                    outcome.error,
                    extra=about(event.session, code="outbox_dead"),
                )
        except UploadError as error:  # it will be delivered again
            logger.error(
                "Completion %s was delivered, but the row could not be updated: %s", event.pk, error
            )
            return False
        except Exception:  # a bug: other events are still delivered, and this one again
            logger.exception(
                "Completion %s could not be delivered", event.pk, extra=about(event.session)
            )
            return False
        return not failures

    async def _renew(self) -> None:
        """Renew the claims of queued and running events."""
        while True:
            await asyncio.sleep(CLAIM.total_seconds() / 3)
            try:
                await self._database.call_many(renew, list(self._claimed))
            except (
                UploadError
            ) as error:  # the database is unavailable: other processes may deliver these
                logger.warning("Claims of completions could not be renewed: %s", error)


def send_again(uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """:meth:`Outbox.send_again` for synchronous code outside of a transaction."""
    return _run(lambda outbox: outbox.send_again(uploads))


def deliver_due(*, given_up: bool = False) -> int:
    """:meth:`Outbox.deliver_due` for synchronous code. ``given_up``: also events that were given up."""

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


def backlogs(items: Sequence[None]) -> list[Backlog]:
    """Count and date the events that are not delivered, in one query for all callers."""
    waiting = Q(given_up_at=None)
    found = CompletionEvent.objects.filter(delivered_at=None).aggregate(
        waiting=Count("pk", filter=waiting),
        since=Min("created_at", filter=waiting),
        attempts=Max("attempts", filter=waiting),
        dead=Count("pk", filter=~waiting),
    )
    now = timezone.now()
    age = max(0.0, (now - (found["since"] or now)).total_seconds())
    backlog = Backlog(found["waiting"], age, found["attempts"] or 0, found["dead"])
    return [backlog] * len(items)


def claim_due(items: Sequence[int]) -> list[list[CompletionEvent]]:
    """Claim due events, up to that many for each caller: owners in turn, the oldest first."""
    now = timezone.now()
    claimed = []
    for count in items:
        turn = Window(RowNumber(), partition_by=F("session__owner_key"), order_by="due_at")
        due = CompletionEvent.objects.due(now).annotate(turn=turn).order_by("turn", "due_at")
        pks = list(due.values_list("pk", flat=True)[:count])
        claimed.append(CompletionEvent.objects.claim(pks, now + CLAIM))
    return claimed


def claim_again(items: Sequence[Sequence[uuid.UUID]]) -> list[list[CompletionEvent]]:
    """Claim the events of these uploads, also delivered and given-up ones; attempts are counted from zero."""
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
    """Make all given-up events due again."""
    CompletionEvent.objects.given_up().update(**_ANEW, due_at=timezone.now())
    return [None] * len(items)


def renew(items: Sequence[uuid.UUID]) -> list[None]:
    """Renew the claims of events."""
    until = timezone.now() + CLAIM
    held = CompletionEvent.objects.filter(pk__in=items, delivered_at=None, due_at__lt=until)
    held.update(due_at=until)
    return [None] * len(items)


def release_claims(items: Sequence[uuid.UUID]) -> list[None]:
    """Release the claims of events whose delivery has not started: they are due again, and no attempt is counted."""
    held = CompletionEvent.objects.filter(pk__in=items, delivered_at=None, attempts__gt=0)
    held.update(due_at=timezone.now(), attempts=F("attempts") - 1)
    return [None] * len(items)


def note(items: Sequence[Outcome]) -> list[bool]:
    """Record the outcomes of attempts; returns for each whether it failed and was the last one."""
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
