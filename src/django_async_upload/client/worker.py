"""A thread for blocking work, which delivers all finished results to the event loop in one call."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Worker:
    """Runs jobs one after the other in a daemon thread: a blocked ``read()`` does not keep the program running.

    Thousands of small jobs wake the event loop only a few times, since finished results are delivered together.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._done: deque[_Done] = deque()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Queue a job; returns a future for its result. The job may run even if the future is cancelled."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((future, partial(function, *args)))
        return future

    def stop(self) -> None:
        """End the thread after the queued jobs; does not wait."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function = job
            if future.cancelled():
                continue
            try:
                done: _Done = (future, function(), None)
            except BaseException as error:
                done = (future, None, error)
            del function, job
            self._done.append(done)
            # Only the first of a batch wakes the loop: _deliver empties the deque.
            if len(self._done) == 1:
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop was closed
                    return

    def _deliver(self) -> None:
        while self._done:
            future, result, error = self._done.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
