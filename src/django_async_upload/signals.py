"""The signals a host subscribes to. They observe: no receiver can change or break an upload.

All are sent with ``sender=UploadSession`` and ``session``, the :class:`~.models.UploadSession`. Receivers
may be sync or async. One that raises is logged with the session's id; so is one that takes too long.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.db import connections
from django.dispatch import Signal

from . import conf
from .concurrency.threads import DaemonExecutor
from .exceptions import AlreadyBound

Result = TypeVar("Result")

logger = logging.getLogger("django_async_upload")

upload_started = Signal()
"""A new upload was made. Its answer is on the way to the client."""

upload_resumed = Signal()
"""An upload goes on, on another connection. Arguments: ``offset``, bytes."""

chunk_received = Signal()
"""A chunk was verified and written. Arguments: ``offset`` and ``size``, bytes.

Sent for every chunk, in order, at most once; a slow receiver slows its own upload.
"""

upload_completed = Signal()
"""The file is published. Arguments: ``event_id``, a UUID.

Sent after the commit, at least once: all receivers are called again, with the same ``event_id``, until none of them
raises or takes too long. After :data:`.engine.outbox.ATTEMPTS` that is given up, loudly; the admin can send it again.
"""

upload_failed = Signal()
"""The upload is over. Arguments: ``error``, an :class:`~.exceptions.UploadError`."""

upload_cancelled = Signal()
"""The client, or a user of the admin, threw the upload away."""

upload_expired = Signal()
"""Nothing came for too long and the upload was purged, or a user of the admin did not wait for that."""


async def send(signal: Signal, session: Any, **arguments: Any) -> list[str]:
    """Call the receivers, each sync one in a thread that nothing else waits for.

    Returns when all have ended, or after ``RECEIVER_TIMEOUT``: what failed, and was logged, one text for each. Costs
    nothing without receivers.
    """
    if not signal.has_listeners(type(session)):
        return []
    seconds = conf.uploads().receiver_timeout
    # A task of its own: a receiver that cancels "its" task cancels this one, not the upload's.
    sending = asyncio.create_task(_send(signal, session, arguments))
    try:
        ended, _late = await asyncio.wait({sending}, timeout=seconds)
    except asyncio.CancelledError:
        sending.cancel()
        raise
    if not ended:
        # An async receiver ends now; a sync one cannot be stopped, and keeps nothing but its own thread.
        sending.cancel()
        failure = f"a receiver did not end within {seconds:g} s"
        logger.error("Signal for upload %s: %s", session.pk, failure)
        return [failure]
    if sending.cancelled():
        logger.error("A receiver for upload %s was cancelled", session.pk)
        return ["a receiver was cancelled"]
    if error := sending.exception():
        logger.error("Receivers for upload %s failed", session.pk, exc_info=error)
        return [repr(error)]
    return sending.result()


def send_and_wait(signal: Signal, session: Any, **arguments: Any) -> None:
    """As :func:`send`, from synchronous code."""
    if signal.has_listeners(type(session)):
        run(send(signal, session, **arguments))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run what sends signals, from synchronous code; not ``async_to_sync``.

    That would have sync receivers run in the very thread that waits here, and one that hangs would hold it for ever.
    """
    return contextvars.Context().run(asyncio.run, work)


async def _send(signal: Signal, session: Any, arguments: dict[str, Any]) -> list[str]:
    # Seen: sync receivers in the shared thread delayed another upload's UPDATE by a second.
    async with _OwnThread():
        responses = await signal.asend_robust(type(session), session=session, **arguments)
    failures = []
    for receiver, response in responses:
        name = getattr(receiver, "__qualname__", repr(receiver))
        if isinstance(
            response, AlreadyBound
        ):  # by an earlier attempt, or another taker: no later one can help
            logger.info("%s found upload %s bound already", name, session.pk)
        elif isinstance(response, Exception):
            logger.error("%s failed for upload %s", name, session.pk, exc_info=response)
            failures.append(f"{name}: {response!r}")
    return failures


class _OwnThread(ThreadSensitiveContext):
    """A thread for the sync receivers of one signal. Unlike asgiref's own, it is not waited for where one hangs."""

    async def __aenter__(self) -> _OwnThread:
        await super().__aenter__()  # type: ignore[no-untyped-call]  # asgiref's
        self._thread = DaemonExecutor(1, "async-upload-receiver")
        SyncToAsync.context_to_thread_executor[self] = self._thread
        return self

    async def __aexit__(self, *exc: Any) -> None:
        SyncToAsync.context_to_thread_executor.pop(self, None)
        await super().__aexit__(*exc)  # type: ignore[no-untyped-call]  # asgiref's
        try:
            if self._thread.is_alive:
                closing = self._thread.submit(connections.close_all)
                if exc[0] is None:
                    await asyncio.wrap_future(closing)
        finally:
            self._thread.shutdown(wait=False)
