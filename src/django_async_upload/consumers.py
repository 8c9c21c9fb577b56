"""The upload consumer: use it unchanged, or subclass it like a class-based view."""

from __future__ import annotations

from typing import Any

from channels.consumer import AsyncConsumer

from .endpoints import Endpoint
from .engine.drain import drain, undrain
from .http.exchange import Exchange
from .websocket.connection import Connection
from .websocket.errors import CLOSE_CODES

__all__ = ["CLOSE_CODES", "UploadConsumer", "drain", "undrain"]


class UploadConsumer(Endpoint, AsyncConsumer):  # type: ignore[misc]  # Channels is not typed
    """An :class:`~.endpoints.Endpoint` with its doors: a WebSocket with any number of uploads, and HTTP.

    Its limits and hooks are those of the endpoint.
    """

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one connection, or one request. Not by Channels' loop, which creates a task for each message to wait
        for a layer, too."""
        door = Exchange(self) if scope["type"] == "http" else Connection(self)
        await door(scope, receive, send)
