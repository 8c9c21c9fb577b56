"""Requests to an ASGI application in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asgiref.testing import ApplicationCommunicator

SECONDS = 10.0


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Call:
    """A request whose body is sent by the test, piece by piece."""

    application: Any
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"testserver"), *pairs],
            "client": ("127.0.0.1", 50000),
            "server": ("testserver", 80),
        }
        self.communicator = ApplicationCommunicator(self.application, scope)

    async def send(self, data: bytes, *, more: bool = True) -> None:
        await self.communicator.send_input(
            {"type": "http.request", "body": data, "more_body": more}
        )

    async def cut(self) -> None:
        """Lose the connection, and wait until the application has noticed."""
        await self.communicator.send_input({"type": "http.disconnect"})
        await self.communicator.wait(SECONDS)

    async def answer(self) -> Answer:
        start = await self.communicator.receive_output(SECONDS)
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        body = b""
        more = True
        while more:
            part = await self.communicator.receive_output(SECONDS)
            body += part.get("body", b"")
            more = part.get("more_body", False)
        return Answer(start["status"], headers, body)


async def call(
    application: Any,
    method: str,
    path: str = "/ws/uploads/",
    body: bytes | Iterable[bytes] = b"",
    **headers: str,
) -> Answer:
    """Send a request as a whole: ``content_type`` is the header Content-Type. Returns the answer."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, bytes):
        named.setdefault("content-length", str(len(body)))
    request = Call(application, method, path, named)
    for number, piece in enumerate(pieces, 1):
        await request.send(piece, more=number < len(pieces))
    return await request.answer()
