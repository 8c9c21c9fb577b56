"""The package's command line as a process: a client that shares only files with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, Self

from .servers import ROOT


class Program:
    """``async-upload ARGUMENTS``; its state file is in ``home``. A context manager that ends it."""

    def __init__(
        self, home: Path, *arguments: str | Path, stdin: IO[bytes] | int = subprocess.DEVNULL
    ) -> None:
        home.mkdir(exist_ok=True)
        self.stdin = stdin
        self._out, self._err = home / "out", home / "err"
        self._arguments = [str(each) for each in arguments]
        environment = {
            **{name: value for name, value in os.environ.items() if "DJANGO" not in name},
            "XDG_STATE_HOME": str(home),
        }
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / "async-upload"), *self._arguments],
                cwd=ROOT,
                env=environment,
                stdin=stdin,
                stdout=out,
                stderr=err,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def errors(self) -> str:
        return self._err.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL: it cannot save anything."""
        if self.is_running:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def wait(self, seconds: float = 90) -> int:
        """The exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.errors[-3000:]}") from None

    def results(self, seconds: float = 90) -> list[dict[str, Any]]:
        """Wait for success; the JSON objects that it printed."""
        status = self.wait(seconds)
        assert status == 0, f"status {status}:\n{self._out.read_text()}\n{self.errors[-3000:]}"
        return self.printed()

    def printed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.read_text().splitlines()]


def put(
    home: Path,
    url: str,
    ticket: str,
    *files: str | Path,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> Program:
    """``async-upload put --json``."""
    return Program(home, "put", *files, "--url", url, "--ticket", ticket, "--json", stdin=stdin)
