"""A worker: this process, as the management commands see it, which ask it questions.

They reach it by a socket of its machine, or, where the bus is shared, from any machine of the site.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Coroutine, Mapping, Sized
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..failpoints import failpoint
from . import drain
from .bus import Bus
from .credit import Budget
from .layer import site

logger = logging.getLogger("django_async_upload")

ASK, ANSWER = "worker.ask", "worker.answer"
"""Kinds of messages on the bus. A question has an ``ask`` of its own, and its answers have the same."""
SECONDS: Final = 2.0
"""Seconds that either side waits for the other at a socket."""
_CREDENTIALS: Final = struct.Struct("3i")
"""``struct ucred``: process, user and group of the other side."""


@dataclass(frozen=True)
class WorkerStatus:
    """What one worker does now."""

    host: str
    """Name of its machine."""
    pid: int
    parent: int
    """Process id of the process that started it: of a server with several workers, its main process."""
    since: float
    """When it began to take uploads, seconds since 1970."""
    connections: int
    """Open connections."""
    uploads: int
    """Uploads that clients are connected to."""
    credit: int
    """Bytes that clients may send now, all uploads together."""
    draining: bool
    drained: bool
    """It drains, and all connections are closed: it may be stopped."""


class Worker:
    """Answers the questions of commands, each with a :class:`WorkerStatus` as dict.

    ``{"do": "status"}`` asks only; ``{"do": "drain", "retry_after": seconds}`` begins a drain, ``{"do": "undrain"}``
    ends it. The socket has a name of Linux's abstract kind: no file is left behind if the process dies, and each
    network namespace, as a container has one, has names of its own.
    """

    def __init__(self, alias: str, active: Sized, budget: Budget, bus: Bus) -> None:
        self._name = f"{prefix(alias)}{os.getpid()}/{secrets.token_hex(4)}"
        self._active = active
        self._budget = budget
        self._bus = bus
        self._since = time.time()
        self._server: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Start to answer, unless it has started."""
        if self._server is None:
            self._server = asyncio.create_task(self._listen())
            self._bus.subscribe(ASK, self._receive)

    def stop(self) -> None:
        if self._server is not None:
            self._server.cancel()
            self._bus.unsubscribe(ASK, self._receive)

    async def _listen(self) -> None:
        try:
            server = await asyncio.start_unix_server(self._serve, self._name)
        except OSError as error:  # the service manager forbids Unix sockets, or this is not Linux
            logger.warning("Commands on this machine cannot reach this worker: %s", error)
            return
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question, if it comes from this process's user or from root."""
        try:
            async with asyncio.timeout(SECONDS):
                if _user_of(writer.get_extra_info("socket")) in (0, os.geteuid()):
                    answer = await self._answer(json.loads(await reader.readline()))
                    failpoint("worker.before_send")
                    writer.write(json.dumps(answer).encode() + b"\n")
                    await writer.drain()
                    failpoint("worker.after_send")
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            logger.info("A question about this worker was not answered: %r", error)
        finally:
            writer.close()

    def _receive(self, message: Mapping[str, Any]) -> None:
        self._spawn(self._publish_answer(message))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish_answer(self, message: Mapping[str, Any]) -> None:
        self._bus.publish(ANSWER, {**await self._answer(message), "ask": message.get("ask")})

    async def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        match question:
            case {"do": "drain", "retry_after": int() | float() as seconds}:
                self._spawn(drain.drain(seconds))
                await asyncio.sleep(0)  # it has begun
            case {"do": "undrain"}:
                drain.undrain()
        return asdict(self._status())

    def _status(self) -> WorkerStatus:
        return WorkerStatus(
            host=socket.gethostname(),
            pid=os.getpid(),
            parent=os.getppid(),
            since=self._since,
            connections=len(drain.connections),
            uploads=len(self._active),
            credit=self._budget.promised,
            draining=drain.retry_after() is not None,
            drained=drain.is_drained(),
        )


def prefix(alias: str) -> str:
    """What the names of all workers of the site begin with, whose uploads are in the database of that alias."""
    return f"\0async-upload/{site(alias)}/"


def _user_of(sock: Any) -> int:
    """The user id of the process at the other end of a Unix socket."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1])
