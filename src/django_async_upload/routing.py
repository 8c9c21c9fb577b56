"""Where the consumer is mounted: helpers for a host's ``asgi.py``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path
from django.urls.resolvers import URLPattern

from .consumers import UploadConsumer
from .service import get_service

Application = Callable[..., Awaitable[None]]


def upload_path(
    route: str = "ws/uploads/",
    consumer: type[UploadConsumer] = UploadConsumer,
    *,
    name: str | None = None,
) -> URLPattern:
    """A consumer at a route, for a Channels ``URLRouter``."""
    return path(route, consumer.as_asgi(), name=name)  # type: ignore[no-any-return]


websocket_urlpatterns = [upload_path()]
"""The consumer as it is, at ``ws/uploads/``."""


def upload_application(
    http: Application, urlpatterns: Sequence[URLPattern] | None = None
) -> Application:
    """The whole application of a host: HTTP by Django, WebSockets by ``urlpatterns`` with sessions and users.

    ``asgi.py`` changes by two lines::

        from django_async_upload.routing import upload_application
        application = upload_application(get_asgi_application())

    Answers the lifespan protocol: at startup, completions that a crash left behind are delivered.
    """
    return ProtocolTypeRouter(  # type: ignore[no-any-return]
        {
            "http": http,
            "websocket": AuthMiddlewareStack(URLRouter(list(urlpatterns or websocket_urlpatterns))),
            "lifespan": lifespan,
        }
    )


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Start the service with the server, and let go of every upload when the server stops."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            get_service().start()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await get_service().close()
            await send({"type": "lifespan.shutdown.complete"})
            return
