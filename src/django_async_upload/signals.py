"""The signals that a host subscribes to. Receivers only observe: none can change or fail an upload.

All are sent with ``sender=UploadSession`` and ``session``, the :class:`~.models.UploadSession`. Receivers
may be sync or async. An exception or a timeout of a receiver is logged with the session's id.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.dispatch import Signal

from . import conf
from .concurrency.apart import Unfinished, apart
from .exceptions import AlreadyBound
from .notices import about

Result = TypeVar("Result")

logger = logging.getLogger("django_async_upload")

upload_started = Signal()
"""An upload was created. CREATED is being sent to the client."""

upload_resumed = Signal()
"""An upload was resumed on another connection. Arguments: ``offset``, bytes."""

chunk_received = Signal()
"""A chunk was verified and written. Arguments: ``offset`` and ``size``, bytes.

Sent for every chunk, in order, at most once; a slow receiver slows down its own upload.
"""

upload_completed = Signal()
"""The file was published. Arguments: ``event_id``, a UUID.

Sent after the commit, at least once: all receivers are called again, with the same ``event_id``, until none of them
raises or times out. After :data:`.engine.outbox.ATTEMPTS` an error is logged and delivery stops; the admin can send it
again.
"""

upload_failed = Signal()
"""The upload failed. Arguments: ``error``, an :class:`~.exceptions.UploadError`."""

upload_cancelled = Signal()
"""The client, or a user of the admin, cancelled the upload."""

upload_expired = Signal()
"""The upload expired: ``purge_uploads`` found it inactive for too long, or a user of the admin expired it."""


async def send(signal: Signal, session: Any, **arguments: Any) -> list[str]:
    """Call the receivers as Django does, but each with ``RECEIVER_TIMEOUT``, and the sync ones in threads of their own.

    Sync receivers are called one after the other, then the async ones beside each other. Returns when all have returned
    or were given up: the failures, which are logged, one text each. Costs nothing without receivers.
    """
    sender = type(session)
    if not signal.has_listeners(sender):
        return []
    # Not asend_robust(), which calls all sync receivers in one thread: one that hangs would keep it from the others.
    sync, asynchronous = signal._live_receivers(sender)
    arguments |= {"signal": signal, "sender": sender, "session": session}
    failures = [await _call(each, sync_to_async(each), arguments) for each in sync]
    failures += await asyncio.gather(*(_call(each, each, arguments) for each in asynchronous))
    return [each for each in failures if each is not None]


async def _call(
    receiver: Any, call: Callable[..., Coroutine[Any, Any, Any]], arguments: dict[str, Any]
) -> str | None:
    """Call a receiver; returns its failure, or None."""
    name, session = getattr(receiver, "__qualname__", repr(receiver)), arguments["session"]
    try:
        await apart(partial(call, **arguments), conf.uploads().receiver_timeout)
    except AlreadyBound:  # by an earlier attempt: a later one cannot succeed
        logger.info("%s: upload %s is bound already", name, session.pk)
    except Unfinished as error:
        logger.error("%s for upload %s %s", name, session.pk, error, extra=about(session))
        return f"{name} {error}"
    except Exception as error:
        logger.error(
            "%s failed for upload %s", name, session.pk, exc_info=error, extra=about(session)
        )
        return f"{name}: {error!r}"
    return None


def send_and_wait(signal: Signal, session: Any, **arguments: Any) -> None:
    """Call :func:`send` from synchronous code, and wait for the receivers."""
    if signal.has_listeners(type(session)):
        run(send(signal, session, **arguments))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that sends signals, from synchronous code.

    Not by ``async_to_sync``, which would run sync receivers in the thread that waits here: one that hangs would block
    it for ever.
    """
    return contextvars.Context().run(asyncio.run, work)
