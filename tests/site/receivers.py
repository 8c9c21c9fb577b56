"""The host's receivers: they record each signal, and misbehave where a file's name says so."""

import asyncio
import json
import os
import signal
import time
from typing import Any

from django.conf import settings
from django.dispatch import receiver

from django_async_upload import signals

HANG = 10.0
"""Seconds."""


def write_down(name: str, session: Any, **facts: object) -> None:
    line = json.dumps({"signal": name, "upload": str(session.pk), "name": session.name, **facts})
    # One write of a short line in append mode: whole, also with several processes.
    handle = os.open(settings.ROOT / "signals.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)


@receiver(signals.upload_completed)
def completed(session: Any, event_id: Any, **kwargs: Any) -> None:
    if session.name.startswith("die-") and is_first("died"):
        os.kill(os.getpid(), signal.SIGKILL)  # between the commit and the delivery
    if session.name.startswith("hang-"):
        time.sleep(HANG)
    if session.name.startswith("once-") and is_first(f"hung-{session.pk}"):
        time.sleep(HANG)
    write_down("upload_completed", session, event=str(event_id))
    if session.name.startswith("stuck-"):
        time.sleep(3600)
    if session.name.startswith("raise-") and is_first(f"raised-{session.pk}"):
        raise ValueError("the receiver of this host is broken")


def is_first(name: str) -> bool:
    """Whether this is the first call, in any process."""
    try:
        os.close(os.open(settings.ROOT / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@receiver(signals.upload_completed)
async def completed_too(session: Any, **kwargs: Any) -> None:
    if session.name.startswith("cancel-") and is_first(f"cancelled-{session.pk}"):
        raise asyncio.CancelledError
    if session.name.startswith("hang-"):
        await asyncio.sleep(HANG)


def started(session: Any, **kwargs: Any) -> None:
    write_down("upload_started", session)


if settings.HEARS_STARTED:
    signals.upload_started.connect(started)


@receiver(signals.upload_resumed)
def resumed(session: Any, offset: int, **kwargs: Any) -> None:
    write_down("upload_resumed", session, offset=offset)


@receiver(signals.upload_failed)
def failed(session: Any, error: Any, **kwargs: Any) -> None:
    write_down("upload_failed", session, code=error.code)


@receiver(signals.upload_cancelled)
def cancelled(session: Any, **kwargs: Any) -> None:
    write_down("upload_cancelled", session)
