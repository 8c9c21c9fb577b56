"""tus 1.0.0 (https://tus.io/protocols/resumable-upload) as a language of the HTTP door.

Extensions: creation, creation-with-upload, creation-defer-length, expiration, checksum, termination, concatenation.
"""

from __future__ import annotations

import json
import secrets
import uuid
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

from django.utils.http import http_date

from ..exceptions import (
    Draining,
    FileTooLarge,
    IdleTimeout,
    InternalError,
    Joined,
    MalformedRequest,
    MediaTypeRefused,
    MetadataInvalid,
    MethodRefused,
    NotFound,
    OriginRefused,
    PartsRefused,
    PermissionRefused,
    SizeExceeded,
    TakenOver,
    TooSlow,
    UploadError,
    UploadOver,
    UploadRefused,
    VersionUnsupported,
    WrongOffset,
)
from ..models import UploadSession
from ..sessions.values import NewUpload
from .metadata import parse_metadata, write_metadata
from .problems import problem, status_of, title_of
from .requests import (
    Append,
    Cancel,
    Checksum,
    Create,
    Look,
    Offset,
    Question,
    Request,
    upload_of,
)
from .responses import Response, Standing, json_response

VERSION: Final = "1.0.0"
EXTENSIONS: Final = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "termination",
    "concatenation",
)
CHECKSUMS: Final = ("sha1", "sha256", "md5", "crc32c")
MEDIA_TYPE: Final = "application/offset+octet-stream"
METHODS: Final = "OPTIONS, POST, HEAD, PATCH, DELETE, GET"
NO_NAME: Final = "file"
"""The name of an upload whose client gave none, as of every partial one."""
MAX_CONTENT_TYPE: Final = 255
MAX_RESPONSE: Final = 4096
"""Bytes of the app's own answer that go into a header; GET has a longer one."""

NAME_KEYS: Final = ("filename", "name")
TYPE_KEYS: Final = ("filetype", "type")
"""Keys of the metadata by which clients name the file and its type; the first that is there counts."""

STATUS: Final[dict[type[UploadError], int]] = {
    TakenOver: 400,
    IdleTimeout: 500,
    TooSlow: 500,
}
"""Where tus' clients need another one than everybody: they try 409, 423 and 5xx again, and no other."""
TUSD: Final[dict[type[UploadError], str]] = {
    OriginRefused: "ERR_ORIGIN_NOT_ALLOWED",
    IdleTimeout: "ERR_READ_TIMEOUT",
    TooSlow: "ERR_READ_TIMEOUT",
    Draining: "ERR_SERVER_SHUTDOWN",
    UploadRefused: "ERR_UPLOAD_REJECTED",
    FileTooLarge: "ERR_MAX_SIZE_EXCEEDED",
    PartsRefused: "ERR_INVALID_CONCAT",
    TakenOver: "ERR_UPLOAD_INTERRUPTED",
    WrongOffset: "ERR_MISMATCHED_OFFSET",
    SizeExceeded: "ERR_UPLOAD_SIZE_EXCEEDED",
    NotFound: "ERR_UPLOAD_NOT_FOUND",
    VersionUnsupported: "ERR_UNSUPPORTED_VERSION",
    MediaTypeRefused: "ERR_INVALID_CONTENT_TYPE",
    InternalError: "ERR_INTERNAL_SERVER_ERROR",
}
"""tusd's code for an error, by the nearest class: its users look for it in the body
(https://github.com/tus/tusd/blob/main/pkg/handler/unrouted_handler.go)."""


class Tus:
    """The language of one endpoint. ``max_size`` is its largest file in bytes, None for no limit."""

    def __init__(self, max_size: int | None) -> None:
        self._max_size = max_size

    def speaks(self, request: Request) -> bool:
        return "tus-resumable" in request.headers or request.media_type == MEDIA_TYPE

    def read(self, request: Request) -> Question:
        upload = request.upload
        if (version := request.headers.get("tus-resumable", "")) != VERSION:
            raise VersionUnsupported(version=version)
        match request.method:
            case "POST" if not request.segment:
                return _create(request)
            case "PATCH" if upload is not None:
                return _append(request, upload)
            case "HEAD" if upload is not None:
                return Offset(upload)
            case "GET" if upload is not None:
                return Look(upload)
            case "DELETE" if upload is not None:
                return Cancel(upload)
            case "HEAD" | "GET" | "PATCH" | "DELETE" if request.segment:
                raise NotFound
        raise MethodRefused(method=request.method)

    def answer(self, request: Request, question: Question, standing: Standing | None) -> Response:
        response = self._answer(request, question, standing)
        response.headers["Tus-Resumable"] = VERSION
        return response

    def _answer(self, request: Request, question: Question, standing: Standing | None) -> Response:
        if standing is None:
            return Response(204)
        session = standing.session
        match question:
            case Create():
                headers = {"Location": _url(request, session.pk), **_progress(standing)}
                return Response(201, headers)
            case Look():
                return json_response(200, standing.result)
            case Offset():
                return Response(200, {**_progress(standing), **_facts(request, session)})
            case Append() if session.parts:
                return _problem(PermissionRefused("The upload was concatenated."), "MODIFY_FINAL")
            case Append(offset=offset) if offset == standing.offset and request.length:
                end = offset + request.length
                return _problem(SizeExceeded(end=end, size=offset))
        return Response(204, _progress(standing))

    @property
    def abilities(self) -> dict[str, str]:
        headers = {
            "Tus-Resumable": VERSION,
            "Tus-Version": VERSION,
            "Tus-Extension": ",".join(EXTENSIONS),
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        }
        if self._max_size is not None:
            headers["Tus-Max-Size"] = str(self._max_size)
        return headers

    def refuse(
        self,
        request: Request,
        question: Question | None,
        error: UploadError,
        standing: Standing | None,
    ) -> Response:
        response = self._refuse(request, question, error, standing)
        response.headers["Tus-Resumable"] = VERSION
        return response

    def _refuse(
        self,
        request: Request,
        question: Question | None,
        error: UploadError,
        standing: Standing | None,
    ) -> Response:
        if isinstance(error, Joined) and isinstance(question, Offset):
            # Its client did not get the answer to the concatenation, and is about to ask for it again.
            size = str(error.facts["size"])
            headers = {"Upload-Offset": size, "Upload-Length": size, "Upload-Concat": "partial"}
            return Response(200, {**headers, "Cache-Control": "no-store"})
        if isinstance(error, UploadOver) and isinstance(question, Append) and standing is not None:
            if standing.session.parts:
                return _problem(PermissionRefused("The upload was concatenated."), "MODIFY_FINAL")
            error = WrongOffset(offset=question.offset, expected=standing.offset)
        response = _problem(error)
        if isinstance(error, VersionUnsupported):
            response.headers["Tus-Version"] = VERSION
        elif isinstance(error, MethodRefused):
            response.headers["Allow"] = METHODS
        return response


# Requests -----------------------------------------------------------------------------------------


def _create(request: Request) -> Create:
    length = request.length
    kind, _, urls = request.headers.get("upload-concat", "").partition(";")
    metadata = parse_metadata(request.headers.get("upload-metadata", ""))
    if kind == "final":
        if "upload-length" in request.headers or length:
            raise MalformedRequest(reason="a final upload has neither Upload-Length nor a body")
        new = _new(metadata, None)
        return Create(new, completes=None, parts=tuple(map(_part, urls.split())))
    if kind not in ("", "partial") or urls:
        raise MalformedRequest(reason="Upload-Concat is partial, or final with uploads")
    if request.media_type != MEDIA_TYPE and (length or "transfer-encoding" in request.headers):
        raise MediaTypeRefused(expected=MEDIA_TYPE)
    size = request.number("upload-length")
    if "upload-defer-length" in request.headers:
        if request.headers["upload-defer-length"] != "1" or size is not None:
            raise MalformedRequest(reason="Upload-Defer-Length is 1, without Upload-Length")
    elif size is None:
        raise MalformedRequest(reason="neither Upload-Length nor Upload-Defer-Length was sent")
    return Create(
        _new(metadata, size, is_partial=kind == "partial"),
        completes=True if size is not None and length == size else None,
        checksum=_checksum(request),
    )


def _new(metadata: Mapping[str, str], size: int | None, *, is_partial: bool = False) -> NewUpload:
    content_type = next((metadata[key] for key in TYPE_KEYS if metadata.get(key)), "")
    if len(content_type) > MAX_CONTENT_TYPE:
        raise MetadataInvalid(reason=f"a type has at most {MAX_CONTENT_TYPE} characters")
    return NewUpload(
        key=secrets.token_hex(16),
        name=next((metadata[key] for key in NAME_KEYS if metadata.get(key)), NO_NAME),
        size=size,
        content_type=content_type,
        metadata=metadata,
        is_partial=is_partial,
    )


def _append(request: Request, upload: uuid.UUID) -> Append:
    if request.media_type != MEDIA_TYPE:
        raise MediaTypeRefused(expected=MEDIA_TYPE)
    offset = request.number("upload-offset")
    if offset is None:
        raise MalformedRequest(reason="Upload-Offset was not sent")
    size = request.number("upload-length")
    return Append(upload, offset, completes=None, size=size, checksum=_checksum(request))


def _part(url: str) -> uuid.UUID:
    """Raises :class:`PartsRefused`."""
    try:
        part = upload_of(urlsplit(url).path.rpartition("/")[2])
    except ValueError:
        part = None
    if part is None:
        raise PartsRefused(reason=f"{url} is no upload")
    return part


def _checksum(request: Request) -> Checksum | None:
    if (header := request.headers.get("upload-checksum")) is None:
        return None
    algorithm, _, digest = header.partition(" ")
    if algorithm not in CHECKSUMS:
        raise MalformedRequest(reason=f"the algorithm of a checksum is {', '.join(CHECKSUMS)}")
    try:
        checksum = b64decode(digest.strip(), validate=True)
    except ValueError:
        checksum = b""
    if not checksum:
        raise MalformedRequest(reason="Upload-Checksum has no checksum in base64")
    return Checksum(algorithm, checksum)


# Answers ------------------------------------------------------------------------------------------


def _url(request: Request, upload: uuid.UUID) -> str:
    """The address of an upload.

    A path for a page, whose browser completes it, whatever a proxy has made of scheme and host; absolute for programs,
    of which some cannot.
    """
    return f"{request.origin}{request.address_of(upload)}"


def _progress(standing: Standing) -> dict[str, str]:
    session = standing.session
    headers = {"Upload-Offset": str(standing.offset)}
    if standing.is_published:
        result = standing.result
        headers["Upload-Receipt"] = result["receipt"]
        headers["Upload-Stored-As"] = quote(session.stored_as)
        if (response := json.dumps(result["response"])) != "null" and len(response) <= MAX_RESPONSE:
            headers["Upload-Response"] = response
    elif session.expires_at is not None:
        headers["Upload-Expires"] = http_date(session.expires_at.timestamp())
    return headers


def _facts(request: Request, session: UploadSession) -> dict[str, str]:
    """What HEAD tells of an upload, beside its progress."""
    headers = {"Cache-Control": "no-store", "Upload-Metadata": _metadata_of(session)}
    if session.size is None:
        headers["Upload-Defer-Length"] = "1"
    else:
        headers["Upload-Length"] = str(session.size)
    if session.is_partial:
        headers["Upload-Concat"] = "partial"
    elif session.parts:
        urls = " ".join(_url(request, uuid.UUID(part)) for part in session.parts)
        headers["Upload-Concat"] = f"final;{urls}"
    return headers


def _metadata_of(session: UploadSession) -> str:
    """The metadata that the client gave, less its field token, which is as good as a password for that field."""
    texts: dict[str, Any] = dict(session.metadata)
    for keys, text in ((NAME_KEYS, session.name), (TYPE_KEYS, session.content_type)):
        if text and not any(key in texts for key in keys):  # an upload of another door
            texts[keys[0]] = text
    return write_metadata({key: text for key, text in texts.items() if isinstance(text, str)})


def _problem(error: UploadError, tusd: str = "") -> Response:
    """Problem details, with tusd's code where it has one."""
    status = next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), status_of(error))
    tusd = f"ERR_{tusd}" if tusd else _tusd(error)
    members = {"tusd": tusd} if tusd else {}
    response = problem(error, status=status, title=title_of(status), **members)
    response.status = status
    return response


def _tusd(error: UploadError) -> str:
    if isinstance(error, PartsRefused) and error.facts.get("unfinished"):
        return "ERR_UPLOAD_NOT_FINISHED"
    return next((TUSD[cls] for cls in type(error).__mro__ if cls in TUSD), "")
