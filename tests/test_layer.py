"""A site has the bus of its channel layer, which goes on when the layer has forgotten a process."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer, channel_layers, get_channel_layer

from django_async_upload.engine import bus as bus_module
from django_async_upload.engine import layer as layer_module
from django_async_upload.engine import notify
from django_async_upload.engine.bus import LocalBus
from django_async_upload.engine.layer import LayerBus, make_bus
from django_async_upload.engine.notify import NotifyBus

from .buses import (
    LAYERS,
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


@pytest.fixture
def layers(settings: Any) -> Iterator[Any]:
    def use(config: dict[str, Any]) -> None:
        settings.CHANNEL_LAYERS = config
        channel_layers.backends.clear()

    yield use
    channel_layers.backends.clear()


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
