"""``python -m tests.bench.page_load``: how long a page takes until its field is enhanced, far from the server.

The server keeps each answer, and each new connection, for one round trip, compresses, and lets files be kept for ever,
as WhiteNoise does with hashed names. Cold is a browser that was never here; warm is the next page.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from .chromium import Chromium
from .contest import Figures, compete
from .report import table
from .rows import Row

STATIC = Path(__file__).parents[2] / "src/django_async_upload/static/django_async_upload"
TYPES = {".js": "text/javascript", ".css": "text/css"}
ROUND_TRIP = 0.1
COLD, WARM = 0.6, 0.15
"""Seconds that are allowed."""
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Page</title>
<script>
new MutationObserver(() => {{
  if (document.querySelector("[data-enhanced]")) globalThis.enhanced ??= performance.now();
  globalThis.ready = globalThis.enhanced !== undefined;
}}).observe(document, {{ attributes: true, childList: true, subtree: true }});
</script>
<link rel="stylesheet" href="/{css}"><script type="module" src="/{js}"></script></head>
<body><form><async-upload url="/ws/uploads/"><input type="file" name="file"></async-upload></form></body></html>"""
ENTRIES = {
    "bundle": ("async-upload.min.css", "async-upload.min.js"),
    "modules": ("widget.css", "widget.js"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Far

    def setup(self) -> None:
        super().setup()
        time.sleep(ROUND_TRIP)  # the handshake of TCP

    def handle(self) -> None:
        with suppress(ConnectionError):  # the browser opens connections that it does not use
            super().handle()

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked += 1
        if name == "page":
            body, kind, kept = self.server.page.encode(), "text/html", "no-store"
        elif (path := STATIC / name).is_file() and path.suffix in TYPES:
            body, kind, kept = path.read_bytes(), TYPES[path.suffix], "max-age=315360000, immutable"
        else:
            body, kind, kept = b"", "text/plain", "no-store"
        body = gzip.compress(body)
        time.sleep(ROUND_TRIP)
        self.send_response(200 if kind != "text/plain" else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Cache-Control", kept)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


class Far(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, entry: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        css, js = ENTRIES[entry]
        self.page = PAGE.format(css=css, js=js)
        self.asked = 0
        """Requests so far."""


class Visit(NamedTuple):
    cold: float
    """Seconds from the beginning of the navigation until the field is enhanced."""
    warm: float
    requests: int
    """Of the cold page."""


@contextmanager
def far_server(entry: str) -> Iterator[Far]:
    """On a port of its own: neither a connection nor a file of it is known to the browser."""
    with Far(entry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def visit(browser: Chromium, entry: str) -> Visit:
    with far_server(entry) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/page"

        with browser.open(url) as page:
            cold, requests = float(page.evaluate("globalThis.enhanced")), server.asked
            page.go(url)
            warm = float(page.evaluate("globalThis.enhanced"))
        return Visit(cold / 1000, warm / 1000, requests)


def rows(browser: Chromium, repetitions: int) -> list[Row]:
    visits: dict[str, list[Visit]] = {entry: [] for entry in ENTRIES}

    def measure(entry: str) -> Callable[[], float]:
        def one() -> float:
            visits[entry].append(visit(browser, entry))
            return visits[entry][-1].cold

        return one

    compete({each: measure(each) for each in ENTRIES}, repetitions, "a page, 100 ms away")
    found = []
    for name, allowed in (("cold", COLD), ("warm", WARM)):
        taken = {
            entry: Figures([getattr(each, name) for each in visits[entry][1:]]) for entry in ENTRIES
        }
        least = Figures([allowed])
        for entry in ENTRIES:
            title = f"page to enhanced, {name}, {entry} / {allowed * 1000:.0f} ms"
            target = 1 if entry == "bundle" else None
            found.append(Row(title, "", "", target, "ms", taken[entry], least, at_most=True))
    for entry, done in visits.items():
        print(f"{entry}: {done[-1].requests} requests", file=sys.stderr)
    return found


def main(arguments: list[str]) -> int:
    """0 unless something is broken; a slow machine is not."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.page_load")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--chromium", default=Chromium.find(), help="the browser (%(default)s)")
    options = parser.parse_args(arguments)
    if options.chromium is None:
        print("Chromium is missing: on Debian, apt-get install chromium.", file=sys.stderr)
        return 1
    with Chromium(options.chromium) as browser:
        print(table(rows(browser, options.repetitions)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
