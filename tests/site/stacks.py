"""Where a process is: the stacks of its threads and tasks, which it prints at a signal for a test that failed."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

SIGNAL = signal.SIGRTMIN
"""Servers use the ordinary ones."""
END = "end of the stacks"


def listen() -> None:
    """Print the stacks to stderr at :data:`SIGNAL`: those of threads at once, also where one hangs with the GIL."""
    signal.signal(SIGNAL, lambda *_: print(*task_stacks(), END, sep="\n", file=sys.stderr))
    faulthandler.register(SIGNAL, chain=True)


def task_stacks() -> Iterator[str]:
    """What every task of every event loop waits for: a line for each await, the outermost first."""
    tasks = [each for each in gc.get_objects() if isinstance(each, asyncio.Task)]
    for task in tasks:
        if not task.done():
            yield f"{task.get_name()} waits for {getattr(task, '_fut_waiter', None)!r}"
            yield from _awaits(task.get_coro())


def _awaits(waiting: Any) -> Iterator[str]:
    while waiting is not None:
        for kind in ("cr", "gi", "ag"):
            if frame := getattr(waiting, f"{kind}_frame", None):
                code = frame.f_code
                yield f"  {os.path.relpath(code.co_filename)}:{frame.f_lineno} {code.co_name}"
        waiting = next(
            (
                getattr(waiting, name)
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if hasattr(waiting, name)
            ),
            None,
        )
