"""Errors over HTTP: their status, and problem details (RFC 9457) with the stable code."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any, Final

from ..exceptions import (
    AuthenticationRequired,
    AuthenticationTimeout,
    Busy,
    ByteQuotaExceeded,
    ConnectionRefused,
    ContentMismatch,
    DatabaseUnavailable,
    DigestMismatch,
    Draining,
    FileChanged,
    FileRefused,
    FileTooLarge,
    IdleTimeout,
    InternalError,
    KeyReused,
    MediaTypeRefused,
    MetadataInvalid,
    MethodRefused,
    NameRefused,
    NotFound,
    PartsRefused,
    ProtocolViolation,
    SessionQuotaExceeded,
    SizeExceeded,
    SizeMismatch,
    StorageFailed,
    StorageFull,
    TakenOver,
    TicketExpired,
    TicketInvalid,
    TooManyConnections,
    TooSlow,
    TypeRefused,
    UploadError,
    UploadFailed,
    UploadInterrupted,
    UploadRefused,
    VersionUnsupported,
    WrongOffset,
)
from .responses import Response, json_response

MEDIA_TYPE: Final = "application/problem+json"
STATUS: Final[dict[type[UploadError], int]] = {
    UploadError: 500,
    ProtocolViolation: 400,
    MethodRefused: 405,
    VersionUnsupported: 412,
    MediaTypeRefused: 415,
    ConnectionRefused: 403,
    AuthenticationRequired: 401,
    TicketInvalid: 401,
    TicketExpired: 401,
    IdleTimeout: 408,
    AuthenticationTimeout: 408,
    TooManyConnections: 429,
    Draining: 503,
    UploadRefused: 403,
    MetadataInvalid: 400,
    NameRefused: 400,
    PartsRefused: 400,
    FileTooLarge: 413,
    TypeRefused: 415,
    FileRefused: 422,
    SessionQuotaExceeded: 429,
    ByteQuotaExceeded: 429,
    UploadInterrupted: 503,
    TakenOver: 409,
    WrongOffset: 409,
    SizeMismatch: 409,
    ContentMismatch: 460,
    TooSlow: 408,
    StorageFull: 507,
    StorageFailed: 500,
    InternalError: 500,
    Busy: 503,
    DatabaseUnavailable: 503,
    UploadFailed: 410,
    NotFound: 404,
    KeyReused: 409,
    FileChanged: 409,
    SizeExceeded: 413,
    DigestMismatch: 422,
}
"""By the nearest class. 460 is that of tus: "Checksum Mismatch"."""

logger = logging.getLogger("django_async_upload")


def status_of(error: UploadError) -> int:
    """The status of an error, by its nearest class that has one."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(error: UploadError, status: int | None = None, **members: Any) -> Response:
    """A response with problem details: ``code``, ``retryable`` and the figures of the error are members of them.

    ``status`` is that of :func:`status_of` by default. ``members`` are added, and may replace ``type``.
    """
    status = status or status_of(error)
    details: dict[str, Any] = {
        "type": "about:blank",
        "title": title_of(status),
        "status": status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
        **{name: fact for name, fact in error.facts.items() if fact is not None},
        **members,
    }
    response = json_response(status, details, MEDIA_TYPE)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def title_of(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 460
        return "Checksum Mismatch"
