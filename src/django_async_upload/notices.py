"""What log lines share: attributes of their records, and a limit for lines that clients can cause in any number."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from .exceptions import Busy, UploadError, UploadFailed, UploadRefused

logger = logging.getLogger("django_async_upload")

SECONDS: Final = 60.0
"""The least time between two lines of one kind."""

_lock = threading.Lock()
_last: dict[
    str, tuple[float, int]
] = {}  # kind -> when it was logged, and how many were suppressed since


def notice(kind: str, level: int, message: str, *args: object, **extra: object) -> None:
    """Log the message unless one of its kind was logged within :data:`SECONDS`. The next line counts suppressed ones.

    ``kind`` must be a constant, never a client's input: each kind is kept in memory. ``extra`` become attributes of the
    log record: ``code``, ``owner``, ``endpoint``, ``upload``. Thread-safe.
    """
    now = time.monotonic()
    with _lock:
        written, left_out = _last.get(kind, (None, 0))
        if written is not None and now - written < SECONDS:
            _last[kind] = (written, left_out + 1)
            return
        _last[kind] = (now, 0)
    if left_out:
        message, args = f"{message} (%d more like this since the last line.)", (*args, left_out)
    logger.log(level, message, *args, extra=extra)


def log_refused(
    error: UploadError, owner: str, endpoint: str, *, upload: str | None = None
) -> None:
    """Log that a request about an upload was refused, also for want of room, or that the upload failed.

    Other errors are no news. These are none of the server's, but the operator sees many of one kind: an attack, or a
    limit that is too low.
    """
    if isinstance(error, UploadRefused | UploadFailed | Busy):
        notice(
            error.code,
            logging.INFO,
            "A request of %s was refused: %s, %s",
            owner,
            error.code,
            error,
            code=error.code,
            owner=owner,
            endpoint=endpoint,
            upload=upload,
        )


def about(session: Any, **extra: object) -> dict[str, object]:
    """For ``extra`` of a line about an upload: ``upload``, ``owner`` and ``endpoint``, of its row."""
    return {
        "upload": str(session.pk),
        "owner": session.owner_key,
        "endpoint": session.endpoint,
        **extra,
    }


def forget() -> None:
    """Forget all kinds, for tests."""
    _last.clear()
