"""Ending uploads without a file (failed, cancelled, expired), and discarding completed ones."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress

from .. import signals
from ..exceptions import InternalError, Joined, StorageFailed, StorageFull, UploadError
from ..failpoints import failpoint
from ..models import UploadSession
from ..notices import about
from ..sessions import rows
from ..sessions.holds import put_aside
from ..sessions.state import OVER, State
from ..sessions.values import Ending, UploadProblem
from .active import ActiveUpload
from .outcomes import End, end_of
from .runtime import Runtime

logger = logging.getLogger("django_async_upload")


class Endings:
    """Ends uploads on behalf of clients and of the server itself."""

    def __init__(self, runtime: Runtime, active: Mapping[uuid.UUID, ActiveUpload]) -> None:
        self._runtime = runtime
        self._active = active

    async def end(
        self,
        session: UploadSession,
        to: State,
        *,
        error: UploadError | None = None,
        epoch: int | None = None,
    ) -> UploadSession:
        """End an upload and delete its part; returns it as it is now.

        Published uploads and those in publication are unchanged. With ``epoch`` raises :class:`TakenOver` for a
        holder with an older epoch.
        """
        ending = Ending(session.pk, to, error=error, epoch=epoch)
        ended, changed = await self._runtime.database.call(
            rows.end, ending, owner=session.owner_key
        )
        holder = self._active.get(session.pk)
        parts = {ended.part} if changed else set()
        if ended.state in OVER:
            self._runtime.hints.tell_holder(session.pk, rows.error_of(ended))
            if holder is not None:
                parts.add(holder.part.name)  # the row may not name the part yet
        for part in parts - {""}:
            await self._runtime.store.run(self._runtime.store.delete, part)
        failpoint("end.after_unlink")
        if not changed or isinstance(error, Joined):
            return ended
        self._runtime.telemetry.count("uploads.ended", state=str(to))
        if to is State.CANCELLED:
            await signals.send(signals.upload_cancelled, ended)
        elif to is State.FAILED:
            await signals.send(signals.upload_failed, ended, error=rows.error_of(ended))
        failpoint("end.after_signal")
        return ended

    async def fail(self, session: UploadSession, error: UploadError) -> None:
        """Fail an upload with an error, on behalf of its holder."""
        await self.end(session, State.FAILED, error=error, epoch=session.epoch)

    async def note(self, session: UploadSession, error: UploadError) -> None:
        """Store an error in the row, for the admin, although the upload has not ended. Raises nothing."""
        if isinstance(error, StorageFailed | StorageFull | InternalError):
            with suppress(UploadError):
                trouble = UploadProblem(session.pk, session.epoch, error)
                await self._runtime.database.call(rows.note_error, trouble, owner=session.owner_key)

    async def discard(self, session: UploadSession) -> End:
        """Cancel a completed upload, and delete its file.

        An upload that is bound, or that a request holds, stays published. Raises :class:`NotFound`.
        """
        discarded, changed = await self._runtime.database.call(
            rows.discard, session.pk, owner=session.owner_key
        )
        if changed:
            await self._withdraw(discarded)
            failpoint("discard.before_signal")
            await signals.send(signals.upload_cancelled, discarded)
            failpoint("discard.after_signal")
        return end_of(discarded)

    async def _withdraw(self, session: UploadSession) -> None:
        loop = asyncio.get_running_loop()
        runtime = self._runtime
        try:
            aside = await loop.run_in_executor(runtime.copies, put_aside, session)
            await runtime.database.call(rows.mark_withdrawn, session.pk, owner=session.owner_key)
            failpoint("discard.before_unlink")
            if aside is not None:
                await runtime.store.run(os.unlink, aside)
            failpoint("discard.after_unlink")
        except Exception:  # of the host's storage: the purge retries
            logger.exception(
                "The file of upload %s could not be deleted", session.pk, extra=about(session)
            )
