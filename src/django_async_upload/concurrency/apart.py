"""Isolation of a host's code: in a task and a thread of its own, with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.db import connections

from .threads import DaemonExecutor

Result = TypeVar("Result")


class Unfinished(Exception):
    """The code did not return in time, or cancelled its own task."""


async def apart(work: Callable[[], Coroutine[Any, Any, Result]], seconds: float) -> Result:
    """Call and await ``work``; sync code that it calls runs in a thread that nothing else uses.

    Raises what ``work`` raises, and :class:`Unfinished`. After ``seconds`` async code is cancelled; sync code cannot be
    stopped, and blocks only its own thread.
    """
    # Code that cancels the current task cancels this one, not the upload's.
    running = asyncio.create_task(_in_own_thread(work))
    try:
        ended, _late = await asyncio.wait({running}, timeout=seconds)
    except asyncio.CancelledError:
        running.cancel()
        raise
    if not ended:
        running.cancel()
        raise Unfinished(f"did not return within {seconds:g} s")
    if running.cancelled():
        raise Unfinished("was cancelled")
    return running.result()


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
