"""No orphans: deletion takes files along, but never a host's; the purge deletes what is no longer needed."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from django.core.files.base import ContentFile
from django.db import OperationalError, connection, transaction
from django.db.models import ProtectedError
from django.utils import timezone

from django_async_upload import signals
from django_async_upload.binding.linked import CompletedUpload
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import UploadOver
from django_async_upload.models import Tombstone, UploadSession, Usage
from django_async_upload.operations import cleanup
from django_async_upload.protocol import messages as m
from django_async_upload.sessions import holds, rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.stores.configured import make_store
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, MIB, Heard, crc, new_key, publish, row, run, settled
from .models import Document

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

LONG_AGO = timedelta(days=2)
on_a_server = pytest.mark.skipif(connection.vendor == "sqlite", reason="servers have clocks")


def part(staging: Path, data: bytes = b"part", *, age: timedelta = timedelta()) -> str:
    """A part in the staging folder: its name."""
    store = make_store()
    writer = store.create(None)
    writer.write([memoryview(data)])
    writer.close()
    store.close()
    then = time.time() - age.total_seconds()
    os.utime(staging / writer.part, (then, then))
    return writer.part


def unfinished(owner: Owner, part: str, **fields: Any) -> UploadSession:
    return UploadSession.objects.create(
        **{
            "key": new_key(),
            "endpoint": "default",
            "owner_id": owner.user_id,
            "owner_key": owner.key,
            "name": "a.bin",
            "part": part,
            "durable": 4,
            "crc": crc32c(b"part"),
            "state": State.UPLOADING,
            "expires_at": timezone.now() + LONG_AGO,
            **fields,
        }
    )


def parts(staging: Path) -> set[str]:
    return set(os.listdir(staging)) if staging.is_dir() else set()


async def test_an_upload_that_woke_since_the_purge_looked_does_not_expire(
    uploads: UploadService, owner: Owner
) -> None:
    asleep = await run(unfinished, owner, "", expires_at=timezone.now() - LONG_AGO)
    await UploadSession.objects.filter(pk=asleep.pk).aupdate(expires_at=timezone.now() + LONG_AGO)
    assert not await run(cleanup._expire, asleep, uploads.store)
    assert (await row(asleep.pk)).state == State.UPLOADING


# Deletion -----------------------------------------------------------------------------------------


async def test_a_file_that_was_bound_behind_the_back_of_a_deletion_is_the_hosts(
    uploads: UploadService, owner: Owner, media: Path
) -> None:
    session = await run(publish, owner)
    stale = await row(session.pk)
    await UploadSession.objects.filter(pk=session.pk).aupdate(state=State.BOUND)
    await run(stale.delete)
    assert (media / session.stored_as).exists()


def test_a_deleted_session_takes_its_part_along(owner: Owner, staging: Path) -> None:
    session = unfinished(owner, part(staging))
    session.delete()
    assert not parts(staging)


def test_the_file_of_a_deleted_session_is_deleted_by_the_purge_if_the_process_died(
    owner: Owner, media: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = publish(owner)
    with monkeypatch.context() as died:
        died.setattr(cleanup, "_delete_files", lambda part, tombstone: None)
        session.delete()
    published = media / session.stored_as
    assert published.exists()
    cleanup.purge()
    assert (
        published.exists()
    )  # the process may be about to delete it, and its name may be another file's then
    Tombstone.objects.update(created_at=timezone.now() - holds.HOLD - timedelta(seconds=1))
    cleanup.purge(dry_run=True)
    assert published.exists()
    cleanup.purge()
    assert not published.exists()
    assert not parts(staging)
    assert not Tombstone.objects.exists()


def test_a_deleted_session_leaves_no_tombstone(owner: Owner, media: Path) -> None:
    for state in (State.COMPLETED, State.BOUND, State.CANCELLED):
        publish(owner, state=state)
    UploadSession.objects.all().delete()
    assert not Tombstone.objects.exists()


def test_a_deleted_session_takes_its_published_file_along(owner: Owner, media: Path) -> None:
    session = publish(owner)
    assert (media / session.stored_as).exists()
    session.delete()
    assert not (media / session.stored_as).exists()


def test_a_deleted_user_leaves_nothing_behind(
    owner: Owner, alice: Any, media: Path, staging: Path
) -> None:
    unfinished(owner, part(staging))
    stored_as = publish(owner).stored_as
    alice.delete()
    assert not parts(staging)
    assert not (media / stored_as).exists()
    assert not UploadSession.objects.exists()


def test_a_bound_file_is_the_hosts_and_stays(owner: Owner, alice: Any, media: Path) -> None:
    session = publish(owner, b"mine", "a.bin")
    with transaction.atomic():
        document = Document.objects.create(attachment=session.bind())
    # The name is free again, and another user's next file may get it.
    assert publish(owner, b"theirs", "a.bin").stored_as == session.stored_as
    UploadSession.objects.get(pk=session.pk).delete()
    assert document.attachment.read() == b"mine"
    assert (media / session.stored_as).read_bytes() == b"theirs"
    alice.delete()
    assert Document.objects.get().attachment.read() == b"mine"


def test_a_deletion_that_is_rolled_back_deletes_no_file(
    owner: Owner, media: Path, staging: Path
) -> None:
    begun, published = unfinished(owner, part(staging)), publish(owner)
    with transaction.atomic():
        UploadSession.objects.all().delete()
        transaction.set_rollback(True)
    assert parts(staging) == {begun.part}
    assert (media / published.stored_as).exists()


# Purge --------------------------------------------------------------------------------------------


def test_the_purge_expires_what_gave_no_sign_of_life(
    owner: Owner, staging: Path, heard: Heard
) -> None:
    now = timezone.now()
    old = unfinished(owner, part(staging), expires_at=now - timedelta(seconds=1))
    live = unfinished(owner, part(staging))
    lines: list[str] = []
    done = cleanup.purge(log=lines.append)
    assert (done.sessions, done.parts, done.bytes) == (1, 1, 4)
    assert parts(staging) == {live.part}
    old.refresh_from_db()
    live.refresh_from_db()
    assert (old.state, old.epoch, old.part) == (State.EXPIRED, 2, "")
    assert (live.state, live.epoch) == (State.UPLOADING, 1)
    assert [arguments["session"].pk for arguments in heard.named("expired")] == [old.pk]
    assert str(old.pk) in lines[0]
    assert cleanup.purge() == cleanup.Purge()


def test_the_purge_deletes_parts_that_no_session_names_when_they_are_old(
    owner: Owner, staging: Path
) -> None:
    orphan = part(staging, b"orphan", age=LONG_AGO)
    young = part(staging)
    known = unfinished(owner, part(staging, age=LONG_AGO)).part
    done = cleanup.purge()
    assert (done.sessions, done.parts, done.bytes) == (0, 1, 6)
    assert parts(staging) == {young, known}
    assert orphan not in parts(staging)


def test_the_purge_leaves_a_part_that_is_open_however_old_it_seems(db: None, staging: Path) -> None:
    """Its row is not written yet, and a clock is wrong."""
    store = make_store()
    writer = store.create(None)
    os.utime(staging / writer.part, (0, 0))
    assert cleanup.purge().parts == 0
    assert parts(staging) == {writer.part}
    writer.close()
    assert cleanup.purge().parts == 1
    store.close()


def test_the_purge_leaves_a_file_that_a_form_is_about_to_take(owner: Owner, media: Path) -> None:
    then = timezone.now() - LONG_AGO
    session = publish(owner, completed_at=then, expires_at=timezone.now() + timedelta(minutes=1))
    assert cleanup.purge(unbound_after=timedelta()).sessions == 0
    assert session.file.read() == b"hello"
    UploadSession.objects.update(expires_at=None)
    assert cleanup.purge(unbound_after=timedelta()).sessions == 1
    assert not session.get_storage().exists(session.stored_as)


def test_a_dry_run_tells_the_same_and_changes_nothing(
    owner: Owner, staging: Path, heard: Heard
) -> None:
    part(staging, age=LONG_AGO)
    old = unfinished(owner, part(staging), expires_at=timezone.now() - LONG_AGO)
    before = parts(staging)
    told = cleanup.purge(dry_run=True)
    assert parts(staging) == before
    old.refresh_from_db()
    assert (old.state, old.epoch) == (State.UPLOADING, 1)
    assert not heard
    assert cleanup.purge() == told


def test_the_purge_leaves_finished_and_bound_files_alone(
    owner: Owner, media: Path, heard: Heard
) -> None:
    then = timezone.now() - LONG_AGO
    published = publish(owner, name="b.bin", expires_at=then)
    session = publish(owner)
    with transaction.atomic():
        document = Document.objects.create(attachment=session.bind())
    assert cleanup.purge() == cleanup.Purge()
    assert document.attachment.read() == b"hello"
    assert published.file.read() == b"hello"
    assert not heard


def test_the_purge_never_takes_a_publication(owner: Owner, staging: Path) -> None:
    then = timezone.now() - LONG_AGO
    waits = unfinished(owner, part(staging), state=State.FINALIZING, expires_at=then)
    assert cleanup.purge() == cleanup.Purge()
    assert parts(staging) == {waits.part}


async def test_a_live_upload_is_not_disturbed(
    connect: Callable[..., UploadCommunicator],
    uploads: UploadService,
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither by the part that its row does not name yet, nor by one that it does."""
    monkeypatch.setattr(cleanup, "GRACE", timedelta(seconds=-1))
    data = os.urandom(100 * KIB)
    async with connect() as client:
        stream = client.new_stream()
        await client.send(m.Create(new_key(), "a.bin", len(data)), stream)
        created = await client.wait_for(m.Created, stream)
        for _ in range(100):  # made before the first byte, and soon known
            if (await row(created.upload)).part:
                break
            await uploads.store.run(time.sleep, 0.01)
        assert await run(cleanup.purge) == cleanup.Purge()
        assert parts(staging) == {(await row(created.upload)).part}
        offset, limit = 0, created.limit
        while offset < len(data):
            stop = min(limit, len(data))
            await client.send_data(stream, offset, data[offset:stop])
            offset = stop
            if offset < len(data):
                limit = max(limit, (await client.wait_for(m.Ack, stream)).limit)
        assert await run(cleanup.purge) == cleanup.Purge()
        await client.send(m.Finish(len(data), crc(data)), stream)
        await client.wait_for(m.Completed, stream)


async def test_a_live_upload_that_expired_hears_of_it(
    connect: Callable[..., UploadCommunicator], uploads: UploadService, staging: Path
) -> None:
    data = os.urandom(MIB)
    async with connect() as client:
        stream = client.new_stream()
        await client.send(m.Create(new_key(), "a.bin", len(data)), stream)
        created = await client.wait_for(m.Created, stream)
        await client.send_data(stream, 0, data[: created.limit])
        await client.wait_for(m.Ack, stream)
        await UploadSession.objects.aupdate(expires_at=timezone.now() - timedelta(days=8))
        assert (await run(cleanup.purge)).sessions == 1
        with pytest.raises(UploadOver):
            await client.wait_for(m.Completed, stream)
    assert (await row(created.upload)).state == State.EXPIRED
    assert not parts(staging)


async def test_a_wrong_clock_ends_no_upload_that_a_client_sends(
    connect: Callable[..., UploadCommunicator],
    uploads: UploadService,
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock of the machine that purges is two days ahead."""
    data = os.urandom(MIB)

    def purge() -> cleanup.Purge:
        ahead = timedelta(days=2)
        clock = timezone.now
        with monkeypatch.context() as patch:
            patch.setattr(timezone, "now", lambda: clock() + ahead)
            patch.setattr(cleanup, "_now", lambda: clock() + ahead)
            patch.setattr(cleanup, "GRACE", -ahead)
            return cleanup.purge()

    async with connect() as client:
        stream = client.new_stream()
        await client.send(m.Create(new_key(), "a.bin", len(data)), stream)
        created = await client.wait_for(m.Created, stream)
        await client.send_data(stream, 0, data[: created.limit])
        while (await client.wait_for(m.Ack, stream)).durable < created.limit:
            pass
        assert await run(purge) == cleanup.Purge()
        assert (await row(created.upload)).state == State.UPLOADING
        await client.send(m.Release(), stream)
        await client.wait_for(m.Released, stream)
    await settled()
    assert (await run(purge)).sessions == 1  # no connection holds it


@on_a_server
def test_the_purge_goes_by_the_clock_of_the_database(
    owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = unfinished(owner, "", expires_at=timezone.now() + timedelta(hours=1))
    clock = timezone.now
    monkeypatch.setattr(timezone, "now", lambda: clock() + timedelta(days=2))
    assert cleanup.purge().sessions == 0
    session.refresh_from_db()
    assert session.state != State.EXPIRED


def test_the_purge_works_without_time_zones(
    owner: Owner, media: Path, settings: Any, staging: Path
) -> None:
    settings.USE_TZ = False
    publish(owner, completed_at=timezone.now() - LONG_AGO)
    unfinished(owner, "", expires_at=timezone.now() - LONG_AGO)
    part(staging, b"orphan", age=LONG_AGO)
    young = part(staging)
    done = cleanup.purge(unbound_after=timedelta(days=1))
    assert (done.sessions, done.parts) == (2, 1)
    assert parts(staging) == {young}


def test_the_purge_works_on_a_site_without_static_files(
    owner: Owner, media: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.STATIC_URL = None
    session = publish(owner)
    link = CompletedUpload(session).temporary_file_path()
    monkeypatch.setattr(cleanup, "GRACE", timedelta(seconds=-1))
    cleanup.purge()
    assert not os.path.lexists(link)


class Full(sqlite3.OperationalError):
    """What SQLite says when it cannot write; the driver alone can give a real one its name."""

    sqlite_errorname = "SQLITE_FULL"


def test_the_purge_frees_a_full_disk_that_the_database_lies_on(
    owner: Owner, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row can be written before something is deleted."""
    then = timezone.now() - LONG_AGO
    old = unfinished(owner, part(staging), expires_at=then)
    orphan = part(staging, age=LONG_AGO)
    end = rows.end

    def on_a_full_disk(items: Any) -> Any:
        if parts(staging) & {old.part, orphan}:
            raise OperationalError("database or disk is full") from Full()
        return end(items)

    monkeypatch.setattr(rows, "end", on_a_full_disk)
    assert cleanup.purge().sessions == 1
    assert not parts(staging)
    assert UploadSession.objects.get().state == State.EXPIRED


def test_another_error_of_the_database_costs_no_upload_its_bytes(
    owner: Owner, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(owner, part(staging), expires_at=timezone.now() - LONG_AGO)

    def fail(items: Any) -> Any:
        raise OperationalError("gone")

    monkeypatch.setattr(rows, "end", fail)
    with pytest.raises(OperationalError):
        cleanup.purge()
    assert len(parts(staging)) == 1


# What is over -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED, State.EXPIRED])
def test_rows_of_uploads_that_are_over_go_after_a_week(owner: Owner, state: State) -> None:
    now = timezone.now()
    old = unfinished(owner, "", state=state, updated_at=now - timedelta(days=8))
    young = unfinished(owner, "", state=state, updated_at=now - timedelta(days=6))
    assert cleanup.purge(dry_run=True).rows == 1
    assert cleanup.purge().rows == 1
    assert [each.pk for each in UploadSession.objects.all()] == [young.pk]
    assert cleanup.purge(ended_after=timedelta(days=5)).rows == 1
    assert old.pk != young.pk


def test_rows_of_files_stay_however_old_they_are(owner: Owner, media: Path) -> None:
    then = timezone.now() - timedelta(days=1000)
    for state in (State.COMPLETED, State.BOUND):
        publish(owner, state=state, updated_at=then, completed_at=then)
    assert cleanup.purge() == cleanup.Purge()
    assert UploadSession.objects.count() == 2


def test_a_row_that_an_object_of_the_hosts_protects_stays_and_the_others_go(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "BATCH", 2)
    then = timezone.now() - timedelta(days=8)
    rows = [unfinished(owner, "", state=State.FAILED, updated_at=then) for _ in range(5)]
    delete = cleanup._delete

    def protected(pks: Any) -> int:
        if rows[2].pk in pks:
            raise ProtectedError("an invoice needs it", {rows[2]})
        return delete(pks)

    monkeypatch.setattr(cleanup, "_delete", protected)
    assert cleanup.purge().rows == 4
    assert UploadSession.objects.get().pk == rows[2].pk


async def test_what_is_over_keeps_no_metadata(
    connect: Callable[..., UploadCommunicator], heard: Heard
) -> None:
    """Receivers of its end still see it."""
    async with connect() as client:
        stream = client.new_stream()
        metadata = {"note": "x" * 10_000}
        await client.send(m.Create(new_key(), "a.bin", 100_000, metadata=metadata), stream)
        created = await client.wait_for(m.Created, stream)
        await client.send(m.Cancel(), stream)
        await client.wait_for(m.Cancelled, stream)
    assert (await row(created.upload)).metadata == {}
    assert heard.named("cancelled")[0]["session"].metadata == metadata


# Links of forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["default", "other"])
def test_the_purge_takes_links_that_a_crash_left_and_no_younger_ones(
    owner: Owner,
    media: Path,
    tmp_path: Path,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    alias: str,
) -> None:
    options = {"location": str(tmp_path / "other")}
    other = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "other": other}
    session = publish(owner, storage=alias)
    published = session.get_storage().path(session.stored_as)
    if alias == "other":
        session.get_storage().save(session.stored_as, ContentFile(b"hello"))
    long_ago = (timezone.now() - LONG_AGO).timestamp()
    os.utime(published, (long_ago, long_ago))  # uploaded long ago, and posted just now
    link = Path(CompletedUpload(session).temporary_file_path())
    assert link.samefile(published)
    cleanup.purge()
    assert link.exists()
    monkeypatch.setattr(cleanup, "GRACE", timedelta(seconds=-1))
    lines: list[str] = []
    cleanup.purge(dry_run=True, log=lines.append)
    assert link.exists()
    cleanup.purge(log=lines.append)
    assert not link.exists()
    assert [link.name in line for line in lines] == [True, True]
    assert Path(published).read_bytes() == b"hello"


def test_a_receiver_that_hangs_does_not_keep_the_purge_from_its_work(
    owner: Owner, media: Path, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"RECEIVER_TIMEOUT": 0.2}
    released = threading.Event()

    def hang(**kwargs: Any) -> None:
        released.wait(60)

    signals.upload_expired.connect(hang)
    for _ in range(2):
        unfinished(owner, "", expires_at=timezone.now() - LONG_AGO)
    begun = time.monotonic()
    try:
        assert cleanup.purge().sessions == 2
        assert time.monotonic() - begun < 30
    finally:
        released.set()
        signals.upload_expired.disconnect(hang)


def test_counts_of_owners_who_are_gone_are_deleted(db: None, media: Path) -> None:
    Usage.objects.create(key="user:1", counted_at=timezone.now())
    Usage.objects.create(key="visitor:1", counted_at=timezone.now() - timedelta(days=2))
    Usage.objects.create(key="visitor:2")
    cleanup.purge(dry_run=True)
    assert Usage.objects.count() == 3
    cleanup.purge()
    assert [usage.key for usage in Usage.objects.all()] == ["user:1"]
