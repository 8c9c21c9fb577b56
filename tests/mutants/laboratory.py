"""Copies of the repository, in which mutants are tried."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from .mutant import Mutant

PYTEST: Final = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line")
FAILURE: Final = re.compile(r"^(?:FAILED|✖) (.+?)(?: - .*| \([\d.]+ms\))?$", re.MULTILINE)
UNMUTATED_SECONDS: Final = 600.0
PASSED, FAILED = 0, 1
"""Exit statuses of pytest and of ``node --test``; another one says that the tests could not be run."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of some tests."""

    status: int | None
    """The exit status; None: they took too long, and were killed."""
    output: str
    seconds: float

    @property
    def first_failure(self) -> str:
        """The name of the test that failed, as the summary of pytest or of Node has it."""
        found = FAILURE.search(self.output)
        return found[1] if found else ""

    @property
    def end_of_output(self) -> str:
        return "\n".join(self.output.splitlines()[-60:])


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    run: Run

    @property
    def is_noticed(self) -> bool:
        return self.run.status in (FAILED, None)

    def __str__(self) -> str:
        word = {PASSED: "SURVIVED", FAILED: "noticed", None: "hung"}.get(self.run.status, "BROKEN")
        line = f"{word:9}{self.run.seconds:6.1f} s  {self.mutant}"
        if word == "BROKEN":
            return f"{line}\n{self.run.end_of_output}"
        return f"{line}  ({self.run.first_failure})" if self.run.first_failure else line


class Bench:
    """A copy of the repository, for one mutant at a time."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "copy"
        self.scratch = folder / "tmp"
        self.scratch.mkdir(parents=True)
        for name in files(root):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
        modules = root / "tests/js/node_modules"
        if modules.is_dir():
            (self.root / "tests/js/node_modules").symlink_to(modules)

    async def try_out(self, mutant: Mutant) -> Verdict:
        path = self.root / mutant.path
        source = path.read_text("utf-8")
        self._write(path, mutant.apply(source))
        try:
            return Verdict(mutant, await self.run(mutant.tests, mutant.seconds))
        finally:
            self._write(path, source)

    async def run(self, tests: Iterable[str], seconds: float, *, jobs: int = 1) -> Run:
        """Run tests of Python and of JavaScript, until one fails."""
        began = time.monotonic()
        scripts = [each for each in tests if each.endswith(".js")]
        others = [each for each in tests if each not in scripts]
        commands = []
        if scripts:
            commands.append(("node", "--test", "--test-reporter=spec", *scripts))
        if others:
            parallel = ("-n", str(jobs)) if jobs > 1 else ()
            commands.append((sys.executable, *PYTEST, *parallel, *others))
        status: int | None = PASSED
        output = ""
        for command in commands:
            status, output = await self._execute(command, seconds)
            if status != PASSED:
                break
        return Run(status, output, time.monotonic() - began)

    async def _execute(self, command: Sequence[str], seconds: float) -> tuple[int | None, str]:
        with tempfile.TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True) as scratch:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self.root,
                env=self._environment(scratch),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(seconds):
                    output, _ = await process.communicate()
            except TimeoutError:
                return None, ""
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return process.returncode, output.decode(errors="replace")

    def _environment(self, scratch: str) -> dict[str, str]:
        # Of a run of tests that runs this; and a database server is shared: two jobs would have one test database.
        own = ("ASYNC_UPLOAD_", "DJANGO_", "PYTEST_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        # Before the environment's own path, which leads to the work tree.
        return environment | {"PYTHONPATH": str(self.root / "src"), "TMPDIR": scratch}

    @staticmethod
    def _write(path: Path, source: str) -> None:
        path.write_text(source, "utf-8")
        # Python tells by size and second whether what it has compiled is of this source.
        Path(cache_from_source(str(path))).unlink(missing_ok=True)


def files(root: Path) -> list[str]:
    """What is in the repository, or will be: nothing that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


async def try_all(root: Path, mutants: Sequence[Mutant], jobs: int) -> list[Verdict]:
    """Try mutants on ``jobs`` benches, telling about each; none where a test fails without any."""
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        benches = [Bench(root, Path(folder, str(number))) for number in range(jobs)]
        tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
        unmutated = await benches[0].run(tests, UNMUTATED_SECONDS, jobs=jobs)
        print(f"{len(tests)} selections of tests, unmutated: {unmutated.seconds:.0f} s", flush=True)
        if unmutated.status != PASSED:
            print(unmutated.end_of_output or "They took too long.")
            return []
        waiting = list(reversed(mutants))
        verdicts: list[Verdict] = []

        async def work(bench: Bench) -> None:
            while waiting:
                verdicts.append(await bench.try_out(waiting.pop()))
                print(verdicts[-1], flush=True)

        async with asyncio.TaskGroup() as group:
            for bench in benches:
                group.create_task(work(bench))
    return verdicts
