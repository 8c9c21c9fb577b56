"""A real Chromium, the example site on a real server, and what holds for every page that a test opens.

``BROWSER_SERVERS`` names the servers: uvicorn, or "uvicorn,daphne".
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ..e2e.proxy import ChaosProxy
from ..e2e.servers import wait_for
from .example import Example, ExampleOnWsgi, prepare
from .screen import LONG, SECONDS

SERVERS = os.environ.get("BROWSER_SERVERS", "uvicorn").split(",")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--js-flags=--expose-gc",
]
PATIENCE = 1000 * SECONDS
"""Milliseconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


# For the package, not the session: its event loop has to be gone before asynchronous tests run.
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=PATIENCE)
        browser = playwright.chromium.launch(
            executable_path=executable, args=FLAGS, timeout=PATIENCE
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """The server that a test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def _example(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    folder = tmp_path_factory.mktemp(kind) / "example_project"
    prepare(folder)
    example = ExampleOnWsgi(folder) if kind == "wsgi" else Example(kind, folder)
    try:
        example.start()
        yield example
    finally:
        example.kill()


@pytest.fixture
def example(_example: Example) -> Iterator[Example]:
    """The running site. A test may kill it if it starts it again."""
    start = _example.log_size()
    yield _example
    assert _example.is_running, "the test left no server behind"
    # Receivers still run after the answers: what they do and log belongs to this test, not to the next.
    undelivered = "SELECT 1 FROM async_upload_completionevent WHERE delivered_at IS NULL LIMIT 1"
    wait_for(lambda: not _example.rows(undelivered), seconds=LONG, what="the end of the receivers")
    log = _example.log(start)
    found = re.findall(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+.*", log)
    assert not [each for each in found if "async_upload" in each or "/demo/" in each], log[-6000:]


@pytest.fixture
def proxy(example: Example) -> Iterator[ChaosProxy]:
    with ChaosProxy(example.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def cookies(_example: Example) -> dict[str, str]:
    """The cookies of a login that the tests of one kind share: do not end it."""
    return _example.sign_in()


@pytest.fixture
def visit(
    browser: Any, example: Example, cookies: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """``visit(port=..., cookies=..., **options of a context)``: a context of a browser, signed in.

    Whatever its pages do, no request may leave the origin, no script may fail, and nothing may
    violate the Content-Security-Policy.
    """
    wrong: list[str] = []
    contexts = []

    def open_context(
        port: int | None = None, cookies: dict[str, str] = cookies, **options: Any
    ) -> Any:
        url = f"http://127.0.0.1:{port or example.port}"
        context = browser.new_context(base_url=url, **options)
        context.set_default_timeout(PATIENCE)
        context.add_cookies(
            [{"name": name, "value": value, "url": url} for name, value in cookies.items()]
        )
        host = urlsplit(url).netloc

        def requested(url: str) -> None:
            if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc != host:
                wrong.append(f"left the origin: {url}")

        def said(message: Any) -> None:
            if "Content Security Policy" in message.text:
                wrong.append(f"violates the policy: {message.text}")

        def opened(page: Any) -> None:
            page.on("websocket", lambda socket: requested(socket.url))
            page.on("pageerror", lambda error: wrong.append(f"script failed: {error}"))

        context.on("request", lambda request: requested(request.url))
        context.on("console", said)
        context.on("page", opened)
        if options.get("java_script_enabled", True):
            context.expose_binding("reportViolation", lambda source, text: wrong.append(text))
            context.add_init_script(
                "addEventListener('securitypolicyviolation', (event) => reportViolation("
                "`violates ${event.violatedDirective}: ${event.blockedURI} at ${event.sourceFile}`))"
            )
        contexts.append(context)
        return context

    yield open_context
    for context in contexts:
        with contextlib.suppress(Exception):  # Chromium is gone, or the test closed it
            context.close()
    assert not wrong, wrong


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MiB, no two blocks of it alike."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    with path.open("wb") as file, open("/dev/urandom", "rb") as noise:
        for _ in range(300):
            file.write(noise.read(1 << 20))
    return path


@pytest.fixture
def middling(tmp_path: Path) -> Path:
    """24 MiB under a name of its own: more than a window, so that the page remembers it."""
    path = tmp_path / f"{tmp_path.name.strip('_')}.bin"
    with open("/dev/urandom", "rb") as noise:
        path.write_bytes(noise.read(24 << 20))
    return path
