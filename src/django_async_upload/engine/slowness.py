"""The minimum rate of an upload's client: the setting ``MIN_RATE``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .. import conf
from ..exceptions import TooSlow, UploadError
from .credit import Account
from .flow import Flow
from .queue import Queue

RETRY_SECONDS = 5.0
"""Seconds after which a client that was too slow may come back."""


class Slowness:
    """Looks every ``IDLE_TIMEOUT`` seconds at what an upload received since.

    An upload that waits for the server, for the disk or for credit, is not slow.
    """

    def __init__(
        self, account: Account, flow: Flow, queue: Queue, lose: Callable[[UploadError], None]
    ) -> None:
        """``lose`` is called with :class:`TooSlow`."""
        self._account = account
        self._flow = flow
        self._queue = queue
        self._lose = lose
        self._consumed = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Count from now, where there is a minimum rate."""
        configured = conf.uploads()
        if configured.min_rate:
            self._consumed = self._account.consumed
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(configured.idle_timeout, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        configured = conf.uploads()
        received = self._account.consumed - self._consumed
        may_send = self._flow.limit > self._flow.received and not self._queue.pieces
        if may_send and received < configured.min_rate * configured.idle_timeout:
            self._lose(TooSlow(min_rate=configured.min_rate, retry_after=RETRY_SECONDS))
        else:
            self.start()
