"""Serving uploaded files safely: as a download, or inline where the content is a picture."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

from django.http import HttpRequest, StreamingHttpResponse
from django.utils.http import content_disposition_header

from .exceptions import NameRefused
from .models import UploadSession
from .sessions.policies import check_name

if TYPE_CHECKING:
    from django.core.files import File

PIECE: Final = 256 * 1024
START: Final = 16
"""Number of bytes at the start of a file that identify its type."""


def upload_response(
    source: UploadSession | File[bytes],
    *,
    inline: bool = False,
    name: str | None = None,
    request: HttpRequest | None = None,
) -> StreamingHttpResponse:
    """A response that serves a completed upload, or a file of the host's (``document.attachment``), safely.

    Check permissions before: this function does not. The headers are those of :func:`safe_headers`; ``inline`` lets
    the browser show a picture, and has no effect on any other file. ``name`` is the name under which the browser saves
    it, by default the name as sent, or the file's own. With ``request``, one byte range is answered with 206 or 416.

    This opens the file, which blocks: in an async view call it by ``sync_to_async``. The file is streamed in pieces
    under both WSGI and ASGI. Raises what :attr:`UploadSession.file` raises.
    """
    etag = ""
    if isinstance(source, UploadSession):
        file, name = source.file, name or source.name
        etag = f'"{source.pk.hex}"'  # a published file never changes
    else:
        file, name = source.open("rb"), name or os.path.basename(source.name or "")
    start = file.read(START) if inline else b""
    size = file.size
    headers = safe_headers(name, start) | {"Accept-Ranges": "bytes"}
    if etag:
        headers["ETag"] = etag
    status, first, stop = 200, 0, size
    if request is not None and (asked := _asked_range(request, size, etag)) is not None:
        status, (first, stop) = (206 if asked[0] < asked[1] else 416), asked
        shown = f"{first}-{stop - 1}" if status == 206 else "*"
        headers["Content-Range"] = f"bytes {shown}/{size}"
    headers["Content-Length"] = str(stop - first)
    response = UploadResponse(_pieces(file, first, stop), status=status, headers=headers)
    # Django closes only the iterators it knows; the stubs lack this list.
    response._resource_closers.append(file.close)  # type: ignore[attr-defined]
    return response


def safe_headers(name: str, start: bytes = b"") -> dict[str, str]:
    """Headers that make it safe to serve any uploaded file.

    The file is a download of no particular type, unless ``start``, its first :data:`START` bytes, are those of
    a picture, which the browser may then show. For hosts whose web server or storage sends the bytes.
    """
    try:
        check_name(name)
    except NameRefused:
        name = "download"
    picture = picture_type(start)
    disposition = content_disposition_header(picture is None, name)
    assert disposition is not None
    return {
        "Content-Type": picture or "application/octet-stream",
        "Content-Disposition": disposition,
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "private",  # a shared cache would serve it to users without the permission
    }


def picture_type(start: bytes) -> str | None:
    """The content type, by its first bytes, of a picture that browsers show and that cannot contain scripts.

    None for anything else, SVG included.
    """
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return None


class UploadResponse(StreamingHttpResponse):
    """Streams under ASGI too, where Django would read a sync iterator into memory as a whole."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.is_async:  # a middleware replaced the iterator
            async for piece in super().__aiter__():
                yield piece
            return
        pieces = iter(self)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece


def _pieces(file: Any, first: int, stop: int) -> Iterator[bytes]:
    if first < stop:
        file.seek(first)
    while first < stop and (piece := file.read(min(PIECE, stop - first))):
        first += len(piece)
        yield piece


def _asked_range(request: HttpRequest, size: int, etag: str) -> tuple[int, int] | None:
    """The half-open range of bytes that a request asks for; empty where it is outside the file.

    None for the whole file: also for several ranges, and where If-Range names another version of the file
    (RFC 9110, sections 13.1.5 and 14.2).
    """
    if request.method != "GET" or request.headers.get("If-Range", etag) != etag:
        return None
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("Range", ""))
    if asked is None or asked[0] == "bytes=-":
        return None
    first, last = asked.groups()
    if not first:  # a suffix: the last bytes
        return (max(0, size - int(last)), size) if size and int(last) else (0, 0)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        return (0, 0)
    return int(first), min(int(last) + 1, size) if last else size
