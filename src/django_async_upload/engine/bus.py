"""Messages between the processes of a site.

A message saves time only: it may be lost, come late or come twice, so nothing may depend on its arrival.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.db import connections

from ..notices import notice

logger = logging.getLogger("django_async_upload")

CALL_SECONDS: Final = 2.0
"""Seconds that a call to the channel layer may take."""
RENEW_SECONDS: Final = 30.0
"""Seconds between renewals of the membership in the group: a layer forgets members in time, or when it is restarted."""
CANCELLATIONS: Final = 20
MAX_QUEUED: Final = 1000
"""Messages that wait for the layer; when more are published, the oldest are dropped."""
MAX_BATCH: Final = 100
"""Messages that are sent together."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to receive after errors."""

Result = TypeVar("Result")
Message: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[Message], None]
Envelope: TypeAlias = dict[str, Any]
"""What is sent: ``from``, the id of the sending bus, and ``messages``, a list of kinds with their messages."""


class Bus(Protocol):
    """Messages to all processes of the site. To be used on the event loop."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes are reached."""

    def publish(self, kind: str, message: Message) -> None:
        """Send a message of JSON values to all processes of the site, this one too. Returns at once; raises nothing."""

    def subscribe(self, kind: str, receive: Receive) -> None:
        """Call ``receive`` with each message of that kind. It must not block, and must not raise."""

    def unsubscribe(self, kind: str, receive: Receive) -> None:
        """End a subscription."""

    async def joined(self) -> bool:
        """Wait at most :data:`CALL_SECONDS` until messages of other processes arrive; returns whether they do."""

    async def close(self) -> None:
        """Send what is queued, and end; takes at most twice :data:`CALL_SECONDS`."""


class LocalBus:
    """Messages within one process."""

    is_shared = False

    def __init__(self) -> None:
        self._receivers: defaultdict[str, list[Receive]] = defaultdict(list)

    def publish(self, kind: str, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, kind, message)

    def subscribe(self, kind: str, receive: Receive) -> None:
        self._receivers[kind].append(receive)

    def unsubscribe(self, kind: str, receive: Receive) -> None:
        with suppress(ValueError):
            self._receivers[kind].remove(receive)

    async def joined(self) -> bool:
        return False

    async def close(self) -> None:
        self._receivers.clear()

    def _deliver(self, kind: str, message: Message) -> None:
        for receive in list(self._receivers.get(kind, ())):
            try:
                receive(message)
            except Exception:  # a bug of one subscriber; the others get the message
                logger.exception("A message of kind %s was not received", kind)


class SharedBus(LocalBus, ABC):
    """Messages between processes. Those of this process arrive without a way through the medium.

    A task receives from the first subscription on; another one sends while messages are queued.
    """

    is_shared = True

    def __init__(self) -> None:
        super().__init__()
        self._id = uuid.uuid4().hex
        self._queue: deque[tuple[str, Message]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()

    @abstractmethod
    async def _send(self, envelope: Envelope) -> None:
        """Send to all processes. May raise anything, and is cancelled after :data:`CALL_SECONDS`."""

    @abstractmethod
    async def _receive(self) -> None:
        """Join, set ``_joined``, and call :meth:`_unpack` with what arrives, until an error."""

    def publish(self, kind: str, message: Message) -> None:
        super().publish(kind, message)
        if len(self._queue) == MAX_QUEUED:
            self._queue.popleft()
            notice("bus full", logging.WARNING, "Messages to other processes were dropped.")
        self._queue.append((kind, message))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_queued())

    def subscribe(self, kind: str, receive: Receive) -> None:
        super().subscribe(kind, receive)
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._keep_receiving())

    async def joined(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(CALL_SECONDS):
                await self._joined.wait()
        return self._joined.is_set()

    async def close(self) -> None:
        await super().close()
        if self._sending is not None:
            await _end(self._sending, CALL_SECONDS)
        if self._receiving is not None:
            await _end(self._receiving)

    async def _send_queued(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(MAX_BATCH, len(self._queue)))]
                try:
                    await bounded(self._send({"from": self._id, "messages": batch}))
                except Exception as error:  # each medium raises its own
                    notice("bus", logging.WARNING, "Other processes were not reached: %r", error)
        finally:
            self._sending = None

    async def _keep_receiving(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._receive()
            except Exception as error:  # each medium raises its own
                notice("bus", logging.WARNING, "Other processes are not heard: %r", error)
            if self._joined.is_set():
                pause = FIRST_PAUSE
            self._joined.clear()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _unpack(self, envelope: Envelope) -> None:
        try:
            if envelope["from"] != self._id:
                for kind, message in envelope["messages"]:
                    self._deliver(kind, message)
        except (KeyError, TypeError, ValueError):
            notice("bus message", logging.WARNING, "A message of another process was not read.")


class LayerBus(SharedBus):
    """Messages through the channel layer: one group for the site, with one channel of each process."""

    def __init__(self, layer: Any, group: str) -> None:
        super().__init__()
        self._layer = layer
        self._group = group

    async def _send(self, envelope: Envelope) -> None:
        await self._layer.group_send(self._group, {"type": "async_upload.bus", **envelope})

    async def _receive(self) -> None:
        channel = await bounded(self._layer.new_channel())
        receiving = asyncio.create_task(self._receive_from(channel))
        try:
            while True:
                await bounded(self._layer.group_add(self._group, channel))
                self._joined.set()
                if (await asyncio.wait({receiving}, timeout=RENEW_SECONDS))[0]:
                    receiving.result()
        finally:
            for _ in range(CANCELLATIONS):  # channels_redis may swallow one
                receiving.cancel()
                if (await asyncio.wait({receiving}, timeout=CALL_SECONDS / CANCELLATIONS))[0]:
                    break
            with suppress(Exception):  # the layer forgets it in time
                await bounded(self._layer.group_discard(self._group, channel))

    async def _receive_from(self, channel: str) -> None:
        while True:
            self._unpack(await self._layer.receive(channel))


def make_bus(alias: str) -> Bus:
    """The bus of a site whose uploads are in the database of that alias: over its channel layer, if it has one that
    reaches other processes. To be called on the event loop, of which some layers have a part of their own."""
    layer = get_channel_layer()
    if layer is None or isinstance(layer, InMemoryChannelLayer) or "groups" not in layer.extensions:
        return LocalBus()
    return LayerBus(layer, f"async-upload.{site(alias)}")


def site(alias: str) -> str:
    """A name of the site, by its database: several sites may share a Redis, even a prefix in it."""
    name = str(connections[alias].settings_dict["NAME"])
    return hashlib.sha256(name.encode()).hexdigest()[:16]


async def bounded(call: Coroutine[Any, Any, Result]) -> Result:
    """The result of a call to a medium. Raises :class:`TimeoutError` after :data:`CALL_SECONDS`."""
    async with asyncio.timeout(CALL_SECONDS):
        return await call


async def _end(task: asyncio.Task[Any], patience: float = 0.0) -> None:
    """Cancel a task after ``patience`` seconds, and wait until it has ended, at most :data:`CALL_SECONDS`."""
    if patience:
        await asyncio.wait({task}, timeout=patience)
    task.cancel()
    await asyncio.wait({task}, timeout=CALL_SECONDS)
