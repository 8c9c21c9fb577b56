"""Draining a process: its clients are asked to come back later, to another one."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

FAREWELL_SECONDS: Final = 5.0
"""For how long what closes is waited for: the last messages, and uploads that are saved."""


class Drainable(Protocol):
    async def drain(self, retry_after: float) -> None:
        """Save all uploads and close the connection."""


connections: set[Drainable] = set()
"""The open ones of this process."""
tasks: set[asyncio.Task[None]] = set()
"""Uploads continue to their end when their connection is gone."""
_draining: list[float] = []


def spawn(coroutine: Any) -> None:
    """Run a coroutine that outlives its connection."""
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def retry_after() -> float | None:
    """While the process drains: seconds after which clients may come back. Otherwise None."""
    return _draining[-1] if _draining else None


async def drain(retry_after: float = 1.0) -> None:
    """Tell every client of this process to come back later, save all uploads, close the connections.

    Until :func:`undrain`, or the end of the process, new connections are refused in the same way. Call it before the
    server is stopped: most servers close the sockets themselves on SIGTERM. ``retry_after`` is in seconds.
    """
    _draining[:] = [retry_after]
    await asyncio.gather(*(connection.drain(retry_after) for connection in list(connections)))
    if tasks:
        await asyncio.wait(tasks, timeout=FAREWELL_SECONDS)


def undrain() -> None:
    """Let clients in again, where the process is not stopped after all."""
    _draining.clear()
