"""The doctor, on real servers that are set up well and badly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.routing import ProtocolTypeRouter
from channels.sessions import CookieMiddleware, SessionMiddlewareStack
from django.core.management import CommandError, call_command
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

from django_async_upload.operations import doctor
from django_async_upload.operations.probe import Target
from django_async_upload.protocol import messages as m

from .e2e import servers
from .e2e.hosts import Host, hosting, prepare
from .e2e.servers import APPLICATION, ROOT, free_port

pytestmark = pytest.mark.e2e

BAD_UVICORN = ("uvicorn", APPLICATION, "--host", "127.0.0.1", "--ws", "websockets-sansio")
"""Nothing said about deflate and the largest message: as it is shipped."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    prepare(root)
    return root


@pytest.fixture
def host(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Iterator[Host]:
    with hosting(request.param, template, tmp_path / "host", {}) as host:
        yield host


def examine(host: Host, *options: str, url: str | None = None) -> tuple[int, dict[str, str]]:
    """Exit status, and verdict and words for each subject."""
    done = subprocess.run(
        [sys.executable, "-m", "django", "upload_doctor", url or host.url(), *options],
        cwd=ROOT,
        env={**os.environ, **host.server.env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert not done.stderr, done.stderr
    found: dict[str, str] = {}
    subject = ""
    for line in done.stdout.splitlines():
        if line.startswith(" "):
            found[subject] += " " + line.strip()  # advice follows its finding
        else:
            subject = line[9:25].strip()
            found[subject] = f"{line[:9].strip()} {line[26:]}"
    return done.returncode, found


@pytest.mark.parametrize("host", ["uvicorn", "daphne"], indirect=True)
def test_a_server_with_the_documented_flags_is_healthy(host: Host) -> None:
    status, found = examine(host, "--ticket", host.ticket())

    wrong = {subject: words for subject, words in found.items() if words.startswith("bad")}
    assert (status, wrong) == (0, {})
    assert found["deflate"].startswith("ok")
    assert found["address"].startswith("ok The server sees this machine as 127.0.0.1.")
    assert found["larger message"].startswith("ok")
    assert "HTTP 403" in found["origin"]
    assert "authentication_required" in found["authentication"]
    assert "authentication_timeout" in found["silence"]
    assert found["upload"].startswith("ok 1 MiB sent")
    assert "every 20 s" in found["heartbeat"]
    assert [each["state"] for each in host.uploads()] == ["cancelled"]
    assert host.parts() == []


@pytest.mark.parametrize("host", ["daphne"], indirect=True)
def test_what_is_known_of_a_server_is_said_where_it_cannot_be_seen(host: Host) -> None:
    _status, found = examine(host)

    assert found["backpressure"].startswith("unknown")
    assert "Daphne does not" in found["backpressure"]
    assert found["upload"].startswith("unknown")


@pytest.mark.parametrize("host", ["hypercorn"], indirect=True)
def test_a_server_that_compresses_whatever_one_says_is_not_healthy(host: Host) -> None:
    status, found = examine(host)

    assert status == 1
    assert found["deflate"].startswith("bad")
    assert "decompresses without a limit" in found["deflate"]
    assert "nginx in front" in found["deflate"]


@pytest.mark.parametrize(
    ("url", "address", "peer", "verdict"),
    [
        ("wss://example.com/", "192.0.2.7", "198.51.100.1", "ok"),
        ("wss://example.com/", "127.0.0.1", "198.51.100.1", "bad"),
        ("wss://example.com/", "198.51.100.1", "198.51.100.1", "bad"),
        ("wss://example.com/", None, "198.51.100.1", "warning"),
        ("ws://localhost/", "127.0.0.1", "127.0.0.1", "ok"),
    ],
)
def test_an_address_that_is_a_proxys_is_not_taken_for_the_clients(
    url: str, address: str | None, peer: str, verdict: str
) -> None:
    hello = m.Hello(1, 1, 1, address=address)
    found = doctor._address(Target(url), hello, peer)
    assert found.verdict == verdict
    assert verdict == "ok" or "NUM_PROXIES" in found.advice


@pytest.mark.parametrize(
    ("url", "server", "verdict"),
    [
        ("wss://example.com/", "nginx", "ok"),
        ("wss://example.com/", "", "ok"),
        ("wss://example.com/", "uvicorn", "warning"),
        ("wss://example.com/", "hypercorn", "warning"),
        ("wss://example.com/", "daphne", "warning"),
        ("ws://127.0.0.1/", "uvicorn", "unknown"),
    ],
)
def test_a_server_that_the_internet_reaches_without_a_proxy_is_a_warning(
    url: str, server: str, verdict: str
) -> None:
    assert doctor._proxy(Target(url), server).verdict == verdict


@pytest.mark.parametrize("host", ["granian"], indirect=True)
def test_what_no_option_can_change_is_a_warning(host: Host) -> None:
    status, found = examine(host)

    assert status == 0
    assert found["larger message"].startswith("warning")
    assert "Granian has no option" in found["larger message"]


@pytest.mark.parametrize("host", ["uvicorn"], indirect=True)
def test_a_login_is_tried_as_a_browser_would(host: Host) -> None:
    status, found = examine(host, "--cookie", host.login())

    assert status == 0
    assert found["upload"].startswith("ok")


def test_a_server_as_it_is_shipped_is_not_healthy(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {"uvicorn": lambda port: [*BAD_UVICORN, "--port", str(port)]}
    monkeypatch.setattr(servers, "KINDS", shipped)
    with hosting("uvicorn", template, tmp_path / "host", {}) as host:
        status, found = examine(host)

    assert status == 1
    assert found["deflate"].startswith("bad")
    assert "--ws-per-message-deflate false" in found["deflate"]
    assert found["larger message"].startswith("bad")
    assert "--ws-max-size 1048576" in found["larger message"]


@pytest.mark.parametrize("host", ["uvicorn"], indirect=True)
def test_a_refused_ticket_and_a_foreign_page_are_said(host: Host) -> None:
    status, found = examine(host, "--ticket", host.ticket(endpoint="other"))
    assert status == 1
    assert "ticket_invalid" in found["upload"]

    status, found = examine(host, "--origin", "https://elsewhere.example")
    assert status == 1
    assert "CSRF_TRUSTED_ORIGINS" in found["connection"]


@pytest.mark.parametrize("host", ["uvicorn"], indirect=True)
def test_what_is_no_endpoint_is_said(host: Host) -> None:
    status, found = examine(host, url=f"ws://127.0.0.1:{free_port()}/ws/uploads/")
    assert status == 1
    assert "Is the server running" in found["connection"]

    status, found = examine(host, url=host.url(path="/nowhere/"))
    assert status == 1
    assert list(found) == ["connection", "tracing"]  # the second one is about this project
    assert "404" in found["connection"]
    assert "No route of asgi.py" in found["connection"]


async def echo(scope: Any, receive: Any, send: Any) -> None: ...


def traced(**options: Any) -> Any:
    """An application with OpenTelemetry inside of a router and another middleware."""
    inner = OpenTelemetryMiddleware(SessionMiddlewareStack(echo), **options)
    return ProtocolTypeRouter({"http": echo, "websocket": CookieMiddleware(inner)})


@pytest.mark.parametrize(
    ("application", "verdict"),
    [
        (traced(), "warning"),
        (traced(exclude_spans=["receive"]), "warning"),
        (traced(exclude_spans=["receive", "send"]), "ok"),
        (echo, "unknown"),
        (None, "unknown"),
    ],
)
def test_spans_of_messages_are_found(application: Any, verdict: str) -> None:
    found = doctor.find_spans(application)
    assert found is not None
    assert found.verdict == verdict
    assert verdict == "ok" or "exclude_spans" in found.advice


def test_no_spans_are_looked_for_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    assert doctor.find_spans(traced()) is None


@pytest.mark.parametrize("host", ["uvicorn"], indirect=True)
def test_spans_of_this_projects_application_are_reported(host: Host) -> None:
    _status, found = examine(host)
    assert found["tracing"].startswith("unknown opentelemetry-instrumentation-asgi is installed.")


class WithoutWebsockets:
    """An import system without the package websockets."""

    def find_spec(self, name: str, *args: object) -> None:
        if name.partition(".")[0] == "websockets":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_what_it_needs_is_said_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [WithoutWebsockets(), *sys.meta_path])
    loaded = [f"django_async_upload.operations.{name}" for name in ("doctor", "probe")]
    loaded += [name for name in sys.modules if name.partition(".")[0] == "websockets"]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(CommandError, match=r"django-resumable-upload\[client\]"):
        call_command("upload_doctor", "ws://127.0.0.1:9/")
