"""Messages reach every process of the site, whatever happens to the medium."""

from __future__ import annotations

import asyncio
import time

import pytest

from django_async_upload.engine import bus as bus_module
from django_async_upload.engine.bus import Envelope, LocalBus, Message, SharedBus

from .buses import (
    LAYERS,
    Medium,
    Start,
    _forget,
    arrives,
    heard,
    medium,
    redis,
    start,
    until,
)
from .e2e.redis import Redis

__all__ = ["_forget", "medium", "redis", "start"]


async def test_a_message_reaches_the_subscribers_of_its_kind_in_this_process() -> None:
    bus = LocalBus()
    queue, other = await heard(bus), await heard(bus, "progress")
    bus.publish("yield", {"upload": "one"})
    assert queue.empty()  # after publish() has returned
    assert await asyncio.wait_for(queue.get(), 5) == {"upload": "one"}
    assert other.empty()
    bus.unsubscribe("yield", queue.put_nowait)
    bus.publish("yield", {"upload": "two"})
    await asyncio.sleep(0.01)
    assert queue.empty()
    assert (bus.is_shared, await bus.joined()) == (False, False)


async def test_a_subscriber_that_raises_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = LocalBus()

    def fail(message: Message) -> None:
        raise ZeroDivisionError

    bus.subscribe("yield", fail)
    assert await arrives(bus, await heard(bus))
    assert "ZeroDivisionError" in caplog.text


async def test_a_message_reaches_every_process_of_the_site_once(start: Start) -> None:
    one, two, elsewhere = start(), start(), start("other-site")
    here, there, away = await heard(one), await heard(two), await heard(elsewhere)
    message = {"upload": "é", "epoch": 2**40, "offset": 0.5, "nothing": None, "many": [1, "2"]}
    one.publish("yield", message)
    assert await asyncio.wait_for(there.get(), 5) == message
    assert await asyncio.wait_for(here.get(), 5) == message
    for _ in range(250):
        two.publish("progress", {})
        two.publish("yield", {})
    for _ in range(250):
        await asyncio.wait_for(here.get(), 5)
    await asyncio.sleep(0.2)
    assert here.empty()
    assert there.qsize() == 250
    assert away.empty()
    assert one.is_shared


async def test_a_process_that_only_publishes_receives_nothing(start: Start) -> None:
    one, two = start(), start()
    assert await arrives(one, await heard(two), seconds=5)
    assert one._receiving is None


async def test_messages_arrive_again_when_the_medium_was_restarted(
    start: Start,
    medium: Medium,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(bus_module, "ECHO_SECONDS", 0.5)
    one, two = start(), start()
    here, there = await heard(one), await heard(two)
    assert await arrives(one, there, seconds=5)
    assert one.is_shared
    medium.break_()
    assert await arrives(one, here)  # in this process they always do
    assert not await arrives(one, there)
    assert not one.is_shared
    assert "Other processes were not reached" in caplog.text
    medium.heal()
    await until(lambda: arrives(one, there))
    await until(lambda: arrives(two, here))
    await until(one.joined)


async def test_a_process_joins_when_the_medium_is_there_at_last(
    start: Start, medium: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "CALL_SECONDS", 0.5)
    medium.break_()
    one, two = start(), start()
    queue: asyncio.Queue[Message] = asyncio.Queue()
    two.subscribe("yield", queue.put_nowait)
    assert not await two.joined()
    medium.heal()
    await until(two.joined)
    await until(lambda: arrives(one, queue))


async def test_a_medium_that_breaks_in_silence_is_seen_to_be_broken(
    start: Start, medium: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "ECHO_SECONDS", 0.1)
    monkeypatch.setattr(bus_module, "CALL_SECONDS", 0.5)
    bus = start()
    await heard(bus)
    medium.break_()
    deadline = time.monotonic() + 5
    while bus.is_shared:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    medium.heal()
    await until(bus.joined)


class DeafBus(SharedBus):
    """As behind a pooler that takes every call and passes no notification on."""

    async def _send(self, envelope: Envelope) -> None:
        pass

    async def _receive(self) -> None:
        await self._attend(asyncio.sleep(1000))


async def test_a_medium_that_takes_everything_and_brings_nothing_is_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bus_module, "CALL_SECONDS", 0.3)
    bus = DeafBus()
    bus.subscribe("yield", lambda message: None)
    try:
        assert not await bus.joined()
    finally:
        await bus.close()


@pytest.mark.parametrize("medium", LAYERS, indirect=True)
async def test_a_redis_that_hangs_blocks_nobody_and_what_waits_is_bounded(
    start: Start, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bus_module, "CALL_SECONDS", 0.2)
    one, two = start(), start()
    here, there = await heard(one), await heard(two)
    redis.stop()
    try:
        begun = time.monotonic()
        for number in range(3000):
            one.publish("yield", {"number": number})
        assert time.monotonic() - begun < 1
        assert len(one._queue) == bus_module.MAX_QUEUED
        assert "were dropped" in caplog.text
        await asyncio.sleep(1)
        assert here.qsize() == 3000
        assert there.empty()
        ended = start()
        ended.publish("yield", {})
        await asyncio.sleep(0)
        begun = time.monotonic()
        await ended.close()
        assert time.monotonic() - begun < 5 * bus_module.CALL_SECONDS
    finally:
        redis.cont()
    await until(lambda: arrives(one, there))


async def test_what_no_bus_has_sent_is_left_unread(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = start(), start()
    there = await heard(two)
    for envelope in (
        {"messages": []},
        {"from": "x", "messages": [1]},
        {"from": "x", "messages": None},
    ):
        await one._send(envelope)
    assert await arrives(one, there, seconds=5)
    assert "A message of another process was not read" in caplog.text


async def test_a_closed_bus_sends_what_it_has_and_leaves_no_task(start: Start) -> None:
    one, two = start(), start()
    there = await heard(two)
    await heard(one)
    before = asyncio.all_tasks()
    for number in range(bus_module.MAX_QUEUED):
        one.publish("yield", {"number": number})
    await one.close()
    assert not {task for task in asyncio.all_tasks() - before if "bus.py" in repr(task)}
    for number in range(bus_module.MAX_QUEUED):
        assert await asyncio.wait_for(there.get(), 5) == {"number": number}
