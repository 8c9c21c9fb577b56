"""The clock of a server, moved by libfaketime: time stamps follow it, and what measures durations does not."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest

REREAD_SECONDS = 1


class Clock:
    """The clock of the servers with :attr:`environment`; :meth:`move` sets it."""

    def __init__(self, folder: Path) -> None:
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not libraries:
            pytest.skip("needs libfaketime (the Debian package faketime)")
        self._file = folder / "clock"
        self._write(0)
        self.environment = {
            "LD_PRELOAD": libraries[0],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": str(REREAD_SECONDS),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # or waits for the GIL end at once
            "NO_FAKE_STAT": "1",  # files have the times at which they were written
        }

    def move(self, seconds: int) -> None:
        """Set the clock to so many seconds from the true time; returns when the servers have seen it."""
        self._write(seconds)
        time.sleep(REREAD_SECONDS + 0.1)

    def _write(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        os.replace(new, self._file)
