"""Recovery, deletion and binding leave no file that no row knows, and delete none that is another's."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.files.storage import FileSystemStorage
from django.db import transaction
from django.utils import timezone

from django_async_upload.binding import linked
from django_async_upload.engine.publish import Publisher
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import UploadError
from django_async_upload.models import Tombstone, UploadSession
from django_async_upload.operations import cleanup
from django_async_upload.protocol import messages as m
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.stores.publication import link as link_module
from django_async_upload.stores.publication.base import Finished
from django_async_upload.stores.publication.copy import CopyPublication
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import MIB, crc, new_key, publish, run, settled
from .models import Copy, Document, elsewhere
from .overwriting import ObjectStorage

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., UploadCommunicator]
DATA = os.urandom(20_000)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Died(BaseException):
    """The process ends here."""


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be linked: publication copies."""
    monkeypatch.setattr(link_module, "links_into", lambda *args: False)


async def send(
    connect: Connect, data: bytes = DATA, name: str = "a.bin"
) -> m.Message | UploadError:
    """Upload the ordinary way, with a CREATE that is answered first; how it ends."""
    async with connect() as uploads:
        stream = uploads.new_stream()
        await uploads.send(m.Create(new_key(), name, len(data)), stream)
        created = await uploads.wait_for(m.Created, stream)
        offset, limit = 0, created.limit
        while offset < len(data):
            stop = min(limit, len(data))
            await uploads.send_data(stream, offset, data[offset:stop])
            offset = stop
            if offset < len(data):
                limit = max(limit, (await uploads.wait_for(m.Ack, stream)).limit)
        await uploads.send(m.Finish(len(data), crc(data)), stream)
        try:
            return await uploads.wait_for(m.Completed, stream)
        except UploadError as error:
            return error


# A crash in the middle of a copy --------------------------------------------------------------------


@pytest.mark.parametrize("written", [len(DATA), 100])
async def test_a_crash_behind_a_copy_leaves_one_file_not_two(
    connect: Connect,
    uploads: UploadService,
    media: Path,
    copied: None,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    """Neither the whole copy of the process that died, nor half of one."""

    def save_and_die(self: CopyPublication, part: Finished) -> str:
        stored = real_save(self, part)
        os.truncate(part.storage.path(stored), written)
        raise RuntimeError("as if the process were killed here")

    real_save = CopyPublication._save
    with monkeypatch.context() as until_death:
        until_death.setattr(CopyPublication, "_save", save_and_die)
        assert isinstance(await send(connect), UploadError)
        await settled()
    (session,) = [each async for each in UploadSession.objects.all()]
    assert session.state == State.FINALIZING
    assert files(media) == [session.stored_as]
    done = (await uploads.result(session, lambda progress: None)).session
    assert files(media) == [done.stored_as]
    assert (media / done.stored_as).read_bytes() == DATA


async def test_a_copy_under_a_name_of_the_storages_own_goes_where_the_row_is_deleted_meanwhile(
    connect: Connect,
    uploads: UploadService,
    media: Path,
    copied: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Renaming(FileSystemStorage):
        def get_available_name(self, name: str, max_length: int | None = None) -> str:
            UploadSession.objects.all().delete()
            return "renamed.bin"

    monkeypatch.setattr(UploadSession, "get_storage", lambda self: Renaming(media))
    assert isinstance(await send(connect), UploadError)
    await settled()
    assert files(media) == []


# A row that is deleted in the middle ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linked", "copied"])
async def test_a_user_who_is_deleted_in_the_middle_of_a_publication_leaves_no_file(
    connect: Connect,
    uploads: UploadService,
    alice: Any,
    media: Path,
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    if kind == "copied":
        monkeypatch.setattr(link_module, "links_into", lambda *args: False)
    place = Publisher._publish_files

    async def place_and_delete_the_owner(self: Publisher, items: Any) -> None:
        await place(self, items)
        await sync_to_async(alice.delete)()

    monkeypatch.setattr(Publisher, "_publish_files", place_and_delete_the_owner)
    assert isinstance(await send(connect), UploadError)
    await settled()
    assert not await UploadSession.objects.aexists()
    assert (files(media), os.listdir(staging)) == ([], [])


async def test_so_does_a_user_who_is_deleted_behind_the_link_of_small_files(
    connect: Connect,
    uploads: UploadService,
    alice: Any,
    media: Path,
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = Publisher._publish_files

    async def place_and_delete_the_owner(self: Publisher, items: Any) -> None:
        await place(self, items)
        await sync_to_async(alice.delete)()

    monkeypatch.setattr(Publisher, "_publish_files", place_and_delete_the_owner)
    async with connect() as client:
        with pytest.raises(UploadError):
            await client.upload("a.bin", b"hello")
    await settled()
    assert not await UploadSession.objects.aexists()
    assert (files(media), os.listdir(staging)) == ([], [])


@pytest.mark.parametrize("kind", ["linked", "copied"])
async def test_a_publication_that_died_and_is_deleted_takes_its_file_along(
    connect: Connect,
    uploads: UploadService,
    media: Path,
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    if kind == "copied":
        monkeypatch.setattr(link_module, "links_into", lambda *args: False)

    def die(items: Any) -> Any:
        raise RuntimeError("as if the process were killed here")

    with monkeypatch.context() as until_death:
        until_death.setattr(rows, "complete", die)
        assert isinstance(await send(connect), UploadError)
        await settled()
    session = await UploadSession.objects.aget()
    assert session.state == State.FINALIZING
    assert files(media) == [session.stored_as]
    await run(session.delete)
    assert (files(media), os.listdir(staging)) == ([], [])


async def test_but_not_a_file_that_only_has_the_name_that_it_hoped_for(
    connect: Connect, uploads: UploadService, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(self: Publisher, items: Any) -> Any:
        raise RuntimeError("as if the process were killed here")

    with monkeypatch.context() as until_death:
        until_death.setattr(Publisher, "_continue_finalizing", die)
        assert isinstance(await send(connect), UploadError)
        await settled()
    session = await UploadSession.objects.aget()
    theirs = media / session.stored_as
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    await run(session.delete)
    assert theirs.read_bytes() == b"theirs"


# A part that another process can change --------------------------------------------------------------


async def test_a_part_with_a_second_name_is_published_as_another_file(
    connect: Connect, uploads: UploadService, media: Path, staging: Path, tmp_path: Path
) -> None:
    data = os.urandom(MIB)
    kept = tmp_path / "kept"
    async with connect() as client:
        stream = client.new_stream()
        await client.send(m.Create(new_key(), "a.bin", len(data)), stream)
        limit = (await client.wait_for(m.Created, stream)).limit
        offset = 0
        while offset < len(data):
            stop = min(limit, len(data))
            await client.send_data(stream, offset, data[offset:stop])
            offset = stop
            if offset < len(data):
                limit = max(limit, (await client.wait_for(m.Ack, stream)).limit)
            if not kept.exists():
                (part,) = os.listdir(staging)
                os.link(staging / part, kept)
        await client.send(m.Finish(len(data), crc(data)), stream)
        done = await client.wait_for(m.Completed, stream)
    kept.write_bytes(b"changed")
    assert (media / done.stored_as).read_bytes() == data


# Bound, and the process died before the published name was removed --------------------------------------


def bind_and_die(session: UploadSession, monkeypatch: pytest.MonkeyPatch) -> Document:
    def die(session: UploadSession) -> None:
        raise Died

    with monkeypatch.context() as until_death:
        until_death.setattr(linked, "withdraw", die)
        with pytest.raises(Died), transaction.atomic():
            document = Document.objects.create(attachment=session.bind())
    assert UploadSession.objects.get(pk=session.pk).state == State.BOUND
    return document


def later(session: UploadSession) -> None:
    past = timezone.now() - timedelta(seconds=1)
    UploadSession.objects.filter(pk=session.pk, expires_at__isnull=False).update(expires_at=past)


def test_the_purge_removes_the_published_name_of_a_bound_file(
    owner: Owner, media: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = publish(owner, DATA)
    document = bind_and_die(session, monkeypatch)
    assert files(media) == [document.attachment.name, session.stored_as]
    cleanup.purge()
    assert len(files(media)) == 2, "a live process may be about to remove it"
    later(session)
    lines: list[str] = []
    cleanup.purge(dry_run=True, log=lines.append)
    assert session.stored_as in lines[0]
    cleanup.purge()
    assert files(media) == [document.attachment.name]
    assert files(staging) == []
    assert document.attachment.read() == DATA
    assert UploadSession.objects.get(pk=session.pk).expires_at is None


def test_so_does_the_deletion_of_its_row(
    owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = publish(owner, DATA)
    document = bind_and_die(session, monkeypatch)
    later(session)
    UploadSession.objects.get(pk=session.pk).delete()
    assert files(media) == [document.attachment.name]


@pytest.mark.parametrize("step", ["before the row says so", "after it"])
def test_a_name_that_was_given_to_another_file_meanwhile_is_left_alone(
    owner: Owner, media: Path, staging: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The process died when the name was free again."""
    session = publish(owner, DATA)

    with monkeypatch.context() as until_death:
        if step == "after it":
            unlink = os.unlink

            def die_instead(path: str, **kwargs: Any) -> None:
                if f"{session.pk.hex}.link" in str(path):
                    raise Died
                unlink(path, **kwargs)

            until_death.setattr(os, "unlink", die_instead)
        else:
            rename = os.rename

            def rename_and_die(source: str, target: str) -> None:
                rename(source, target)
                if str(source).endswith(session.stored_as):
                    raise Died

            until_death.setattr(os, "rename", rename_and_die)
        with pytest.raises(Died), transaction.atomic():
            Document.objects.create(attachment=session.bind())
    theirs = media / session.stored_as
    assert not theirs.exists()
    theirs.write_bytes(b"theirs")
    later(session)
    monkeypatch.setattr(cleanup, "GRACE", timedelta(seconds=-1))
    cleanup.purge()
    cleanup.purge()
    assert theirs.read_bytes() == b"theirs"
    assert files(staging) == []
    assert UploadSession.objects.get(pk=session.pk).expires_at is None


# A storage that fails when it deletes ------------------------------------------------------------------


class Stuck(FileSystemStorage):
    def delete(self, name: str) -> None:
        raise PermissionError(name)


@pytest.mark.parametrize("what", ["bind", "delete"])
def test_a_storage_that_fails_to_delete_spoils_nothing_of_the_hosts(
    owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, what: str
) -> None:
    session = publish(owner, DATA)
    ran: list[str] = []
    for model in (UploadSession, Tombstone):
        monkeypatch.setattr(model, "get_storage", lambda self: Stuck(media))
    with transaction.atomic():
        if what == "bind":
            Document.objects.create(attachment=session.bind())
        else:
            session.delete()
        transaction.on_commit(lambda: ran.append("the host's own"))
    assert ran == ["the host's own"]
    assert "PermissionError" in caplog.text
    assert Document.objects.exists() == (what == "bind")


def test_the_purge_goes_on_behind_a_storage_that_fails(
    owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    sessions = [publish(owner, DATA) for _ in range(2)]
    for session in sessions:
        bind_and_die(session, monkeypatch)
        later(session)
    with monkeypatch.context() as broken:
        broken.setattr(UploadSession, "get_storage", lambda self: Stuck(media))
        cleanup.purge()
    assert caplog.text.count("could not be deleted") == 2
    cleanup.purge()
    assert len(files(media)) == 2


# Who decides that the host has the file -----------------------------------------------------------------


@pytest.mark.parametrize("read", [2048, -1])
def test_a_file_that_was_only_looked_at_is_not_deleted(
    owner: Owner, media: Path, caplog: Any, read: int
) -> None:
    """A validator read the head of a small file, or all of it, and the host then saved nothing."""
    session = publish(owner, b"small")
    with transaction.atomic():
        session.bind().read(read)
    assert files(media) == [session.stored_as]
    assert str(session.pk) in caplog.text
    cleanup.purge()
    assert files(media) == [session.stored_as]


def test_a_storage_that_reads_just_as_much_as_there_is_has_the_file_all_the_same(
    owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As resumable uploads to object storages do: they never read past the end."""

    class Exact(ObjectStorage):
        def _save(self, name: str, content: Any) -> str:
            self.objects[name] = content.read(content.size)
            return name

    session = publish(owner, DATA)
    monkeypatch.setattr(Copy._meta.get_field("read"), "storage", Exact())
    with transaction.atomic():
        copy = Copy.objects.create(read=session.bind())
    assert ObjectStorage.objects[copy.read.name] == DATA
    assert files(media) == []


def test_a_host_that_saves_without_a_model_says_so(owner: Owner, media: Path) -> None:
    session = publish(owner, DATA)
    with transaction.atomic():
        file = session.bind()
        name = elsewhere.save("mine.bin", file)
        file.bind()
    assert elsewhere.open(name).read() == DATA
    assert files(media) == []


def test_a_storage_that_moved_the_link_has_it_without_a_word(owner: Owner, media: Path) -> None:
    session = publish(owner, DATA)
    with transaction.atomic():
        FileSystemStorage(media).save("mine.bin", session.bind())
    assert files(media) == ["mine.bin"]
