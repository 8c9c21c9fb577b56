"""Servers and commands forked from a process that has imported everything already, the tests' site too.

uvicorn with Django takes a second of processor time to start; forked, a few hundredths. A child sets what depends on
its environment: the settings, and the failpoint. It is then what the command line would have started, in a session of
its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, reload
from pathlib import Path
from typing import Self

from .servers import ROOT

LIBRARIES = (
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.lifespan.on",
    "uvicorn.main",
    "uvloop",
    "asgiref.sync",
    "channels.routing",
    "channels.generic.websocket",
    "django.contrib.auth.hashers",
    "django.core.asgi",
    "django.core.management",
    "django.core.management.commands.shell",
    "django.core.files.storage",
    "django.db.backends.postgresql.base",
    "django.db.backends.sqlite3.base",
    "django.db.models",
    "django.forms",
    "django.urls",
    "django.views.debug",
    "aiofiles",
    "crc32c",
    "email.mime.multipart",
    "multiprocessing",
    "psutil",
)
"""As far as they are installed."""
SITE = (
    "django.test.signals",  # caches follow the settings
    "tests.site.asgi",
    "tests.site.urls",
    "django_async_upload.engine.outbox",
    "django_async_upload.operations.cleanup",
)
ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "tests.site.settings",
    "E2E_ROOT": "/nowhere",
    "E2E_GROUPS": "1",
}
"""While the site is imported. Its children have another root, and the same of the rest."""


@dataclass
class Fork:
    """A child: ``status`` is what ``waitpid`` said of it, None while it runs."""

    pid: int
    status: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_running(self) -> bool:
        return not self.ended.is_set()

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status is not None and os.WIFSIGNALED(self.status)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        assert self.ended.wait(30)

    def signal(self, number: int) -> None:
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Forks:
    """The process that forks. A context manager that kills every child."""

    def __init__(self, source: Path | None = None) -> None:
        """``source`` is the folder that the app is imported from, where it is not the checkout's."""
        self._path = os.pathsep.join(map(str, (source, ROOT) if source else (ROOT,)))

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": self._path, "PYTHONUNBUFFERED": "1"},
        )
        self._forks: dict[int, Fork] = {}
        self._asking = threading.Lock()
        self._begun = threading.Condition()
        self._newest: Fork | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for each in list(self._forks.values()):
            if each.is_running:
                each.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._reader.join(60)

    def fork(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> Fork:
        """Start ``uvicorn ARGUMENTS`` or ``django-admin ARGUMENTS``."""
        asked = {"command": list(command), "env": dict(env), "log": str(log)}
        assert self._process.stdin is not None
        with self._asking, self._begun:
            self._newest = None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            assert self._begun.wait_for(lambda: self._newest is not None, timeout=60)
            assert self._newest is not None
            return self._newest

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, status = json.loads(line)
            with self._begun:
                if status is None:
                    self._newest = self._forks[pid] = Fork(pid)
                    self._begun.notify_all()
                else:
                    found = self._forks.pop(pid)
                    found.status = status
                    found.ended.set()


def main() -> None:
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            import_module(name)
    os.environ.update(ENVIRONMENT)
    for name in SITE:
        import_module(name)

    def say(pid: int, status: int | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps([pid, status]).encode() + b"\n")

    # A handler of SIGCHLD would not do: a signal that comes just before a read() begins does not end it.
    woken, wakeup = os.pipe()
    for each in (woken, wakeup):
        os.set_blocking(each, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *arguments: None)
    children, asked = set(), b""
    while True:
        ready = select.select([0, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            with contextlib.suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    children.discard(found[0])
                    say(*found)
        if 0 in ready:
            if not (read := os.read(0, 65536)):
                break
            *lines, asked = (asked + read).split(b"\n")
            for line in lines:
                if not (pid := os.fork()):
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    become(**json.loads(line))
                children.add(pid)
                say(pid, None)
    for pid in children:  # the test has ended, perhaps killed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def become(command: list[str], env: dict[str, str], log: str) -> None:
    """Run the command in this process, and exit."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, descriptor)
    os.environ.update(env)
    set_settings()
    set_failpoint()
    sys.argv = command
    try:
        if command[0] == "uvicorn":
            import_module("uvicorn.main").main(command[1:])
        else:
            import_module("django.core.management").execute_from_command_line(command)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def set_settings() -> None:
    """Have what is imported see the settings of this environment."""
    settings = import_module("django.conf").settings
    changed = import_module("django.core.signals").setting_changed
    connections = import_module("django.db").connections
    module = reload(import_module("tests.site.settings"))
    for name in filter(str.isupper, dir(module)):
        value = getattr(module, name)
        if getattr(settings, name) != value:
            setattr(settings, name, value)
            if name != "DATABASES":  # tests may not change it: it warns
                changed.send(sender=None, setting=name, value=value, enter=True)
    connections._settings = None
    connections.__dict__.pop("settings", None)
    for alias in settings.DATABASES:
        with contextlib.suppress(AttributeError):
            del connections[alias]


def set_failpoint() -> None:
    """Have what is imported pass the failpoint of this environment."""
    module = import_module("django_async_upload.failpoints")
    before = module.failpoint
    reload(module)
    for each in list(sys.modules.values()):
        if vars(each).get("failpoint") is before:
            each.failpoint = module.failpoint  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
