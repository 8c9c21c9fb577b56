"""What two workers carry beside one: ``python -m tests.bench.workers``. It needs root and the cgroup ``cpu`` of Linux.

See "Under load" in docs/benchmarks.md. Each worker has a part of a processor to itself, so that the load generator has
a whole one, too, on a machine with two.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from .contest import compete
from .loads import MIB, UPLOAD_PATH, Source, generate, random_source
from .report import circumstances, table
from .rows import Row
from .servers import Site

CGROUPS = Path("/sys/fs/cgroup/cpu")
PART = 0.35
"""Of a processor, for each worker."""
UPLOADS = 16
SECONDS = 4.0


@contextlib.contextmanager
def limited(process: psutil.Process) -> Iterator[None]:
    """The process has :data:`PART` of a processor."""
    group = CGROUPS / f"async-upload-{process.pid}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text("10000")
        (group / "cpu.cfs_quota_us").write_text(str(int(10_000 * PART)))
        (group / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        with contextlib.suppress(OSError):
            (CGROUPS / "cgroup.procs").write_text(str(process.pid))
        with contextlib.suppress(OSError):
            group.rmdir()


def workers(site: Site) -> list[psutil.Process]:
    """The processes that serve: the children, or the only one."""
    spawned = [each for each in site.family() if "spawn_main" in " ".join(each.cmdline())]
    return spawned or site.family()[:1]


def rate(site: Site, source: Source) -> float:
    """Bytes a second of all uploads."""
    job = {
        "kind": "race",
        "endless": True,
        "port": site.port,
        "path": UPLOAD_PATH,
        "source": str(source.path),
        "tickets": site.tickets,
        "timeout": SECONDS,
        "pace": None,
    }
    with contextlib.ExitStack() as stack:
        for worker in workers(site):
            stack.enter_context(limited(worker))
        return float(generate(job)["rate"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.workers", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    options = parser.parse_args(arguments)
    if not (CGROUPS / "cpu.cfs_quota_us").exists():
        parser.error(f"there is no {CGROUPS}/cpu.cfs_quota_us")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="async-upload-workers-", dir=options.directory))
    try:
        source = random_source(directory, "source.bin", 256 * MIB)
        with contextlib.ExitStack() as stack:
            sites = {}
            for count in (1, 2):
                site = Site("uvicorn", directory / str(count), "os", users=UPLOADS)
                site.command += ["--workers", str(count)]
                sites[count] = stack.enter_context(site)
            measures = {
                f"{count}": (lambda site=site: rate(site, source)) for count, site in sites.items()
            }
            figures = compete(measures, options.repetitions, "workers")
            commands = {f"{count} workers": " ".join(each.command) for count, each in sites.items()}
        title = f"two workers / one, each with {PART} of a processor; {UPLOADS} uploads"
        row = Row(title, "uvicorn", "os", 1.5, "MB/s", figures["2"], figures["1"])
        print(table([row]))
        print()
        print(circumstances(directory, commands, ["python -m tests.bench.workers", *arguments]))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(bool(row.broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
