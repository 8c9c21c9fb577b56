"""Gauges say what there is now, and go on when the database fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_async_upload.engine import gauges
from django_async_upload.engine.outbox import Backlog, backlogs
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.exceptions import DatabaseUnavailable
from django_async_upload.models import CompletionEvent
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import ACTIVE
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, new_key, publish, run, settled
from .recorder import measured, recorded

__all__ = ["recorded"]
pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


def completion(owner: Owner, **fields: Any) -> None:
    """An event of the outbox."""
    CompletionEvent.objects.create(session=publish(owner, name=new_key()), **fields)


async def test_what_there_is_now_is_measured(
    connect: Connect, recorded: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.1)
    monkeypatch.setattr(gauges, "TICK_SECONDS", 0.01)
    now, later = timezone.now(), timezone.now() + timedelta(hours=1)
    old = now - timedelta(minutes=5)
    await run(completion, owner, due_at=later, created_at=old, attempts=3)
    await run(completion, owner, due_at=later, attempts=1)
    await run(completion, owner, given_up_at=now, created_at=old - timedelta(days=1), attempts=20)
    await run(completion, owner, delivered_at=now, created_at=old - timedelta(days=1), attempts=7)
    async with connect() as client:
        await client.send(m.Create(new_key(), "b.bin", 40 * KIB), 1)
        await client.wait_for(m.Created, 1)
        assert await measured("uploads.open") == 1
        assert await measured("connections.open") == 1
        assert await measured("watchers.open") == 0
        await client.send(m.Watch("own"), 3)
        await client.wait_for(m.Changed, 3)
        assert await measured("watchers.open") == 1
        assert await measured("credit.used") == get_service().budget.promised > 0
        assert await measured("loop.lag") < 0.2
        time.sleep(0.5)
        assert await measured("loop.lag") > 0.4
    await settled()
    assert await measured("outbox.waiting") == 2
    assert await measured("outbox.age") == pytest.approx(300, abs=60)
    assert await measured("outbox.attempts") == 3
    assert await measured("outbox.dead") == 1
    states = {
        labels["state"]: value for name, value, labels in recorded if name == "uploads.active"
    }
    assert states == {**dict.fromkeys(map(str, ACTIVE), 0), "interrupted": 1}
    assert await measured("uploads.open") == await measured("credit.used") == 0


async def test_an_empty_outbox_has_no_age(uploads: UploadService) -> None:
    assert await uploads.database.call(backlogs, None) == Backlog(0, 0.0, 0, 0)


async def test_a_database_that_fails_stops_no_gauge(
    connect: Connect, recorded: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.05)
    errors: list[Exception] = [DatabaseUnavailable(retry_after=1.0), ZeroDivisionError()]

    def failing(items: Any) -> Any:
        raise errors.pop() if errors else ZeroDivisionError

    monkeypatch.setattr(gauges, "backlogs", failing)
    async with connect():
        while errors:
            await asyncio.sleep(0.01)
        await measured("uploads.open")
    assert "The rows could not be measured" in caplog.text


async def test_nothing_is_measured_for_nobody(connect: Connect, uploads: UploadService) -> None:
    async with connect():
        assert not uploads._gauges._tasks
