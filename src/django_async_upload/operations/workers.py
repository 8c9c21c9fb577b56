"""Questions to the workers of this machine or of the whole site, and their answers."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from django.db import router

from ..engine.bus import Bus, LocalBus
from ..engine.layer import make_bus
from ..engine.worker import ANSWER, ASK, SECONDS, WorkerStatus, prefix
from ..models import UploadSession

GATHER_SECONDS: Final = 1.0
"""Seconds for which answers of other machines are gathered."""
DRAIN_SECONDS: Final = 20.0
"""Seconds in which a worker drains, whatever hangs there."""
_PAUSE: Final = 0.1
"""Seconds between two questions whether workers are drained."""

Question = Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """What workers answered, in order of host and process id."""

    workers: list[WorkerStatus]
    silent: list[int]
    """Process ids of workers of this machine that did not answer: suspended, blocked, or another user's."""


class Workers:
    """The workers of this machine; with ``everywhere`` those of all machines, where the site's bus reaches them.

    With ``pid`` only that process of this machine and the workers that it started. To be used in ``async with``.
    """

    is_whole_site = False
    """Whether workers of other machines can be asked."""

    def __init__(self, *, everywhere: bool = False, pid: int | None = None) -> None:
        self._alias = router.db_for_write(UploadSession)
        self.everywhere = everywhere
        self._pid = pid
        self._bus: Bus = LocalBus()
        self._ask = ""
        self._gathered: list[WorkerStatus] = []

    async def __aenter__(self) -> Self:
        if self.everywhere:
            self._bus = make_bus(self._alias)
            self._bus.subscribe(ANSWER, self._receive)
            self.is_whole_site = await self._bus.joined()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._bus.close()

    async def ask(self, question: Question) -> Answers:
        """Ask all of them: see :class:`.engine.worker.Worker`. Takes two seconds at most, and one at least where
        other machines are asked."""
        workers = await self._ask_site(question) if self.is_whole_site else []
        answered = {each.pid for each in workers if each.host == socket.gethostname()}
        names = {name: pid for name, pid in self._names().items() if pid not in answered}
        if self._pid is not None:
            found = await _ask_each(names, {"do": "status"})
            parents = {name: each.parent for name, each in found.items()}
            names = {
                name: pid for name, pid in names.items() if self._pid in (pid, parents.get(name))
            }
        found = await _ask_each(names, question)
        workers += found.values()
        # A name that is gone belonged to a worker that has ended meanwhile.
        silent = [names[each] for each in names.keys() - found.keys() & self._names().keys()]
        return Answers(sorted(workers, key=lambda each: (each.host, each.pid)), sorted(silent))

    async def wait_until_drained(self) -> list[WorkerStatus]:
        """Wait until each worker that drains is drained or has ended, :data:`DRAIN_SECONDS` at most; returns those
        that are not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN_SECONDS
        while True:
            answers = await self.ask({"do": "status"})
            late = [each for each in answers.workers if each.draining and not each.drained]
            if not late or loop.time() > deadline:
                return late
            await asyncio.sleep(_PAUSE)

    async def _ask_site(self, question: Question) -> list[WorkerStatus]:
        self._gathered = []
        self._ask = secrets.token_hex(8)
        self._bus.publish(ASK, {**question, "ask": self._ask})
        await asyncio.sleep(GATHER_SECONDS)
        return self._gathered

    def _receive(self, message: Mapping[str, Any]) -> None:
        fields = dict(message)
        if fields.pop("ask", None) == self._ask:
            with suppress(TypeError):  # of another version of this app
                self._gathered.append(WorkerStatus(**fields))

    def _names(self) -> dict[str, int]:
        """The sockets of the workers of this machine, each with the worker's process id."""
        start = prefix(self._alias)
        found = {}
        with suppress(OSError), open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
            for line in table:
                name = line.split(maxsplit=7)[-1].strip().replace("@", "\0", 1)
                if name.startswith(start):
                    found[name] = int(name.removeprefix(start).partition("/")[0])
        return found


async def _ask_each(names: Collection[str], question: Question) -> dict[str, WorkerStatus]:
    """The answers of those workers of this machine that answer."""
    answers = await asyncio.gather(*(_ask(name, question) for name in names))
    return {name: each for name, each in zip(names, answers, strict=True) if each is not None}


async def _ask(name: str, question: Question) -> WorkerStatus | None:
    with suppress(OSError, ValueError, TypeError):  # TimeoutError is an OSError
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_unix_connection(name)
            try:
                writer.write(json.dumps(question).encode() + b"\n")
                return WorkerStatus(**json.loads(await reader.readline()))
            finally:
                writer.close()
    return None
