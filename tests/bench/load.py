"""A thousand uploads at once in one server process: ``python -m tests.bench.load``.

See "Under load" in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from django_async_upload.conf import UploadSettings

from .contest import Figures
from .loads import MIB, SAMPLE, UPLOAD_PATH, Source, generate, random_source
from .report import circumstances, table
from .rows import KIB, Row
from .servers import ASGI_SERVERS, CHECKOUT, Site, die_with_parent
from .threads import account, spent
from .uploads import SLOWEST

FAST = 8
"""Uploads that send as fast as they may."""
HOSTILE = ("X11", "X22", "X24")
"""The attacks of ``tests.bench.attackers`` that go on meanwhile, by a user each."""
LONGEST = 900
"""Seconds for which a slow upload has bytes."""
SETTLED = 3.0
"""Seconds between the change of a load and the look at it."""
WATCHED = 10.0
"""Seconds of fast uploads, one after the other, beside the load: a slow one sends a chunk every two seconds."""
ACK_SECONDS = 0.25
EACH = 150 * KIB
"""Bytes of memory that an upload may take beside the budget."""


class Herd:
    """The slow uploads of one server, sent by a process of its own."""

    def __init__(self, site: Site, tickets: Sequence[str], source: Source) -> None:
        job = {
            "kind": "herd",
            "port": site.port,
            "path": UPLOAD_PATH,
            "source": str(source.path),
            "tickets": tickets,
        }
        self.process = _started([sys.executable, "-m", "tests.bench.generator"])
        self._say(json.dumps(job))
        if self._hear() != "idle\n":
            raise RuntimeError(f"the slow uploads were not begun: {site.log()}")

    def start(self) -> None:
        self._say("go")

    def look(self) -> dict[str, Any]:
        """``rate``: bytes a second of all since the last look; ``waits``: seconds until each ACK since."""
        self._say("look")
        return dict(json.loads(self._hear()))

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def _niced(command: list[str]) -> subprocess.Popen[str]:
    """What a load computes on this machine, other machines would."""
    return _started(["nice", "-n", "19", *command])


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


@contextlib.contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Race:
    """The fast uploads of one server."""

    def __init__(self, site: Site, tickets: Sequence[str], source: Source, pace: float | None):
        self.site = site
        self.source = source
        self.job = {
            "kind": "race",
            "port": site.port,
            "path": UPLOAD_PATH,
            "source": str(source.path),
            "tickets": tickets,
            "timeout": 120,
            "pace": pace,
        }
        self.waits: list[float] = []

    def run(self) -> float:
        """Bytes a second of all."""
        outcome = generate(self.job)
        for name in outcome["stored_as"]:
            path = self.site.files / name
            if path.read_bytes() != self.source.path.read_bytes():
                raise RuntimeError(f"{name} is not what was sent")
            path.unlink()
        self.waits += outcome["waits"]
        return float(len(outcome["stored_as"]) * self.source.size / outcome["seconds"])


class Peak:
    """The most memory that a server takes while the block runs, bytes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.bytes = site.memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE):
            self.bytes = max(self.bytes, self.site.memory())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._over.set()
        self._thread.join()


class Bench:
    """The load on one kind of server; a second server of this kind has the fast uploads alone, in turn with it."""

    def __init__(self, server: str, directory: Path, options: argparse.Namespace) -> None:
        self.server = server
        self.directory = directory
        self.options = options
        self.slow = options.uploads - FAST
        self.commands: dict[str, str] = {}

    def rows(self) -> Iterator[Row]:
        users = self.slow + FAST + len(HOSTILE)
        fast = random_source(self.directory, "fast.bin", self.options.size * MIB)
        slow = random_source(self.directory, "slow.bin", SLOWEST * LONGEST)
        with contextlib.ExitStack() as stack:
            peace, site = (
                stack.enter_context(
                    Site(self.server, self.directory / f"{self.server}-{name}", "os", users=users)
                )
                for name in ("alone", "loaded")
            )
            self.commands[self.server] = " ".join(site.command)
            tickets = [each.tickets[:FAST] for each in (peace, site)]
            races = [
                Race(each, few, fast, None)
                for each, few in zip((peace, site), tickets, strict=True)
            ]
            for race in races:  # warm
                race.run()
            idle = site.memory()
            herd = Herd(site, site.tickets[FAST : FAST + self.slow], slow)
            stack.enter_context(killed(herd.process))
            herd.start()
            with Peak(site) as peak:
                time.sleep(SETTLED)
                yield from self._costs(site, herd)
                alone = Figures()
                peace, busy = races
                yield from self._compare("slow ones", alone, busy, herd, peace)
                attackers = [
                    stack.enter_context(killed(self._attack(name, site, ticket)))
                    for name, ticket in zip(HOSTILE, site.tickets[FAST + self.slow :], strict=True)
                ]
                for each in attackers:
                    assert each.stdout is not None
                    each.stdout.readline()
                yield from self._compare("slow and hostile ones", alone, busy, herd)
            allowed = UploadSettings().memory_budget + self.options.uploads * EACH
            mine, peer = Figures([peak.bytes - idle]), Figures([float(allowed)])
            title = f"memory of {self.options.uploads:,} uploads / what is allowed"
            yield self._row(title, 1, "MiB", mine, peer, at_most=True)

    def _attack(self, name: str, site: Site, ticket: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.bench.attackers", name, str(site.port), ticket]
        return _niced(command)

    def _costs(self, site: Site, herd: Herd) -> Iterator[Row]:
        """The processor time that the slow uploads take when nothing else goes on."""
        pids = {"server": site.process.pid, "generator": herd.process.pid}
        before = {name: account([pid]) for name, pid in pids.items()}
        began = time.monotonic()
        time.sleep(WATCHED)
        seconds = time.monotonic() - began
        for name, pid in pids.items():
            threads = spent(before[name], account([pid])).values()
            mine = Figures([sum(ran for ran, _waited in threads) / seconds])
            title = f"processor time a second for {self.slow} slow uploads, {name}"
            yield Row(title, self.server, "os", None, "ms", mine, Figures([1.0]))

    def _compare(
        self,
        beside: str,
        alone: Figures,
        busy: Race,
        herd: Herd,
        peace: Race | None = None,
    ) -> Iterator[Row]:
        """``peace`` fills ``alone``, in turn with ``busy``; under an attack there is no peace on this machine."""
        loaded, rates = Figures(), Figures()
        waits: list[float] = []
        title = f"{FAST} fast uploads beside {beside} / alone"
        for _ in range(self.options.repetitions):
            if peace is not None:
                with stopped(herd.process):
                    time.sleep(SETTLED)
                    alone.values.append(peace.run())
            time.sleep(SETTLED)
            herd.look()
            busy.waits.clear()
            end = time.monotonic() + WATCHED
            try:
                while time.monotonic() < end:
                    loaded.values.append(busy.run())
            except RuntimeError as error:
                print(f"{title}: {error}", file=sys.stderr, flush=True)
                loaded.broken = str(error).splitlines()[-1]
            look = herd.look()
            rates.values.append(look["rate"] / self.slow)
            waits += look["waits"] + busy.waits
        yield self._row(title, 0.8, "MB/s", loaded, alone)
        title = f"each of {self.slow} slow uploads meanwhile / 8 KiB/s"
        yield self._row(title, 0.95, "KiB/s", rates, Figures([float(SLOWEST)]))
        last = Figures([statistics.quantiles(waits, n=100)[98]])
        title = "99th percentile of the ACKs meanwhile / 250 ms"
        yield self._row(title, 1, "ms", last, Figures([ACK_SECONDS]), at_most=True)

    def _row(
        self,
        title: str,
        target: float,
        unit: str,
        mine: Figures,
        peer: Figures,
        *,
        at_most: bool = False,
    ) -> Row:
        return Row(title, self.server, "os", target, unit, mine, peer, at_most=at_most)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__)
    parser.add_argument("--servers", default="uvicorn", help=f"of {', '.join(ASGI_SERVERS)}")
    parser.add_argument("--uploads", type=int, default=1000, help="at once")
    parser.add_argument("--size", type=int, default=64, help="of each fast upload, MiB")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="async-upload-load-", dir=options.directory))
    commands: dict[str, str] = {}
    rows: list[Row] = []
    try:
        for server in options.servers.split(","):
            bench = Bench(server, directory, options)
            rows += bench.rows()
            commands |= bench.commands
        print(table(rows))
        print()
        print(circumstances(directory, commands, ["python -m tests.bench.load", *arguments]))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
