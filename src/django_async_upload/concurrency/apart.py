"""Isolation of a host's code: in threads that nothing else uses, with a time limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.db import connections

from .threads import DaemonExecutor

Result = TypeVar("Result")

AT_ONCE: Final = 32
"""Calls that :class:`HostThreads` makes at once. An owner has a quarter of them."""
MAX_STUCK: Final = 32
"""Threads of :class:`HostThreads` that calls keep which were given up. An owner may have a quarter of them."""


class Unfinished(Exception):
    """The code did not return in time, cancelled its own task, or was not called."""


async def apart(
    work: Callable[[], Coroutine[Any, Any, Result]],
    seconds: float,
    progress: Callable[[], int] = lambda: 0,
) -> Result:
    """:func:`within`; sync code that ``work`` calls runs in a thread that nothing else uses."""
    return await within(lambda: _in_own_thread(work), seconds, progress)


async def within(
    work: Callable[[], Coroutine[Any, Any, Result]],
    seconds: float,
    progress: Callable[[], int] = lambda: 0,
) -> Result:
    """Call and await ``work``, until for ``seconds`` it has not returned and ``progress()`` has not changed.

    Raises what ``work`` raises, and :class:`Unfinished`. Async code is cancelled then; sync code cannot be stopped.
    """
    # Code that cancels the current task cancels this one, not the upload's.
    running = asyncio.create_task(work())
    try:
        await _progressing(running, seconds, progress)
    finally:
        running.cancel()
    if running.cancelled():
        raise Unfinished("was cancelled")
    return running.result()


async def _progressing(
    running: asyncio.Future[Any], seconds: float, progress: Callable[[], int]
) -> None:
    """Wait for ``running``. Raises :class:`Unfinished` when there was no progress for ``seconds``."""
    done = progress()
    while not (await asyncio.wait({running}, timeout=seconds))[0]:
        before, done = done, progress()
        if done == before:
            raise Unfinished(f"did not return within {seconds:g} s")


async def _in_own_thread(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    # Seen: sync code in the shared thread delayed another upload's UPDATE by a second.
    async with _OwnThread():
        return await work()


class _OwnThread(ThreadSensitiveContext):
    """A thread for the sync code of one call. Unlike with asgiref's own, exiting waits for none that hangs."""

    async def __aenter__(self) -> _OwnThread:
        await super().__aenter__()  # type: ignore[no-untyped-call]  # asgiref's
        self._thread = DaemonExecutor(1, "async-upload-receiver")
        SyncToAsync.context_to_thread_executor[self] = self._thread
        return self

    async def __aexit__(self, *exc: Any) -> None:
        SyncToAsync.context_to_thread_executor.pop(self, None)
        await super().__aexit__(*exc)  # type: ignore[no-untyped-call]  # asgiref's
        try:
            if self._thread.is_alive:
                closing = self._thread.submit(connections.close_all)
                if exc[0] is None:
                    await asyncio.wrap_future(closing)
        finally:
            self._thread.shutdown(wait=False)


class HostThreads:
    """Threads for a host's sync code that may never return.

    A call that is given up keeps its thread, since a thread cannot be stopped. But it is no longer one of the calls
    that are made at once, so the calls for other uploads do not wait for it.
    """

    def __init__(self, name: str) -> None:
        self._threads = DaemonExecutor(AT_ONCE + MAX_STUCK, name)  # so no call waits for a thread
        self._free = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._stuck: Counter[str] = Counter()

    async def call(
        self,
        owner: str,
        seconds: float,
        work: Callable[[], Result],
        progress: Callable[[], int] = lambda: 0,
    ) -> Result:
        """Call ``work`` in a thread and return its result.

        Raises what ``work`` raises, and :class:`Unfinished`: for ``seconds`` it has not returned and ``progress()`` has
        not changed, or too many earlier calls have not returned.
        """
        turns = self._turns.setdefault(owner, asyncio.Semaphore(AT_ONCE // 4))
        async with turns, self._free:
            stuck = max(4 * self._stuck[owner], self._stuck.total())
            if stuck >= MAX_STUCK:
                raise Unfinished("was not called: too many earlier calls have not returned")
            running = asyncio.wrap_future(self._threads.submit(_in_host_thread, work))
            try:
                await _progressing(running, seconds, progress)
            finally:
                if not running.done():
                    self._give_up(owner, running)
        return running.result()

    def _give_up(self, owner: str, running: asyncio.Future[Any]) -> None:
        def returned(done: asyncio.Future[Any]) -> None:
            self._stuck -= Counter({owner: 1})
            if not done.cancelled():
                done.exception()  # retrieved: its caller has gone

        self._stuck[owner] += 1
        running.add_done_callback(returned)

    def close(self) -> None:
        """Make no more calls, and wait for none."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _in_host_thread(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except StopIteration as error:  # which no future can carry before Python 3.12
        raise RuntimeError("StopIteration") from error
    finally:
        connections.close_all()
