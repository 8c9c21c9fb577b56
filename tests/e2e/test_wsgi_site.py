"""An upload process beside a site on WSGI: what it serves, and what docs/how-to/wsgi-site.md gives to copy."""

from __future__ import annotations

import asyncio
import http.client
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_async_upload.client import UploadClient

from .hosts import environment, manage
from .recipes import block
from .servers import ROOT, Server
from .wsgi import BIN, PAGE, Service, WsgiSite, find_nginx, unit

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


def test_its_units_and_its_nginx_serve_pages_and_uploads(
    env: dict[str, str], tmp_path: Path
) -> None:
    if find_nginx() is None:
        pytest.skip("needs nginx")
    front = Front(env, tmp_path / "log")
    with ExitStack() as stack:
        stack.callback(front.wsgi.kill)
        stack.callback(front.kill)
        front.wsgi.start()
        front.start()
        ticket = manage(env, "upload_ticket", "demo").strip()
        content = os.urandom(3_000_000)
        result = put(front.port, ticket, content)
        stored = next((tmp_path / "staging-uploads").rglob("a.bin"))
        assert (result.size, stored.read_bytes()) == (len(content), content)


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
