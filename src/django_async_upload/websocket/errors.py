"""Errors on WebSockets: ERROR messages and close codes."""

from __future__ import annotations

from typing import Final

from ..exceptions import (
    AuthenticationTimeout,
    ConnectionRefused,
    Draining,
    IdleTimeout,
    ProtocolViolation,
    SubprotocolRequired,
    TooManyConnections,
    UploadError,
)
from ..protocol import messages as m

CLOSE_CODES: Final[dict[type[UploadError], int]] = {
    UploadError: 4500,
    ProtocolViolation: 4400,
    SubprotocolRequired: 4406,
    ConnectionRefused: 4401,
    IdleTimeout: 4408,
    AuthenticationTimeout: 4408,
    TooManyConnections: 4429,
    Draining: 4503,
}


def close_code(error: UploadError) -> int:
    """The close code of an error, by its nearest class that has one."""
    return next(CLOSE_CODES[cls] for cls in type(error).__mro__ if cls in CLOSE_CODES)


def error_message(error: UploadError) -> m.Error:
    facts = {
        name: fact
        for name, fact in error.facts.items()
        if name != "retry_after" and fact is not None
    }
    return m.Error(error.code, error.message, error.retryable, error.retry_after, facts)
