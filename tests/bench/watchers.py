"""What watchers cost the uploads that they follow: ``python -m tests.bench.watchers``.

500 watchers of one upload, and one watcher of 500 uploads; the ratio is the uploads' speed with them and without. The
watchers' own processor time is given to them last, since other machines would spend it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .contest import Measure, Result, compete
from .loads import MIB, UPLOAD_PATH, Source, generate, random_source
from .report import circumstances, table
from .rows import Row
from .servers import CHECKOUT, Site, die_with_parent

MANY = 500
LEAST = 0.95
"""Of the speed without watchers."""


@contextlib.contextmanager
def watching(site: Site, count: int) -> Iterator[None]:
    """So many connections follow the user's uploads. Raises :class:`RuntimeError` where one was told nothing."""
    if not count:
        yield
        return
    job = {
        "kind": "watchers",
        "port": site.port,
        "path": UPLOAD_PATH,
        "tickets": [site.ticket] * count,
    }
    process = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-m", "tests.bench.generator"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        print(json.dumps(job), file=process.stdin, flush=True)
        if process.stdout.readline() != "watching\n":
            raise RuntimeError(f"the watchers were not answered: {site.log()}")
        yield
        process.stdin.close()
        told = json.loads(process.stdout.readline())["told"]
        print(f"    {told} messages to {count} watchers", file=sys.stderr, flush=True)
        if told < count:
            raise RuntimeError(f"{count} watchers were told {told} times: {site.log()}")
    finally:
        process.kill()
        process.wait()


def race(site: Site, uploads: int, source: Source, watchers: int) -> Result:
    """Bytes a second of all uploads, and what each byte cost the server."""
    job = {
        "kind": "race",
        "port": site.port,
        "path": UPLOAD_PATH,
        "source": str(source.path),
        "tickets": [site.ticket] * uploads,
        "timeout": 120,
        "pace": None,
        "watch": [each.pid for each in site.family()],
    }
    with watching(site, watchers):
        outcome = generate(job)
    content = source.path.read_bytes()
    for name in outcome["stored_as"]:
        path = site.files / name
        if path.read_bytes() != content:
            raise RuntimeError(f"{name} is not what was sent")
        path.unlink()
    ran = sum(ran for ran, _waited in outcome["threads"].values())
    size = uploads * source.size
    return Result(size / outcome["seconds"], ran / size)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watchers", description=__doc__)
    parser.add_argument("--server", default="uvicorn")
    parser.add_argument("--many", type=int, default=MANY, help="watchers, and uploads")
    parser.add_argument("--size", type=int, default=1024, help="of one upload, MiB")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="async-upload-watchers-", dir=options.directory))
    many = options.many
    rows = []
    try:
        sources = {
            1: random_source(directory, "one.bin", options.size * MIB),
            many: random_source(directory, "each.bin", MIB),
        }
        with contextlib.ExitStack() as stack:
            sites = {
                name: Site(options.server, directory / name, "os") for name in ("watched", "alone")
            }
            for each in sites.values():
                stack.enter_context(each)
            for uploads, watchers in ((1, many), (many, 1)):
                title = f"{watchers} watcher{'s'[: watchers > 1]} of {uploads} upload{'s'[: uploads > 1]}"
                measures: dict[str, Measure] = {
                    "watched": partial(race, sites["watched"], uploads, sources[uploads], watchers),
                    "alone": partial(race, sites["alone"], uploads, sources[uploads], 0),
                }
                figures = compete(measures, options.repetitions, title)
                rows.append(
                    Row(
                        f"{title} / none",
                        options.server,
                        "os",
                        LEAST,
                        "MB/s",
                        figures["watched"],
                        figures["alone"],
                    )
                )
            commands = {name: " ".join(site.command) for name, site in sites.items()}
        print(table(rows))
        print()
        print(circumstances(directory, commands, ["python -m tests.bench.watchers", *arguments]))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
