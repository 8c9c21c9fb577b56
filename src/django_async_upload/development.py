"""Uploads over HTTP under ``runserver`` where the site is a WSGI application, that is, without Daphne.

Its server gives each request a thread. The application of the uploads is an ASGI one, so one more thread runs an event
loop for it, and the thread of the request waits for its answer. WebSockets cannot be opened there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string

from .routing import UploadApplication, upload_application

READ: Final = 64 * 1024
"""Bytes of a body that are read at once."""


def answer(request: HttpRequest) -> HttpResponse | None:
    """The answer to a request about uploads; None where it is about something else, or not under ``runserver``."""
    if not is_runserver(request):
        return None
    application = find_application()
    if not application.takes(request.path_info):
        return None
    exchange = Exchange(request)
    running = asyncio.run_coroutine_threadsafe(
        application(exchange.scope, exchange.receive, exchange.send), event_loop()
    )
    running.result()
    return exchange.response


def is_runserver(request: HttpRequest) -> bool:
    """Whether Django's own development server serves the request."""
    server = str(request.META.get("SERVER_SOFTWARE", ""))
    return sys.argv[1:2] == ["runserver"] and server.startswith("WSGIServer/")


@cache
def find_application() -> UploadApplication:
    """The application of ``ASGI_APPLICATION``, which may have consumers of the site's own; else the default one."""
    if name := getattr(settings, "ASGI_APPLICATION", None):
        found = import_string(name)
        if isinstance(found, UploadApplication):
            return found
    return upload_application()


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """A loop that runs in a thread of its own until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async-upload-loop", daemon=True).start()
    return loop


class Exchange:
    """A request of WSGI as ASGI has it, and the answer to it."""

    def __init__(self, request: HttpRequest) -> None:
        environ = request.META
        self._input = environ["wsgi.input"]
        self._left = int(environ.get("CONTENT_LENGTH") or 0)
        self._status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in request.headers.items()
        ]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.scheme,
            "path": request.path_info,
            "root_path": "",
            "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
            "headers": headers,
            "client": (environ.get("REMOTE_ADDR", ""), 0),
            "server": (environ.get("SERVER_NAME", ""), int(environ.get("SERVER_PORT") or 0)),
        }

    async def receive(self) -> dict[str, Any]:
        """Read a piece of the body, in a thread."""
        wanted = min(READ, self._left)
        data = await asyncio.to_thread(self._input.read, wanted) if wanted else b""
        if wanted and not data:
            return {"type": "http.disconnect"}
        self._left -= len(data)
        return {"type": "http.request", "body": data, "more_body": self._left > 0}

    async def send(self, message: dict[str, Any]) -> None:
        """Gather the answer; those about uploads are short."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self._body.append(message.get("body", b""))

    @property
    def response(self) -> HttpResponse:
        response = HttpResponse(b"".join(self._body), status=self._status)
        del response.headers["Content-Type"]
        for name, value in self._headers:
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        return response
