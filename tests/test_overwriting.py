"""A storage that overwrites loses nothing: uploads of one name stay two files, and no host's file is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import Storage, storages
from django.db import transaction
from django.db.models.fields.files import FileField
from django.http import HttpResponse
from django.test import Client

from django_async_upload import checks
from django_async_upload.models import UploadSession
from django_async_upload.receipts import field_token
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import crc, row, run
from .models import Document
from .overwriting import ObjectStorage
from .test_middleware import run_view

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., UploadCommunicator]


@pytest.fixture(params=["objects", "files"])
def storage(
    request: pytest.FixtureRequest, settings: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    """An overwriting storage, for uploads and for the host's own field, which uses the same names."""
    if request.param == "objects":
        backend: dict[str, Any] = {"BACKEND": "tests.overwriting.ObjectStorage"}
    else:
        options = {"location": str(media), "allow_overwrite": True}
        name = "django.core.files.storage.FileSystemStorage"
        backend = {"BACKEND": name, "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "bucket": backend}
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "STORAGE": "bucket", "UPLOAD_TO": "documents"}
    storage = storages["bucket"]
    field = Document._meta.get_field("attachment")
    assert isinstance(field, FileField)
    monkeypatch.setattr(field, "storage", storage)
    ObjectStorage.objects.clear()
    yield storage
    ObjectStorage.objects.clear()


async def upload(connect: Connect, data: bytes, **metadata: Any) -> UploadSession:
    async with connect() as uploads:
        done = await uploads.upload("report.pdf", data, metadata=metadata)
    assert done.crc32c == crc(data)
    return await row(done.upload)


def content(storage: Storage, name: str) -> bytes:
    with storage.open(name) as file:
        return file.read()


@pytest.mark.parametrize("size", [5, 200_000])
async def test_two_uploads_of_one_name_are_two_files(
    connect: Connect, storage: Storage, size: int
) -> None:
    mine = await upload(connect, b"m" * size)
    theirs = await upload(connect, b"t" * size)
    assert content(storage, mine.stored_as) == b"m" * size
    assert content(storage, theirs.stored_as) == b"t" * size
    await run(theirs.delete)
    assert content(storage, mine.stored_as) == b"m" * size


async def test_a_bound_file_stays_where_the_host_has_it(connect: Connect, storage: Storage) -> None:
    session = await upload(connect, b"hello")

    def bind() -> Document:
        with transaction.atomic():
            return Document.objects.create(attachment=session.bind())

    document = await run(bind)
    assert document.attachment.name == "documents/report.pdf"
    assert content(storage, document.attachment.name) == b"hello"
    assert not storage.exists(session.stored_as)


async def test_a_forms_file_stays_where_the_host_has_it(
    connect: Connect, storage: Storage, login: Client, settings: Any
) -> None:
    settings.ROOT_URLCONF = "tests.test_middleware"
    session = await upload(connect, b"hello", field=field_token("attachment"))

    def view(request: Any) -> HttpResponse:
        document = Document.objects.create(attachment=request.FILES["attachment"])
        return HttpResponse(document.attachment.name)

    response = await run(run_view, login, view, session)
    assert content(storage, response.content.decode()) == b"hello"
    assert not storage.exists(session.stored_as)


async def test_a_host_that_uses_the_published_name_itself_keeps_its_file(
    connect: Connect, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await upload(connect, b"hello")
    field = Document._meta.get_field("attachment")
    monkeypatch.setattr(field, "upload_to", lambda instance, name: session.stored_as)

    def bind() -> Document:
        with transaction.atomic():
            return Document.objects.create(attachment=session.bind())

    document = await run(bind)
    assert document.attachment.name == session.stored_as
    assert content(storage, session.stored_as) == b"hello"
    await run(session.delete)
    assert content(storage, session.stored_as) == b"hello"
    assert not await UploadSession.objects.filter(state=State.BOUND).aexists()


def test_a_check_warns_of_a_storage_that_overwrites(storage: Storage, settings: Any) -> None:
    def found() -> list[str]:
        return [each.id for each in checks.check_settings() if each.id == "async_upload.W030"]

    assert found()
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "STORAGE": "default"}
    assert not found()
