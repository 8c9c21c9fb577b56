"""A site of one or two workers that die, and that others or their successors carry on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .forks import Fork, Forks
from .hosts import environment
from .invariants import Evidence, Records, lost_by_crash
from .postgres import Postgres
from .servers import KINDS, free_port
from .witness import Witness

USER_MAX_BYTES = 256 << 20
LIMITS = {
    "USER_MAX_BYTES": USER_MAX_BYTES,
    # Those of a killed worker count for some seconds.
    "USER_MAX_CONNECTIONS": 10_000,
}
PURGE = (
    "from datetime import timedelta; from django_async_upload.operations import cleanup; "
    "cleanup.GRACE = timedelta(0); cleanup.purge(unbound_after={unbound})"
)
"""The purge, as if all that it looks at were older than an hour."""


@dataclass
class Worker:
    """One uvicorn, on a port that it keeps."""

    port: int
    fork: Fork | None = None
    is_stopped: bool = False

    @property
    def is_running(self) -> bool:
        return self.fork is not None and self.fork.is_running and not self.is_stopped

    def stop(self) -> None:
        """SIGSTOP: it keeps its locks and its connections."""
        assert self.fork is not None
        self.is_stopped = True
        self.fork.signal(signal.SIGSTOP)

    def terminate(self) -> None:
        """SIGTERM."""
        assert self.fork is not None
        self.fork.signal(signal.SIGTERM)

    def wake(self) -> None:
        """SIGCONT."""
        assert self.fork is not None
        self.fork.signal(signal.SIGCONT)
        self.is_stopped = False

    def kill(self) -> None:
        assert self.fork is not None
        self.fork.kill()
        self.is_stopped = False


class CrashSite:
    """``starts`` are the failpoints of the workers' starts, one after another; later ones have none."""

    def __init__(
        self,
        forks: Forks,
        template: Path,
        root: Path,
        postgres: Postgres | None,
        workers: int,
        disk: Path | None = None,
    ) -> None:
        """``disk`` is the folder of staging and media, ``root`` by default."""
        root.mkdir(parents=True)
        disk = disk or root
        self.root, self._forks = root, forks
        kind = "sqlite" if postgres is None else "postgresql"
        self.tickets = (template / f"tickets-{kind}").read_text()
        extra = {"E2E_GROUPS": "1", "E2E_SQLITE_TIMEOUT": "60", "E2E_DISK": str(disk)}
        setting = None if postgres is None else postgres.setting
        if setting is None:
            shutil.copy(template / "db.sqlite3", root)
        else:
            extra["E2E_POSTGRES"] = json.dumps(setting)
        self.env = environment(root, LIMITS, **extra)
        self.records = Records(root / "db.sqlite3", setting)
        self.workers = [Worker(free_port()) for _ in range(workers)]
        self.first = 0
        """The worker that clients come to, if it runs."""
        self.starts: list[str] = []
        self.crashes = 0
        self.losses: list[str] = []
        """What was lost by a crash, seen before anything ran again."""
        self._turn = asyncio.Lock()
        self.evidence = Evidence(
            self.records, disk, root / "signals.jsonl", Witness(self.find_port)
        )

    def move(self, left: Evidence) -> None:
        """From now on run on another disk, where only some of it is ``left``."""
        self.env |= {"E2E_ROOT": str(left.signals.parent), "E2E_DISK": str(left.disk)}
        self.evidence, self.records = left, left.records
        left.witness.find_port = self.find_port

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    @property
    def running(self) -> list[Worker]:
        return [each for each in self.workers if each.is_running]

    async def start(self, worker: Worker) -> None:
        """Start a worker, with the next failpoint; returns when it listens, or has died."""
        failpoint = self.starts.pop(0) if self.starts else ""
        env = {**self.env, "ASYNC_UPLOAD_FAILPOINT": failpoint}
        command = KINDS["uvicorn"](worker.port)
        worker.fork = await asyncio.to_thread(self._forks.fork, command, env, self.log)
        deadline = time.monotonic() + 60
        while worker.is_running:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", worker.port), timeout=5).close()
                return
            assert time.monotonic() < deadline, "a worker does not listen"
            await asyncio.sleep(0.01)

    async def find_port(self) -> int:
        """The port of the :attr:`first` worker, or another one that runs. Where all are dead, one is started again.

        If the caller is cancelled, a start goes on: nobody would know of a worker that was forked meanwhile.
        """
        return await asyncio.shield(asyncio.create_task(self._find_port()))

    async def _find_port(self) -> int:
        async with self._turn:
            if self.running:
                self.bury_dead()
            while not self.running:
                dead = [each for each in self.workers if not each.is_stopped]
                if dead:
                    await self.restart(dead[0])
                else:  # all that are left are stopped, and will be woken
                    await asyncio.sleep(0.05)
            first = self.workers[self.first]
            return (first if first.is_running else self.running[0]).port

    async def revive(self, worker: Worker) -> None:
        """:meth:`restart`, unless it runs again already."""
        async with self._turn:
            if not worker.is_running:
                await self.restart(worker)

    async def restart(self, worker: Worker) -> None:
        """Start a dead worker again; where no other one runs, first look at what the crash left."""
        self.bury(worker)
        if not self.running:
            self.losses += lost_by_crash(self.evidence)
        self.records.let_time_pass()
        await self.start(worker)

    def bury_dead(self) -> None:
        """See who has died; what a dead worker has claimed is the others' after a while."""
        for worker in self.workers:
            if worker.fork is not None and not worker.fork.is_running:
                self.bury(worker)
                if self.running:
                    self.records.let_time_pass()

    def bury(self, worker: Worker) -> None:
        """A worker is dead: it must have been killed, and not have ended otherwise."""
        fork, worker.fork = worker.fork, None
        if fork is not None:
            assert fork.was_killed, f"a worker ended by itself:\n{self.log.read_text()[-3000:]}"
            self.crashes += 1

    async def die(self, crashes: int = 1) -> None:
        """Wait until that many workers have died of their failpoints."""
        deadline = time.monotonic() + 90
        while self.crashes < crashes:
            self.bury_dead()
            if self.crashes and not self.running:
                await self.find_port()
            assert time.monotonic() < deadline, "the failpoint was not reached"
            await asyncio.sleep(0.02)

    async def run(self, code: str, failpoint: str = "") -> Fork:
        """Run Python code with Django in a process of its own."""
        env = {**self.env, "ASYNC_UPLOAD_FAILPOINT": failpoint}
        command = ["django-admin", "shell", "--verbosity", "0", "--command", code]
        fork = await asyncio.to_thread(self._forks.fork, command, env, self.log)
        assert await asyncio.to_thread(fork.ended.wait, 60), "a command hangs"
        return fork

    async def purge(self, failpoint: str = "", *, unbound: str = "None") -> Fork:
        return await self.run(PURGE.format(unbound=unbound), failpoint)

    def kill(self) -> None:
        for each in self.workers:
            if each.fork is not None:
                each.kill()


@contextlib.contextmanager
def crash_site(
    forks: Forks, template: Path, root: Path, database: str, workers: int, starts: Sequence[str]
) -> Iterator[CrashSite]:
    """A site whose database is a copy of the template's, and whose workers run no longer than the block."""
    with contextlib.ExitStack() as stack:
        postgres = None
        if database == "postgresql":
            name = template / "postgresql"
            copied = Postgres(name.read_text() if name.exists() else "template1")
            postgres = stack.enter_context(copied)
        site = CrashSite(forks, template, root, postgres, workers)
        stack.callback(site.kill)
        site.starts = list(starts)
        yield site
