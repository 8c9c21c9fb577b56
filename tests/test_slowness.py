"""A minimum rate: who sends less loses the stream, not the upload; who waits for the server does not."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.exceptions import TooSlow
from django_async_upload.sessions.owners import Owner
from django_async_upload.stores.base import Piece

from .fixtures import KIB, row
from .test_active import until
from .test_service import attached, begun, feed, write

pytest_plugins = ["tests.fixtures"]


@pytest.fixture
async def uploads(uploads: UploadService, settings: Any) -> UploadService:
    settings.ASYNC_UPLOAD = {"MIN_RATE": 10 * KIB, "IDLE_TIMEOUT": 0.2}
    return get_service()


async def test_a_client_that_is_too_slow_loses_the_stream_and_may_come_back(
    uploads: UploadService, owner: Owner
) -> None:
    data = os.urandom(64 * KIB)
    async with begun(uploads, owner, data) as upload:
        feed(upload, data[:KIB])
        with pytest.raises(TooSlow) as caught:
            await asyncio.wait_for(upload.write(), 5)
        await upload.interrupt()
    assert (caught.value.code, caught.value.retryable) == ("too_slow", True)
    assert caught.value.facts == {"min_rate": 10 * KIB, "retry_after": 5.0}
    assert (await row(upload.session.pk)).durable == KIB
    async with attached(uploads, owner, upload.session.pk) as again:
        assert (await write(again, data, KIB)).size == len(data)


async def test_a_client_that_is_fast_enough_is_left_alone(
    uploads: UploadService, owner: Owner
) -> None:
    async with begun(uploads, owner, None) as upload:
        writing = asyncio.create_task(upload.write())
        for _ in range(12):
            upload.append(Piece(bytes(2 * KIB)))
            await asyncio.sleep(0.05)
        assert not writing.done()
        upload.release()
        await writing


async def test_an_upload_that_waits_for_the_disk_or_for_credit_is_not_slow(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uploads.store.run
    free = asyncio.Event()

    async def run_when_free(*call: Any) -> Any:
        await free.wait()
        return await run(*call)

    async with begun(uploads, owner, None) as upload:
        monkeypatch.setattr(uploads.store, "run", run_when_free)
        writing = asyncio.create_task(upload.write())
        upload.append(Piece(bytes(KIB)))
        await until(lambda: not upload.queue.pieces)  # the disk has them
        upload.append(Piece(bytes(KIB)))
        await asyncio.sleep(0.5)
        free.set()
        await until(lambda: upload.flow.received == 2 * KIB)
        upload.flow.limit = upload.flow.received
        await asyncio.sleep(0.5)
        assert not writing.done()
        upload.release()
        await writing


async def test_a_client_has_time_to_prove_its_file(uploads: UploadService, owner: Owner) -> None:
    async with begun(uploads, owner, None) as upload:
        await asyncio.sleep(0.5)
        upload.release()
        await upload.write()
