"""Puts one load on one server, checks the stored files and deletes them, outside the timed part."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crc32c import crc32c

from .contest import Result
from .servers import CHECKOUT, Server, Site, die_with_parent, run

UPLOAD_PATH = "/ws/uploads/"
MIB = 1 << 20
SLOWEST = 2 * MIB
"""Bytes a second below which a load is given up."""
SAMPLE = 0.1
"""Seconds between two looks at a server's memory."""

_GENERATOR = [sys.executable, "-m", "tests.bench.generator"]


@dataclass(frozen=True)
class Source:
    """A file to upload. ``frames`` holds its prebuilt frames, where it has any."""

    path: Path
    size: int
    sha256: str = ""
    frames: Path | None = None

    @property
    def timeout(self) -> float:
        return 60 + self.size / SLOWEST


def random_source(directory: Path, name: str, size: int, *, prebuilt: bool = False) -> Source:
    """A file of pseudo-random bytes, the same in every run."""
    path = directory / name
    digest = hashlib.sha256()
    numbers = random.Random(size)
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            block = numbers.randbytes(min(MIB, size - start))
            digest.update(block)
            file.write(block)
    if not prebuilt:
        return Source(path, size, digest.hexdigest())
    frames = directory / f"{name}.frames"
    generate({"kind": "frames", "source": str(path), "frames": str(frames), "timeout": 600})
    return Source(path, size, digest.hexdigest(), frames)


def sparse_source(directory: Path, name: str, size: int) -> Source:
    """A file that takes no room here; the server that receives it has to write it."""
    path = directory / name
    with open(path, "wb") as file:
        file.truncate(size)
    return Source(path, size)


def generate(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job of the generator. Raises :class:`RuntimeError` with what it said when it fails."""
    line = json.dumps(job) + "\n"
    answer = run(_GENERATOR, {}, timeout=job["timeout"] + 60, standard_input=line)
    return dict(json.loads(answer))


class Load:
    """One kind of job for one server, which may be run again and again."""

    def __init__(
        self, kind: str, server: Server, source: Source, *, keep: bool = False, **extra: Any
    ) -> None:
        """``keep``: what was stored is put aside, not deleted, until the server is stopped."""
        self.server = server
        self.keep = keep
        self.source = source
        self.job = {
            "kind": kind,
            "port": server.port,
            "source": str(source.path),
            "timeout": source.timeout,
            **extra,
        }
        if isinstance(server, Site):
            self.job |= {"path": UPLOAD_PATH, "ticket": server.ticket}

    def rate(self) -> Result:
        """Bytes a second and what each cost the server, after rehearsals without a pause between them."""
        self.job["rehearsal"] = str(self.server.files)
        self._watch()
        return self._rate(self.run())

    def rate_dropped(self) -> Result:
        """Bytes a second and what each cost the server, of a kind that stores nothing."""
        self._watch()
        return self._rate(generate(self.job))

    def files_per_second(self) -> float:
        outcome = self.run()
        return len(outcome["stored_as"]) / float(outcome["seconds"])

    def tail(self) -> float:
        """Seconds from the last byte to the answer."""
        return float(self.run()["tail"])

    def _watch(self) -> None:
        self.job["watch"] = [process.pid for process in self.server.family()]

    def _rate(self, outcome: dict[str, Any]) -> Result:
        ran = sum(ran for ran, _waited in outcome["threads"].values())
        return Result(self.source.size / float(outcome["seconds"]), ran / self.source.size)

    def run(self) -> dict[str, Any]:
        """Raises :class:`RuntimeError` where anything else than the source was stored."""
        try:
            outcome = generate(self.job)
            self._compare(outcome["stored_as"])
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.server.name} says: {self.server.log()}") from error
        finally:
            self._clear()
        return outcome

    def _clear(self) -> None:
        """Leave the folder empty, and let the disk come to rest."""
        aside = tempfile.mkdtemp(dir=self.server.directory)
        for entry in os.scandir(self.server.files):
            os.rename(entry.path, os.path.join(aside, entry.name))
        if not self.keep:
            shutil.rmtree(aside)
        os.sync()

    def _compare(self, stored_as: str | list[str]) -> None:
        """The stored files, one after the other, are the source."""
        names = [stored_as] if isinstance(stored_as, str) else stored_as
        with open(self.source.path, "rb") as source:
            for name in names:
                with open(self.server.files / name, "rb") as stored:
                    while block := stored.read(4 * MIB):
                        if block != source.read(len(block)):
                            raise RuntimeError(f"{name} on the disk is not what was sent")
            if source.read(1):
                raise RuntimeError(f"what is on the disk is shorter than {self.source.size}")


class Crowd:
    """Many sockets to one server: its memory when they all upload, over its memory when they idle."""

    def __init__(self, start: Callable[[], Site], source: Source, sockets: int) -> None:
        self.start = start
        """Makes a server that has done nothing yet."""
        self.job = {
            "kind": "crowd",
            "path": UPLOAD_PATH,
            "source": str(source.path),
            "sockets": sockets,
            "timeout": 300,
        }

    def growth(self) -> float:
        """Bytes."""
        with self.start() as server, self._generator() as generator:
            killer = threading.Timer(400, generator.kill)
            killer.start()
            try:
                return self._measure(server, generator)
            finally:
                killer.cancel()
                generator.kill()

    def _generator(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            _GENERATOR,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )

    def _measure(self, server: Site, generator: subprocess.Popen[str]) -> float:
        requests, answers = generator.stdin, generator.stdout
        assert requests is not None
        assert answers is not None
        job = self.job | {"port": server.port, "ticket": server.ticket}
        print(json.dumps(job), file=requests, flush=True)
        if answers.readline() != "idle\n":
            raise RuntimeError(f"the sockets were not opened: {server.log()}")
        idle = peak = server.memory()
        print("go", file=requests, flush=True)
        outcome: list[str] = []
        reader = threading.Thread(target=lambda: outcome.append(answers.readline()))
        reader.start()
        while reader.is_alive():
            peak = max(peak, server.memory())
            time.sleep(SAMPLE)
        if not outcome[0]:
            raise RuntimeError(f"the crowd did not come through: {server.log()}")
        for name, crc in json.loads(outcome[0])["stored_as"].items():
            if f"{crc32c((server.files / name).read_bytes()):08x}" != crc:
                raise RuntimeError(f"{name} on the disk is not what was sent")
        return peak - idle
