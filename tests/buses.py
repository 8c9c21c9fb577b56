"""What the tests of buses share: the media, and what arrives. Each bus stands for a process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from django_async_upload import notices
from django_async_upload.engine import notify
from django_async_upload.engine.bus import Bus, Message, SharedBus
from django_async_upload.engine.layer import LayerBus
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
