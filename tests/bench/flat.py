"""What a server keeps of uploads that come and go: ``python -m tests.bench.flat``.

See "Under load" in docs/benchmarks.md. It ends with 1 where something grew, or a client met an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from .load import _niced, killed
from .loads import MIB
from .servers import ASGI_SERVERS, Site

WARM = 0.25
"""The part of the run that does not count: caches fill."""
QUIET = 20.0
"""Seconds after the run, for what ends by itself."""
USERS = 8
ALLOWED = {"memory, MiB": 8.0, "descriptors": 3.0, "threads": 4.0, "tasks": 3.0, "objects": 3000.0}
"""By how much each may be higher at rest after the run than at rest after the warm part of it.

The store's two pools of threads grow to eight each, as far as they are needed at once."""


def look(site: Site) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.port}/counts/", timeout=60) as answer:
        counts = json.load(answer)
    process = psutil.Process(site.process.pid)
    return {
        "memory, MiB": site.memory() / MIB,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "tasks": counts["tasks"],
        "objects": counts["objects"],
    }


def churn(
    site: Site, seconds: float, every: float
) -> tuple[list[dict[str, float]], dict[str, int]]:
    """The looks at a server while uploads come and go, and what went wrong."""
    command = [sys.executable, "-m", "tests.bench.churn", str(site.port)]
    process = _niced([*command, ",".join(site.tickets), str(seconds)])
    looks = []
    with killed(process):
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(every)
            looks.append(look(site))
            clear(site.files)
        assert process.stdout is not None
        said = json.loads(process.stdout.read())
    print(f"done: {said['done']}; wrong: {said['wrong']}", flush=True)
    return looks, said["wrong"]


def clear(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def measure(server: str, directory: Path, seconds: float) -> bool:
    """Prints a line of the table for each figure; returns whether all are flat."""
    with Site(server, directory / server, "os", users=USERS) as site:
        fresh = look(site)
        _looks, wrong_first = churn(site, seconds * WARM, 5)
        time.sleep(QUIET)
        before = look(site)
        every = max(1.0, seconds / 60)
        looks, wrong = churn(site, seconds * (1 - WARM), every)
        looks.pop()  # all have gone by then
        time.sleep(QUIET)
        after = look(site)
    flat = not wrong and not wrong_first
    minutes = [number * every / 60 for number in range(len(looks))]
    for name, allowed in ALLOWED.items():
        slope = statistics.linear_regression(minutes, [each[name] for each in looks]).slope
        is_flat = after[name] - before[name] <= allowed
        flat = flat and is_flat
        figures = (fresh[name], before[name], max(each[name] for each in looks), after[name])
        cells = " | ".join(f"{figure:,.0f}" for figure in figures)
        print(
            f"| {server} | {name} | {cells} | {slope:+.2f} | {'yes' if is_flat else 'NO'} |",
            flush=True,
        )
    return flat


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flat", description=__doc__)
    parser.add_argument("--servers", default="uvicorn", help=f"of {', '.join(ASGI_SERVERS)}")
    parser.add_argument("--seconds", type=float, default=60, help="of each; 600 for a real answer")
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    directory = Path(tempfile.mkdtemp(prefix="async-upload-flat-", dir=options.directory))
    try:
        print(
            "| server | of the process | fresh | warm, at rest | most | at rest after | a minute | flat |"
        )
        print("|---|---|---|---|---|---|---|---|")
        servers = options.servers.split(",")
        flat = [measure(server, directory, options.seconds) for server in servers]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(not all(flat))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
