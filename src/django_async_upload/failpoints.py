"""Failpoints: named places at which a test has the process kill or stop itself. Without that test they do nothing.

The environment variable ``ASYNC_UPLOAD_FAILPOINT`` names one, ``link.after_link`` or, for its third passage,
``link.after_link:3``, and ``ASYNC_UPLOAD_FAILPOINT_SIGNAL`` the signal, if it is not SIGKILL. A site never sets them.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Final

VARIABLE: Final = "ASYNC_UPLOAD_FAILPOINT"
SIGNAL_VARIABLE: Final = "ASYNC_UPLOAD_FAILPOINT_SIGNAL"

_NAME, _, _PASSAGE = os.environ.get(VARIABLE, "").partition(":")

if _NAME:
    _LAST: Final = int(_PASSAGE or 1)
    _passages: Final = count(1)
    _SIGNAL: Final = signal.Signals[os.environ.get(SIGNAL_VARIABLE, "SIGKILL")]

    def failpoint(name: str) -> None:
        """Send this process the signal, if the test has named this place."""
        if name == _NAME and next(_passages) == _LAST:
            os.kill(os.getpid(), _SIGNAL)

else:

    def failpoint(name: str) -> None:
        """Do nothing."""
