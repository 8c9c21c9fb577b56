"""``python -m tests.bench.threads``: what the threads of a server did during one upload.

See "Where the time goes" in docs/benchmarks.md. It needs Linux: the scheduler's account is in ``/proc``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from .loads import MIB, Load, random_source
from .servers import ASGI_SERVERS, Server, Site, sink

Account = dict[str, tuple[float, float]]
"""Thread -> seconds in which it ran, and seconds in which it could have run but had no processor."""


def account(pids: Iterable[int]) -> Account:
    """Of all threads of these processes, by ``pid/tid``."""
    threads: Account = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            ran, waited, _slices = (task / "schedstat").read_text().split()
            threads[f"{pid}/{task.name}"] = (int(ran) / 1e9, int(waited) / 1e9)
    return threads


def spent(before: Account, after: Account) -> Account:
    """What was added since; threads that ended are left out."""
    threads: Account = {}
    for name, (ran, waited) in after.items():
        ran_before, waited_before = before.get(name, (0.0, 0.0))
        threads[name] = (ran - ran_before, waited - waited_before)
    return threads


def measure(load: Load) -> tuple[float, Account]:
    """Seconds of an upload after its rehearsals, and what the server's threads did in it."""
    load.job["rehearsal"] = str(load.server.files)
    load.job["watch"] = [process.pid for process in load.server.family()]
    outcome = load.run()
    return float(outcome["seconds"]), {
        name: tuple(each) for name, each in outcome["threads"].items()
    }


def describe(name: str, seconds: float, threads: Account) -> str:
    """A row of the table: the busiest thread first, which is the event loop."""
    busy = sorted((each for each in threads.values() if each[0] > 0.005), reverse=True)
    ran, waited = (sum(each) for each in zip(*busy, strict=True))
    each = ", ".join(f"{ran:.2f}" for ran, _waited in busy)
    return f"| {name} | {seconds:.2f} | {ran:.2f} | {each} | {waited:.2f} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.threads", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--repetitions", type=int, default=5, help="the fastest one is shown")
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="async-upload-bench-", dir=options.directory))
    try:
        source = random_source(directory, "large.bin", options.size * MIB, prebuilt=True)
        with ExitStack() as stack:
            servers: list[Server] = [sink(directory / "sink", "os")]
            servers += [Site(name, directory / name, "os") for name in ASGI_SERVERS]
            loads = [
                Load("upload", server, source, frames=str(source.frames))
                if isinstance(server, Site)
                else Load("sink", server, source)
                for server in map(stack.enter_context, servers)
            ]
            rounds = [[measure(load) for load in loads] for _ in range(options.repetitions)]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(
        f"| server | seconds for {options.size} MiB | its threads ran | each | waited for a processor |"
    )
    print("|---|---|---|---|---|")
    for load, figures in zip(loads, zip(*rounds, strict=True), strict=True):
        print(describe(load.server.name, *min(figures, key=lambda each: each[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
