"""The example behind HAProxy, as docs/deployment.md has it: the WebSocket is a stream of the page's HTTP/2."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ..e2e.recipes import block
from ..e2e.servers import Server
from .example import Example, sha256
from .screen import FILES, LONG, row

CERTIFICATE = "/etc/haproxy/mysite.pem"
LOG = """
    log stdout format raw local0
    option logasap
    log-format "%HV %HU %ST"
"""


@pytest.fixture(scope="session", params=["uvicorn"])
def kind(request: pytest.FixtureRequest) -> str:
    """A server that reads X-Forwarded-Proto itself: the example has no SECURE_PROXY_SSL_HEADER."""
    return str(request.param)


class HAProxy(Server):
    """HAProxy with the configuration of the page, on ports and with a certificate of its own."""

    def __init__(self, program: str, site: Example, folder: Path) -> None:
        super().__init__("haproxy", {}, folder / "haproxy.log")
        self._command = [program, "-db", "-f", str(folder / "haproxy.cfg")]
        text = block("docs/deployment.md", "haproxy", "alpn h2")
        for old, new in (
            ("bind :443", f"bind 127.0.0.1:{self.port}"),
            (CERTIFICATE, str(certificate(folder))),
            ("127.0.0.1:8000", f"127.0.0.1:{site.port}"),
            ("    mode http\n", f"    mode http{LOG}"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / "haproxy.cfg").write_text(text)

    def command(self) -> list[str]:
        return self._command

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()[-3000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False


def certificate(folder: Path) -> Path:
    """A new self-signed certificate and its key, in one file."""
    path = folder / "mysite.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(path), "-out", str(folder / "certificate.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-subj", "/CN=127.0.0.1", *options, *files],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write((folder / "certificate.pem").read_text())
    return path


@pytest.fixture
def haproxy(example: Example, tmp_path: Path) -> Iterator[HAProxy]:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs haproxy and openssl")
    haproxy = HAProxy(program, example, tmp_path)
    try:
        haproxy.start()
        yield haproxy
    finally:
        haproxy.kill()


def test_a_large_file_goes_through_one_stream_of_http_2(
    browser: Any,
    example: Example,
    cookies: dict[str, str],
    haproxy: HAProxy,
    large: Path,
    tmp_path: Path,
) -> None:
    film = tmp_path / "over-http2.bin"  # other tests of this site upload the same file
    os.link(large, film)
    url = f"https://127.0.0.1:{haproxy.port}"
    context = browser.new_context(base_url=url, ignore_https_errors=True)
    try:
        context.add_cookies(
            [{"name": name, "value": value, "url": url} for name, value in cookies.items()]
        )
        page = context.new_page()
        page.goto("/")
        page.set_input_files(FILES, film)
        row(page, film.name, "completed", seconds=LONG)
    finally:
        context.close()
    assert sha256(example.stored(film.name)) == sha256(film)
    # HTTP/2 has no Upgrade (RFC 9113, section 8.6): a WebSocket in it is an extended CONNECT. HAProxy logs both as 101.
    opened = [line.split() for line in haproxy.log().splitlines() if "/ws/uploads/" in line]
    assert {(version, status) for version, _address, status in opened} == {("HTTP/2.0", "101")}
