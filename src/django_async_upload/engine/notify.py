"""The bus over PostgreSQL's LISTEN and NOTIFY, where a site has no channel layer.

Each process has two database connections for it, of which one only waits. Neither is in a transaction, so no message
waits for a commit, and no commit for a message's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any, Final

from django.db import connections

from ..notices import notice
from .bus import Envelope, SharedBus, bounded

MAX_BYTES: Final = 7999
"""Of a payload: PostgreSQL takes less than 8,000."""
KEEPALIVES: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Seconds, and a number of probes, after which a silent server counts as gone; options of the site come first."""


class NotifyBus(SharedBus):
    """Messages as notifications, as many together as a payload takes."""

    def __init__(self, alias: str, channel: str) -> None:
        super().__init__()
        self._alias = alias
        self._channel = channel
        self._sender: Any = None
        """The connection that sends, once there was something to send."""
        self._sending_turn = asyncio.Lock()

    async def close(self) -> None:
        await super().close()
        await self._drop_sender()

    async def _send(self, envelope: Envelope) -> None:
        async with self._sending_turn:
            if self._sender is None:
                self._sender = await self._connect()
            try:
                for payload in _payloads(envelope):
                    await self._sender.execute("SELECT pg_notify(%s, %s)", [self._channel, payload])
            except BaseException:  # an error, or the time is up: its state is unknown
                await self._drop_sender()
                raise

    async def _receive(self) -> None:
        listener = await bounded(self._connect())
        try:
            await bounded(listener.execute(f'LISTEN "{self._channel}"'))
            await self._attend(self._receive_from(listener))
        finally:
            await _close(listener)

    async def _receive_from(self, listener: Any) -> None:
        async for notification in listener.notifies():
            try:
                envelope = json.loads(notification.payload)
            except ValueError:  # not of this app
                envelope = {}
            self._unpack(envelope)

    async def _connect(self) -> Any:
        from psycopg import AsyncConnection

        options = connections[self._alias].get_connection_params()
        for synchronous in ("cursor_factory", "context"):
            options.pop(synchronous, None)
        return await AsyncConnection.connect(**{**KEEPALIVES, **options}, autocommit=True)

    async def _drop_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            await _close(sender)


def is_listenable(alias: str) -> bool:
    """Whether the database is PostgreSQL by psycopg 3, which can wait on an event loop."""
    if connections[alias].vendor != "postgresql":
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)


async def _close(connection: Any) -> None:
    with suppress(Exception):  # it is broken already
        await bounded(connection.close())


def _payloads(envelope: Envelope) -> list[str]:
    """The envelope as payloads of at most :data:`MAX_BYTES`, without the messages that are longer."""
    payload = json.dumps(envelope, ensure_ascii=False)
    if len(payload.encode()) <= MAX_BYTES:
        return [payload]
    messages = envelope["messages"]
    if len(messages) <= 1:
        notice("bus long", logging.WARNING, "A message is too long for PostgreSQL's NOTIFY.")
        return []
    middle = len(messages) // 2
    halves = (messages[:middle], messages[middle:])
    return [each for half in halves for each in _payloads({**envelope, "messages": half})]
