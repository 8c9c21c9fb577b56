"""Recovery of what crashed processes left: publications in ``finalizing``, and completions not delivered."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ..exceptions import Busy, UploadError, UploadFailed
from ..models import UploadSession
from ..notices import about, notice
from ..sessions import rows
from ..sessions.values import CLAIM, AbandonedQuery
from .completion import Completions
from .endings import Endings
from .runtime import Runtime

logger = logging.getLogger("django_async_upload")

STUCK_SECONDS: Final = 60.0
"""Seconds of inactivity in ``finalizing`` after which an upload is recovered: its process may have crashed."""
RECOVERIES: Final = 4
"""Publications of crashed processes that one process resumes at the same time."""
LONGEST_REST: Final = 3600.0
"""Longest pause, in seconds, between attempts to publish an upload that fails repeatedly."""


class Recovery:
    """Every ten seconds, resumes publications and delivers completions that crashed processes left."""

    def __init__(self, runtime: Runtime, completions: Completions, endings: Endings) -> None:
        self._runtime = runtime
        self._completions = completions
        self._endings = endings
        self._watching: asyncio.Task[None] | None = None
        self._recovering_task: asyncio.Task[None] | None = None
        self._recovering: dict[uuid.UUID, asyncio.Task[Any]] = {}
        self._resting: dict[uuid.UUID, tuple[float, int]] = {}
        """Uploads whose publication failed: the (monotonic) time of the next attempt, and the number of failures."""

    def start(self) -> None:
        """Start, unless it is running."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    def stop(self) -> list[asyncio.Task[Any]]:
        """Recover nothing more; returns the tasks that still publish."""
        for task in (self._watching, self._recovering_task):
            if task is not None:
                task.cancel()
        return list(self._recovering.values())

    async def _watch(self) -> None:
        """Look for work regularly, without waiting for deliveries or publications: a slow one delays only itself."""
        while True:
            await self._log_errors(self._runtime.outbox.claim_and_deliver)
            await self._log_errors(self._touch_publishing)
            if self._recovering_task is None or self._recovering_task.done():
                self._recovering_task = asyncio.create_task(
                    self._log_errors(self._recover_abandoned)
                )
            await asyncio.sleep(CLAIM.total_seconds())

    async def _log_errors(self, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await look()
        except UploadError as error:
            notice(
                "recovery",
                logging.WARNING,
                "Uploads and completions of crashed processes could not be read: %s",
                error,
                code=error.code,
            )
        except Exception:  # a bug, or an error of the database: the next look may succeed
            logger.exception("The recovery of what crashed processes left failed")

    async def _touch_publishing(self) -> None:
        """Mark the uploads that this process publishes as active, so that other processes leave them alone."""
        if busy := self._completions.publishing:
            await self._runtime.database.call_many(rows.touch, busy)

    async def _recover_abandoned(self) -> None:
        old = time.monotonic() - 2 * LONGEST_REST  # not retried for long: the upload is gone
        self._resting = {pk: rest for pk, rest in self._resting.items() if rest[0] > old}
        while True:
            while (room := RECOVERIES - len(self._recovering)) <= 0:
                await asyncio.wait(self._recovering.values(), return_when=asyncio.FIRST_COMPLETED)
            wanted = AbandonedQuery(STUCK_SECONDS, room)
            sessions = await self._runtime.database.call(rows.find_abandoned, wanted)
            for session in sessions:
                rests = self._resting.get(session.pk, (0.0, 0))[0] > time.monotonic()
                if not rests and session.pk not in self._recovering:
                    task = asyncio.create_task(self._recover(session))
                    self._recovering[session.pk] = task
            if len(sessions) < room:
                return

    async def _recover(self, session: UploadSession) -> None:
        """Resume a publication; after a failure the upload is retried, each time after twice as long."""
        try:
            await self._completions.recover(session)
        except Busy:  # another process is publishing it
            logger.debug("Upload %s is published by another process", session.pk)
        except UploadFailed as error:
            extra = about(session, code=error.code)
            logger.error("Upload %s has failed: %s", session.pk, error, extra=extra)
        except Exception as error:  # also of the host's storage: other uploads may succeed
            failures = self._resting.get(session.pk, (0.0, 0))[1] + 1
            rest = min(STUCK_SECONDS * 2**failures, LONGEST_REST)
            self._resting[session.pk] = (time.monotonic() + rest, failures)
            logger.error(
                "Upload %s could not be published; retrying in %.0f s: %r",
                session.pk,
                rest,
                error.__cause__ or error,
                exc_info=None if isinstance(error, UploadError) else error,
                extra=about(session, code=getattr(error, "code", "internal_error")),
            )
            if isinstance(error, UploadError):
                await self._endings.note(session, error)
        else:
            self._runtime.telemetry.count("uploads.recovered")
            self._resting.pop(session.pk, None)
        finally:
            del self._recovering[session.pk]
