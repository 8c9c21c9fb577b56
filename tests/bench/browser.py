"""``python -m tests.bench.browser``: one file, from one Chromium, by this client and by the alternatives.

See "In the browser" in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import far, page_load
from .chromium import Chromium
from .contest import Figures, compete
from .loads import MIB, random_source, sparse_source
from .report import circumstances, table
from .rows import Row
from .servers import CHECKPOINT, TUS_CLIENT, Server, Site, install_tus_node, tus_node

DURABILITY = "os"
KIB = 1024


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.browser",
        description="Measure the browser client beside its peers in one Chromium.",
    )
    parser.add_argument("--size", type=int, default=256, help="of the file, MiB")
    parser.add_argument("--large", type=int, default=4096, help="of the sparse file, MiB; 0: none")
    parser.add_argument("--files", type=int, default=10_000, help="of 1 KiB at once; 0: none")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    parser.add_argument("--chromium", default=Chromium.find(), help="the browser (%(default)s)")
    return parser.parse_args(arguments)


class Contest:
    """The servers, the browser, and what is measured of each contestant in addition to its speed."""

    def __init__(self, browser: Chromium, site: Site, peer: Server) -> None:
        self._browser = browser
        self._site = site
        self._page = f"http://127.0.0.1:{site.port}/bench/page.html"
        socket = {"url": f"ws://127.0.0.1:{site.port}/ws/uploads/", "ticket": site.ticket}
        patches = {"url": f"http://127.0.0.1:{peer.port}/files"}
        self.contestants: dict[str, tuple[str, Server, dict[str, Any]]] = {
            "this": ("ours", site, socket),
            "tus, 8 MiB": ("tus", peer, patches | {"step": CHECKPOINT}),
            "tus, one": ("tus", peer, patches | {"step": 0}),
            "XHR": ("form", site, {"url": f"http://127.0.0.1:{site.port}/files/"}),
        }
        self.longest: dict[str, list[float]] = {name: [] for name in self.contestants}
        """Milliseconds of the main thread's longest task in each round."""

    def measure(self, name: str, source: Path) -> float:
        """Bytes per second, from the call to the last answer; the stored file is compared and deleted."""
        contestant, server, options = self.contestants[name]
        with self._browser.open(self._page) as page:
            page.choose("input", source)
            page.call("HeapProfiler.collectGarbage")
            done = page.evaluate(f"measure({json.dumps(contestant)}, {json.dumps(options)})")
        self.longest[name].append(max(done["task"], done["gap"]))
        _check(server.files, source)
        return float(done["size"] / done["seconds"])

    def many(self, count: int) -> float:
        """Seconds of the main thread's longest task while ``count`` files are uploaded at once; 0: none above 50 ms."""
        _contestant, server, options = self.contestants["this"]
        options = options | {"files": count, "size": KIB}
        with self._browser.open(self._page) as page:
            done = page.evaluate(f"measure('many', {json.dumps(options)})")
        landed = [path.stat().st_size for path in server.files.rglob("*") if path.is_file()]
        if landed != [KIB] * count:
            raise RuntimeError(f"{len(landed)} files of {sum(landed)} bytes are not what was sent")
        _clear(server.files)
        return float(
            done["task"] / 1000
        )  # a timer waits for other tasks, too, of which there are thousands

    def memory(self, source: Path) -> float:
        """Bytes that the browser takes at its highest while this client uploads; the page, its
        Worker and what Chromium holds for them elsewhere."""
        highest = 0
        stop = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not stop.wait(0.2):
                highest = max(highest, self._browser.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            self.measure("this", source)
        finally:
            stop.set()
            watcher.join()
        return float(highest)


def _check(directory: Path, source: Path) -> None:
    """Raises :class:`RuntimeError` unless exactly one file landed, and it is the same; deletes it."""
    landed = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".json"]
    size = source.stat().st_size
    same = len(landed) == 1 and landed[0].stat().st_size == size
    if not same or not filecmp.cmp(landed[0], source, shallow=False):
        raise RuntimeError(f"not what was sent: {[(str(p), p.stat().st_size) for p in landed]}")
    _clear(directory)


def _clear(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            path.unlink()
    os.sync()


def compare(contest: Contest, options: argparse.Namespace, directory: Path) -> list[Row]:
    source = random_source(directory, "large.bin", options.size * MIB)

    def measured(name: str) -> Callable[[], float]:
        return lambda: contest.measure(name, source.path)

    title = f"one file of {options.size} MiB in Chromium"
    figures = compete(
        {name: measured(name) for name in contest.contestants}, options.repetitions, title
    )
    rows = [
        Row(
            f"this client / {peer}",
            "uvicorn",
            DURABILITY,
            target,
            "MB/s",
            figures["this"],
            figures[name],
        )
        for name, peer, target in (
            ("tus, 8 MiB", "tus-js-client, 8 MiB PATCHes", 0.95),
            ("tus, one", "tus-js-client, one PATCH", 0.7),
            ("XHR", "XMLHttpRequest, form", 0.35),
        )
    ]
    # The first round warmed up.
    tasks = Figures([each / 1000 for each in contest.longest["this"][1:]], figures["this"].broken)
    allowed = Figures([0.05])
    rows.append(
        Row("longest task / 50 ms", "uvicorn", DURABILITY, 1, "ms", tasks, allowed, at_most=True)
    )
    if options.files:
        title = f"longest task, {options.files:,} files of 1 KiB / 50 ms"
        many = compete({"many": lambda: contest.many(options.files)}, 1, title)["many"]
        rows.append(Row(title, "uvicorn", DURABILITY, 1, "ms", many, allowed, at_most=True))
    if options.large:
        small = sparse_source(directory, "sparse-small.bin", options.size * MIB).path
        large = sparse_source(directory, "sparse-large.bin", options.large * MIB).path
        memory = compete(
            {"small": lambda: contest.memory(small), "large": lambda: contest.memory(large)},
            1,
            f"memory, {options.large} MiB / {options.size} MiB",
        )
        title = f"browser's memory, {options.large} MiB / {options.size} MiB"
        rows.append(
            Row(title, "uvicorn", DURABILITY, 1.15, "MiB", memory["large"], memory["small"], True)
        )
    return rows


def main(arguments: list[str]) -> int:
    """0 unless something is broken; a slow machine is not."""
    options = parse(arguments)
    if options.chromium is None:
        print("Chromium is missing: on Debian, apt-get install chromium.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="async-upload-bench-", dir=options.directory))
    try:
        packages = directory / "npm"
        if problem := install_tus_node(packages, TUS_CLIENT):
            print(f"The peers cannot be installed: {problem}", file=sys.stderr)
            return 1
        with ExitStack() as stack:
            os.environ["BENCH_NPM"] = str(packages / "node_modules")
            site = Site("uvicorn", directory / "site", DURABILITY)
            stack.enter_context(site)
            peer = stack.enter_context(tus_node(directory / "tus", DURABILITY, packages))
            browser = stack.enter_context(Chromium(options.chromium))
            contest = Contest(browser, site, peer)
            rows = page_load.rows(browser, options.repetitions)
            rows += compare(contest, options, directory)
            rows += far.rows(
                browser, site, DURABILITY, directory, options.size * MIB, options.repetitions
            )
            commands = {each.name: " ".join(each.command) for each in (site, peer)}
            print(table(rows))
            print()
            command = ["python -m tests.bench.browser", *arguments]
            print(circumstances(directory, commands, command))
            print(f"- browser: {browser.version()}; {TUS_CLIENT}")
            for name, longest in contest.longest.items():
                print(
                    f"- longest task of {name}: {', '.join(f'{each:.0f}' for each in longest)} ms"
                )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(any(row.broken for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
