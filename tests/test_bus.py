"""Messages reach every process of the site, whatever happens to the layer; here each bus stands for a process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, channel_layers, get_channel_layer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from django_async_upload import notices
from django_async_upload.engine import bus as bus_module
from django_async_upload.engine import layer as layer_module
from django_async_upload.engine import notify
from django_async_upload.engine.bus import Bus, Envelope, LocalBus, Message, SharedBus
from django_async_upload.engine.layer import LayerBus, make_bus
from django_async_upload.engine.notify import NotifyBus

from .e2e.postgres import Postgres
from .e2e.redis import Redis, running_redis

LAYERS = {"pubsub": RedisPubSubChannelLayer, "core": RedisChannelLayer}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with running_redis(tmp_path) as redis:
        yield redis


class RedisMedium:
    """What the buses of a test go through."""

    def __init__(self, redis: Redis, layer: Any) -> None:
        self._layer = layer
        self._redis = redis
        self.break_, self.heal = redis.kill, redis.start

    def bus(self, group: str) -> LayerBus:
        return LayerBus(self._layer(hosts=[self._redis.url]), group)


class PostgresMedium:
    def __init__(self, postgres: Postgres, patch: pytest.MonkeyPatch) -> None:
        options = {**postgres.server, "dbname": postgres.name, "cursor_factory": None}
        connection = SimpleNamespace(get_connection_params=options.copy)
        patch.setattr(notify, "connections", {"site": connection})
        self._gone = postgres.gone()

    def bus(self, group: str) -> NotifyBus:
        return NotifyBus("site", group)

    def break_(self) -> None:
        self._gone.__enter__()

    def heal(self) -> None:
        self._gone.__exit__(None, None, None)


@pytest.fixture(params=[*LAYERS, "notify"])
def medium(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RedisMedium | PostgresMedium]:
    if request.param != "notify":
        yield RedisMedium(request.getfixturevalue("redis"), LAYERS[request.param])
        return
    with Postgres() as postgres:
        yield PostgresMedium(postgres, monkeypatch)


@pytest.fixture
async def start(
    medium: RedisMedium | PostgresMedium,
) -> AsyncIterator[Callable[..., SharedBus]]:
    """``start(group)``: a bus with connections of its own, as in a process of its own."""
    buses: list[SharedBus] = []

    def start(group: str = "site") -> SharedBus:
        buses.append(medium.bus(group))
        return buses[-1]

    yield start
    for bus in buses:
        await bus.close()


@pytest.fixture(autouse=True)
def _forget() -> None:
    notices.forget()


Medium = RedisMedium | PostgresMedium
Start = Callable[..., SharedBus]


async def heard(bus: Bus, kind: str = "yield") -> asyncio.Queue[Message]:
    """What the bus receives from now on."""
    queue: asyncio.Queue[Message] = asyncio.Queue()
    bus.subscribe(kind, queue.put_nowait)
    if isinstance(bus, SharedBus):
        assert await bus.joined()
    return queue


async def until(works: Callable[[], Awaitable[bool]], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not await works():
        assert time.monotonic() < deadline


async def arrives(sender: Bus, queue: asyncio.Queue[Message], seconds: float = 0.3) -> bool:
    """Whether a message from ``sender`` arrives."""
    sent = {"sent": time.monotonic()}
    sender.publish("yield", sent)
    deadline = sent["sent"] + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            if await asyncio.wait_for(queue.get(), left) == sent:
                return True
        except TimeoutError:
            break
    return False


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


@pytest.mark.parametrize("medium", LAYERS, indirect=True)
async def test_a_layer_that_forgot_a_process_is_told_again(
    start: Start, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "ECHO_SECONDS", 0.3)
    one, two = start(), start()
    there = await heard(two)
    from redis.asyncio import from_url

    async with from_url(redis.url) as client:
        await client.flushall()
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


@pytest.fixture
def layers(settings: Any) -> Iterator[Any]:
    def use(config: dict[str, Any]) -> None:
        settings.CHANNEL_LAYERS = config
        channel_layers.backends.clear()

    yield use
    channel_layers.backends.clear()


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


async def test_a_site_has_a_shared_bus_where_its_layer_is(
    layers: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in (
        {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
        {"default": {"BACKEND": f"{__name__}.WithoutGroups"}},
    ):
        layers(config)
        assert type(make_bus("default")) is LocalBus
    for backend in ("pubsub.RedisPubSubChannelLayer", "core.RedisChannelLayer"):
        layers(redis.layers(backend))
        bus = make_bus("default")
        assert isinstance(bus, LayerBus)
        assert bus._layer is get_channel_layer()
        assert bus._group == "async-upload." + bus._group.rpartition(".")[2]
    layers({})
    is_postgres = layer_module.connections["default"].vendor == "postgresql"
    assert type(make_bus("default")) is (NotifyBus if is_postgres else LocalBus)
    monkeypatch.setattr(layer_module, "is_listenable", lambda alias: True)
    assert type(make_bus("default")) is NotifyBus
    with monkeypatch.context() as postgres:
        postgres.setattr(notify, "connections", {"default": SimpleNamespace(vendor="postgresql")})
        assert notify.is_listenable("default")


class WithoutGroups(InMemoryChannelLayer):
    extensions = ["flush"]


def test_sites_on_other_databases_have_other_groups(settings: Any) -> None:
    assert layer_module.site("default") == layer_module.site("default")
    connection = layer_module.connections["default"]
    before = layer_module.site("default")
    name = connection.settings_dict["NAME"]
    try:
        connection.settings_dict["NAME"] = "another"
        assert layer_module.site("default") != before
    finally:
        connection.settings_dict["NAME"] = name
