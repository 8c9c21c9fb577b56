"""``manage.py runserver``, which most people start first: with Daphne by WebSockets, without it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .hosts import environment, manage
from .servers import ROOT, Server, wait_for
from .test_wsgi_site import put

SETTINGS = """
from tests.site.settings import *
MIDDLEWARE = [*MIDDLEWARE, "django_async_upload.middleware.UploadMiddleware"]
{more}
"""
WITH_DAPHNE = """
INSTALLED_APPS = ["daphne", *INSTALLED_APPS]
ASGI_APPLICATION = "development_asgi.application"
"""
ASGI = """
from django.core.asgi import get_asgi_application
application = get_asgi_application()
from django_async_upload.consumers import UploadConsumer
from django_async_upload.routing import upload_application, upload_path
class Films(UploadConsumer):
    endpoint = "films"
application = upload_application(application, [upload_path(), upload_path("ws/films/", Films)])
"""


class RunServer(Server):
    def command(self) -> list[str]:
        return [sys.executable, "-m", "django", "runserver", f"127.0.0.1:{self.port}"]


@pytest.fixture
def server(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Iterator[RunServer]:
    shutil.copy(template / "db.sqlite3", tmp_path)
    (tmp_path / "development.py").write_text(SETTINGS.format(more=request.param))
    (tmp_path / "development_asgi.py").write_text(ASGI)
    os.symlink(ROOT / "tests", tmp_path / "tests")
    env = {**environment(tmp_path, {}), "DJANGO_SETTINGS_MODULE": "development"}
    server = RunServer("runserver", env, tmp_path / "log")
    server.folder = tmp_path
    try:
        server.start()
        yield server
    finally:
        server.kill()


def ticket(server: RunServer) -> str:
    env = {**server.env, "DJANGO_SETTINGS_MODULE": "tests.site.settings"}
    return manage(env, "upload_ticket", "demo").strip()


@pytest.mark.parametrize("server", [WITH_DAPHNE], indirect=True, ids=["daphne"])
def test_with_daphne_it_has_websockets(server: RunServer) -> None:
    assert put(server.port, ticket(server), b"data" * 1000).size == 4000


def ask(
    server: RunServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()


@pytest.mark.parametrize("server", [""], indirect=True, ids=["wsgi"])
def test_without_it_a_whole_file_arrives_over_http(server: RunServer, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    bearer = f"Bearer {ticket(server)}"
    status, _, body = ask(server, "PUT", "/ws/uploads/a.bin", content, Authorization=bearer)
    assert status == 201, body
    stored = next((tmp_path / "staging-uploads").rglob("a.bin"))
    assert stored.read_bytes() == content
    status, headers, body = ask(server, "PUT", "/ws/uploads/a.bin", content)
    assert (status, headers["content-type"]) == (401, "application/problem+json")
    assert json.loads(body)["code"] == "authentication_required"
    assert ask(server, "GET", "/up/")[0] == 200, "the site's own pages"


@pytest.mark.parametrize("server", [""], indirect=True, ids=["wsgi"])
def test_without_it_an_upload_that_was_cut_off_goes_on(server: RunServer, tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    draft = {"Authorization": f"Bearer {ticket(server)}", "Upload_Draft_Interop_Version": "8"}
    status, headers, body = ask(
        server, "POST", "/ws/uploads/a.bin", Upload_Complete="?0", Upload_Length="1000000", **draft
    )
    assert status == 201, body
    address = urlsplit(headers["location"]).path

    def size() -> int:
        """Bytes of the upload that are written."""
        return sum(
            each.stat().st_size for each in (tmp_path / "staging").iterdir() if each.is_file()
        )

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("PATCH", address)
    rest = {"Upload_Complete": "?1", "Content_Type": "application/partial-upload", **draft}
    for name, value in {**rest, "Upload_Offset": "0", "Content_Length": "1000000"}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(content[:300_000])
    wait_for(lambda: size() >= 256 * 1024, what="what a read of the server takes")
    connection.close()
    wait_for(lambda: size() == 300_000, what="every byte that came")
    status, headers, _ = ask(server, "HEAD", address, **draft)
    assert (status, headers["upload-offset"]) == (204, "300000")
    status, _, body = ask(
        server, "PATCH", address, content[300_000:], Upload_Offset="300000", **rest
    )
    assert status in (200, 201, 204), body
    stored = next((tmp_path / "staging-uploads").rglob("a.bin"))
    assert stored.read_bytes() == content
    assert "Traceback" not in server.log()
