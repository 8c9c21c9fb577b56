"""One file over a long link, by this client and by others: ``python -m tests.bench.network``. It needs root and Linux.

See "Over a network" in docs/benchmarks.md.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from .contest import Figures, compete
from .link import FAR, FAR_ADDRESS, Link, linked
from .loads import MIB, UPLOAD_PATH, Source, generate, random_source
from .report import circumstances, table
from .rows import Row
from .servers import (
    CHECKPOINT,
    HERE,
    TUS_CLIENT,
    Server,
    Site,
    install_tus_node,
    run,
    sink,
    tus_node,
)

LOSSES = (0.0, 0.001, 0.01)
CUT_SECONDS = 0.2
"""Seconds for which the link is down at each cut."""
BETWEEN_CUTS = 2.0
WINDOW = 8 * MIB
"""Bytes that a cut may cost."""
OVERHEAD = 1.05
"""Bytes on the link for each byte of the file, where nothing is sent twice."""


class Contestant:
    """Uploads the file to a server on the far side."""

    def __init__(self, server: Server, source: Source, send: Callable[[], float]) -> None:
        self.server = server
        self.source = source
        self._send = send

    def rate(self) -> float:
        """Bytes a second, from the first packet to the last answer; the stored file is compared and deleted."""
        try:
            seconds = self._send()
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.server.name} says: {self.server.log()}") from error
        landed = [path for path in self.server.files.rglob("*") if path.is_file()]
        if not any(filecmp.cmp(path, self.source.path, shallow=False) for path in landed):
            raise RuntimeError(f"not what was sent: {landed}")
        for path in landed:
            path.unlink()
        return self.source.size / seconds


class Bench:
    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self.commands: dict[str, str] = {}
        self.missing = install_tus_node(directory / "npm", TUS_CLIENT)

    def rows(self) -> Iterator[Row]:
        source = random_source(self.directory, "file.bin", self.options.size * MIB)
        with ExitStack() as stack:
            site = Site("uvicorn", self.directory / "site", "os")
            plain = sink(self.directory / "sink", "os")
            peer = tus_node(self.directory / "tus", "os", self.directory / "npm")
            link = stack.enter_context(linked())
            copy, ours, tus = (
                Contestant(server, source, send)
                for server, send in (
                    (plain, lambda: self._generate("sink", plain, source)),
                    (site, lambda: self._generate("client", site, source)),
                    (peer, lambda: self._patch(peer, source)),
                )
            )
            for server in (site, plain, peer):
                server.host = FAR_ADDRESS
                server.environment |= {"BENCH_HOST": FAR_ADDRESS, "UVICORN_HOST": FAR_ADDRESS}
                server.command = ["ip", "netns", "exec", FAR, *server.command]
                if server is not peer or not self.missing:
                    self.commands[server.name] = " ".join(server.command)
                    stack.enter_context(server)
            contestants = {"copy": copy, "this": ours}
            if not self.missing:
                contestants["tus"] = tus
            for loss in self.options.losses:
                link.change(loss=loss)
                yield from self._compare(loss, contestants)
            link.change(loss=0.0)
            if self.options.cuts:
                yield from self._cut(link, contestants)

    def _generate(self, kind: str, server: Server, source: Source) -> float:
        job = {
            "kind": kind,
            "host": server.host,
            "port": server.port,
            "source": str(source.path),
            "timeout": 300,
        }
        if isinstance(server, Site):
            job |= {"path": UPLOAD_PATH, "ticket": server.ticket}
        return float(generate(job)["seconds"])

    def _patch(self, server: Server, source: Source) -> float:
        url = f"http://{server.host}:{server.port}/files"
        command = ["node", str(HERE / "tus_client.mjs"), url, str(source.path), str(CHECKPOINT)]
        answer = run(command, {}, timeout=300, working_directory=self.directory / "npm")
        return float(json.loads(answer)["seconds"])

    def _compare(self, loss: float, contestants: dict[str, Contestant]) -> Iterator[Row]:
        title = f"100 Mbit/s, 100 ms, loss {loss:.1%}"
        measures = {name: each.rate for name, each in contestants.items()}
        figures = compete(measures, self.options.repetitions, title)
        for name, comparison, target in (
            ("this", "Python client / plain TCP copy", 0.9),
            ("tus", "tus-js-client, 8 MiB PATCHes / plain TCP copy", None),
        ):
            mine = figures.get(name) or Figures(broken=self.missing or "")
            yield self._row(f"{title}: {comparison}", target, "MB/s", mine, figures["copy"])

    def _cut(self, link: Link, contestants: dict[str, Contestant]) -> Iterator[Row]:
        """The link is cut every two seconds."""
        title = f"cut every {BETWEEN_CUTS:g} s"
        size = self.options.size * MIB
        speeds: dict[str, Figures] = {}
        for name, what in (("this", "Python client"), ("tus", "tus-js-client, 8 MiB PATCHes")):
            speed, sent, allowed = Figures(), Figures(), Figures()
            speeds[name] = speed
            if name not in contestants:
                speed.broken = self.missing or ""
                continue
            for number in range(self.options.repetitions):
                print(f"{title}: {what} {number + 1}", file=sys.stderr, flush=True)
                before, _back = link.change()
                try:
                    with Cuts(link) as cuts:
                        speed.values.append(contestants[name].rate())
                except RuntimeError as error:
                    speed.broken = sent.broken = str(error)
                    break
                after, _back = link.change()
                sent.values.append(float(after - before))
                allowed.values.append(OVERHEAD * size + cuts.count * WINDOW)
            target = 1 if name == "this" else None
            comparison = f"{what}, bytes on the link / 1.05 of the file and 8 MiB for each cut"
            yield self._row(f"{title}: {comparison}", target, "MiB", sent, allowed, at_most=True)
            whole = Figures([float(size)])
            comparison = f"{what}, bytes on the link / bytes of the file"
            yield self._row(f"{title}: {comparison}", None, "MiB", sent, whole, at_most=True)
        yield self._row(
            f"{title}: Python client / tus-js-client", None, "MB/s", speeds["this"], speeds["tus"]
        )

    def _row(
        self,
        title: str,
        target: float | None,
        unit: str,
        mine: Figures,
        peer: Figures,
        *,
        at_most: bool = False,
    ) -> Row:
        return Row(title, "uvicorn", "os", target, unit, mine, peer, at_most=at_most)


class Cuts:
    """Cuts the link again and again while the block runs."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(BETWEEN_CUTS):
            self.link.cut(CUT_SECONDS)
            self.count += 1

    def __enter__(self) -> Cuts:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._over.set()
        self._thread.join()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.network", description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="of the file, MiB")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--losses",
        type=lambda text: [float(each) / 100 for each in text.split(",") if each],
        default=list(LOSSES),
        help="percent of the packets, with commas (0,0.1,1)",
    )
    parser.add_argument("--cuts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--directory", default="/var/tmp", help="where files are written")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("only root may make network namespaces")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="async-upload-network-", dir=options.directory))
    try:
        bench = Bench(directory, options)
        rows = list(bench.rows())
        print(table(rows))
        print()
        command = ["python -m tests.bench.network", *arguments]
        print(circumstances(directory, bench.commands, command))
        if bench.missing:
            print(f"- tus-js-client and @tus/server are missing: {bench.missing}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(any(row.broken and row.broken != bench.missing for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
