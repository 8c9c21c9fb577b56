"""The command line: see ``python -m tests.bench --help`` and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from .report import circumstances, file_system, table
from .rows import ROWS, Bench
from .servers import ASGI_SERVERS

DURABILITIES = ("os", "fsync")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure the app beside its peers and print the ratios as a table.",
    )
    parser.add_argument("--rows", type=_choices(ROWS), default=ROWS, metavar="A,B,...")
    parser.add_argument(
        "--servers", type=_choices(tuple(ASGI_SERVERS)), default=tuple(ASGI_SERVERS)
    )
    parser.add_argument("--durability", type=_choices(DURABILITIES), default=DURABILITIES)
    parser.add_argument("--size", type=int, default=1024, help="of the single upload, MiB")
    parser.add_argument("--tail-size", type=int, default=4096, help="of the longest upload, MiB")
    parser.add_argument("--files", type=int, default=5000, help="small files")
    parser.add_argument("--sockets", type=int, default=500, help="uploads at once")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="128 MiB, 256 MiB, 500 files, 50 sockets, 2 repetitions: a look, not a measurement",
    )
    parser.add_argument(
        "--directory",
        default="/var/tmp",
        help="where files are written; on a real disk (default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="compare each row's figure with that of the package in another checkout, in the same rounds",
    )
    options = parser.parse_args(arguments)
    if options.against and not (options.against / "src").is_dir():
        parser.error(f"{options.against} is no checkout: it has no src")
    if options.quick:
        options.size, options.tail_size, options.files = 128, 256, 500
        options.sockets, options.repetitions = 50, 2
    return options


def _choices(known: tuple[str, ...]) -> object:
    def choose(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)}: choose from {', '.join(known)}"
            )
        return chosen

    return choose


def main(arguments: list[str]) -> int:
    """0 unless something is broken; a slow machine is not."""
    options = parse(arguments)
    # Every upload of a crowd is a socket and a file.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="async-upload-bench-", dir=options.directory))
    if file_system(directory) in ("tmpfs", "ramfs"):
        print(f"{options.directory} is in memory: these are no figures of a disk", file=sys.stderr)
    try:
        bench = Bench(options, directory)
        rows = list(bench.rows())
        print(table(rows))
        print()
        print(circumstances(directory, bench.commands, ["python -m tests.bench", *arguments]))
        for name, problem in bench.missing.items():
            print(f"- {name} is missing: {problem}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    missing = set(bench.missing.values())
    return int(any(row.broken and row.broken not in missing for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
