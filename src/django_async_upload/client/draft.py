"""The client's half of the IETF's resumable uploads: draft-ietf-httpbis-resumable-upload, revision 12 to 15.

Beside the draft it sends ``Idempotency-Key``, by which a creation finds the upload that an earlier one, or one at the
WebSocket, has begun, and ``Async-Upload-Metadata``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import http_sf

from ..exceptions import (
    AuthenticationRequired,
    ConnectionLost,
    ConnectionRefused,
    UploadError,
    UploadOver,
    from_code,
)
from ..protocol import messages
from .http1 import Answer, Content, HttpServer
from .transport import TRY_AGAIN, Target

SLICE: Final = 32 * 1024 * 1024
SMALLEST_SLICE: Final = 64 * 1024

_INTEROP: Final = {"Upload-Draft-Interop-Version": "10"}
_PROBLEM: Final = "application/problem+json"
_PROBLEM_MEMBERS: Final = ("type", "title", "status", "detail", "instance", "code", "retryable")


@dataclass(frozen=True, slots=True)
class Standing:
    """How an upload stands, as an answer tells it."""

    path: str
    """The path of the upload on the server."""
    offset: int
    completed: messages.Completed | None = None
    """The result of a completed upload, where the answer has it."""
    is_complete: bool = False


class Draft:
    """Requests to one endpoint. All raise the :class:`UploadError` that the server answers, or that prevents an answer.

    ``ticket`` returns the ticket to send, ``stall`` is in seconds.
    """

    def __init__(self, target: Target, ticket: Callable[[], str | None], stall: float) -> None:
        url = http_url(target.url)
        headers = dict(target.headers)
        if "Cookie" in headers:  # a cookie counts only with the Origin of the site's own pages
            headers["Origin"] = _origin_of(url)
        self._server = HttpServer(Target(url, headers, target.ssl, target.timeout))
        self._base = f"{self._server.path.rstrip('/')}/"
        self._ticket = ticket
        self.stall = stall
        self.slice = SLICE
        """The longest body that is sent, bytes: no longer than what was taken so far."""
        self.lost: dict[str, int] = {}
        """Offsets at which a request was lost, by the key of its upload."""

    async def is_spoken(self) -> bool:
        """Whether the server answers, and takes uploads in this language."""
        try:
            answer = await self._ask("OPTIONS", self._base, {})
        except UploadError:
            return False
        return answer.status < 300 and "upload-limit" in answer.headers

    async def create(
        self,
        create: messages.Create,
        content: Content | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> Standing:
        """Create an upload, or find the one that has its key. With ``content`` it is the whole file."""
        headers = {
            "Upload-Complete": "?0" if content is None else "?1",
            "Idempotency-Key": f'"{create.key}"',
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(create.name, safe='')}",
        }
        if create.size is not None:
            headers["Upload-Length"] = str(create.size)
        if create.content_type:
            headers["Content-Type"] = create.content_type
        if create.digest:
            headers["Want-Repr-Digest"] = f"{create.digest}=10"
        if create.metadata:
            headers["Async-Upload-Metadata"] = json.dumps(create.metadata)
        answer = await self._ask(
            "POST", self._base, headers | _repr_digest(digests), content or _nothing()
        )
        return self._standing(answer, self._path_in(answer))

    async def offset(self, path: str) -> Standing:
        """Where the upload can be continued, once what was sent before is settled."""
        standing = self._standing(await self._ask("HEAD", path, {}), path)
        if not standing.is_complete:
            return standing
        return Standing(path, standing.offset, _completed(await self.look(path)), True)

    async def append(self, path: str, offset: int, content: Content) -> Standing:
        """Append a slice. :class:`ConnectionRefused` with the status 413: it is too long for a proxy."""
        headers = {"Upload-Complete": "?0"} | _partial(offset)
        return self._standing(await self._ask("PATCH", path, headers, content), path)

    async def finish(
        self, path: str, size: int, digests: Mapping[str, str], stall: float
    ) -> Standing:
        """Complete the upload, all of which was sent. The server may take long to check the file."""
        headers = {"Upload-Complete": "?1"} | _partial(size) | _repr_digest(digests)
        return self._standing(
            await self._ask("PATCH", path, headers, _nothing(), stall=stall), path
        )

    async def cancel(self, path: str) -> None:
        """Cancel an unfinished upload, and delete a completed one that is not taken."""
        await self._ask("DELETE", path, {})

    async def status(self, upload: str) -> messages.Status:
        """The state of an upload."""
        fields = await self.look(self._path_of(upload))
        durable = fields.get("offset", fields.get("size"))
        return messages.Status.from_fields(_without_none({**fields, "durable": durable}))

    async def cancel_of(self, upload: str, *, finished: bool) -> messages.Message:
        """Cancel an upload; a completed one that is not taken only where ``finished``."""
        if not finished and (await self.status(upload)).state in ("completed", "bound"):
            raise UploadOver(state="completed")
        await self.cancel(self._path_of(upload))
        return messages.Cancelled(upload)

    async def look(self, path: str) -> dict[str, Any]:
        """How the upload stands, as JSON: the fields of COMPLETED, or of STATUS with ``offset``."""
        answer = await self._ask("GET", path, {}, plain=True)
        return _json_of(answer)

    def _path_of(self, upload: str) -> str:
        return f"{self._base}{quote(upload, safe='')}"

    def close(self) -> None:
        self._server.close()

    # ----------------------------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: Content | None = None,
        *,
        plain: bool = False,
        stall: float | None = None,
    ) -> Answer:
        sent = dict(headers) if plain else {**_INTEROP, **headers}
        if (ticket := self._ticket()) is not None:
            sent["Authorization"] = f"Bearer {ticket}"
        answer = await self._server.ask(
            method, path, sent, content, stall=self.stall if stall is None else stall
        )
        self._learn_limits(answer)
        if answer.status >= 300:
            raise _error_of(answer)
        if answer.is_early:
            raise ConnectionLost("The server answered before it had the body.")
        return answer

    def _learn_limits(self, answer: Answer) -> None:
        try:
            limits = http_sf.parse(
                answer.headers.get("upload-limit", "").encode("latin-1"), tltype="dictionary"
            )
        except http_sf.StructuredFieldError:
            return
        assert isinstance(limits, dict)
        match limits.get("max-append-size"):
            case (int(longest), _) if longest > 0 and longest is not True:
                self.slice = min(self.slice, longest)

    def _path_in(self, answer: Answer) -> str:
        path = urlsplit(answer.headers.get("location", "")).path
        if not path.startswith("/"):
            raise ConnectionRefused("This is not an upload server: its answer has no Location.")
        return path

    def _standing(self, answer: Answer, path: str) -> Standing:
        offset = answer.headers.get("upload-offset", "")
        if not offset.isdecimal():
            raise ConnectionRefused("This is not an upload server: its answer has no offset.")
        is_complete = answer.headers.get("upload-complete") == "?1"
        completed = _completed(_json_of(answer)) if is_complete and answer.content else None
        return Standing(path, int(offset), completed, is_complete)


def http_url(url: str) -> str:
    """The address of an endpoint over HTTP."""
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return urlunsplit(parts._replace(scheme=scheme))


def websocket_url(url: str) -> str:
    """The address of an endpoint's WebSocket."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit(parts._replace(scheme=scheme))


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _partial(offset: int) -> dict[str, str]:
    return {"Content-Type": "application/partial-upload", "Upload-Offset": str(offset)}


def _repr_digest(digests: Mapping[str, str] | None) -> dict[str, str]:
    if not digests:
        return {}
    members = (
        f"{name}=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
        for name, digest in digests.items()
    )
    return {"Repr-Digest": ", ".join(members)}


def _nothing() -> Content:
    async def blocks() -> AsyncIterator[bytes]:
        return
        yield b""

    return Content(0, blocks())


def _json_of(answer: Answer) -> dict[str, Any]:
    try:
        value = json.loads(answer.content)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _completed(fields: Mapping[str, Any]) -> messages.Completed:
    """Raises :class:`MalformedFrame`, which is not retried."""
    return messages.Completed.from_fields(_without_none(fields))


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _error_of(answer: Answer) -> UploadError:
    details = _json_of(answer)
    if answer.headers.get("content-type", "").startswith(_PROBLEM) and "code" in details:
        facts = {name: value for name, value in details.items() if name not in _PROBLEM_MEMBERS}
        error = from_code(str(details["code"]), str(details.get("detail", "")), facts)
        error.retryable = details.get("retryable") is True
        return error
    if answer.status == 401:
        return AuthenticationRequired()
    said = f"The server answered HTTP {answer.status}."
    if answer.status in TRY_AGAIN:
        after = answer.headers.get("retry-after", "")
        return ConnectionLost(
            said, status=answer.status, retry_after=int(after) if after.isdecimal() else None
        )
    return ConnectionRefused(said, status=answer.status)
