"""Threads for calls that may hang."""

from __future__ import annotations

import subprocess
import sys

HANGS = """
import threading
from django_async_upload.concurrency.threads import DaemonExecutor
began = threading.Event()
def hang():
    began.set()
    threading.Event().wait()
DaemonExecutor(1, "hanging").submit(hang)
began.wait()
"""


def test_a_call_that_hangs_does_not_keep_its_process_from_ending() -> None:
    subprocess.run([sys.executable, "-c", HANGS], check=True, timeout=10)
