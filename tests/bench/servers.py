"""The servers under load, each a process of its own on a free port of the loopback interface."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
CHECKPOINT = 8 * 1024 * 1024
"""Bytes between two syncs where durability is ``fsync``; the size of a PATCH, too."""
TUS_CLIENT = "tus-js-client@4.3.1"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


def uvicorn(application: str, port: int, *options: str) -> list[str]:
    # httptools where it is installed: the peers shall not suffer from a slow parser of HTTP.
    http = "httptools" if importlib.util.find_spec("httptools") else "h11"
    command = [sys.executable, "-m", "uvicorn", application, "--port", str(port)]
    command += ["--loop", "asyncio", "--http", http, "--log-level", "warning", "--no-access-log"]
    return [*command, *options]


_SITE = "tests.bench.site:application"
ASGI_SERVERS = {
    "uvicorn": lambda port: uvicorn(
        _SITE,
        port,
        *("--ws", "websockets-sansio", "--ws-per-message-deflate", "false"),
        *("--ws-max-size", "1048576"),
    ),
    "granian": lambda port: [
        *(sys.executable, "-m", "granian", "--interface", "asgi", "--loop", "asyncio"),
        *("--port", str(port), "--log-level", "warning", _SITE),
    ],
}


@dataclass
class Server:
    """A running server. Leave its ``with`` block and it is gone, with its log and its files."""

    name: str
    command: list[str]
    directory: Path
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    working_directory: Path = CHECKOUT
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.files = self.directory / "files"
        """Where what is uploaded lands."""
        self.files.mkdir(parents=True)

    def __enter__(self) -> Server:
        self._log = open(self.directory / "server.log", "w+b")
        self.process = subprocess.Popen(
            self.command,
            cwd=self.working_directory,
            env=os.environ | {"TMPDIR": str(self.directory)} | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        family = self.family()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((self.host, self.port), 1).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self.log()}")
            time.sleep(0.05)

    def log(self) -> str:
        """The last lines that the server wrote."""
        return (self.directory / "server.log").read_text(errors="replace")[-4000:]

    def family(self) -> list[psutil.Process]:
        """The process and its children; empty when it has ended."""
        try:
            process = psutil.Process(self.process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory(self) -> int:
        """Bytes of memory of the family; pages shared within it count once (PSS)."""
        return sum(process.memory_full_info().pss for process in self.family())


def die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Site(Server):
    """The bench's host project on an ASGI server.

    ``checkout`` is the one whose package it uses, where that is not this one.
    """

    def __init__(
        self,
        server: str,
        directory: Path,
        durability: str,
        checkout: Path | None = None,
        *,
        users: int = 1,
    ) -> None:
        port = free_port()
        environment = {
            "BENCH_DIRECTORY": str(directory),
            "BENCH_DURABILITY": durability,
            "BENCH_SYNC": str(CHECKPOINT if durability == "fsync" else 0),
        }
        if checkout is not None:
            environment["PYTHONPATH"] = str(checkout / "src")
        super().__init__(server, ASGI_SERVERS[server](port), directory, port, environment)
        prepare = [sys.executable, "-m", "tests.bench.site", str(users)]
        self.tickets = run(prepare, environment).splitlines()
        self.ticket = self.tickets[0]


def sink(directory: Path, durability: str, *, reserves: bool = False) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.peers", str(port), str(directory / "files")]
    command += ["reserve"] if reserves else []
    name = "sink that reserves" if reserves else "sink"
    return Server(name, command, directory, port, _sync(durability))


def nginx(directory: Path) -> Server:
    """nginx with its WebDAV module, which writes a PUT to a temporary file and renames that."""
    port = free_port()
    files = directory / "files"
    configuration = directory / "nginx.conf"
    directory.mkdir()
    configuration.write_text(
        f"user root; daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/error.log;\n"
        f"events {{}} http {{ access_log off; client_max_body_size 0; server {{ listen 127.0.0.1:{port};\n"
        f"root {files}; client_body_temp_path {directory}/temporary; location / {{ dav_methods PUT; }} }} }}\n"
    )
    return Server("nginx", ["nginx", "-c", str(configuration)], directory, port, {})


def tuspyserver(directory: Path, durability: str) -> Server:
    port = free_port()
    command = uvicorn("tests.bench.peers:tus", port, "--factory")
    environment = {"BENCH_DIRECTORY": str(directory / "files"), **_sync(durability)}
    return Server("tuspyserver", command, directory, port, environment)


def tus_node(directory: Path, durability: str, packages: Path) -> Server:
    """``packages`` is a folder in which :func:`install_tus_node` has been."""
    port = free_port()
    command = ["node", str(HERE / "tus_server.mjs"), str(port), str(directory / "files")]
    command += ["sync"] if durability == "fsync" else []
    return Server("@tus/server", command, directory, port, working_directory=packages)


def install_tus_node(packages: Path, *more: str) -> str | None:
    """Install the peer from npm, and ``more`` packages. Returns why it could not be, or None."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "node and npm are not installed"
    packages.mkdir()
    (packages / "package.json").write_text("{}")
    try:
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "@tus/server",
            "@tus/file-store",
            *more,
        ]
        run(command, {}, timeout=300, working_directory=packages)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"npm install failed: {error}"
    return None


def _sync(durability: str) -> dict[str, str]:
    return {"BENCH_SYNC": str(CHECKPOINT if durability == "fsync" else 0)}


def run(
    command: Sequence[str],
    environment: dict[str, str],
    *,
    timeout: float = 60,
    working_directory: Path = CHECKOUT,
    standard_input: str = "",
) -> str:
    """The output of a command. Raises :class:`RuntimeError` with what it said when it fails."""
    done = subprocess.run(
        command,
        cwd=working_directory,
        env=os.environ | environment,
        input=standard_input,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()
