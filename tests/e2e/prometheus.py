"""A Prometheus of a test's own, which reads the metrics of one site."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from .servers import free_port, wait_for


class Prometheus:
    """Runs with the configuration of the example, but for the site's port and :data:`INTERVAL`. A context manager."""

    INTERVAL = 1
    """Seconds between two looks at the metrics."""

    def __init__(self, folder: Path, configuration: Path, port: int) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("needs prometheus")
        self._program = program
        self._folder = folder
        self.port = free_port()
        text = configuration.read_text()
        assert text.count("127.0.0.1:8000") == text.count("scrape_interval: 10s") == 1
        self._configuration = folder / "prometheus.yml"
        self._configuration.write_text(
            text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(
                "scrape_interval: 10s", f"scrape_interval: {self.INTERVAL}s"
            )
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                self._program,
                f"--config.file={self._configuration}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "prometheus.log").open("wb"),
        )
        wait_for(self._answers, seconds=60, what="Prometheus")
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(30)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        with suppress(OSError):
            return self._get("/-/ready") is not None
        return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that the expression has now. Raises :class:`urllib.error.HTTPError` where it does not parse."""
        answer = json.loads(self._get("/api/v1/query", query=expression))
        assert answer["status"] == "success"
        assert not answer.get("warnings")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def _get(self, path: str, **fields: str) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(fields)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())
