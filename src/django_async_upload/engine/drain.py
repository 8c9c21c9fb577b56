"""Draining a worker: its clients are asked to reconnect later, to another one, and it takes no new ones meanwhile.

It is a state of the process: left by :func:`undrain` or by a restart.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
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
DRAINED_PER_SECOND: Final = 100
"""Connections drained per second: another process has to take all these clients at once."""
SPREAD_SECONDS: Final = 3.0
"""Seconds within which the last connection is drained, however many there are."""
_draining: list[float] = []
_closing: list[float] = []
"""An item for each call of :func:`drain` that still waits."""


def spawn(coroutine: Any) -> None:
    """Run a coroutine that outlives its connection."""
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def retry_after() -> float | None:
    """Seconds after which clients may reconnect, while the process drains; otherwise None."""
    return _draining[-1] if _draining else None


def is_drained() -> bool:
    """Whether the process drains and has said goodbye to all clients: it may be stopped."""
    return bool(_draining) and not _closing


async def drain(retry_after: float = 1.0) -> None:
    """Ask every client of this process to reconnect later, save all uploads, and close the connections.

    One after the other, evenly, within :data:`SPREAD_SECONDS`: clients that come back at once would wait for each
    other. Until its turn each goes on uploading.

    Until :func:`undrain`, or the end of the process, new connections are refused in the same way. Call it
    before stopping the server, since most servers close the sockets themselves on SIGTERM. ``retry_after`` is in
    seconds. Returns within 15 seconds, whatever hangs.
    """
    _draining[:] = [retry_after]
    _closing.append(retry_after)
    try:
        leaving = list(connections)
        pause = min(1 / DRAINED_PER_SECOND, SPREAD_SECONDS / max(1, len(leaving)))
        await asyncio.gather(
            *(_drain_after(number * pause, each) for number, each in enumerate(leaving))
        )
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
    finally:
        _closing.pop()


async def _drain_after(seconds: float, connection: Drainable) -> None:
    await asyncio.sleep(seconds)
    if _draining and connection in connections:  # otherwise undrained, or gone by itself
        await connection.drain(_draining[-1])


def undrain() -> None:
    """Accept connections again, if the process is not stopped after all."""
    _draining.clear()


class DrainFirst:
    """Drains at the first SIGTERM, for :data:`CLOSING_SECONDS` at most, and then calls the server's own handler.

    uvicorn tells its clients nothing when it stops, and closes their sockets before it sends the lifespan's shutdown.
    Its handler of SIGTERM is set before the lifespan's startup, so that one can be set before it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._task: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Does nothing where the server has no handler that can be called, or the loop runs in another thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGTERM)
        # With loop.add_signal_handler() the loop learns of the signal in another way, which this cannot delay.
        if callable(handler) and not getattr(handler, "__module__", "").startswith("asyncio"):
            self._handler = handler
            signal.signal(signal.SIGTERM, self._receive)

    def uninstall(self) -> None:
        if self._handler is not None and signal.getsignal(signal.SIGTERM) == self._receive:
            signal.signal(signal.SIGTERM, self._handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        assert self._handler is not None
        if self._task is not None:  # a second SIGTERM does not wait
            self._handler(number, frame)
        else:
            self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._drain(number))

    async def _drain(self, number: int) -> None:
        assert self._handler is not None
        draining = asyncio.create_task(drain())
        await asyncio.wait({draining}, timeout=CLOSING_SECONDS)
        self._handler(number, None)
