"""Finished files are private by default: no URL leads to them until an object of the host's has them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import Client
from django.urls import re_path
from django.views.static import serve

from django_async_upload import checks
from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.operations import cleanup
from django_async_upload.sessions.owners import Owner
from django_async_upload.stores.configured import PRIVATE, get_storage, make_store
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import row, run
from .models import Document
from .test_cleanup import LONG_AGO

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., UploadCommunicator]

urlpatterns = [
    re_path(r"^media/(?P<path>.*)$", lambda request, path: serve(request, path, _media_root()))
]


def _media_root() -> str:
    from django.conf import settings

    return str(settings.MEDIA_ROOT)


@pytest.fixture(autouse=True)
def defaults(settings: Any) -> None:
    """As in a project that does not set its storages."""
    settings.STORAGES = {key: each for key, each in settings.STORAGES.items() if key != PRIVATE}
    settings.ROOT_URLCONF = __name__


@pytest.mark.parametrize("size", [5, 200_000])
async def test_what_a_client_uploads_cannot_be_fetched_before_it_is_bound(
    connect: Connect, uploads: UploadService, media: Path, size: int
) -> None:
    page = b"<script>alert(1)</script>".ljust(size, b" ")
    async with connect() as client:
        done = await client.upload("evil.html", page)
    finished = media.with_name("media-uploads") / done.stored_as
    assert finished.read_bytes() == page
    assert not media.exists()
    for folder in (finished.parent, media.with_name("media-uploads")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    session = await row(done.upload)
    with pytest.raises(ValueError, match="URL"):
        session.get_storage().url(session.stored_as)
    with session.file as file:
        assert file.read() == page
    inode = finished.stat().st_ino

    def bind() -> Document:
        with transaction.atomic():
            return Document.objects.create(attachment=session.bind())

    document = await run(bind)
    assert os.stat(document.attachment.path).st_ino == inode, "by a link: nothing is copied"
    assert not finished.exists()

    def fetch(url: str) -> int:
        return int(Client().get(url).status_code)

    assert await run(fetch, f"/media/{done.stored_as}") == 404
    assert await run(fetch, document.attachment.url) == 200


async def test_deletion_and_purge_find_it_there(
    connect: Connect, uploads: UploadService, media: Path
) -> None:
    async with connect() as client:
        kept = await client.upload("a.bin", b"hello", metadata={"taker": "api"})
        gone = await client.upload("b.bin", b"hello", metadata={"taker": "api"})
    finished = media.with_name("media-uploads")
    await run((await row(gone.upload)).delete)
    assert not (finished / gone.stored_as).exists()
    assert (finished / kept.stored_as).exists()
    await run(cleanup.purge, unbound_after=-LONG_AGO)
    assert not (finished / kept.stored_as).exists()


def test_it_lies_beside_the_staging_folder(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = str(tmp_path / "media")
    assert get_storage(PRIVATE).path("a") == str(tmp_path / "media-uploads/a")
    assert make_store().path("a") == str(tmp_path / "media-staging/a")
    settings.ASYNC_UPLOAD = {"STAGING_ROOT": tmp_path / "volume/staging"}
    assert get_storage(PRIVATE).path("a") == str(tmp_path / "volume/staging-uploads/a")
    assert make_store().path("a") == str(tmp_path / "volume/staging/a")
    settings.MEDIA_ROOT = ""
    assert get_storage(PRIVATE).path("a") == str(tmp_path / "volume/staging-uploads/a")
    settings.ASYNC_UPLOAD = {}
    with pytest.raises(ImproperlyConfigured):
        get_storage(PRIVATE)
    assert "async_upload.E007" in {each.id for each in checks.check_settings()}


def test_a_project_may_have_a_storage_of_that_name(settings: Any, tmp_path: Path) -> None:
    backend = "django.core.files.storage.InMemoryStorage"
    settings.STORAGES = {**settings.STORAGES, PRIVATE: {"BACKEND": backend}}
    assert type(get_storage(PRIVATE)).__name__ == "InMemoryStorage"


# A check before deployment ---------------------------------------------------------------------------


def warned() -> list[str]:
    return [each.msg for each in checks.check_deployment() if each.id == "async_upload.W031"]


def test_the_default_is_fine(media: Path) -> None:
    assert not [each for each in warned() if each.startswith("UploadConsumer ")]


@pytest.mark.parametrize(
    "options",
    [
        {"STORAGE": "default"},
        {"STORAGE": "inside"},
        {"STORAGE": "public"},
    ],
)
def test_a_storage_with_urls_is_warned_of(
    settings: Any, media: Path, options: dict[str, str]
) -> None:
    files = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = {
        **settings.STORAGES,
        "inside": {
            "BACKEND": "django_async_upload.stores.configured.PrivateStorage",
            "OPTIONS": {"location": str(media / "in")},
        },
        "public": {"BACKEND": files, "OPTIONS": {"location": "/srv", "base_url": "https://x/"}},
    }
    settings.ASYNC_UPLOAD = options
    assert [each for each in warned() if each.startswith("UploadConsumer ")]


def test_an_endpoint_of_its_own_is_looked_at(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PublicConsumer(UploadConsumer):
        pass

    monkeypatch.setattr(
        PublicConsumer, "storage", "default"
    )  # no longer where it outlives the test
    assert [each for each in warned() if each.startswith(f"{PublicConsumer.__name__} ")]


def test_a_default_storage_that_nothing_serves_is_no_matter(settings: Any, media: Path) -> None:
    settings.MEDIA_URL = ""
    settings.ASYNC_UPLOAD = {"STORAGE": "default"}
    assert not [each for each in warned() if each.startswith("UploadConsumer ")]


def test_a_row_of_the_default_storage_stays_there(owner: Owner, media: Path) -> None:
    """What was published before a setting changed is found where it was."""
    session = UploadSession(storage="default", stored_as="a")
    assert session.get_storage().path("a") == str(media / "a")
