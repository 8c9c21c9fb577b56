"""A thread pool for calls that may never return."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from threading import Lock, Semaphore, Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonExecutor(Executor):
    """A pool like :class:`ThreadPoolExecutor`, whose hanging calls do not keep the process from exiting.

    At exit the interpreter joins the threads of the standard library's pools without a time limit.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._threads: list[Thread] = []
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = Semaphore(0)
        self._lock = Lock()
        self._is_shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread. Raises :class:`RuntimeError` after :meth:`shutdown`."""
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # the future delivers any exception to the caller
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._is_shut:
                raise RuntimeError("This pool has been shut down.")
            self._calls.put(call)
            if len(self._threads) < self._most and not self._idle.acquire(blocking=False):
                thread = Thread(
                    target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        return future

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            call()
            del call  # frees its arguments while this thread waits
            self._idle.release()

    @property
    def is_alive(self) -> bool:
        """Whether any of its threads is running, idle ones included."""
        return any(thread.is_alive() for thread in self._threads)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and end the threads after the submitted ones.

        ``wait``: return when the threads have ended, without a time limit; :meth:`join` has one.
        ``cancel_futures``: drop calls that have not started.
        """
        with self._lock:
            if not self._is_shut:
                self._is_shut = True
                while cancel_futures and not self._calls.empty():
                    self._calls.get()
                for _thread in self._threads:
                    self._calls.put(None)
        if wait:
            self.join(None)

    def join(self, seconds: float | None) -> bool:
        """After :meth:`shutdown`, wait for the threads to end; returns whether they have."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self.is_alive
