"""The WebSocket consumer: use it unchanged, or subclass it like a class-based view."""

from __future__ import annotations

from .engine.drain import drain, undrain
from .websocket.connection import Connection
from .websocket.errors import CLOSE_CODES

__all__ = ["CLOSE_CODES", "UploadConsumer", "drain", "undrain"]


class UploadConsumer(Connection):
    """An :class:`~.endpoints.Endpoint` with a WebSocket door: one connection, with any number of uploads.

    Its limits and hooks are those of the endpoint.
    """
