"""Two services with one database and one folder, as of two workers, and an upload that one takes from the other."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from django_async_upload.engine.active import ActiveUpload
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import (
    UploadError,
    UploadOver,
)
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.values import UploadAccess
from django_async_upload.stores.folder import Folder

from .test_service import RecordingListener, begun, feed


@pytest.fixture
async def other(uploads: UploadService) -> AsyncIterator[UploadService]:
    """The service of another worker."""
    other = UploadService()
    yield other
    await other.close()
    assert not other.budget.accounts
    assert not other.active


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of which a holder made a copy."""
    copied: list[str] = []
    copy = Folder.copy

    def recorded(folder: Folder, source: Any, *args: Any) -> Any:
        copied.append(source.name)
        return copy(folder, source, *args)

    monkeypatch.setattr(Folder, "copy", recorded)
    return copied


@asynccontextmanager
async def holding(
    uploads: UploadService, owner: Owner, data: bytes, sent: int, **fields: Any
) -> AsyncIterator[tuple[ActiveUpload, asyncio.Task[None]]]:
    """An upload with ``sent`` bytes whose client sends no more, and the task that holds it, as an attachment does."""
    held: asyncio.Future[ActiveUpload] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with begun(uploads, owner, data, **fields) as upload:
            await upload.reserve()
            feed(upload, data[:sent])
            held.set_result(upload)
            try:
                await upload.write()
            except UploadError:
                await upload.interrupt()
                raise

    holder = asyncio.create_task(hold())
    await asyncio.wait({holder, held}, return_when=asyncio.FIRST_COMPLETED)
    upload = await held
    while upload.flow.received < sent:
        await asyncio.sleep(0.001)
    try:
        yield upload, holder
    finally:
        upload.release()
        await asyncio.wait({holder}, timeout=10)
        assert holder.done()
        holder.exception()


async def attach_and_leave(uploads: UploadService, owner: Owner, pk: uuid.UUID) -> object:
    upload = ActiveUpload(uploads, RecordingListener(), "user:1")
    try:
        return await uploads.attach(upload, UploadAccess(pk, owner, "default"))
    finally:
        await uploads.leave(upload)


async def cancel_elsewhere(
    uploads: UploadService, other: UploadService, owner: Owner, seconds: float
) -> None:
    """A cancel at one worker stops the holder at another, within so many seconds."""
    async with holding(uploads, owner, b"data" * 5000, 4) as (upload, holder):
        await other.cancel(UploadAccess(upload.session.pk, owner, "default"))
        with pytest.raises(UploadOver):
            await asyncio.wait_for(holder, seconds)
        assert not uploads.active
