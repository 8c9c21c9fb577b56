"""Delays between retries, and the limit of retrying."""

from __future__ import annotations

import random
import time
from typing import Final

from ..exceptions import UploadError

_FIRST: Final = 0.25
_LARGEST: Final = 30.0


class Backoff:
    """Exponential backoff with full jitter, so that many clients do not reconnect at the same time.

    See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. ``patience`` is the number of seconds
    after the first failure within which attempts are made.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._failures = 0
        self._since: float | None = None

    def delay(self, error: UploadError, retry_after: float | None = None) -> float:
        """Count a failure; returns the seconds to wait, at least those that the server asked for.

        Raises ``error`` when ``patience`` is exceeded.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
        ceiling = min(_LARGEST, _FIRST * 2 ** min(self._failures, 16))
        delay = (retry_after or error.retry_after or 0) + random.uniform(0, ceiling)  # noqa: S311
        if now + delay - self._since > self._patience:
            raise error
        self._failures += 1
        return delay

    def reset(self) -> None:
        """Start over, after progress."""
        self._failures = 0
        self._since = None
