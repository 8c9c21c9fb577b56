"""An upload process beside a site on WSGI: what it serves, and what docs/how-to/wsgi-site.md gives to copy."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_async_upload.client import UploadClient
from django_async_upload.operations.probe import Target
from django_async_upload.operations.shared import find_cookie

from .hosts import environment, manage
from .recipes import block
from .servers import ROOT, Server
from .wsgi import BIN, PAGE, Service, WsgiSite, find_nginx, page_locations, unit

SETTINGS = """
from tests.site.settings import *
ROOT_URLCONF = "nowhere.urls"
MIDDLEWARE = ["nowhere.Middleware"]
"""


@pytest.fixture
def env(template: Path, tmp_path: Path) -> dict[str, str]:
    shutil.copy(template / "db.sqlite3", tmp_path)
    return environment(tmp_path, {})


@pytest.fixture
def uploads(env: dict[str, str], tmp_path: Path) -> Iterator[Service]:
    """The upload process, whose settings name pages and middleware that cannot be imported."""
    (tmp_path / "pageless.py").write_text(SETTINGS)
    env = {**env, "DJANGO_SETTINGS_MODULE": "pageless"}
    service = Service("mysite-uploads", "tests.site", ROOT, env, tmp_path / "log")
    # The folder of the server is the first on the path, as it is for the unit.
    service.folder = tmp_path
    os.symlink(ROOT / "tests", tmp_path / "tests")
    try:
        service.start()
        yield service
    finally:
        service.kill()


def put(port: int, ticket: str, content: bytes) -> Any:
    async def run() -> Any:
        async with UploadClient(f"ws://127.0.0.1:{port}/ws/uploads/", ticket=ticket) as client:
            return await client.upload(io.BytesIO(content), name="a.bin")

    return asyncio.run(run())


def test_it_needs_nothing_of_the_sites_pages(uploads: Service, env: dict[str, str]) -> None:
    ticket = manage(env, "upload_ticket", "demo").strip()
    result = put(uploads.port, ticket, b"data" * 1000)
    assert result.size == 4000
    assert "Traceback" not in uploads.log()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_it_answers_404_wherever_no_upload_is(uploads: Service, method: str) -> None:
    for path in ("/", "/admin/", "/ws/uploadsx/"):
        connection = http.client.HTTPConnection("127.0.0.1", uploads.port, timeout=20)
        connection.putrequest(method, path)
        connection.putheader("Content-Length", "1000000000")
        connection.endheaders()  # and no body
        response = connection.getresponse()
        assert (response.status, response.read()) == (404, b"Only uploads are served here.\n")
        connection.close()


# What the page gives to copy ----------------------------------------------------------------------


class Front(Server):
    """nginx, with the site and the upload process behind it."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        super().__init__("nginx", env, log)
        self.wsgi = WsgiSite("tests.site", ROOT, env, log, self.port)

    def command(self) -> list[str]:
        return self.wsgi.command()


@pytest.fixture
def front(env: dict[str, str], tmp_path: Path) -> Iterator[Front]:
    """To be started by the test."""
    if find_nginx() is None:
        pytest.skip("needs nginx")
    front = Front(env, tmp_path / "log")
    try:
        yield front
    finally:
        front.kill()
        front.wsgi.kill()


def start(front: Front) -> None:
    front.wsgi.start()
    front.start()


def test_its_units_and_its_nginx_serve_pages_and_uploads(
    front: Front, env: dict[str, str], tmp_path: Path
) -> None:
    start(front)
    ticket = manage(env, "upload_ticket", "demo").strip()
    content = os.urandom(3_000_000)
    result = put(front.port, ticket, content)
    stored = next((tmp_path / "staging-uploads").rglob("a.bin"))
    assert (result.size, stored.read_bytes()) == (len(content), content)


# The doctor ---------------------------------------------------------------------------------------


def examine(front: Front, **env: str) -> tuple[int, dict[str, str]]:
    """Exit status, and verdict and words for each subject, on the machine of the site."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "django", "upload_doctor"),
            *(f"ws://127.0.0.1:{front.port}/ws/uploads/", "--user", "demo"),
        ],
        cwd=ROOT,
        env={**os.environ, **front.env, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert not done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    return done.returncode, {
        line[9:25].strip(): f"{line[:9].strip()} {line[26:]}" for line in lines
    }


def sessions(root: Path) -> int:
    with contextlib.closing(sqlite3.connect(root / "db.sqlite3")) as database:
        return int(database.execute("SELECT count(*) FROM django_session").fetchone()[0])


def test_the_doctor_finds_the_site_of_the_page_healthy(front: Front, tmp_path: Path) -> None:
    start(front)
    status, found = examine(front)
    assert (status, [words for words in found.values() if words.startswith("bad")]) == (0, [])
    assert found["session"].startswith("ok")
    assert found["cookie"].startswith("ok")
    assert found["files"] == "ok The sample is in this database and in this folder."
    assert found["upload"].startswith("ok 1 MiB sent")
    assert found["request body"].startswith("ok A request of 1024 MiB is answered before its body")
    assert sessions(tmp_path) == 0, "it signs its user out again"


def test_the_doctor_sees_that_the_site_itself_answers_or_nothing(front: Front) -> None:
    front.wsgi.locations = block(PAGE, "nginx", "location / ")
    start(front)
    status, found = examine(front)
    assert status == 1
    assert "HTTP 404" in found["connection"]

    front.kill()
    front.wsgi.uploads.kill()
    front.wsgi.locations = page_locations()
    front.start()
    status, found = examine(front)
    assert status == 1
    assert "HTTP 502" in found["connection"]


def test_the_doctor_sees_what_is_not_shared_and_what_nginx_does_with_bodies(
    front: Front, env: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    front.wsgi.uploads.env["E2E_DISK"] = str(other)
    front.wsgi.locations = front.wsgi.locations.replace("proxy_request_buffering off;", "")
    start(front)
    status, found = examine(front)
    assert status == 1
    assert found["session"].startswith("ok")
    assert found["files"].startswith("bad The upload process has other files")
    assert found["request body"].startswith("warning A request over HTTP is not answered before")

    front.kill()
    front.wsgi.locations = front.wsgi.locations.replace("client_max_body_size 0;", "")
    front.wsgi.uploads.kill()
    shutil.copy(tmp_path / "db.sqlite3", other)
    front.wsgi.uploads.env["E2E_ROOT"] = str(other)
    start(front)
    status, found = examine(front)
    assert status == 1
    assert found["session"].startswith("bad The upload process does not know a session")
    assert found["request body"].startswith("warning A request of 1024 MiB gets HTTP 413")


@pytest.mark.parametrize(
    ("settings_", "url", "origin", "problem"),
    [
        ({}, "wss://a.example/ws/uploads/", None, ""),
        ({"SESSION_COOKIE_PATH": "/ws"}, "wss://a.example/ws/uploads/", None, ""),
        ({"SESSION_COOKIE_PATH": "/w"}, "wss://a.example/ws/uploads/", None, "PATH is '/w'"),
        ({"SESSION_COOKIE_PATH": "/app/"}, "wss://a.example/ws/uploads/", None, "PATH is '/app/'"),
        ({"SESSION_COOKIE_SECURE": True}, "wss://a.example/ws/", None, ""),
        ({"SESSION_COOKIE_SECURE": True}, "ws://a.example/ws/", None, "not encrypted"),
        ({}, "wss://up.a.example/ws/", "https://a.example", "SESSION_COOKIE_DOMAIN is not set"),
        ({"SESSION_COOKIE_DOMAIN": ".a.example"}, "wss://up.a.example/", "https://a.example", ""),
        (
            {"SESSION_COOKIE_DOMAIN": "a.example"},
            "wss://xa.example/",
            None,
            "DOMAIN is 'a.example'",
        ),
    ],
)
def test_a_cookie_that_browsers_do_not_send_is_found(
    settings_: dict[str, Any], url: str, origin: str | None, problem: str, settings: Any
) -> None:
    for name, value in settings_.items():
        setattr(settings, name, value)
    found = find_cookie(Target(url, origin=origin))
    assert found.verdict == ("bad" if problem else "ok")
    assert problem in found.text


# What the page gives to copy, again ---------------------------------------------------------------


def test_systemd_accepts_its_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    for name in ("mysite", "mysite-uploads"):
        text = block(PAGE, "ini", f"/{name}.service").replace("/srv/mysite/.venv/bin", str(BIN))
        (tmp_path / f"{name}.service").write_text(text.replace("/srv/mysite", str(tmp_path)))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{name}.service")],
            capture_output=True,
            text=True,
        )
        assert "mysite" not in done.stderr, done.stderr
    assert unit("mysite")["User"] == unit("mysite-uploads")["User"]


def test_its_containers_run_what_its_units_run_and_share_their_files() -> None:
    services = yaml.safe_load(block(PAGE, "yaml", "services:"))["services"]
    for name, of_unit in (("site", "mysite"), ("uploads", "mysite-uploads")):
        _, *there = shlex.split(unit(of_unit)["ExecStart"].replace("127.0.0.1", "0.0.0.0"))
        _, *here = shlex.split(services[name]["command"].replace("--host 0.0.0.0 ", ""))
        assert here == there
    assert services["site"]["volumes"] == services["uploads"]["volumes"]
    assert services["site"]["environment"] == services["uploads"]["environment"]
    stop = int(unit("mysite-uploads")["TimeoutStopSec"])
    assert services["uploads"]["stop_grace_period"] == f"{stop}s"


def bare(text: str) -> str:
    """Without indentation, comments and empty lines."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def test_the_demo_has_its_proxies() -> None:
    """tests/test_example.py runs them."""
    nginx = bare((ROOT / "example_project/sidecar/nginx.conf").read_text())
    for location in ("location /ws/", "location / "):
        assert bare(block(PAGE, "nginx", location)) in nginx
    caddy = bare((ROOT / "example_project/sidecar/Caddyfile").read_text())
    _, _, site = bare(block(PAGE, "caddy", "example.com")).partition("example.com {\n")
    assert re.search(r"^handle /ws/\*", site)
    assert caddy.endswith(site)
