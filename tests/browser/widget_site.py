"""A tiny site for the widget: the real modules, a fake ``client.js``, a strict policy; what is posted is recorded."""

from __future__ import annotations

import json
import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote_plus

HERE = Path(__file__).parent
STATIC = HERE.parents[1] / "src/django_async_upload/static/django_async_upload"
TYPES = {
    ".json": "application/json",
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
}
LIBRARIES = {
    "/axe.js": "axe-core/axe.min.js",
    "/htmx.js": "htmx.org/dist/htmx.min.js",
    "/turbo.js": "@hotwired/turbo/dist/turbo.es2017-umd.js",
}
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'"

STYLE = """
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; margin: 16px auto; max-width: 46rem; padding: 0 16px;
         background: Canvas; color: CanvasText; }
  label { display: block; font-weight: 600; margin-block: 12px 4px; }
"""


def element(
    inner: str = "", attributes: str = "", input_attributes: str = 'name="file" id="id_file"'
) -> str:
    """``<async-upload>`` as Django's template renders it."""
    return (
        f'<async-upload url="/ws/uploads/" field="token" place="here" owner="me" {attributes}>{inner}'
        f'<input type="file" {input_attributes}></async-upload>'
    )


def form(fields: str, buttons: str = '<button name="save" value="1">Save</button>') -> str:
    return (
        '<form method="post" enctype="multipart/form-data" action="/posted" id="form">'
        f'{fields}<input name="title" id="id_title" aria-label="Title">{buttons}</form>'
    )


class Handler(BaseHTTPRequestHandler):
    server: WidgetSite

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self.headers["Async-Upload"] == "token":
            self.server.asked.append(dict(self.headers))
            self._answer(json.dumps(self.server.token).encode(), ".json")
        elif path in self.server.pages:
            self._answer(self.server.pages[path].encode(), ".html")
        elif path == "/page.css":
            self._answer(STYLE.encode(), ".css")
        elif path == "/static/client.js":
            self._answer((HERE / "fake_client.js").read_bytes(), ".js")
        elif path.startswith("/static/") and (file := STATIC / path[len("/static/") :]).is_file():
            self._answer(file.read_bytes(), file.suffix)
        elif path in LIBRARIES:
            self._answer((HERE.parent / "js/node_modules" / LIBRARIES[path]).read_bytes(), ".js")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append(_fields(self.headers, body))
        self._answer(self.server.answer.encode(), ".html")

    def _answer(self, body: bytes, suffix: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


class WidgetSite(ThreadingHTTPServer):
    """Serves ``pages``; ``posted``: what each form sent, pairs of a name and a value or ``(file, size)``.

    ``token``: what a page learns that asks for a CSRF token, and ``asked`` the headers of those that did.
    """

    daemon_threads = True
    request_queue_size = 64  # with 5, as by default, a page's modules wait for TCP to try again

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, str] = {}
        self.answer = "<!doctype html><title>Posted</title><p>posted"
        self.token: dict[str, object] = {}
        self.asked: list[dict[str, str]] = []
        self.posted: list[list[tuple[str, object]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def show(
        self,
        body: str,
        html: str = 'lang="en"',
        *,
        at: str = "/",
        head: str = "",
        title: str = "Widget",
    ) -> None:
        self.pages[at] = (
            f"<!doctype html><html {html}><head><meta charset=utf-8><title>{title}</title>{head}"
            '<meta name="viewport" content="width=device-width">'
            '<link rel="stylesheet" href="/page.css"><link rel="stylesheet" href="/static/widget.css">'
            '<script type="module" src="/static/widget.js"></script></head>'
            f"<body><main><h1>Upload</h1>{body}</main></body></html>"
        )


def _fields(headers: Message, body: bytes) -> list[tuple[str, object]]:
    """The parts of a ``multipart/form-data`` body, in order."""
    boundary = str(headers.get_param("boundary")).encode()
    fields: list[tuple[str, object]] = []
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.strip(b"\r\n").partition(b"\r\n\r\n")
        disposition = Message()
        disposition["Content-Disposition"] = head.split(b"\r\n")[0].split(b": ", 1)[1].decode()
        name = str(disposition.get_param("name", header="content-disposition"))
        filename = disposition.get_param("filename", header="content-disposition")
        value: object = (
            content.decode() if filename is None else (unquote_plus(str(filename)), len(content))
        )
        fields.append((name, value))
    return fields


def texts() -> str:
    """A `texts` attribute, as a translated page has it."""
    return json.dumps({"chooseFile": "Datei auswählen", "pause": "Anhalten"})
