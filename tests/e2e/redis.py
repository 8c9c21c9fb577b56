"""A Redis of a test's own, which can be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .servers import free_port, wait_for


class Redis:
    """A redis-server that keeps nothing on disk, on a port that it keeps over restarts.

    ``addresses``: what it listens on beside 127.0.0.1.
    """

    def __init__(self, folder: Path, addresses: Sequence[str] = ()) -> None:
        self._program = shutil.which("redis-server")
        if self._program is None:
            pytest.skip("needs redis-server")
        self._folder = folder
        self._addresses = addresses
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def layers(
        self, backend: str = "pubsub.RedisPubSubChannelLayer", address: str = "127.0.0.1"
    ) -> dict[str, Any]:
        """For Django's CHANNEL_LAYERS."""
        config = {"hosts": [f"redis://{address}:{self.port}"]}
        return {"default": {"BACKEND": f"channels_redis.{backend}", "CONFIG": config}}

    def start(self) -> None:
        assert self._program is not None
        self._process = subprocess.Popen(
            [
                *(self._program, "--port", str(self.port), "--protected-mode", "no"),
                *("--bind", "127.0.0.1", *self._addresses),
                *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._answers, what="Redis")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server ended"
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
        return False

    def kill(self) -> None:
        """SIGKILL: every connection is broken and no new one let in."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: connections are accepted, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_redis(folder: Path, addresses: Sequence[str] = ()) -> Iterator[Redis]:
    """A Redis that is gone at the end, whatever happened."""
    redis = Redis(folder, addresses)
    try:
        redis.start()
        yield redis
    finally:
        redis.kill()
