"""A process recovers publications and completions that others left; nothing stops it, and it misses none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import FileSystemStorage
from django.db import ProgrammingError, connections, models
from django.utils import timezone

from django_async_upload import signals
from django_async_upload.engine import outbox, recovery, service
from django_async_upload.engine.outcomes import Published
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import Heard, forget_service, row, run
from .test_outbox import left_behind
from .test_service import Host, begun, die_at, write

pytest_plugins = ["tests.fixtures"]

OLD = timedelta(minutes=5)


@pytest.fixture
def host(owner: Owner) -> Host:
    return Host(owner)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process looks for them twenty times a second."""
    monkeypatch.setattr(recovery, "CLAIM", timedelta(seconds=0.05))


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until an awaitable condition holds."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


async def lifeless(uploads: UploadService, owner: Owner, host: Host, patch: Any) -> UploadSession:
    """An upload in ``finalizing``, whose process died five minutes ago."""
    session = await die_at(uploads, owner, host, "before the link", patch)
    await UploadSession.objects.filter(pk=session.pk).aupdate(updated_at=timezone.now() - OLD)
    return session


def is_completed(session: UploadSession) -> Callable[[], Any]:
    async def look() -> bool:
        # The last heartbeat of the process that "died" may be written a moment after its death.
        rows = UploadSession.objects.filter(pk=session.pk, state=State.FINALIZING)
        return not await rows.aupdate(updated_at=timezone.now() - OLD)

    return look


def is_delivered(event: CompletionEvent) -> Callable[[], Any]:
    async def look() -> bool:
        return (
            await CompletionEvent.objects.exclude(delivered_at=None).filter(pk=event.pk).aexists()
        )

    return look


async def test_nothing_that_it_meets_stops_a_process_from_looking_again(
    uploads: UploadService,
    owner: Owner,
    heard: Heard,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    event = await run(left_behind, owner)
    claim_due, attempts = outbox.claim_due, []

    def failing(items: Any) -> Any:
        attempts.append(items)
        if len(attempts) == 1:
            raise ProgrammingError("a statement that the database does not understand")
        if len(attempts) == 2:
            raise ZeroDivisionError("a bug")
        return claim_due(items)

    monkeypatch.setattr(outbox, "claim_due", failing)
    uploads.start()
    await eventually(is_delivered(event))
    assert "a bug" in caplog.text
    assert "does not understand" in caplog.text


async def test_a_process_whose_look_was_ended_begins_again_with_the_next_connection(
    uploads: UploadService, owner: Owner, heard: Heard, connect: Callable[..., UploadCommunicator]
) -> None:
    uploads.start()
    watching = uploads._recovery._watching
    assert watching is not None
    watching.cancel()
    await asyncio.wait({watching})
    event = await run(left_behind, owner)
    async with connect():
        await eventually(is_delivered(event))


# Slow and broken storages --------------------------------------------------------------------------


class SlowStorage(FileSystemStorage):
    """A copy into it ends when it may."""

    began = threading.Event()
    may_end = threading.Event()

    def _save(self, name: str, content: Any) -> str:
        self.began.set()
        self.may_end.wait(60)
        return super()._save(name, content)  # type: ignore[no-any-return, misc]  # not in the stubs


class BrokenStorage(FileSystemStorage):
    def _save(self, name: str, content: Any) -> str:
        raise PermissionError("this storage is broken")


@pytest.fixture
def media(media: Path, settings: Any) -> Path:
    """With the storages ``slow`` and ``broken``."""
    SlowStorage.began.clear()
    SlowStorage.may_end.clear()
    settings.STORAGES = {
        **settings.STORAGES,
        "slow": {"BACKEND": f"{__name__}.SlowStorage"},
        "broken": {"BACKEND": f"{__name__}.BrokenStorage"},
    }
    return media


@asynccontextmanager
async def slowly_completing(
    uploads: UploadService, owner: Owner, host: Host
) -> AsyncIterator[asyncio.Task[UploadSession]]:
    """An upload whose publication does not end before the block does."""
    async with begun(uploads, owner, b"slow", storage="slow") as upload:
        done = await write(upload, b"slow")
        completing = asyncio.create_task(uploads.complete(upload, done, host))
        await asyncio.to_thread(SlowStorage.began.wait, 30)
        try:
            yield completing
        finally:
            SlowStorage.may_end.set()
        assert isinstance(await completing, Published)


async def test_a_slow_copy_of_its_own_stops_neither_recovery_nor_delivery(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    heard: Heard,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with slowly_completing(uploads, owner, host) as completing:
        pk = (await UploadSession.objects.aget(state=State.FINALIZING)).pk
        await UploadSession.objects.filter(pk=pk).aupdate(updated_at=timezone.now() - OLD)
        uploads.start()
        left = await lifeless(uploads, owner, host, monkeypatch)
        event = await run(left_behind, owner)
        await eventually(is_completed(left))
        await eventually(is_delivered(event))
        assert not completing.done()


async def test_a_slow_copy_that_another_process_left_stops_neither(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    heard: Heard,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = await lifeless(uploads, owner, host, monkeypatch)
    await UploadSession.objects.aupdate(storage="slow")
    uploads.start()
    await asyncio.to_thread(SlowStorage.began.wait, 30)
    try:
        left = await lifeless(uploads, owner, host, monkeypatch)
        event = await run(left_behind, owner)
        await eventually(is_completed(left))
        await eventually(is_delivered(event))
        assert (await row(slow.pk)).state == State.FINALIZING
    finally:
        SlowStorage.may_end.set()
    await eventually(is_completed(slow))


async def test_a_hanging_receiver_does_not_stop_recovery(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hanging, released = asyncio.Event(), asyncio.Event()

    async def receiver(**kwargs: Any) -> None:
        hanging.set()
        await released.wait()

    signals.upload_completed.connect(receiver)
    try:
        await run(left_behind, owner)
        uploads.start()
        await asyncio.wait_for(hanging.wait(), 30)
        left = await lifeless(uploads, owner, host, monkeypatch)
        await eventually(is_completed(left))
    finally:
        released.set()
        signals.upload_completed.disconnect(receiver)


async def test_publications_that_always_fail_hide_no_other(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    heard: Heard,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = await lifeless(uploads, owner, host, monkeypatch)
    failing = [await lifeless(uploads, owner, host, monkeypatch) for _ in range(25)]
    await UploadSession.objects.exclude(pk=left.pk).aupdate(storage="broken")
    # All of them waited longer than the good one, and were made later.
    longer = timezone.now() - 2 * OLD
    await UploadSession.objects.exclude(pk=left.pk).aupdate(updated_at=longer)
    uploads.start()
    await eventually(is_completed(left))

    def reports() -> int:
        return sum("could not be published" in each.getMessage() for each in caplog.records)

    async with asyncio.timeout(30):
        while reports() < len(failing):
            await asyncio.sleep(0.01)
    assert reports() == len(failing)  # each once, and not with every look
    assert "this storage is broken" in caplog.text


async def test_what_failed_rests_before_it_is_tried_again(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await lifeless(uploads, owner, host, monkeypatch)
    await UploadSession.objects.aupdate(storage="broken")
    own = uploads._recovery
    for _ in range(3):
        await UploadSession.objects.aupdate(updated_at=timezone.now() - OLD)
        await own._recover_abandoned()
        while own._recovering:
            await asyncio.sleep(0.01)
    assert caplog.text.count("could not be published") == 1


async def test_slow_copies_however_many_stop_no_delivery(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    heard: Heard,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "RECOVERIES", 1)
    slow = await lifeless(uploads, owner, host, monkeypatch)
    await UploadSession.objects.aupdate(storage="slow")
    uploads.start()
    await asyncio.to_thread(SlowStorage.began.wait, 30)
    try:
        await eventually(is_delivered(await run(left_behind, owner)))
    finally:
        SlowStorage.may_end.set()
    await eventually(is_completed(slow))


async def test_a_process_gives_a_sign_of_life_for_what_it_publishes(
    uploads: UploadService, owner: Owner, host: Host, heard: Heard
) -> None:
    async with slowly_completing(uploads, owner, host):
        await UploadSession.objects.aupdate(updated_at=timezone.now() - OLD)
        await uploads._recovery._touch_publishing()
        session = await UploadSession.objects.aget(state=State.FINALIZING)
        assert session.updated_at > timezone.now() - OLD / 2


async def test_what_one_process_publishes_another_one_leaves_alone(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    heard: Heard,
    often: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two services: as two workers with one database and one folder."""
    monkeypatch.setattr(recovery, "STUCK_SECONDS", 2.0)
    other = UploadService()
    try:
        async with slowly_completing(uploads, owner, host):
            uploads.start()
            other.start()
            begun = timezone.now()

            async def lives_on() -> bool:
                publishing = await UploadSession.objects.aget(state=State.FINALIZING)
                return publishing.updated_at > begun + timedelta(seconds=1)

            await eventually(lives_on)
            assert not other._recovery._recovering
    finally:
        await other.close()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_closing_does_not_wait_for_ever_for_an_inspection(
    uploads: UploadService, owner: Owner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CLOSE_SECONDS", 0.2)
    host.inspects = True
    host.released.clear()

    async def complete() -> None:
        async with begun(uploads, owner, b"data") as upload:
            await uploads.complete(upload, await write(upload, b"data"), host)

    completing = asyncio.create_task(complete())
    await asyncio.wait_for(host.inspecting.wait(), 30)
    async with asyncio.timeout(30):
        await forget_service()
    host.released.set()
    await asyncio.wait({completing})


# A replica that is behind --------------------------------------------------------------------------


class ReadsFromReplica:
    """The router of a site whose reads go to a replica."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str | None:
        return "replica" if model._meta.app_label == "async_upload" else None

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str | None:
        return "default"


async def test_uploads_do_not_ask_a_replica_that_may_be_behind(
    connect: Callable[..., UploadCommunicator],
    heard: Heard,
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here it is so far behind that it has no tables."""
    replica = {
        **connections["default"].settings_dict,
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "replica.sqlite3"),
        "OPTIONS": {},
    }
    monkeypatch.setitem(connections.databases, "replica", replica)
    settings.DATABASE_ROUTERS = [f"{__name__}.ReadsFromReplica"]
    async with connect() as client:
        completed = await client.upload("a.bin", b"data")
        await client.send(m.Query(completed.upload), 7)
        status = await client.wait_for(m.Status, 7)
        assert status.state == State.COMPLETED
        again = await client.upload("b.bin", b"more data")
        assert again.size == 9
    await get_service().outbox.join()
    assert len(heard.named("completed")) == 2
