"""Log lines that clients or a full disk can cause in any number: each kind is written once a minute, with a count."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

logger = logging.getLogger("django_async_upload")

SECONDS: Final = 60.0
"""Between two lines of one kind."""

_lock = threading.Lock()
_last: dict[str, tuple[float, int]] = {}  # kind -> when it was written, and how many were left out


def notice(kind: str, level: int, message: str, *args: object) -> None:
    """Log the message unless one of its kind was logged within :data:`SECONDS`; the next line counts those left out.

    ``kind`` must come from the program, never from a client: each kind is remembered. Any thread may call this.
    """
    now = time.monotonic()
    with _lock:
        written, left_out = _last.get(kind, (None, 0))
        if written is not None and now - written < SECONDS:
            _last[kind] = (written, left_out + 1)
            return
        _last[kind] = (now, 0)
    if left_out:
        message, args = f"{message} (And %d more like this since the last line.)", (*args, left_out)
    logger.log(level, message, *args)


def forget() -> None:
    """Begin anew, for tests."""
    _last.clear()
