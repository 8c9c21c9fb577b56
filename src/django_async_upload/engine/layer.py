"""The bus over the channel layer, and the choice of a site's bus."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any, Final

from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.db import connections

from .bus import Bus, Envelope, LocalBus, SharedBus, bounded
from .notify import NotifyBus, is_listenable

PREFIX: Final = "async-upload"


class LayerBus(SharedBus):
    """Messages through the channel layer: one group for the site, with one channel of each process."""

    def __init__(self, layer: Any, group: str) -> None:
        super().__init__()
        self._layer = layer
        self._group = group
        self._channel = ""

    async def _send(self, envelope: Envelope) -> None:
        await self._layer.group_send(self._group, {"type": "async_upload.bus", **envelope})

    async def _receive(self) -> None:
        self._channel = await bounded(self._layer.new_channel())
        try:
            await self._attend(self._receive_from(self._channel))
        finally:
            with suppress(Exception):  # the layer forgets it in time
                await bounded(self._layer.group_discard(self._group, self._channel))

    async def _receive_from(self, channel: str) -> None:
        while True:
            self._unpack(await self._layer.receive(channel))

    async def _renew(self) -> None:
        await self._layer.group_add(self._group, self._channel)


def make_bus(alias: str) -> Bus:
    """The bus of a site whose uploads are in the database of that alias.

    It goes over the site's channel layer, and stays in the process with a layer that does, or has no groups. For a site
    without a layer it goes over the database, if that is PostgreSQL. To be called on the event loop, of which some
    layers have a part of their own.
    """
    name = f"{PREFIX}.{site(alias)}"
    layer = get_channel_layer()
    if layer is None:
        return NotifyBus(alias, name) if is_listenable(alias) else LocalBus()
    if isinstance(layer, InMemoryChannelLayer) or "groups" not in layer.extensions:
        return LocalBus()
    return LayerBus(layer, name)


def site(alias: str) -> str:
    """A name of the site, by its database: several sites may share a Redis, even a prefix in it."""
    name = str(connections[alias].settings_dict["NAME"])
    return hashlib.sha256(name.encode()).hexdigest()[:16]
