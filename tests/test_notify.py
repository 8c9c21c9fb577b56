"""PostgreSQL's NOTIFY carries messages that fit, and what others notify is left unread."""

from __future__ import annotations

import asyncio

import pytest

from django_async_upload.engine import notify

from .buses import (
    PostgresMedium,
    _forget,
    arrives,
    heard,
    medium,
    redis,
    start,
)
from .e2e.postgres import Postgres

__all__ = ["_forget", "medium", "redis", "start"]


async def test_messages_that_make_no_payload_together_are_sent_apart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Postgres() as postgres:
        medium = PostgresMedium(postgres, monkeypatch)
        one, two = medium.bus("site"), medium.bus("site")
        there = await heard(two)
        sizes = [10, 7900, 3000, 3000, 3000, 1]
        for size in sizes:
            one.publish("yield", {"text": "é" * (size // 2)})
        assert [len((await asyncio.wait_for(there.get(), 5))["text"]) for _ in sizes] == [
            size // 2 for size in sizes
        ]
        one.publish("yield", {"text": "a" * notify.MAX_BYTES})
        assert await arrives(one, there, seconds=5)
        assert "too long for PostgreSQL" in caplog.text
        await one.close()
        await two.close()


async def test_what_another_program_notifies_is_left_unread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Postgres() as postgres:
        medium = PostgresMedium(postgres, monkeypatch)
        one, two = medium.bus("site"), medium.bus("site")
        there = await heard(two)
        assert await arrives(one, there, seconds=5)
        await one._sender.execute("NOTIFY site, 'hello'")
        assert await arrives(one, there, seconds=5)
        assert "A message of another process was not read" in caplog.text
        await one.close()
        await two.close()
