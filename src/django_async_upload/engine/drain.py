"""Draining a process: its clients are asked to reconnect later, to another process."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

CLOSING_SECONDS: Final = 5.0
"""Seconds to wait for closing connections: for their last messages, and for saving their uploads."""


class Drainable(Protocol):
    async def drain(self, retry_after: float) -> None:
        """Save all uploads and close the connection."""


connections: set[Drainable] = set()
"""The open connections of this process."""
tasks: set[asyncio.Task[None]] = set()
"""Tasks that outlive their connection: uploads that complete after it was lost."""
_draining: list[float] = []


def spawn(coroutine: Any) -> None:
    """Run a coroutine that outlives its connection."""
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def retry_after() -> float | None:
    """Seconds after which clients may reconnect, while the process drains; otherwise None."""
    return _draining[-1] if _draining else None


async def drain(retry_after: float = 1.0) -> None:
    """Ask every client of this process to reconnect later, save all uploads, and close the connections.

    Until :func:`undrain`, or the end of the process, new connections are refused in the same way. Call it before
    stopping the server, since most servers close the sockets themselves on SIGTERM. ``retry_after`` is in seconds.
    """
    _draining[:] = [retry_after]
    await asyncio.gather(*(connection.drain(retry_after) for connection in list(connections)))
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSING_SECONDS)


def undrain() -> None:
    """Accept connections again, if the process is not stopped after all."""
    _draining.clear()
