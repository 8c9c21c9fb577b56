"""The task that sends on a connection."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..failpoints import failpoint

logger = logging.getLogger("django_async_upload")

MAX_UNSENT: Final = 1024 * 1024
"""Limit of unsent bytes: beyond it a client that does not read is disconnected."""


class Sender:
    """Sends frames in order, then what streams offer: only the newest of each, the longest waiting stream first."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        newest: Callable[[int], bytes | None],
    ) -> None:
        """``newest`` returns the frame that a stream offered; None where there is none any more."""
        self._send = send
        self._newest = newest
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._offers: dict[int, None] = {}
        self._wake = asyncio.Event()
        self._is_stopped = False
        self._close_code: int | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def is_full(self) -> bool:
        """Whether too many bytes are unsent, because the client does not read."""
        return self._bytes > MAX_UNSENT

    def push(self, frame: bytes) -> None:
        """Queue a frame."""
        self._frames.append(frame)
        self._bytes += sys.getsizeof(frame)
        self._wake.set()

    def offer(self, stream: int) -> None:
        """Queue a stream's newest frame, which is made when it can be sent, so that it replaces an older one."""
        self._offers[stream] = None
        self._wake.set()

    def forget(self, stream: int) -> None:
        """Drop the offer of a closed stream."""
        self._offers.pop(stream, None)

    def stop(self) -> None:
        """Send nothing more, since the client has disconnected."""
        self._is_stopped = True
        self._wake.set()

    def close(self, frame: bytes, code: int) -> None:
        """Queue a last frame, after which the connection is closed."""
        self._close_code = code
        self.push(frame)

    async def ended(self, seconds: float) -> bool:
        """Wait for the task; returns whether it ended within ``seconds``."""
        return bool((await asyncio.wait({self._task}, timeout=seconds))[0])

    def cancel(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        try:
            while not self._is_stopped or self._close_code is not None:
                while self._frames:
                    frame = self._frames.popleft()
                    self._bytes -= sys.getsizeof(frame)
                    failpoint("frame.before_send")
                    await self._send({"type": "websocket.send", "bytes": frame})
                    failpoint("frame.after_send")
                if self._close_code is not None:
                    failpoint("close.before_send")
                    await self._send({"type": "websocket.close", "code": self._close_code})
                    failpoint("close.after_send")
                    return
                if self._offers:
                    stream = next(iter(self._offers))
                    del self._offers[stream]
                    if (newest := self._newest(stream)) is not None:
                        self.push(newest)
                    continue
                self._wake.clear()
                await self._wake.wait()
        except Exception as error:  # each server raises another error for a closed socket
            logger.debug("The connection could not be written to: %r", error)
