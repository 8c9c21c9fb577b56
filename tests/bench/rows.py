"""Who is compared with whom, and what the ratio should be."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .contest import Figures, Measure, compete
from .loads import MIB, Crowd, Load, Source, random_source, sparse_source
from .servers import CHECKPOINT, Server, Site, install_tus_node, sink, tus_node, tuspyserver

KIB = 1024
GIB = 1024**3
SMALL_FILE = 1024
ROWS = ("single", "client", "sha256", "cpu", "tail", "small", "crowd")
COSTS = {"uvicorn": 0.80, "granian": 1.0}
"""Seconds of processor time that one upload may cost for each GiB, by server."""


@dataclass(frozen=True)
class Row:
    """One comparison: the ratio is that of the medians, ``mine`` over ``peer``."""

    title: str
    server: str
    durability: str
    target: float | None
    """None: a row that explains another one."""
    unit: str
    mine: Figures
    peer: Figures
    at_most: bool = False
    """The target is an upper bound."""

    @property
    def broken(self) -> str:
        return self.mine.broken or self.peer.broken

    @property
    def ratio(self) -> float:
        return self.mine.median / self.peer.median

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


class Bench:
    """All comparisons that the options ask for; everything it makes is under one directory."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.commands: dict[str, str] = {}
        """How each server was started."""
        self.missing: dict[str, str] = {}
        """Peers that could not be installed, and why."""
        self._number = 0

    def rows(self) -> Iterator[Row]:
        wanted = set(self.options.rows)
        if wanted & {"single", "client", "sha256"}:
            yield from self._large_rows()
        if "cpu" in wanted:
            yield from self._cpu_rows()
        if "tail" in wanted:
            yield from self._tail_rows()
        if "small" in wanted:
            yield from self._small_rows()
        if "crowd" in wanted:
            yield from self._crowd_rows()

    def _folder(self) -> Path:
        self._number += 1
        return self.directory / str(self._number)

    def _start(self, server: Server, stack: ExitStack) -> Server:
        self.commands[server.name] = " ".join(server.command)
        return stack.enter_context(server)

    def _site(self, name: str, durability: str) -> Site:
        site = Site(name, self._folder(), durability)
        self.commands[name] = " ".join(site.command)
        return site

    # One large file -------------------------------------------------------------------------------

    def _large_rows(self) -> Iterator[Row]:
        source = random_source(self.directory, "large.bin", self.options.size * MIB, prebuilt=True)
        packages = self.directory / "npm"
        if "single" in self.options.rows and (problem := install_tus_node(packages)):
            self.missing["@tus/server"] = problem
        for durability in self.options.durability:
            with ExitStack() as stack:
                contestants = self._large_contestants(source, durability, packages, stack)
                if not contestants:
                    continue
                title = f"one file of {self.options.size} MiB, durability {durability}"
                figures = compete(contestants, self.options.repetitions, title)
            for server in self.options.servers:
                yield from self._compare_large(server, durability, figures)

    def _large_contestants(
        self, source: Source, durability: str, packages: Path, stack: ExitStack
    ) -> dict[str, Measure]:
        rows, folder = set(self.options.rows), self._folder
        # Beyond the single upload, the figures are for durability "os".
        if durability != "os":
            rows &= {"single"}
        contestants: dict[str, Measure] = {}
        if not rows & {"single", "client", "sha256"}:
            return contestants
        if rows & {"single", "sha256"}:
            server = self._start(sink(folder(), durability), stack)
            contestants["sink"] = Load("sink", server, source).rate
        for name in self.options.servers:
            site = stack.enter_context(self._site(name, durability))
            framed = partial(Load, "upload", site, source, frames=str(source.frames))
            contestants[f"{name} upload"] = framed().rate
            if "single" in rows:
                empty = Load("drop", site, source, frames=str(source.frames))
                contestants[f"{name} empty"] = empty.rate_dropped
                contestants[f"{name} post"] = Load("post", site, source).rate
            if "client" in rows:
                contestants[f"{name} client"] = Load("client", site, source).rate
            if "sha256" in rows:
                contestants[f"{name} sha256"] = framed(sha256=source.sha256).rate
        if "single" in rows:
            peers = [tuspyserver(folder(), durability)]
            if "@tus/server" not in self.missing:
                peers.append(tus_node(folder(), durability, packages))
            for peer in peers:
                server = self._start(peer, stack)
                contestants[peer.name] = Load("patches", server, source, step=CHECKPOINT).rate
        return contestants

    def _compare_large(
        self, server: str, durability: str, figures: dict[str, Figures]
    ) -> Iterator[Row]:
        for title, mine, peer, target in (
            ("upload / plain socket-to-file sink", "upload", "sink", 0.75),
            ("a consumer that drops it all / sink", "empty", "sink", None),
            ("upload / Django multipart POST", "upload", f"{server} post", 1.7),
            ("upload / @tus/server, 8 MiB PATCHes", "upload", "@tus/server", 1.7),
            ("upload / tuspyserver, 8 MiB PATCHes", "upload", "tuspyserver", 1.5),
            ("Python client / load generator", "client", f"{server} upload", 0.6),
            ("upload with SHA-256 / sink", "sha256", "sink", 0.4),
        ):
            ours = figures.get(f"{server} {mine}")
            theirs = figures.get(peer) or Figures(broken=self.missing.get(peer, ""))
            if ours and (theirs.values or theirs.broken):
                yield Row(title, server, durability, target, "MB/s", ours, theirs)

    # The others -----------------------------------------------------------------------------------

    def _cpu_rows(self) -> Iterator[Row]:
        """What a byte costs the server: steadier than its speed where others use the machine, too."""
        source = random_source(self.directory, "cpu.bin", self.options.size * MIB)
        with ExitStack() as stack:
            plain = self._start(sink(self._folder(), "os"), stack)
            contestants: dict[str, Measure] = {"sink": Load("sink", plain, source).cost}
            for name in self.options.servers:
                site = stack.enter_context(self._site(name, "os"))
                for count in (1, 10, 100):
                    load = Load("uploads", site, source, uploads=count)
                    contestants[f"{name} {count}"] = load.cost
            title = f"processor time of {self.options.size} MiB"
            figures = compete(contestants, self.options.repetitions, title)
        for name in self.options.servers:
            one = figures[f"{name} 1"]
            allowed = Figures([COSTS[name] / GIB])
            for title, target, mine, peer in (
                ("processor time, one upload / what is allowed", 1.0, one, allowed),
                ("processor time, one upload / plain sink", None, one, figures["sink"]),
                ("processor time, 10 uploads at once / one", None, figures[f"{name} 10"], one),
                ("processor time, 100 uploads at once / one", 1.5, figures[f"{name} 100"], one),
            ):
                yield Row(title, name, "os", target, "s/GiB", mine, peer, at_most=True)

    def _tail_rows(self) -> Iterator[Row]:
        large = sparse_source(self.directory, "tail-large.bin", self.options.tail_size * MIB)
        small = sparse_source(self.directory, "tail-small.bin", MIB)
        title = f"last byte to completed, {self.options.tail_size} MiB / 1 MiB"
        for name in self.options.servers:
            with self._site(name, "os") as site:
                contestants: dict[str, Measure] = {
                    "large": Load("upload", site, large).tail,
                    "small": Load("upload", site, small).tail,
                }
                figures = compete(contestants, self.options.repetitions, f"{title}, {name}")
            yield Row(title, name, "os", 2, "ms", figures["large"], figures["small"], at_most=True)

    def _small_rows(self) -> Iterator[Row]:
        files = self.options.files
        source = random_source(self.directory, "small.bin", files * SMALL_FILE)
        title = f"{files:,} files of 1 KiB / one keep-alive POST each"
        for name in self.options.servers:
            with self._site(name, "os") as site:
                # ext4 without a journal does not use the inodes of deleted files again for minutes, and
                # looks at each of them whenever it makes a file.
                contestants: dict[str, Measure] = {
                    kind: Load(kind, site, source, keep=True, size=SMALL_FILE).files_per_second
                    for kind in ("small_files", "small_posts")
                }
                figures = compete(contestants, self.options.repetitions, f"{title}, {name}")
            yield Row(
                title, name, "os", 3, "files/s", figures["small_files"], figures["small_posts"]
            )

    def _crowd_rows(self) -> Iterator[Row]:
        sockets = self.options.sockets
        source = random_source(self.directory, "crowd.bin", 16 * MIB)
        allowed = Figures([float(32 * MIB + sockets * 32 * KIB)])
        title = f"memory of {sockets} uploads over {sockets} idle sockets / what is allowed"
        for name in self.options.servers:
            crowd = Crowd(partial(self._site, name, "os"), source, sockets)
            contestants: dict[str, Measure] = {"growth": crowd.growth}
            figures = compete(contestants, self.options.repetitions, f"{title}, {name}")
            yield Row(title, name, "os", 1, "MiB", figures["growth"], allowed, at_most=True)
