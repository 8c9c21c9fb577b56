"""The example site as a process of its own, in a copy of its folder; its database and files are read without Django."""

from __future__ import annotations

import hashlib
import http.cookiejar
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ..e2e.servers import ROOT, Server
from ..e2e.wsgi import WsgiSite

PERSON = "demo"
"""The name, and the password too."""

MAKE_PERSON = f"""
from django.contrib.auth import get_user_model
get_user_model().objects.create_superuser({PERSON!r}, password={PERSON!r})
"""

APPS = """
from django.urls import re_path
from django.views.static import serve
from django.conf import settings
urlpatterns.append(re_path("^apps/(?P<path>.+)$", serve, {"document_root": settings.BASE_DIR / "apps"}))
"""
"""Applications that a test has built elsewhere, on the site's origin."""


def copy(folder: Path) -> None:
    """A copy of the example without the files that the site makes when it is run."""
    made = shutil.ignore_patterns("db.sqlite3*", "media*", "staticfiles", "__pycache__")
    shutil.copytree(ROOT / "example_project", folder, ignore=made)


def prepare(folder: Path) -> None:
    """A copy of the example with a database and its user."""
    copy(folder)
    # The bundle of the modules as they are now, which may be newer than the one that was committed.
    make_bundle(folder / "bundle/django_async_upload")
    with (folder / "demo/settings.py").open("a") as settings:
        settings.write('STATICFILES_DIRS = [BASE_DIR / "bundle"]\n')
    with (folder / "demo/urls.py").open("a") as urls:
        urls.write(APPS)
    manage(folder, "migrate", "--verbosity", "0")
    manage(folder, "collectstatic", "--verbosity", "0", "--no-input")
    manage(folder, "shell", "--command", MAKE_PERSON)


def make_bundle(folder: Path) -> None:
    """What ``make bundle`` makes, in ``folder``."""
    commands = [["make", "--silent", ".venv/.js"], ["node", "js/build.mjs", "bundle", str(folder)]]
    for command in commands:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def manage(folder: Path, *arguments: str, **env: str) -> str:
    """Run a management command of a copy; returns its output."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=folder,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "demo.settings", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


class Example(Server):
    """``folder`` is a prepared copy."""

    application = "demo.asgi:application"
    up = "/login/"

    def __init__(self, kind: str, folder: Path) -> None:
        env = {"DJANGO_SETTINGS_MODULE": "demo.settings", "REDIS_URL": ""}
        super().__init__(kind, env, folder.with_suffix(".log"))
        self.folder = folder

    def sign_in(self) -> dict[str, str]:
        """The cookies of a new login."""
        jar = http.cookiejar.CookieJar()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        with opener.open(f"{self.url}/login/", timeout=60) as answer:
            token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', answer.read().decode())
        assert token is not None
        form = {"username": PERSON, "password": PERSON, "csrfmiddlewaretoken": token[1]}
        opener.open(f"{self.url}/login/", urllib.parse.urlencode(form).encode(), timeout=60).close()
        cookies = {each.name: str(each.value) for each in jar}
        assert "sessionid" in cookies
        return cookies

    def end_login(self, session: str) -> None:
        """As if the login of this ``sessionid`` had expired."""
        with self._database() as database:
            gone = database.execute("DELETE FROM django_session WHERE session_key = ?", [session])
            assert gone.rowcount == 1

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """What a query finds."""
        with self._database() as database:
            return [dict(each) for each in database.execute(sql, values)]

    def uploads(self, name: str) -> list[dict[str, Any]]:
        """The rows of the uploads of that name, oldest first."""
        table = "SELECT * FROM async_upload_uploadsession"
        return self.rows(f"{table} WHERE name = ? ORDER BY created_at", name)

    def durable(self, name: str) -> int:
        """Bytes of the uploads of that name that would survive a crash of the server."""
        return sum(int(each["durable"]) for each in self.uploads(name))

    def stored(self, name: str) -> Path:
        """The finished file of the only upload of that name that has completed."""
        (row,) = [each for each in self.uploads(name) if each["stored_as"]]
        return self.finished / str(row["stored_as"])

    @property
    def finished(self) -> Path:
        """Where files lie until a form or a receiver takes them."""
        return self.folder / "media-uploads"

    @property
    def media(self) -> Path:
        return self.folder / "media"

    def has_part(self, upload: dict[str, Any]) -> bool:
        """Whether there are still bytes of an unfinished upload; ``upload`` is its row."""
        return (self.folder / "media-staging" / str(upload["part"])).is_file()

    def _database(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / "db.sqlite3", timeout=20, isolation_level=None)
        database.row_factory = sqlite3.Row
        return database


class ExampleOnWsgi(Example):
    """The example on gunicorn, behind an nginx that this is; ``wsgi.uploads`` is the upload process."""

    def __init__(self, folder: Path) -> None:
        super().__init__("wsgi", folder)
        self.wsgi = WsgiSite("demo", folder, self.env, self.log_path, self.port)

    def command(self) -> list[str]:
        return self.wsgi.command()

    def start(self) -> None:
        self.wsgi.start()
        super().start()

    def kill(self) -> None:
        super().kill()
        self.wsgi.kill()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
