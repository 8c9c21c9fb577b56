"""A host project with a server of its own: where its files are, what it recorded, who may come in."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .proxy import ChaosProxy
from .raw import RawConnection
from .servers import ROOT, Server, running, wait_for

PATH = "/ws/uploads/"


class Host:
    """``root`` holds the database and the log of signals, ``disk`` the folders media and staging, ``storage`` the
    finished files."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root = root
        self.disk = Path(server.env.get("E2E_DISK", root))
        self.storage = Path(server.env.get("E2E_STORAGE", self.disk / "staging-uploads"))
        self.server = server
        self.tracebacks_expected = False
        """For tests that make the host's own code fail: its errors belong in the log."""

    # The outside ----------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self.server.port

    def url(self, port: int | None = None, path: str = PATH) -> str:
        return f"ws://{self.server.address}:{port or self.port}{path}"

    def get(self, path: str, **query: object) -> Any:
        """The JSON that the host's test page gives."""
        url = f"{self.server.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)

    def ticket(self, user: str = "demo", **options: object) -> str:
        """A ticket for ``user``; options are those of the test page's view."""
        return str(self.get("/ticket/", user=user, **options)["ticket"])

    def login(self, user: str = "demo") -> str:
        """A Cookie header of a login."""
        jar = http.cookiejar.CookieJar()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        opener.open(f"{self.server.url}/login/?user={user}", timeout=30).close()
        return "; ".join(f"{each.name}={each.value}" for each in jar)

    def connect(
        self, ticket: str | None = None, *, port: int | None = None, path: str = PATH
    ) -> RawConnection:
        """A raw connection that is greeted and signed in (as demo, unless a ticket says otherwise)."""
        ticket = (
            ticket or self.ticket()
        )  # first: a connection must authenticate itself within seconds
        connection = RawConnection(port or self.port, path=path, address=self.server.address)
        connection.greet(ticket)
        return connection

    @contextlib.contextmanager
    def another_server(self, kind: str | None = None) -> Iterator[Host]:
        """A second server process with the same database, media and staging."""
        log = self.root / "another.log"
        with running(kind or self.server.kind, self.server.env, log) as server:
            yield Host(self.root, server)

    @contextlib.contextmanager
    def proxy(self) -> Iterator[ChaosProxy]:
        with ChaosProxy(self.port) as proxy:
            yield proxy

    # The inside -----------------------------------------------------------------------------------

    def path(self, stored_as: str) -> Path:
        return self.storage / stored_as

    def files(self) -> list[Path]:
        """Every finished file."""
        return [each for each in self.storage.rglob("*") if each.is_file()]

    def parts(self) -> list[Path]:
        """Every file of an unfinished upload."""
        return [each for each in (self.disk / "staging").rglob("*") if each.is_file()]

    def uploads(self) -> list[dict[str, Any]]:
        """The uploads' rows, oldest first."""
        return list(self.get("/uploads/")["uploads"])

    def signals(
        self, name: str = "upload_completed", upload: str | None = None
    ) -> list[dict[str, Any]]:
        """What the host's receivers have recorded so far; see :meth:`wait_for_signals`."""
        log = self.root / "signals.jsonl"
        text = log.read_text() if log.exists() else ""
        # A line that is being written has no end yet.
        found = [json.loads(line) for line in text.split("\n")[:-1]]
        return [
            each for each in found if each["signal"] == name and upload in (None, each["upload"])
        ]

    def wait_for_signals(self, name: str, upload: str) -> list[dict[str, Any]]:
        """What the host's receivers have recorded, once there is something: signals follow the answers."""
        return wait_for(
            lambda: self.signals(name, upload), seconds=60, what=f"{name} of upload {upload}"
        )

    def database(self) -> sqlite3.Connection:
        """The database, without Django."""
        return sqlite3.connect(self.root / "db.sqlite3", timeout=30, isolation_level=None)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Another process's transaction keeps everybody from writing."""
        with contextlib.closing(self.database()) as database:
            database.execute("BEGIN EXCLUSIVE")
            yield
            database.execute("ROLLBACK")

    def manage(self, *arguments: str) -> str:
        """Run a management command; returns its output."""
        return manage(self.server.env, *arguments, inside=self.server.inside)


def manage(env: Mapping[str, str], *arguments: str, inside: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*inside, sys.executable, "-m", "django", *arguments],
        cwd=ROOT,
        env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def environment(root: Path, uploads: Mapping[str, object], **extra: str) -> dict[str, str]:
    """What tests/site/settings.py reads."""
    return {
        "DJANGO_SETTINGS_MODULE": "tests.site.settings",
        "E2E_ROOT": str(root),
        "E2E_UPLOAD": json.dumps(uploads),
        **extra,
    }


def prepare(root: Path, **extra: str) -> None:
    """Migrate the database and add the users demo and other."""
    env = environment(root, {}, **extra)
    manage(env, "migrate", "--verbosity", "0")
    people = "from django.contrib.auth.models import User as U;"
    people += "[U.objects.create_user(name) for name in ('demo', 'other')]"
    manage(env, "shell", "--command", people)


def migrated(postgres: Mapping[str, object]) -> dict[str, str]:
    """The environment of a host on a PostgreSQL database, which is prepared here."""
    extra = {"E2E_POSTGRES": json.dumps(postgres)}
    prepare(ROOT, **extra)
    return extra


@contextlib.contextmanager
def hosting(
    kind: str, template: Path, root: Path, uploads: Mapping[str, object], **extra: str
) -> Iterator[Host]:
    """A host whose database is a copy of ``template``, with a running server."""
    root.mkdir(parents=True, exist_ok=True)
    if "E2E_POSTGRES" not in extra:
        shutil.copy(template / "db.sqlite3", root)
    with running(kind, environment(root, uploads, **extra), root / "server.log") as server:
        yield Host(root, server)
