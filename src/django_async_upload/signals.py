"""The signals a host subscribes to. They observe: no receiver can change or break an upload.

All are sent with ``sender=UploadSession`` and ``session``, the :class:`~.models.UploadSession`. Receivers
may be sync or async. One that raises is logged with the session's id.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.dispatch import Signal

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

Sent after the commit, at least once: a receiver that ran before a crash runs again with the same
``event_id``.
"""

upload_failed = Signal()
"""The upload is over. Arguments: ``error``, an :class:`~.exceptions.UploadError`."""

upload_cancelled = Signal()
"""The client, or somebody in the admin, threw the upload away."""

upload_expired = Signal()
"""Nothing came for too long and the upload was purged, or somebody in the admin did not wait for that."""


async def send(signal: Signal, session: Any, **arguments: Any) -> None:
    """Call the receivers, each sync one in a thread that nothing else waits for; log what they raise.

    Returns when all have ended. Costs nothing without receivers.
    """
    if not signal.has_listeners(type(session)):
        return
    # A task of its own: a receiver that cancels "its" task cancels this one, not the upload's.
    sending = asyncio.create_task(_send(signal, session, arguments))
    try:
        await asyncio.wait({sending})
    except asyncio.CancelledError:
        sending.cancel()
        raise
    if sending.cancelled():
        logger.error("A receiver for upload %s was cancelled", session.pk)
    elif error := sending.exception():
        logger.error("Receivers for upload %s failed", session.pk, exc_info=error)


async def _send(signal: Signal, session: Any, arguments: dict[str, Any]) -> None:
    # Seen: sync receivers in the shared thread delayed another upload's UPDATE by a second.
    async with ThreadSensitiveContext() as context:
        try:
            responses = await signal.asend_robust(type(session), session=session, **arguments)
        finally:
            if context in SyncToAsync.context_to_thread_executor:  # a sync receiver made the thread
                await sync_to_async(connections.close_all)()
    for receiver, response in responses:
        if isinstance(response, Exception):
            name = getattr(receiver, "__qualname__", repr(receiver))
            logger.error("%s failed for upload %s", name, session.pk, exc_info=response)
