"""Who is compared with whom, and what the ratio should be."""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from django_async_upload.conf import UploadSettings

from .contest import Figures, Measure, compete
from .loads import MIB, Crowd, Load, Source, random_source, sparse_source
from .servers import (
    CHECKPOINT,
    Server,
    Site,
    install_tus_node,
    nginx,
    sink,
    tus_node,
    tuspyserver,
)

KIB = 1024
GIB = 1024**3
SMALL_FILE = 1024
ROWS = ("single", "http", "client", "sha256", "cpu", "telemetry", "tail", "small", "crowd")
COSTS = {"uvicorn": 0.80, "granian": 1.0}
"""Seconds of processor time that one upload may cost for each GiB, by server."""
HTTP_COST = 0.9
"""The same over HTTP, at any server."""
SMALL_FILES = {"uvicorn": 5, "granian": 4}
"""Times as many small files as POSTs, by server."""
UPLOADS = (1, 10, 100)
"""At once, where what they cost is compared."""
TELEMETRY = (
    "django_async_upload.engine.telemetry.NoTelemetry",
    "django_async_upload.engine.prometheus.PrometheusTelemetry",
)
"""Whose cost is compared."""
THIS, OTHER = "", " of the other checkout"
"""Whose package a site uses: this checkout's, or that of ``--against``."""


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
    of_costs: bool = False
    """The ratio is that of the costs, not of the values."""

    @property
    def broken(self) -> str:
        return self.mine.broken or self.peer.broken

    @property
    def ratio(self) -> float:
        return self._median(self.mine) / self._median(self.peer)

    def _median(self, figures: Figures) -> float:
        return statistics.median(figures.costs if self.of_costs else figures.values)

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
        if "http" in wanted:
            yield from self._http_rows()
        if "cpu" in wanted:
            yield from self._cpu_rows()
        if "telemetry" in wanted:
            yield from self._telemetry_rows()
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

    def _site(
        self, name: str, durability: str, checkout: Path | None = None, **environment: str
    ) -> Site:
        site = Site(name, self._folder(), durability, checkout)
        site.environment |= environment
        self.commands[name] = " ".join(site.command)
        return site

    @property
    def _versions(self) -> dict[str, Path | None]:
        """The checkouts whose package is measured, by what their contestants' names end with."""
        return {THIS: None} | ({OTHER: self.options.against} if self.options.against else {})

    def _compare_versions(
        self,
        server: str,
        durability: str,
        figures: dict[str, Figures],
        titles: dict[str, str],
        unit: str,
        *,
        of_costs: bool = False,
    ) -> Iterator[Row]:
        """Each contestant beside the same one of the other checkout; ``titles`` are by its name."""
        for name, title in titles.items():
            mine, other = figures.get(f"{name}{THIS}"), figures.get(f"{name}{OTHER}")
            if mine and other:
                title = f"{title} / the other checkout"
                yield Row(title, server, durability, None, unit, mine, other, of_costs=of_costs)

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
                kinds = {"upload": "upload", "client": "Python client", "sha256": "SHA-256"}
                titles = {f"{server} {kind}": title for kind, title in kinds.items()}
                yield from self._compare_versions(server, durability, figures, titles, "MB/s")

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
            for reserves in (False, True):
                server = self._start(sink(folder(), durability, reserves=reserves), stack)
                contestants[server.name] = Load("sink", server, source).rate
        for name in self.options.servers:
            for version, checkout in self._versions.items():
                site = stack.enter_context(self._site(name, durability, checkout))
                framed = partial(Load, "upload", site, source, frames=str(source.frames))
                contestants[f"{name} upload{version}"] = framed().rate
                if "client" in rows:
                    contestants[f"{name} client{version}"] = Load("client", site, source).rate
                if "sha256" in rows:
                    contestants[f"{name} sha256{version}"] = framed(sha256=source.sha256).rate
                if "single" in rows and version is THIS:
                    empty = Load("drop", site, source, frames=str(source.frames))
                    contestants[f"{name} empty"] = empty.rate_dropped
                    contestants[f"{name} post"] = Load("post", site, source).rate
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
            ("upload / sink that reserves its file", "upload", "sink that reserves", None),
            ("a consumer that drops it all / sink", "empty", "sink", None),
            ("upload / Django multipart POST", "upload", f"{server} post", 1.7),
            ("upload / @tus/server, 8 MiB PATCHes", "upload", "@tus/server", 2.1),
            ("upload / tuspyserver, 8 MiB PATCHes", "upload", "tuspyserver", 1.5),
            ("Python client / load generator", "client", f"{server} upload", 0.6),
            ("upload with SHA-256 / sink", "sha256", "sink", 0.4),
        ):
            ours = figures.get(f"{server} {mine}")
            theirs = figures.get(peer) or Figures(broken=self.missing.get(peer, ""))
            if ours and (theirs.values or theirs.broken):
                yield Row(title, server, durability, target, "MB/s", ours, theirs)

    # The same over HTTP ---------------------------------------------------------------------------

    def _http_rows(self) -> Iterator[Row]:
        source = random_source(self.directory, "http.bin", self.options.size * MIB, prebuilt=True)
        packages = self.directory / "npm-http"
        if problem := install_tus_node(packages):
            self.missing["@tus/server"] = problem
        if not shutil.which("nginx"):
            self.missing["nginx"] = "nginx is not installed"
        contestants: dict[str, Measure] = {}
        with ExitStack() as stack:
            server = self._start(sink(self._folder(), "os"), stack)
            contestants["sink"] = Load("sink", server, source).rate
            if "nginx" not in self.missing:
                server = self._start(nginx(self._folder()), stack)
                contestants["nginx"] = Load("put", server, source).rate
            peers = [tuspyserver(self._folder(), "os")]
            if "@tus/server" not in self.missing:
                peers.append(tus_node(self._folder(), "os", packages))
            for peer in peers:
                server = self._start(peer, stack)
                contestants[f"{peer.name} one"] = Load("patches", server, source, step=0).rate
                contestants[f"{peer.name} 8 MiB"] = Load(
                    "patches", server, source, step=CHECKPOINT
                ).rate
            for name in self.options.servers:
                site = stack.enter_context(self._site(name, "os"))
                for each, load in (
                    ("socket", Load("upload", site, source, frames=str(source.frames))),
                    ("put", Load("put", site, source)),
                    ("one", Load("patches", site, source, step=0)),
                    ("8 MiB", Load("patches", site, source, step=CHECKPOINT)),
                    ("post", Load("post", site, source)),
                ):
                    contestants[f"{name} {each}"] = load.rate
            title = f"one file of {self.options.size} MiB over HTTP"
            figures = compete(contestants, self.options.repetitions, title)
        for name in self.options.servers:
            yield from self._compare_http(name, figures)

    def _compare_http(self, server: str, figures: dict[str, Figures]) -> Iterator[Row]:
        for title, mine, peer, target in (
            ("one PATCH / tuspyserver, one PATCH", "one", "tuspyserver one", 1.2),
            ("one PATCH / Django multipart POST", "one", f"{server} post", 1.7),
            ("8 MiB PATCHes / tuspyserver's", "8 MiB", "tuspyserver 8 MiB", 1.3),
            ("8 MiB PATCHes / @tus/server's", "8 MiB", "@tus/server 8 MiB", 2.2),
            ("one PATCH / the WebSocket", "one", f"{server} socket", None),
            ("one PATCH / plain socket-to-file sink", "one", "sink", None),
            ("one PUT / nginx, one PUT", "put", "nginx", None),
        ):
            theirs = figures.get(peer) or Figures(
                broken=self.missing.get(peer.removesuffix(" 8 MiB"), "")
            )
            if theirs.values or theirs.broken:
                ours = figures[f"{server} {mine}"]
                yield Row(title, server, "os", target, "MB/s", ours, theirs)
        allowed = Figures(costs=[HTTP_COST / GIB])
        for kind, name in (("one PATCH", "one"), ("8 MiB PATCHes", "8 MiB")):
            title = f"processor time, {kind} / what is allowed"
            mine = figures[f"{server} {name}"]
            yield Row(title, server, "os", 1.0, "MB/s", mine, allowed, at_most=True, of_costs=True)

    # The others -----------------------------------------------------------------------------------

    def _cpu_rows(self) -> Iterator[Row]:
        """What a byte costs the server: steadier than its speed where others use the machine, too."""
        source = random_source(self.directory, "cpu.bin", self.options.size * MIB, prebuilt=True)
        contestants: dict[str, Measure] = {}
        with ExitStack() as stack:
            for reserves in (False, True):
                server = self._start(sink(self._folder(), "os", reserves=reserves), stack)
                contestants[server.name] = Load("sink", server, source).rate
            for name in self.options.servers:
                for version, checkout in self._versions.items():
                    site = stack.enter_context(self._site(name, "os", checkout))
                    for count in UPLOADS:
                        load = Load(
                            "uploads", site, source, uploads=count, frames=str(source.frames)
                        )
                        contestants[f"{name} {count}{version}"] = load.rate
            title = f"processor time of {self.options.size} MiB"
            figures = compete(contestants, self.options.repetitions, title)
        for name in self.options.servers:
            one = figures[f"{name} 1"]
            allowed = Figures(costs=[COSTS[name] / GIB])
            for title, target, mine, peer in (
                ("one upload / what is allowed", 1.0, one, allowed),
                ("one upload / plain sink", None, one, figures["sink"]),
                (
                    "one upload / sink that reserves its file",
                    None,
                    one,
                    figures["sink that reserves"],
                ),
                ("10 uploads at once / one", None, figures[f"{name} 10"], one),
                ("100 uploads at once / one", 1.5, figures[f"{name} 100"], one),
            ):
                title = f"processor time, {title}"
                yield Row(
                    title, name, "os", target, "MB/s", mine, peer, at_most=True, of_costs=True
                )
            titles = {
                f"{name} {count}": f"processor time, uploads at once: {count}" for count in UPLOADS
            }
            yield from self._compare_versions(name, "os", figures, titles, "MB/s", of_costs=True)

    def _telemetry_rows(self) -> Iterator[Row]:
        """What it costs the server to count for Prometheus."""
        source = random_source(
            self.directory, "counted.bin", self.options.size * MIB, prebuilt=True
        )
        title = f"processor time of {self.options.size} MiB, Prometheus / no telemetry"
        for name in self.options.servers:
            with ExitStack() as stack:
                loads = {
                    each: Load(
                        "uploads",
                        stack.enter_context(self._site(name, "os", BENCH_TELEMETRY=each)),
                        source,
                        uploads=1,
                        frames=str(source.frames),
                    ).rate
                    for each in TELEMETRY
                }
                figures = compete(loads, self.options.repetitions, f"{title}, {name}")
            none, prometheus = (figures[each] for each in TELEMETRY)
            yield Row(
                title, name, "os", 1.05, "MB/s", prometheus, none, at_most=True, of_costs=True
            )

    def _tail_rows(self) -> Iterator[Row]:
        large = sparse_source(self.directory, "tail-large.bin", self.options.tail_size * MIB)
        small = sparse_source(self.directory, "tail-small.bin", MIB)
        title = f"last byte to completed, {self.options.tail_size} MiB / 1 MiB"
        for name in self.options.servers:
            contestants: dict[str, Measure] = {}
            with ExitStack() as stack:
                for version, checkout in self._versions.items():
                    site = stack.enter_context(self._site(name, "os", checkout))
                    contestants[f"large{version}"] = Load("upload", site, large).tail
                    contestants[f"small{version}"] = Load("upload", site, small).tail
                figures = compete(contestants, self.options.repetitions, f"{title}, {name}")
            yield Row(title, name, "os", 2, "ms", figures["large"], figures["small"], at_most=True)
            titles = {
                "large": f"last byte to completed, {self.options.tail_size} MiB",
                "small": "last byte to completed, 1 MiB",
            }
            yield from self._compare_versions(name, "os", figures, titles, "ms")

    def _small_rows(self) -> Iterator[Row]:
        files = self.options.files
        source = random_source(self.directory, "small.bin", files * SMALL_FILE)
        title = f"{files:,} files of 1 KiB / one keep-alive POST each"
        for name in self.options.servers:
            contestants: dict[str, Measure] = {}
            with ExitStack() as stack:
                for version, checkout in self._versions.items():
                    site = stack.enter_context(self._site(name, "os", checkout))
                    for kind in (
                        ("small_files", "small_posts") if version is THIS else ("small_files",)
                    ):
                        # ext4 without a journal does not use the inodes of deleted files again for minutes, and
                        # looks at each of them whenever it makes a file.
                        load = Load(kind, site, source, keep=True, size=SMALL_FILE)
                        contestants[f"{kind}{version}"] = load.files_per_second
                figures = compete(contestants, self.options.repetitions, f"{title}, {name}")
            mine, peer = figures["small_files"], figures["small_posts"]
            yield Row(title, name, "os", SMALL_FILES[name], "files/s", mine, peer)
            titles = {"small_files": f"{files:,} files of 1 KiB"}
            yield from self._compare_versions(name, "os", figures, titles, "files/s")

    def _crowd_rows(self) -> Iterator[Row]:
        sockets = self.options.sockets
        source = random_source(self.directory, "crowd.bin", 16 * MIB)
        allowed = Figures([float(UploadSettings().memory_budget + sockets * 32 * KIB)])
        title = f"memory of {sockets} uploads over {sockets} idle sockets / what is allowed"
        for name in self.options.servers:
            contestants: dict[str, Measure] = {
                f"growth{version}": Crowd(
                    partial(self._site, name, "os", checkout), source, sockets
                ).growth
                for version, checkout in self._versions.items()
            }
            figures = compete(contestants, self.options.repetitions, f"{title}, {name}")
            yield Row(title, name, "os", 1, "MiB", figures["growth"], allowed, at_most=True)
            titles = {"growth": f"memory of {sockets} uploads"}
            yield from self._compare_versions(name, "os", figures, titles, "MiB")
