"""Real ASGI servers as processes: started, killed, stopped, woken and measured."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

from tests.site import stacks

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
APPLICATION = "tests.site.asgi:application"
MAX_MESSAGE = "1048576"

KINDS: dict[str, Callable[[int], list[str]]] = {
    "uvicorn": lambda port: [
        *("uvicorn", APPLICATION, "--host", "127.0.0.1", "--port", str(port)),
        *("--ws", "websockets-sansio", "--ws-per-message-deflate", "false"),
        *("--ws-max-size", MAX_MESSAGE, "--no-access-log", "--timeout-graceful-shutdown", "5"),
    ],
    "daphne": lambda port: [
        *("daphne", "-b", "127.0.0.1", "-p", str(port), "-v", "0"),
        *("--websocket-max-message-size", MAX_MESSAGE),
        *("--websocket-max-frame-size", MAX_MESSAGE, APPLICATION),
    ],
    "hypercorn": lambda port: [
        *("hypercorn", "--bind", f"127.0.0.1:{port}"),
        *("--config", "file:tests/site/hypercorn.py", APPLICATION),
    ],
    "granian": lambda port: [
        *("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--no-respawn-failed-workers", APPLICATION),
    ],
}
"""Server -> its command line. Each takes messages of 1 MiB and negotiates no deflate with a client
that offers none."""

FLEETS: dict[str, Callable[[int], list[str]]] = {
    "uvicorn --workers 4": lambda port: [*KINDS["uvicorn"](port), "--workers", "4"],
    "granian --workers 4": lambda port: [
        *("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "4", "--respawn-failed-workers", APPLICATION),
    ],
    "gunicorn -w 4": lambda port: [
        *("gunicorn", "-k", "tests.site.gunicorn.UploadWorker", "-w", "4"),
        *("--bind", f"127.0.0.1:{port}", APPLICATION),
    ],
}
"""The same for servers that start several workers."""


def wait_for(
    condition: Callable[[], T | None], *, seconds: float = 30, what: str = "the condition"
) -> T:
    """Poll until ``condition`` is true and return what it returned. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while True:
        is_last = time.monotonic() >= deadline
        if found := condition():
            return found
        assert not is_last, f"{what} did not come within {seconds} s"
        time.sleep(0.01)


RUNNING: list[Server] = []
"""The servers of the fixtures and the test: one that fails prints where they are."""
_reservations: list[socket.socket] = []


def free_port() -> int:
    """A port that stays free for the server it is meant for until this process ends.

    A socket that is bound and does not listen holds it: Linux lets a server with SO_REUSEADDR bind it too, and gives it
    to no program that asks for any port, not even for the near end of a connection.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    _reservations.append(reservation)
    return int(reservation.getsockname()[1])


class Server:
    """One server process and its children, on a port that it keeps over restarts."""

    application = APPLICATION
    folder = ROOT
    """Where the application is imported from."""
    up = "/up/"
    """A page that answers with 200 once the server is up."""
    address = "127.0.0.1"
    """What it listens on."""
    inside: tuple[str, ...] = ()
    """The beginning of a command that runs the rest of it on the server's machine."""

    def __init__(self, kind: str, env: Mapping[str, str], log: Path) -> None:
        self.kind = kind
        self.env = dict(env)
        self.log_path = log
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, psutil.Process] = {}

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def origin(self) -> str:
        return self.url

    def command(self) -> list[str]:
        name, *flags = (KINDS | FLEETS)[self.kind](self.port)
        command = [str(Path(sys.executable).parent / name)]
        own = {APPLICATION: self.application, "127.0.0.1": self.address}
        return command + [own.get(each, each) for each in flags]

    def start(self) -> None:
        """Start and wait until it answers a request."""
        assert self._process is None, "it runs already"
        environment = {**os.environ, **self.env, "PYTHONPATH": str(self.folder)}
        environment["PYTHONUNBUFFERED"] = "1"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.inside, *self.command()],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(self._answers, seconds=60, what=f"{self.kind} on port {self.port}")
        self.processes()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self.kind} ended:\n{self.log()[-3000:]}")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(self.url + self.up, timeout=5) as up,
        ):
            return up.status == 200
        return False

    def processes(self) -> list[psutil.Process]:
        """The main process and its children, also those whose parent is gone."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                main = psutil.Process(self._process.pid)
                for each in (main, *main.children(recursive=True)):
                    self._known[each.pid] = each
        self._known = {pid: each for pid, each in self._known.items() if each.is_running()}
        return list(self._known.values())

    def _signal(self, number: int) -> None:
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, the whole tree; returns when it is gone."""
        self._signal(signal.SIGKILL)
        self._reap()

    def terminate(self, *, seconds: float = 20) -> None:
        """SIGTERM to the main process, as a service manager does; SIGKILL after ``seconds``."""
        if self._process is None:
            return
        self.processes()
        self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(30)
        self._process = None
        wait_for(
            lambda: not any(map(_is_alive, self._known.values())), what="the end of the server"
        )
        self._known = {}

    def restart(self) -> None:
        """On the same port."""
        if self._process is not None:
            self.kill()
        self.start()

    def stop(self) -> None:
        """SIGSTOP: alive, its sockets open, reading nothing."""
        self._signal(signal.SIGSTOP)
        wait_for(lambda: all(map(_is_stopped, self.processes())), what="the stop of the server")

    def cont(self) -> None:
        self._signal(signal.SIGCONT)

    def stacks(self) -> str:
        """Where the threads and tasks of its processes are: see :mod:`tests.site.stacks`."""
        start = self.log_size()
        asked = [each for each in self.processes() if _catches(each, stacks.SIGNAL)]
        for each in asked:
            each.send_signal(stacks.SIGNAL)
        with contextlib.suppress(AssertionError):  # one that hangs prints only its threads
            wait_for(lambda: self.log(start).count(stacks.END) >= len(asked), seconds=5)
        return self.log(start)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def memory(self) -> int:
        """Bytes of the whole tree: what is its own, and its share of what is shared (PSS).

        Without the code: its share grows when another process ends.
        """
        return sum(map(_memory, self.processes()))

    def log(self, start: int = 0) -> str:
        with self.log_path.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0


def _is_alive(process: psutil.Process) -> bool:
    """An orphan that no process has waited for yet is dead."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):  # it has ended
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        return 1024 * sum(
            map(int, re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", rollup, re.MULTILINE))
        )
    return 0


def _catches(process: psutil.Process, number: int) -> bool:
    """Whether a process has a handler of a signal, which would kill it otherwise."""
    with contextlib.suppress(OSError):  # it has ended
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[0], 16)
        return bool(caught >> (number - 1) & 1)
    return False


def _is_stopped(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return True


@contextlib.contextmanager
def running(kind: str, env: Mapping[str, str], log: Path) -> Iterator[Server]:
    """A server that is gone at the end, whatever happened, stopped ones too."""
    server = Server(kind, env, log)
    try:
        server.start()
        RUNNING.append(server)
        yield server
    except AssertionError:
        print(server.stacks())
        raise
    finally:
        with contextlib.suppress(ValueError):
            RUNNING.remove(server)
        server.kill()
