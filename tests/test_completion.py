"""From FINISH to the published file: the host's last checks, links, copies and modes."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import FileSystemStorage

from django_async_upload.engine import verify
from django_async_upload.engine.outcomes import Published
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import AuthenticationRequired, InternalError, TakenOver
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import UploadAccess
from django_async_upload.stores.publication import link as link_module
from django_async_upload.stores.publication.base import Unsuited
from django_async_upload.stores.publication.names import STORED_NAME_MAX

from .fixtures import MIB, row, run
from .test_service import Host, begun, host, write

__all__ = ["host"]  # a fixture

pytest_plugins = ["tests.fixtures"]


async def test_the_published_file_is_the_part_itself(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        done = await write(upload, b"data")
        assert upload.part.writer is not None
        inode = os.stat(upload.part.writer.path()).st_ino
        session = (await uploads.complete(upload, done, host)).session
    assert (media / session.stored_as).stat().st_ino == inode
    assert (media / session.stored_as).stat().st_nlink == 1


async def test_the_storages_modes_apply(
    uploads: UploadService, owner: Owner, host: Host, media: Path, settings: Any
) -> None:
    settings.FILE_UPLOAD_PERMISSIONS = 0o640
    settings.FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o750
    async with begun(uploads, owner, b"data") as upload:
        session = (await uploads.complete(upload, await write(upload, b"data"), host)).session
    path = media / session.stored_as
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


async def test_a_name_that_is_taken_is_never_overwritten(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    (media / "uploads").mkdir(parents=True)
    (media / "uploads/a.bin").write_bytes(b"another")
    async with begun(uploads, owner, b"data") as upload:
        session = (await uploads.complete(upload, await write(upload, b"data"), host)).session
    assert (media / "uploads/a.bin").read_bytes() == b"another"
    assert (media / session.stored_as).read_bytes() == b"data"
    assert (await row(session.pk)).stored_as == session.stored_as != "uploads/a.bin"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
async def test_a_name_that_leaves_the_storage_is_the_hosts_mistake(
    uploads: UploadService, owner: Owner, host: Host, tmp_path: Path, name: str
) -> None:
    host.name = name
    async with begun(uploads, owner, b"data") as upload:
        done = await write(upload, b"data")
        with pytest.raises(SuspiciousFileOperation):
            await uploads.complete(upload, done, host)
        assert await upload.interrupt() == 4
    assert (await row(upload.session.pk)).state == State.INTERRUPTED
    assert not (tmp_path / "outside").exists()


async def test_a_long_name_fits_the_column(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    host.name = "/".join(["d" * 100] * 4) + "/" + "n" * 90 + ".bin"
    for _ in range(2):
        async with begun(uploads, owner, b"data") as upload:
            session = (await uploads.complete(upload, await write(upload, b"data"), host)).session
        assert len(session.stored_as) <= STORED_NAME_MAX
        assert (media / session.stored_as).read_bytes() == b"data"


async def test_an_owner_who_is_no_more_cannot_finish(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        done = await write(upload, b"data")
        await run(get_user_model().objects.update, is_active=False)
        with pytest.raises(AuthenticationRequired):
            await uploads.complete(upload, done, host)
        await upload.interrupt()
    assert (await row(upload.session.pk)).state == State.INTERRUPTED
    assert not media.exists()


async def test_a_holder_that_was_taken_over_publishes_nothing(
    uploads: UploadService, owner: Owner, host: Host, media: Path
) -> None:
    async with begun(uploads, owner, b"data") as upload:
        done = await write(upload, b"data")
        await uploads.database.call(
            rows.take_over, UploadAccess(upload.session.pk, owner, "default")
        )
        with pytest.raises(TakenOver):
            await uploads.complete(upload, done, host)
    assert not media.exists()
    assert not await CompletionEvent.objects.aexists()
    assert (await row(upload.session.pk)).state == State.UPLOADING


async def test_a_file_system_that_cannot_link_after_all_gets_a_copy(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def link(*args: Any, **kwargs: Any) -> None:
        raise Unsuited("EXDEV")

    monkeypatch.setattr(link_module, "link", link)
    data = os.urandom(MIB)
    async with begun(uploads, owner, data) as upload:
        session = (await uploads.complete(upload, await write(upload, data), host)).session
    assert (media / session.stored_as).read_bytes() == data
    assert not os.listdir(uploads.store.root)


class Slow(FileSystemStorage):
    """A storage with a save() of its own: no file may be linked into it."""

    def _save(self, name: str, content: Any) -> str:
        self.seen = b"".join(content.chunks())
        content.seek(0)
        return str(super()._save(name, content))


async def test_a_storage_with_a_save_of_its_own_is_asked_to_save(
    uploads: UploadService, owner: Owner, host: Host, media: Path, settings: Any
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "slow": {"BACKEND": "tests.test_completion.Slow", "OPTIONS": {"location": str(media)}},
    }
    data = os.urandom(MIB)
    async with begun(uploads, owner, data, storage="slow") as upload:
        session = (await uploads.complete(upload, await write(upload, data), host)).session
    storage = session.get_storage()
    assert storage.seen == data
    with (await row(session.pk)).file as file:
        assert file.read() == data


class Scanning(Host):
    """Inspects by a function, which it awaits."""

    inspects = True

    def __init__(self, owner: Owner, scan: Callable[[Any], Awaitable[None]]) -> None:
        super().__init__(owner)
        self._scan = scan

    async def inspect(self, session: UploadSession, file: Any) -> None:
        await self._scan(file)


async def test_the_file_that_is_inspected_can_be_read_and_sought(
    uploads: UploadService, owner: Owner
) -> None:
    async def scan(file: Any) -> None:
        assert file.name == "a.bin"
        assert file.read(4) == b"some"
        file.seek(5)
        assert file.read() == b"data"

    async with begun(uploads, owner, b"some data") as upload:
        done = await write(upload, b"some data")
        assert isinstance(await uploads.complete(upload, done, Scanning(owner, scan)), Published)


async def test_an_inspection_that_hangs_is_given_up_and_the_upload_can_be_resumed(
    uploads: UploadService, owner: Owner, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scan(file: Any) -> None:
        await asyncio.Event().wait()

    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "INSPECT_TIMEOUT": 0.2}
    async with begun(uploads, owner, b"some data") as upload:
        done = await write(upload, b"some data")
        with pytest.raises(InternalError):
            await uploads.complete(upload, done, Scanning(owner, scan))
        assert f"inspect() of upload {upload.session.pk} did not return" in caplog.text
        await upload.interrupt()
        assert (await row(upload.session.pk)).state == State.INTERRUPTED


async def test_an_inspection_may_take_as_long_as_it_reads(
    uploads: UploadService, owner: Owner, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scan(file: Any) -> None:
        for _piece in range(8):
            file.read(1)
            await asyncio.sleep(0.1)

    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "INSPECT_TIMEOUT": 0.3}
    monkeypatch.setattr(verify, "PIECE", 1)
    async with begun(uploads, owner, b"some data") as upload:
        done = await write(upload, b"some data")
        assert isinstance(await uploads.complete(upload, done, Scanning(owner, scan)), Published)
        assert upload.progress is not None


async def test_the_row_says_all_before_the_file_is_there(
    uploads: UploadService,
    owner: Owner,
    host: Host,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash at any moment leaves no file that no row knows."""
    seen: list[UploadSession] = []
    real = link_module.link

    def link(*args: Any, **kwargs: Any) -> list[str]:
        seen.append(UploadSession.objects.get())
        return real(*args, **kwargs)

    monkeypatch.setattr(link_module, "link", link)
    async with begun(uploads, owner, b"data") as upload:
        await uploads.complete(upload, await write(upload, b"data"), host)
    assert (seen[0].state, seen[0].stored_as, seen[0].durable) == (
        State.FINALIZING,
        "uploads/a.bin",
        4,
    )
