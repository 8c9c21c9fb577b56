"""Helpers for a host's ``asgi.py``, which mount the consumer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.sessions import SessionMiddlewareStack
from django.urls import path, register_converter
from django.urls.converters import StringConverter
from django.urls.resolvers import URLPattern

from .consumers import UploadConsumer
from .engine.drain import DrainFirst
from .engine.service import get_service

Application = Callable[..., Awaitable[None]]


class _Segment(StringConverter):
    """The rest of an upload's address over HTTP: its id, or a new file's name. Empty at the WebSocket."""

    regex = "[^/]*"


register_converter(_Segment, "async_upload_segment")


def upload_path(
    route: str = "ws/uploads/",
    consumer: type[UploadConsumer] = UploadConsumer,
    *,
    name: str | None = None,
) -> URLPattern:
    """Mount a consumer at a route, which ends in a slash: a pattern for Channels' ``URLRouter``.

    The WebSocket is at the route itself; over HTTP the addresses of uploads follow it.
    """
    pattern = f"{route}<async_upload_segment:segment>"
    return path(pattern, consumer.as_asgi(), name=name)  # type: ignore[no-any-return]


upload_urlpatterns = [upload_path()]
"""The default consumer at ``ws/uploads/``, for WebSockets and HTTP."""
websocket_urlpatterns = http_urlpatterns = upload_urlpatterns
"""The same, for hosts that name the patterns of each protocol."""


def upload_application(
    http: Application | None = None, urlpatterns: Sequence[URLPattern] | None = None
) -> UploadApplication:
    """The whole application of a host: uploads by ``urlpatterns``, over WebSockets and HTTP, with sessions; and
    everything else by Django.

    Without ``http`` it serves uploads only, beside a site that stays on WSGI: any other path is answered with 404.

    ``asgi.py`` changes by two lines::

        from django_async_upload.routing import upload_application
        application = upload_application(get_asgi_application())

    A path without a consumer is answered with 404. The lifespan protocol starts and closes the service: at startup it
    resumes what a crashed process left, and from then on SIGTERM drains the process before the server stops.

    This does not use Channels' ``AuthMiddlewareStack``, which signs users out when ``SECRET_KEY`` is rotated. The
    consumer finds the user of a session itself.
    """
    return UploadApplication(http or page_not_found, urlpatterns or upload_urlpatterns)


class UploadApplication(ProtocolTypeRouter):  # type: ignore[misc]  # Channels is not typed
    """What :func:`upload_application` returns."""

    def __init__(self, http: Application, urlpatterns: Sequence[URLPattern]) -> None:
        self._patterns = urlpatterns
        uploads = SessionMiddlewareStack(URLRouter([*urlpatterns]))
        super().__init__(
            {
                "http": self._first(uploads, http),
                "websocket": self._first(uploads, not_found),
                "lifespan": lifespan,
            }
        )

    def takes(self, path: str) -> bool:
        """Whether a path, without the prefix that a server took off, is an address of uploads."""
        return any(each.pattern.match(path.lstrip("/")) is not None for each in self._patterns)

    def _first(self, uploads: Application, rest: Application) -> Application:
        """``uploads`` for the paths that it takes, ``rest`` for all others, with an unchanged scope."""

        async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            await (uploads if self.takes(path) else rest)(scope, receive, send)

        return application


async def not_found(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Refuse the handshake: with 404 where the server supports that, else by a close, which it turns into 403."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close"})


async def page_not_found(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer a request with 404, whatever its body is: nothing of it is read."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"Only uploads are served here.\n"})


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Start the service when the server starts; drain it on SIGTERM; and release every upload when the server stops."""
    sigterm = DrainFirst()
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            get_service().start()
            sigterm.install()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            sigterm.uninstall()
            await get_service().close()
            await send({"type": "lifespan.shutdown.complete"})
            return
