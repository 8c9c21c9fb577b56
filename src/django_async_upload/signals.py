"""The signals that a host subscribes to. Receivers only observe: none can change or fail an upload.

All are sent with ``sender=UploadSession`` and ``session``, the :class:`~.models.UploadSession`. Receivers
may be sync or async. An exception or a timeout of a receiver is logged with the session's id.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from django.dispatch import Signal

from . import conf
from .concurrency.apart import Unfinished, apart
from .exceptions import AlreadyBound

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
    """Call the receivers, the sync ones in a thread that nothing else uses.

    Returns when all have returned, or after ``RECEIVER_TIMEOUT``: the failures, which are logged, one text each. Costs
    nothing without receivers.
    """
    if not signal.has_listeners(type(session)):
        return []
    call = partial(_send, signal, session, arguments)
    try:
        return await apart(call, conf.uploads().receiver_timeout)
    except Unfinished as error:
        logger.error("A receiver for upload %s %s", session.pk, error)
        return [f"a receiver {error}"]
    except Exception as error:
        logger.error("Receivers for upload %s failed", session.pk, exc_info=error)
        return [repr(error)]


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


async def _send(signal: Signal, session: Any, arguments: dict[str, Any]) -> list[str]:
    responses = await signal.asend_robust(type(session), session=session, **arguments)
    failures = []
    for receiver, response in responses:
        name = getattr(receiver, "__qualname__", repr(receiver))
        if isinstance(response, AlreadyBound):  # by an earlier attempt: a later one cannot succeed
            logger.info("%s: upload %s is bound already", name, session.pk)
        elif isinstance(response, Exception):
            logger.error("%s failed for upload %s", name, session.pk, exc_info=response)
            failures.append(f"{name}: {response!r}")
    return failures
