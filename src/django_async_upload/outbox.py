"""Delivery of ``upload_completed``: at least once, after the commit, and again after a crash."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from asgiref.sync import async_to_sync
from django.db import router
from django.utils import timezone

from . import signals
from .database import Database
from .exceptions import UploadError
from .leases import CLAIM
from .models import CompletionEvent, UploadSession

logger = logging.getLogger("django_async_upload")

AT_ONCE: Final = 8
"""Deliveries that run at the same time in one process."""
BATCH: Final = 100


class Outbox:
    """Sends the events that this process has claimed, and takes up those that nobody delivered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def deliver(self, event: CompletionEvent) -> None:
        """Call the receivers soon; the caller has claimed the event and goes on."""
        if event.delivered_at is not None:  # by somebody else, or there are no receivers
            return
        task = asyncio.create_task(self._deliver(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def deliver_due(self) -> int:
        """Deliver what was left behind by a process that died; returns how many events."""
        count = 0
        while events := await self._database.call(claim_due, BATCH):
            await asyncio.gather(*map(self._deliver, events))
            count += len(events)
        return count

    async def send_again(self, uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Deliver the completions of these uploads once more, with their ids; returns whose were sent.

        Left out are uploads that have not completed, and completions that are being delivered.
        """
        sent: set[uuid.UUID] = set()
        for start in range(0, len(uploads), BATCH):
            events = await self._database.call(claim_again, uploads[start : start + BATCH])
            await asyncio.gather(*map(self._deliver, events))
            sent.update(event.session_id for event in events)
        return sent

    async def join(self) -> None:
        """Wait for what is being delivered."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _deliver(self, event: CompletionEvent) -> None:
        sending = asyncio.create_task(self._send(event))
        while not (await asyncio.wait({sending}, timeout=CLAIM.total_seconds() / 3))[0]:
            with suppress(UploadError):
                await self._database.call(renew, event.pk)
        try:
            await self._database.call(mark_delivered, event.pk, patience=60.0)
        except UploadError as error:  # it will be delivered again
            logger.error("Completion %s was delivered, but not noted: %s", event.pk, error)

    async def _send(self, event: CompletionEvent) -> None:
        async with self._slots:
            await signals.send(signals.upload_completed, event.session, event_id=event.pk)


def send_again(uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """As :meth:`Outbox.send_again`, from synchronous code outside of a transaction."""
    return async_to_sync(_send_again)(uploads)


async def _send_again(uploads: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    database = Database(router.db_for_write(UploadSession))
    try:
        return await Outbox(database).send_again(uploads)
    finally:
        database.close()


def claim_due(items: Sequence[int]) -> list[list[CompletionEvent]]:
    """Claim up to that many undelivered events for each caller."""
    now = timezone.now()
    claimed = []
    for count in items:
        due = CompletionEvent.objects.due(now).order_by("created_at")
        pks = list(due.values_list("pk", flat=True)[:count])
        claimed.append(CompletionEvent.objects.claim(pks, now + CLAIM))
    return claimed


def claim_again(items: Sequence[Sequence[uuid.UUID]]) -> list[list[CompletionEvent]]:
    """Claim the events of these uploads, delivered or not, for each caller."""
    now = timezone.now()
    claimed = []
    for uploads in items:
        events = CompletionEvent.objects.filter(session__in=uploads)
        events.exclude(delivered_at=None).update(delivered_at=None, claimed_until=None)
        due = events.due(now).order_by("created_at")
        pks = list(due.values_list("pk", flat=True))
        claimed.append(CompletionEvent.objects.claim(pks, now + CLAIM))
    return claimed


def renew(items: Sequence[uuid.UUID]) -> list[None]:
    """Keep claimed what is still being delivered."""
    until = timezone.now() + CLAIM
    CompletionEvent.objects.filter(pk__in=items).update(claimed_until=until)
    return [None] * len(items)


def mark_delivered(items: Sequence[uuid.UUID]) -> list[None]:
    CompletionEvent.objects.filter(pk__in=items).update(delivered_at=timezone.now())
    return [None] * len(items)
