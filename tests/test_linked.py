"""A finished file becomes a host's own: once, without a copy, and not before the host's commit."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import FileSystemStorage
from django.db import IntegrityError, transaction
from django.db.transaction import TransactionManagementError
from django.test import override_settings

from django_async_upload.exceptions import AlreadyBound
from django_async_upload.models import UploadSession
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State

from .fixtures import publish
from .models import Copy, Document, elsewhere, objects_elsewhere

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

DATA = os.urandom(100_000)


@pytest.fixture
def session(owner: Owner, media: Path) -> UploadSession:
    return publish(owner, DATA, "report.pdf")


def attach(session: UploadSession) -> Document:
    with transaction.atomic():
        document = Document(attachment=session.bind())
        document.save()
    return document


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fresh(session: UploadSession) -> UploadSession:
    return UploadSession.objects.get(pk=session.pk)


def test_the_hosts_file_is_the_published_one_under_the_hosts_name(
    session: UploadSession, media: Path, staging: Path
) -> None:
    inode = (media / session.stored_as).stat().st_ino
    document = attach(session)
    assert document.attachment.name == "documents/report.pdf"
    assert (media / "documents/report.pdf").stat().st_ino == inode
    assert (media / "documents/report.pdf").read_bytes() == DATA
    assert files(media) == ["documents/report.pdf"]
    assert files(staging) == []
    assert fresh(session).state == State.BOUND


@override_settings(FILE_UPLOAD_PERMISSIONS=0o640, FILE_UPLOAD_DIRECTORY_PERMISSIONS=0o750)
def test_the_storages_own_modes_apply(session: UploadSession, media: Path) -> None:
    os.chmod(media / session.stored_as, 0o600)
    document = attach(session)
    assert stat.S_IMODE(os.stat(document.attachment.path).st_mode) == 0o640
    assert stat.S_IMODE(os.stat(media / "documents").st_mode) == 0o750


def test_a_name_that_is_taken_is_made_free(session: UploadSession, media: Path) -> None:
    (media / "documents").mkdir(parents=True)
    (media / "documents/report.pdf").write_bytes(b"another")
    document = attach(session)
    assert document.attachment.name != "documents/report.pdf"
    assert (media / "documents/report.pdf").read_bytes() == b"another"
    assert document.attachment.read() == DATA


def test_a_file_is_bound_once(session: UploadSession, media: Path) -> None:
    other = fresh(session)
    attach(session)
    for again in (session, other, fresh(session)):
        with pytest.raises(AlreadyBound):
            attach(again)
    assert files(media) == ["documents/report.pdf"]
    assert Document.objects.count() == 1


def test_a_rollback_loses_nothing_and_the_file_can_be_bound_again(
    session: UploadSession, media: Path
) -> None:
    with transaction.atomic():
        Document.objects.create(attachment=session.bind())
        transaction.set_rollback(True)
    assert fresh(session).state == State.COMPLETED
    assert (media / session.stored_as).read_bytes() == DATA
    document = attach(session)
    assert document.attachment.read() == DATA
    assert not (media / session.stored_as).exists()


def test_a_file_that_was_bound_and_not_used_stays(session: UploadSession, media: Path) -> None:
    with transaction.atomic():
        file = session.bind()
        assert file.temporary_file_path()
    assert files(media) == [session.stored_as]
    assert files(media.with_name("media-staging")) == []


def test_a_file_whose_object_could_not_be_saved_stays(
    session: UploadSession, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The storage had the file already, saving the row failed, and the view continued without the object."""
    taken = Document.objects.create()
    with transaction.atomic():
        file = session.bind()
        with pytest.raises(IntegrityError), transaction.atomic():
            Document.objects.create(pk=taken.pk, attachment=file)
    assert (media / session.stored_as).read_bytes() == DATA
    assert str(session.pk) in caplog.text


def test_binding_needs_the_hosts_transaction(session: UploadSession) -> None:
    with pytest.raises(TransactionManagementError):
        session.bind()
    assert fresh(session).state == State.COMPLETED


def test_a_bound_file_is_told_by_name_size_and_type(session: UploadSession) -> None:
    session.content_type = "application/pdf"
    with transaction.atomic():
        file = session.bind()
        assert (file.name, file.size, file.content_type) == (
            "report.pdf",
            len(DATA),
            "application/pdf",
        )
        assert file.read(10) == DATA[:10]
        assert file.open().read() == DATA
        assert b"".join(file.chunks(1000)) == DATA
        file.close()
        assert file.closed


@pytest.mark.parametrize(
    ("field", "storage"), [("in_memory", elsewhere), ("read", objects_elsewhere)]
)
def test_another_kind_of_storage_reads_the_file(
    session: UploadSession, media: Path, field: str, storage: Any
) -> None:
    with transaction.atomic():
        copy = Copy(**{field: session.bind()})
        copy.save()
    assert storage.open(getattr(copy, field).name).read() == DATA
    assert files(media) == []


def test_a_storage_on_another_file_system_takes_a_copy(
    session: UploadSession, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    import tempfile

    with tempfile.TemporaryDirectory(dir=other) as folder:
        monkeypatch.setattr(
            Document._meta.get_field("attachment"), "storage", FileSystemStorage(folder)
        )
        document = attach(session)
        assert Path(document.attachment.path).read_bytes() == DATA
    assert files(media) == []


def test_a_published_file_in_another_kind_of_storage_is_read(owner: Owner, settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    }
    session = publish(owner, DATA, "report.pdf")
    storage = session.get_storage()
    document = attach(session)
    assert document.attachment.read() == DATA
    assert not storage.exists(session.stored_as)


def test_with_fsync_nothing_is_taken_from_a_file_that_a_power_failure_could_take(
    session: UploadSession, journal: list[str]
) -> None:
    attach(session)
    assert journal == [
        "UPDATE",  # bound, by bind(): the transaction ends after the host's file is durable
        "link media/uploads/report.pdf",
        "rename media-staging/*.link",
        "fsync media/documents/report.pdf",
        "fsync media/documents",
        "fsync media",
        "fsync .",
        "UPDATE",  # bound, by the model
        "rename media/uploads/report.pdf",
        "fsync media/uploads",
        "UPDATE",  # the published name is forgotten
        "unlink media-staging/*.link",
    ]


def test_with_durability_os_binding_syncs_nothing(
    session: UploadSession, settings: Any, journal: list[str]
) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    attach(session)
    assert [each for each in journal if each.startswith("fsync")] == []
    assert "rename media/uploads/report.pdf" in journal
