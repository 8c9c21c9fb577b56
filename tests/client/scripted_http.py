"""A server of the IETF's resumable uploads in the same process, whose faults a test scripts. It shares no code with the
package: it is written from the draft."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

PATH = "/ws/uploads/"


@dataclass
class Asked:
    """The head of a request, and how much of its body has come."""

    method: str
    path: str
    headers: dict[str, str]
    received: int = 0

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))

    @property
    def has_ticket(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    early: bool = False
    """Sent before the body was read; then the connection is closed."""


@dataclass
class Kept:
    """An upload on the server."""

    name: str
    metadata: dict[str, Any]
    size: int | None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    content: bytearray = field(default_factory=bytearray)
    is_complete: bool = False

    @property
    def json(self) -> dict[str, Any]:
        common = {"upload": self.id, "name": self.name, "size": self.size}
        if not self.is_complete:
            return {**common, "state": "uploading", "offset": len(self.content)}
        return {
            **common,
            "size": len(self.content),
            "state": "completed",
            "crc32c": f"{crc32c(bytes(self.content)):08x}",
            "stored_as": f"stored/{self.name}",
            "digests": {},
            "receipt": "signed",
            "response": None,
        }


class Drop(Exception):
    """The connection is closed without an answer."""


def problem(status: int, code: str, *, retryable: bool = False, **facts: Any) -> Reply:
    details = {"status": status, "code": code, "detail": code, "retryable": retryable, **facts}
    headers = {"Content-Type": "application/problem+json"}
    return Reply(status, headers, json.dumps(details).encode())


Fault = Callable[[Asked], Reply | None]


class ScriptedHttpServer:
    """``before`` is asked for each request, before its body is read: a reply, None, or it raises :class:`Drop`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.uploads: dict[str, Kept] = {}
        """By key."""
        self.before: Fault = lambda asked: None
        self.drop_at: int | None = None
        """Bytes of a body after which the connection is closed, once."""
        self.limits = "max-size=1000000000"
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{PATH}"

    def requests(self, method: str) -> list[Asked]:
        return [each for each in self.asked if each.method == method]

    @property
    def upload(self) -> Kept:
        (kept,) = self.uploads.values()
        return kept

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedHttpServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, EOFError, Drop):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                method, path, _ = first.split(" ")
                pairs = (line.split(": ", 1) for line in lines)
                asked = Asked(method, path, {name.lower(): value for name, value in pairs})
                self.asked.append(asked)
                reply = self.before(asked)
                if reply is None and "upgrade" in asked.headers:
                    reply = Reply(426)
                if reply is None:
                    reply = await self._answer(asked, reader)
                elif not reply.early:
                    await self._body(asked, reader)
                writer.write(self._encode(asked, reply))
                await writer.drain()
                if reply.early:
                    break
        writer.close()

    async def _body(self, asked: Asked, reader: asyncio.StreamReader) -> bytes:
        content = b""
        while len(content) < asked.length:
            data = await reader.read(min(65536, asked.length - len(content)))
            if not data:
                raise EOFError
            content += data
            asked.received = len(content)
            if self.drop_at is not None and len(content) >= self.drop_at:
                self.drop_at = None
                self._kept(asked).content.extend(content)
                raise Drop
        return content

    def _kept(self, asked: Asked) -> Kept:
        name = asked.path.rpartition("/")[2]
        return next(kept for kept in self.uploads.values() if kept.id == name)

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader) -> Reply:
        if asked.method == "OPTIONS":
            return Reply(204, {"Upload-Limit": self.limits})
        if asked.method == "POST":
            key = asked.headers["idempotency-key"].strip('"')
            if key not in self.uploads:
                size = asked.headers.get("upload-length")
                disposition = asked.headers["content-disposition"]
                self.uploads[key] = Kept(
                    re.fullmatch(r"inline; filename\*=UTF-8''(.+)", disposition)[1],  # type: ignore[index]
                    json.loads(asked.headers.get("async-upload-metadata", "{}")),
                    None if size is None else int(size),
                )
            kept = self.uploads[key]
            if not kept.is_complete:
                kept.content.extend(await self._body(asked, reader))
            return self._state(asked, kept, 201, location=True)
        try:
            kept = self._kept(asked)
        except StopIteration:
            return problem(404, "not_found")
        if asked.method == "DELETE":
            self.uploads = {key: each for key, each in self.uploads.items() if each is not kept}
            return Reply(204)
        if asked.method == "GET":
            return Reply(200, {}, json.dumps(kept.json).encode())
        if asked.method == "PATCH":
            assert asked.headers["content-type"] == "application/partial-upload"
            expected, offset = len(kept.content), int(asked.headers["upload-offset"])
            if offset != expected:
                return problem(409, "wrong_offset", retryable=True, offset=offset)
            kept.content.extend(await self._body(asked, reader))
        return self._state(asked, kept, 204)

    def _state(self, asked: Asked, kept: Kept, status: int, *, location: bool = False) -> Reply:
        if asked.headers.get("upload-complete") == "?1" and not kept.is_complete:
            digest = re.search(r"crc32c=:([^:]+):", asked.headers["repr-digest"])
            assert digest is not None
            crc = int.from_bytes(base64.b64decode(digest[1]), "big")
            if crc != crc32c(bytes(kept.content)):
                return problem(422, "digest_mismatch", algorithm="crc32c")
            kept.is_complete = True
        headers = {
            "Upload-Complete": "?1" if kept.is_complete else "?0",
            "Upload-Offset": str(len(kept.content)),
            "Upload-Limit": self.limits,
        }
        if location:
            headers["Location"] = f"{PATH}{kept.id}"
        if kept.is_complete and asked.method != "HEAD":
            return Reply(201, headers, json.dumps(kept.json).encode())
        return Reply(status, headers)

    def _encode(self, asked: Asked, reply: Reply) -> bytes:
        headers = dict(reply.headers)
        if reply.status != 204:
            headers["Content-Length"] = str(len(reply.content))
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {v}" for name, v in headers.items())]
        content = b"" if asked.method == "HEAD" else reply.content
        return "\r\n".join([*lines, "", ""]).encode() + content
