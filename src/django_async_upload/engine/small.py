"""Small files whose CREATE, bytes and FINISH were received together: they are written and published in groups.

Separate transactions and thread hops would dominate the cost of thousands of small files. (Rule: transitions that
no answer to a client has named may share one transaction.) The steps are those of every publication; only the row is
created in the first of them. A file that is unusual, or fails, falls back to the normal path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import FileSystemStorage

from .. import signals
from ..concurrency.turns import Turns
from ..exceptions import ConnectionRefused, KeyReused, NotFound, UploadError, UploadRefused
from ..failpoints import failpoint
from ..models import UploadSession
from ..sessions.owners import Owner
from ..sessions.state import State
from ..stores.base import Checkpoint, Piece
from .active import ActiveUpload
from .publish import Finalization, Publisher
from .runtime import Runtime
from .verify import Hooks

logger = logging.getLogger("django_async_upload")

MAX_GROUP: Final = 256
GROUP_SECONDS: Final = 0.005
"""Seconds that a group waits for more files, and again as long as it grew by half meanwhile."""


@dataclass(slots=True, eq=False)
class SmallFile:
    """A file that was received as a whole."""

    session: UploadSession
    owner: Owner
    pieces: Sequence[Piece]
    crc32c: str | None
    """The CRC that the client sent, if any."""
    name: str
    """To publish under, where it is free."""
    finalization: Finalization | None = None
    """Set once the file was written and matches the client's CRC."""
    published: asyncio.Future[bool] = field(default_factory=asyncio.Future)


class SmallFiles:
    """Collects small files while earlier ones are written, and publishes them together."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._publisher = Publisher(runtime)
        self._waiting: Turns[SmallFile] = Turns()
        self._draining: asyncio.Task[None] | None = None

    def takes(self, session: UploadSession, upload: ActiveUpload, hooks: Hooks) -> bool:
        """Whether the file was received as a whole, and needs nothing that only the normal path does."""
        return (
            upload.facts is not None
            and upload.facts.size == session.size
            and not session.is_partial
            and not hooks.inspects
            and not hooks.get_taps(session)
            and self._runtime.store.supports_path
            and isinstance(session.get_storage(), FileSystemStorage)
            and not signals.upload_started.has_listeners(UploadSession)
            and not signals.chunk_received.has_listeners(UploadSession)
        )

    async def publish(self, file: SmallFile) -> bool:
        """Publish a file in the next group; returns whether it completed.

        If not, nothing happened, and the caller takes the normal path. Raises the error that refuses the upload.
        """
        self._waiting.add(file.owner.key, file)
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await file.published

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                group = self._waiting.take(MAX_GROUP)
                try:
                    await self._publish(group)
                except Exception as error:  # the normal path reports it for each file
                    logger.warning(
                        "Small files are published one by one, because a group failed: %r", error
                    )
                for file in group:
                    if not file.published.done():
                        file.published.set_result(False)
        finally:
            # Not in a callback of the task, since a file added before it ran would wait for ever.
            self._draining = None

    async def _gather(self) -> None:
        """Wait while more files arrive. A file that waits alone is published at once."""
        known = 1
        while known * 3 // 2 < len(self._waiting) < MAX_GROUP:
            known = len(self._waiting)
            await asyncio.sleep(GROUP_SECONDS)

    async def _publish(self, group: Sequence[SmallFile]) -> None:
        store = self._runtime.store
        try:
            await store.run(self._write, group)
            failpoint("small.after_write")
            items = [file.finalization for file in group if file.finalization is not None]
            if items:
                await self._publisher.publish(items)
        finally:
            left = [
                file.finalization
                for file in group
                if file.finalization is not None and file.finalization.event is None
            ]
            if left:
                await store.run(self._close, left)
        for file in group:
            item = file.finalization
            if item is None:
                continue
            if item.event is not None:
                self._runtime.outbox.deliver(item.event)
                self._runtime.telemetry.count("bytes.received", file.session.size or 0)
                self._runtime.telemetry.count("uploads.completed")
                file.published.set_result(True)
            elif isinstance(item.error, UploadRefused | KeyReused | ConnectionRefused | NotFound):
                file.published.set_exception(item.error)

    def _write(self, group: Sequence[SmallFile]) -> None:
        """Write a part for each file that matches the client's CRC."""
        for file in group:
            # The normal path gets the same error, and reports it.
            with contextlib.suppress(UploadError, SuspiciousFileOperation):
                self._write_one(file)

    def _write_one(self, file: SmallFile) -> None:
        session = file.session
        writer = self._runtime.store.create(None)
        try:
            good = writer.append(file.pieces) if file.pieces else 0
            if (
                good == len(file.pieces)
                and writer.received == session.size
                and file.crc32c in (None, f"{writer.crc:08x}")
            ):
                file.finalization = Finalization(
                    session, writer, file.name, file.owner, is_new=True
                )
        finally:
            if file.finalization is None:
                writer.close()
                self._runtime.store.delete(writer.part)

    def _close(self, items: Sequence[Finalization]) -> None:
        """Close the parts, and delete those that no row names: the normal path creates new ones."""
        for item in items:
            item.writer.close()
            if item.is_new:
                self._runtime.store.delete(item.writer.part)
                session = item.session
                session.state, session.stored_as = State.CREATED, ""
                session.checkpoint = Checkpoint("")
