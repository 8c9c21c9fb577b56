"""Failpoints: named places at which a test has the process kill itself. Without that test they do nothing.

The environment variable ``ASYNC_UPLOAD_FAILPOINT`` names one, ``link.after_link`` or, for its third passage,
``link.after_link:3``. A site never sets it.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Final

VARIABLE: Final = "ASYNC_UPLOAD_FAILPOINT"

_NAME, _, _PASSAGE = os.environ.get(VARIABLE, "").partition(":")

if _NAME:
    _LAST: Final = int(_PASSAGE or 1)
    _passages: Final = count(1)

    def failpoint(name: str) -> None:
        """Kill this process, by SIGKILL, if the test has named this place."""
        if name == _NAME and next(_passages) == _LAST:
            os.kill(os.getpid(), signal.SIGKILL)

else:

    def failpoint(name: str) -> None:
        """Do nothing."""
