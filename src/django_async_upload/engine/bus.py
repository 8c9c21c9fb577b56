"""Messages between the processes of a site.

A message saves time only: it may be lost, come late or come twice, so nothing may depend on its arrival.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from ..failpoints import failpoint
from ..notices import notice

logger = logging.getLogger("django_async_upload")

CALL_SECONDS: Final = 2.0
"""Seconds that a call to the medium, and the echo of a message, may take."""
ECHO_SECONDS: Final = 10.0
"""Seconds between two echoes: messages to itself, by which a process knows that it is connected."""
CANCELLATIONS: Final = 20
MAX_QUEUED: Final = 1000
"""Messages that wait for the medium; when more are published, the oldest are dropped."""
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
        """Whether other processes are reached now, as far as this process knows."""

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

    def __init__(self) -> None:
        self._receivers: defaultdict[str, list[Receive]] = defaultdict(list)

    @property
    def is_shared(self) -> bool:
        return False

    def publish(self, kind: str, message: Message) -> None:
        failpoint(f"{kind}.before_hint")
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

    def __init__(self) -> None:
        super().__init__()
        self._id = uuid.uuid4().hex
        self._queue: deque[tuple[str, Message]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._echoed = asyncio.Event()
        self._pause = FIRST_PAUSE

    @property
    def is_shared(self) -> bool:
        return self._joined.is_set()

    @abstractmethod
    async def _send(self, envelope: Envelope) -> None:
        """Send to all processes. May raise anything, and is cancelled after :data:`CALL_SECONDS`."""

    @abstractmethod
    async def _receive(self) -> None:
        """Join, then :meth:`_attend` to what is received, until it raises. May raise anything."""

    async def _renew(self) -> None:
        """Renew the membership, before each echo: the medium may have forgotten it."""

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
                    for kind in dict(batch):
                        failpoint(f"{kind}.after_hint")
                except Exception as error:  # each medium raises its own
                    self._joined.clear()  # until the next echo
                    notice(
                        "bus out", logging.WARNING, "Other processes were not reached: %r", error
                    )
        finally:
            self._sending = None

    async def _keep_receiving(self) -> None:
        while True:
            try:
                await self._receive()
            except Exception as error:  # each medium raises its own
                notice("bus in", logging.WARNING, "Other processes are not heard: %r", error)
            self._joined.clear()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _attend(self, receive: Coroutine[Any, Any, None]) -> None:
        """Run ``receive``, which unpacks what arrives, until it or an echo fails; raises that error."""
        receiving = asyncio.create_task(receive)
        receiving.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while True:
                await bounded(self._renew())
                self._echoed.clear()
                await bounded(self._send({"from": self._id, "messages": []}))
                await bounded(self._echoed.wait())
                self._joined.set()
                self._pause = FIRST_PAUSE
                if (await asyncio.wait({receiving}, timeout=ECHO_SECONDS))[0]:
                    receiving.result()
        finally:
            for _ in range(CANCELLATIONS):  # channels_redis may swallow one
                receiving.cancel()
                if (await asyncio.wait({receiving}, timeout=CALL_SECONDS / CANCELLATIONS))[0]:
                    break

    def _unpack(self, envelope: Envelope) -> None:
        try:
            if envelope["from"] == self._id:
                self._echoed.set()
            else:
                for kind, message in envelope["messages"]:
                    self._deliver(kind, message)
        except (KeyError, TypeError, ValueError):
            notice("bus message", logging.WARNING, "A message of another process was not read.")


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
