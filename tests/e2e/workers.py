"""The example site, brokers, and the workers of task queues, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil
import pytest

from ..browser.example import Example, copy, manage
from .programs import Program, put
from .proxy import ChaosProxy
from .redis import running_redis
from .servers import wait_for

MAKE_DEMO = "from django.contrib.auth.models import User as U; U.objects.create_user('demo')"
PATH = "/ws/uploads/"


class Worker:
    """A worker in the folder of a site; its output is in ``log``. A context manager that kills it."""

    def __init__(self, site: Site, *command: str) -> None:
        self._log = site.folder / f"worker-{random.getrandbits(32):08x}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=site.folder,
                env={**os.environ, **site.env, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def has_open(self, path: Path) -> bool:
        """Whether one of its processes has the file open."""
        for each in [psutil.Process(self._process.pid), *self.children()]:
            for descriptor in Path(f"/proc/{each.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if descriptor.readlink() == path:
                        return True
        return False

    def kill(self) -> None:
        """SIGKILL, the whole tree at once."""
        tree = []
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = [psutil.Process(self._process.pid), *self.children()]
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        self._process.wait(30)


class Site:
    """The example site with one of its ways to hand work on; ``settings`` names the module."""

    def __init__(
        self, folder: Path, settings: str, additions: Mapping[str, str] | None = None, **env: str
    ) -> None:
        """``additions`` are appended to modules of the site, by their names."""
        copy(folder)
        for module, text in (additions or {}).items():
            with (folder / "demo" / module).open("a") as file:
                file.write(text)
        self.folder = folder
        self.env = {"DJANGO_SETTINGS_MODULE": settings, **env}
        self.manage("migrate", "--verbosity", "0")
        self.manage("shell", "--command", MAKE_DEMO)
        self.server = Example("uvicorn", folder)
        self.server.env |= self.env
        self.server.up = "/healthz/"

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.kill()

    def manage(self, *arguments: str) -> str:
        return manage(self.folder, *arguments, **self.env)

    def upload(self, *files: Path) -> None:
        with self.uploading(*files) as program:
            program.results()

    def uploading(self, *files: Path) -> Program:
        ticket = self.manage("upload_ticket", "demo").strip()
        url = f"ws://127.0.0.1:{self.server.port}{PATH}"
        return put(self.folder / f"home-{random.getrandbits(32):08x}", url, ticket, *files)

    def summaries(self) -> dict[str, str]:
        """The SHA-256 that a worker has found, by the names of the uploads."""
        found = self.server.rows(
            "SELECT name, sha256 FROM demo_summary JOIN async_upload_uploadsession ON upload_id = id"
        )
        return {each["name"]: each["sha256"] for each in found}

    def total(self) -> tuple[int, int]:
        """Files and bytes that were added up for the user."""
        found = self.server.rows("SELECT files, bytes FROM demo_total")
        return (found[0]["files"], found[0]["bytes"]) if found else (0, 0)

    def hand_on_again(self, name: str) -> None:
        """The receivers get the completion of the uploads of that name once more."""
        command = "from django_async_upload.engine import outbox;"
        command += "from django_async_upload.models import UploadSession as S;"
        command += (
            f"print(len(outbox.send_again([each.pk for each in S.objects.filter(name={name!r})])))"
        )
        assert self.manage("shell", "--command", command).split()[-1] == "1"

    def waiting(self) -> list[dict[str, object]]:
        """The completions that the outbox still has to deliver."""
        table = "SELECT attempts, error FROM async_upload_completionevent"
        return self.server.rows(f"{table} WHERE delivered_at IS NULL ORDER BY created_at")

    def wait_until_handed_on(self, *, seconds: float = 60) -> None:
        wait_for(lambda: not self.waiting(), seconds=seconds, what="the delivery of completions")


@contextlib.contextmanager
def held_open(site: Site, name: str) -> Iterator[Path]:
    """Whoever opens the finished file of that name waits, until this ends: then the file is as it was.

    Yields the FIFO in its place, for :func:`go_on_together`.
    """
    stored = site.server.stored(name)
    aside = stored.with_name("aside")
    stored.rename(aside)
    os.mkfifo(stored)
    try:
        yield stored
    finally:
        aside.replace(stored)


def go_on_together(fifo: Path, workers: Sequence[Worker]) -> None:
    """Workers that wait for a file which is held open read its end at the same moment: an empty file."""
    with fifo.open("wb"):
        wait_for(lambda: all(each.has_open(fifo) for each in workers), what="all workers")


# Brokers ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rabbitmq(queue: str) -> Iterator[tuple[str, ChaosProxy]]:
    """The address of a RabbitMQ behind a proxy; ``queue`` is deleted at the end."""
    kombu = pytest.importorskip("kombu", reason="needs celery")
    port = int(os.environ.get("RABBITMQ_PORT", "5672"))
    with kombu.Connection(f"amqp://guest:guest@127.0.0.1:{port}//", connect_timeout=5) as broker:
        try:
            channel = broker.channel()
        except broker.connection_errors as error:
            pytest.skip(f"needs RabbitMQ: {error}")
        with ChaosProxy(port) as proxy:
            yield f"amqp://guest:guest@127.0.0.1:{proxy.port}//", proxy
        channel.queue_delete(queue)
        channel.exchange_delete(queue)


@contextlib.contextmanager
def redis(queue: str) -> Iterator[tuple[str, ChaosProxy]]:
    """The address of a Redis of its own behind a proxy."""
    pytest.importorskip("redis", reason="needs redis of PyPI")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_redis(Path(folder)) as server,
        ChaosProxy(server.port) as proxy,
    ):
        yield f"redis://127.0.0.1:{proxy.port}/0", proxy


BROKERS = {"rabbitmq": rabbitmq, "redis": redis}
