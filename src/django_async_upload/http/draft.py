"""Resumable uploads as the IETF drafts them: draft-ietf-httpbis-resumable-upload, and the versions that clients send.

Section names in this module are those of revision 12.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.utils import timezone
from django.utils.http import parse_header_parameters

from ..exceptions import (
    FileTooLarge,
    KeyReused,
    MalformedRequest,
    MediaTypeRefused,
    MetadataInvalid,
    MethodRefused,
    NameRefused,
    NotFound,
    SizeMismatch,
    UploadError,
    UploadOver,
    VersionUnsupported,
    WrongOffset,
)
from ..sessions.values import NewUpload
from . import fields
from .metadata import parse_metadata
from .problems import problem
from .requests import Append, Cancel, Checksum, Create, Offset, Question, Request
from .responses import Response, Standing, json_response

INTEROP: Final = "upload-draft-interop-version"
PARTIAL: Final = "application/partial-upload"
METADATA: Final = "async-upload-metadata"
"""The metadata of CREATE, a JSON object in ASCII: for values that are not texts. Beside ``Upload-Metadata`` of tus,
which tus-js-client sends in this language, too."""
PROBLEMS: Final = "https://iana.org/assignments/http-problem-types#"
METHODS: Final = "OPTIONS, HEAD, GET, POST, PUT, PATCH, DELETE"

_KEY: Final = re.compile(r'"?([0-9a-f]{32})"?')
_BODY_DIGESTS: Final = {
    "sha-512": ("sha512", 64),
    "sha-256": ("sha256", 32),
    "crc32c": ("crc32c", 4),
    "sha": ("sha1", 20),
    "md5": ("md5", 16),
}
"""Algorithms of Content-Digest and their bytes, the strongest first; of several one is checked."""
_FILE_DIGESTS: Final = {"crc32c": 4, "sha-256": 32}
"""Algorithms of Repr-Digest and their bytes; others are ignored, as RFC 9530 allows."""


@dataclass(frozen=True, slots=True)
class Version:
    """What one interop version has other than the latest one."""

    incomplete: bool = False
    """Its field is Upload-Incomplete, the opposite of Upload-Complete."""
    partial: bool = True
    """A PATCH has the media type ``application/partial-upload``."""
    bare: bool = False
    """A request to read or cancel must not have fields of the state."""
    default: bool | None = None
    """Whether a PATCH without Upload-Complete completes the upload; None: the field is required."""
    appended: int = 204
    """Status of the answer to a PATCH after which the upload is incomplete."""
    lifetime: str = "max-age"
    """The limit that is the remaining lifetime."""
    over: bool = False
    """It has the problem type of a completed upload."""


LATEST: Final = Version()
"""10, revisions 13 to 15, and 9, revision 12: Upload-Offset tells what was processed; it is always sent here."""
_VERSION_8: Final = Version(over=True)
"""Revisions 6 to 11, of which 6 to 8 are interop version 7."""
_VERSION_6: Final = Version(bare=True, default=False, appended=201, lifetime="expires", over=True)
"""Revisions 4 and 5. URLSession sends it."""
_VERSION_5: Final = Version(
    partial=False, bare=True, default=False, appended=201, lifetime="expires", over=True
)
"""Revisions 2 and 3, of which 2 is interop version 4."""
_VERSION_3: Final = Version(
    incomplete=True, partial=False, bare=True, default=True, appended=201, lifetime="expires"
)
"""Revision 1."""
VERSIONS: Final = {
    3: _VERSION_3,
    4: _VERSION_5,
    5: _VERSION_5,
    6: _VERSION_6,
    7: _VERSION_8,
    8: _VERSION_8,
    9: LATEST,
    10: LATEST,
}


class Draft:
    """The language of one endpoint. ``max_size`` is its largest file in bytes, None for no limit."""

    def __init__(self, max_size: int | None) -> None:
        self._max_size = max_size

    @property
    def abilities(self) -> dict[str, str]:
        return {"Upload-Limit": self._limits(LATEST, None)}

    def speaks(self, request: Request) -> bool:
        headers = request.headers
        return (
            "upload-complete" in headers
            or "upload-incomplete" in headers
            or INTEROP in headers
            or request.media_type == PARTIAL
            # A client of the RFC will send nothing by which to know it.
            or (request.method == "HEAD" and request.upload is not None)
        )

    def read(self, request: Request) -> Question:
        version = _version_of(request)
        kind = _KINDS.get((request.upload is not None, request.method))
        if kind is None:
            if request.upload is None and request.segment:
                raise NotFound
            raise MethodRefused(method=request.method)
        return kind(request, version)

    def answer(self, request: Request, question: Question, standing: Standing | None) -> Response:
        if standing is None:
            return Response(204)
        version = _version_of(request)
        match question:
            case Append() if not standing.is_published:
                response = Response(version.appended)
            case Create() | Append():
                response = json_response(201, standing.result)
            case _:
                response = Response(204)
        response.headers |= self._state(version, standing)
        if isinstance(question, Create):
            response.headers["Location"] = request.address_of(standing.session.pk)
        if standing.is_published and "want-repr-digest" in request.headers:
            response.headers["Repr-Digest"] = _digests_of(standing)
        return response

    def refuse(
        self,
        request: Request,
        question: Question | None,
        error: UploadError,
        standing: Standing | None,
    ) -> Response:
        try:
            version = _version_of(request)
        except VersionUnsupported:
            version = LATEST
        response = _problem(version, error)
        if standing is not None:
            response.headers |= self._state(version, standing)
        if isinstance(question, Create | Append):
            response.headers |= _completeness(version, _is_final(error))
        if isinstance(error, FileTooLarge):
            response.headers["Upload-Limit"] = self._limits(version, standing)
        if isinstance(error, MethodRefused):
            response.headers["Allow"] = METHODS
        return response

    def _state(self, version: Version, standing: Standing) -> dict[str, str]:
        """The header fields that tell how the upload stands: section "State"."""
        state = _completeness(version, standing.is_published)
        state["Upload-Offset"] = str(standing.offset)
        if standing.session.size is not None:
            state["Upload-Length"] = str(standing.session.size)
        state["Upload-Limit"] = self._limits(version, standing)
        state["Cache-Control"] = "no-store"
        return state

    def _limits(self, version: Version, standing: Standing | None) -> str:
        """The value of Upload-Limit: section "Limits"."""
        limits = {}
        if self._max_size is not None:
            limits["max-size"] = self._max_size
        expires_at = None if standing is None else standing.session.expires_at
        if expires_at is not None:
            limits[version.lifetime] = max(0, int((expires_at - timezone.now()).total_seconds()))
        return ", ".join(f"{key}={value}" for key, value in (limits or {"min-size": 0}).items())


# Requests -----------------------------------------------------------------------------------------


def _create(request: Request, version: Version) -> Create:
    """Section "Upload Creation". Without Upload-Complete it is an ordinary request with the whole file."""
    if "upload-offset" in request.headers:
        if request.segment:
            raise NotFound
        raise MalformedRequest(reason="Upload-Offset belongs to a PATCH of an upload")
    completes = _completes(request, version)
    texts = parse_metadata(request.headers.get("upload-metadata", ""))
    name = _file_name(request) or texts.pop("filename", "") or request.segment or "upload"
    content_type = request.headers.get("content-type", "")
    if request.media_type == PARTIAL or not content_type:
        content_type = texts.pop("filetype", "")
    digests = _file_digests(request)
    wanted = fields.dictionary(request.headers, "want-repr-digest") or {}
    new = NewUpload(
        key=_key(request),
        name=name,
        size=_size(request, 0, completes is not False),
        content_type=content_type,
        metadata={**texts, **_json_metadata(request)},
        digest="sha-256" if "sha-256" in digests or wanted.get("sha-256") else None,
        digests=digests,
    )
    return Create(
        new,
        completes=completes is not False,
        has_key="idempotency-key" in request.headers,
        checksum=_body_digest(request),
        digests=digests,
    )


def _append(request: Request, version: Version) -> Append:
    """Section "Upload Append"."""
    assert request.upload is not None
    if version.partial and request.media_type != PARTIAL:
        raise MediaTypeRefused(expected=PARTIAL)
    offset = fields.number(request.headers, "upload-offset")
    if offset is None:
        raise MalformedRequest(reason="Upload-Offset is missing, or not a number")
    completes = _completes(request, version)
    if completes is None:
        completes = version.default
    if completes is None:
        raise MalformedRequest(reason="Upload-Complete is missing, or neither ?0 nor ?1")
    return Append(
        request.upload,
        offset,
        completes,
        size=_size(request, offset, completes),
        checksum=_body_digest(request),
        digests=_file_digests(request) if completes else {},
    )


def _offset(request: Request, version: Version) -> Offset:
    """Section "Offset Retrieval"."""
    assert request.upload is not None
    _check_bare(request, version)
    return Offset(request.upload)


def _cancel(request: Request, version: Version) -> Cancel:
    """Section "Upload Cancellation"."""
    assert request.upload is not None
    _check_bare(request, version)
    return Cancel(request.upload)


_KINDS: Final[dict[tuple[bool, str], Callable[[Request, Version], Question]]] = {
    (False, "POST"): _create,
    (False, "PUT"): _create,
    (False, "PATCH"): _create,
    (True, "PATCH"): _append,
    (True, "HEAD"): _offset,
    (True, "GET"): _offset,
    (True, "DELETE"): _cancel,
}
"""What a request is, by whether its path names an upload, and by its method."""


def _version_of(request: Request) -> Version:
    """Raises :class:`VersionUnsupported` for versions before 3, which had upload tokens."""
    number = fields.number(request.headers, INTEROP)
    if number is None:
        return _VERSION_3 if "upload-incomplete" in request.headers else LATEST
    if number < min(VERSIONS):
        raise VersionUnsupported(version=number)
    return VERSIONS.get(number, LATEST)


def _check_bare(request: Request, version: Version) -> None:
    for name in ("upload-offset", "upload-complete", "upload-incomplete"):
        if version.bare and name in request.headers:
            raise MalformedRequest(reason=f"{name} does not belong to {request.method}")


def _completes(request: Request, version: Version) -> bool | None:
    if version.incomplete:
        incomplete = fields.boolean(request.headers, "upload-incomplete")
        return None if incomplete is None else not incomplete
    return fields.boolean(request.headers, "upload-complete")


def _size(request: Request, offset: int, completes: bool) -> int | None:
    """The file's size, as far as this request tells it: section "Length". Raises :class:`SizeMismatch`."""
    declared = fields.number(request.headers, "upload-length")
    length = request.length
    size = offset + length if completes and length is not None else None
    if declared is not None and size not in (None, declared):
        raise SizeMismatch(
            f"Upload-Length is {declared}; this request ends at {size}.",
            size=size,
            received=size,
            declared=declared,
        )
    return size if declared is None else declared


def _key(request: Request) -> str:
    """The key of a creation. ``Idempotency-Key`` is a String (draft-ietf-httpapi-idempotency-key-header)."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return secrets.token_hex(16)
    match = _KEY.fullmatch(text)
    if match is None:
        raise MalformedRequest(reason="Idempotency-Key has 32 hexadecimal digits here")
    return match[1]


def _file_name(request: Request) -> str:
    """The file name in Content-Disposition (RFC 6266), "" where it has none."""
    header = request.headers.get("content-disposition", "")
    try:
        _, parameters = parse_header_parameters(header)
    except (ValueError, LookupError) as error:
        raise NameRefused from error
    name = parameters.get("filename", "")
    try:
        return name.encode("latin-1").decode()  # UTF-8 without a declaration, as curl sends it
    except UnicodeError:
        return name


def _json_metadata(request: Request) -> Mapping[str, Any]:
    text = request.headers.get(METADATA)
    if text is None:
        return {}
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise MetadataInvalid(reason=f"{METADATA} is not JSON") from error
    if not isinstance(metadata, dict):
        raise MetadataInvalid(reason=f"{METADATA} is not a JSON object")
    return metadata


def _body_digest(request: Request) -> Checksum | None:
    """The checksum in Content-Digest (RFC 9530, section 2), None where it has none that is known here."""
    digests = _digests(request, "content-digest")
    for name, (algorithm, size) in _BODY_DIGESTS.items():
        if name in digests:
            return Checksum(algorithm, _sized(digests[name], size, f"content-digest: {name}"))
    return None


def _file_digests(request: Request) -> dict[str, str]:
    """The checksums of the whole file in Repr-Digest (RFC 9530, section 3), hexadecimal."""
    digests = _digests(request, "repr-digest")
    return {
        name: _sized(digests[name], size, f"repr-digest: {name}").hex()
        for name, size in _FILE_DIGESTS.items()
        if name in digests
    }


def _digests(request: Request, header: str) -> dict[str, Any]:
    """Raises :class:`MalformedRequest`: who sends a digest relies on its being compared."""
    digests = fields.dictionary(request.headers, header)
    if digests is None and header in request.headers:
        raise MalformedRequest(reason=f"{header} is not a dictionary")
    return digests or {}


def _sized(value: object, size: int, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise MalformedRequest(reason=f"{what} has not {size} bytes")
    return value


# Answers ------------------------------------------------------------------------------------------


def _completeness(version: Version, complete: bool) -> dict[str, str]:
    if version.incomplete:
        return {"Upload-Incomplete": "?0" if complete else "?1"}
    return {"Upload-Complete": "?1" if complete else "?0"}


def _is_final(error: UploadError) -> bool:
    """Whether the answer comes from the file's processing, so that to resume cannot help: section "Completeness"."""
    return error.is_final and not isinstance(error, NotFound | UploadOver | KeyReused)


def _problem(version: Version, error: UploadError) -> Response:
    """Problem details with the types of the draft: section "Problem Types"."""
    match error:
        case WrongOffset():
            members = {
                "expected-offset": error.facts.get("expected"),
                "provided-offset": error.facts.get("offset"),
            }
            return problem(error, type=f"{PROBLEMS}mismatching-upload-offset", **members)
        case SizeMismatch():
            return problem(error, status=400, type=f"{PROBLEMS}inconsistent-upload-length")
        case UploadOver() if version.over and error.facts.get("state") == "completed":
            return problem(error, type=f"{PROBLEMS}completed-upload")
    return problem(error)


def _digests_of(standing: Standing) -> str:
    """The value of Repr-Digest for a published file."""
    session = standing.session
    known = {"crc32c": session.crc32c, **session.digests}
    return ", ".join(
        f"{name}=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
        for name, digest in known.items()
    )
