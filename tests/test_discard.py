"""A sender can delete a finished file until it is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from django.core.files.storage import FileSystemStorage
from django.db import transaction
from django.test import Client
from django.utils import timezone

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.exceptions import NotCompleted, NotFound, PermissionRefused, from_code
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.operations import cleanup
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.state import State
from django_async_upload.signals import upload_completed
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import Heard, new_key, row, run
from .models import Document

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., UploadCommunicator]


async def discard(
    uploads: UploadCommunicator, upload: str, *, finished: bool | None = True
) -> m.Message:
    """What CANCEL on a new stream is answered. Raises the error of an ERROR."""
    stream = uploads.new_stream()
    await uploads.send(m.Cancel(upload, finished), stream)
    answer = await uploads.wait_for(m.Message, stream)
    if isinstance(answer, m.Error):
        raise from_code(answer.code, answer.message, answer.facts)
    return answer


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_the_sender_of_a_finished_file_can_delete_it(
    connect: Connect, media: Path, staging: Path, heard: Heard
) -> None:
    async with connect() as uploads:
        kept = await uploads.upload("kept.bin", b"hello", metadata={"note": 1})
        gone = await uploads.upload("gone.bin", b"hello", metadata={"note": 2})
        for _ in range(2):  # an answer may be lost
            assert await discard(uploads, gone.upload) == m.Cancelled(gone.upload)
        assert files(media) == ["kept.bin"]
        assert files(staging) == []
        status = await discard(uploads, kept.upload, finished=None)
        assert isinstance(status, m.Completed), "as ever: the client has to name it as finished"
    session = await row(gone.upload)
    assert (session.state, session.metadata, session.expires_at) == (State.CANCELLED, {}, None)
    assert [each["session"].pk for each in heard.named("cancelled")] == [session.pk]
    assert not await CompletionEvent.objects.filter(session=session).aexists()


async def test_a_file_that_the_host_has_is_no_longer_the_senders(
    connect: Connect, media: Path
) -> None:
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello")
        session = await row(done.upload)

        def bind() -> Document:
            with transaction.atomic():
                return Document.objects.create(attachment=session.bind())

        document = await run(bind)
        assert await discard(uploads, done.upload) == done
    assert document.attachment.read() == b"hello"
    assert (await row(done.upload)).state == State.BOUND


async def test_nor_is_one_that_a_form_is_just_saving(connect: Connect, media: Path) -> None:
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello")
        rows = UploadSession.objects.filter(pk=done.upload)
        await rows.aupdate(expires_at=timezone.now() + timedelta(minutes=1))
        assert await discard(uploads, done.upload) == done
        assert files(media) == ["a.bin"]
        await rows.aupdate(expires_at=timezone.now() - timedelta(minutes=1))
        assert isinstance(await discard(uploads, done.upload), m.Cancelled)


async def test_no_owner_deletes_the_file_of_another_one(
    connect: Connect, bob: Any, media: Path
) -> None:
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello")
    other = Client()
    await other.aforce_login(bob)
    async with connect(cookies=other.cookies) as uploads:
        with pytest.raises(NotFound):
            await discard(uploads, done.upload)
    assert files(media) == ["a.bin"]


async def test_a_host_may_keep_what_is_finished(
    connect: Connect, uploads: UploadService, media: Path
) -> None:
    class Archive(UploadConsumer):
        async def may_discard(self, session: UploadSession) -> bool:
            return session.name != "kept.bin"

    async with connect(AuthMiddlewareStack(Archive.as_asgi())) as client:
        kept = await client.upload("kept.bin", b"hello")
        with pytest.raises(PermissionRefused):
            await discard(client, kept.upload)
        gone = await client.upload("gone.bin", b"hello")
        assert isinstance(await discard(client, gone.upload), m.Cancelled)
        stream = client.new_stream()
        await client.send(m.Create(new_key(), "kept.bin", 100_000), stream)
        created = await client.wait_for(m.Created, stream)
        await client.send(m.Release(), stream)
        await client.wait_for(m.Released, stream)
        assert isinstance(await discard(client, created.upload), m.Cancelled), "unfinished"
    assert files(media) == ["kept.bin"]


async def test_a_storage_that_fails_is_tried_again_by_the_purge(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class Stuck(FileSystemStorage):
        def delete(self, name: str) -> None:
            raise PermissionError(name)

    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello")
        with monkeypatch.context() as broken:
            broken.setattr(UploadSession, "get_storage", lambda self: Stuck(media))
            assert isinstance(await discard(uploads, done.upload), m.Cancelled)
        assert "could not be deleted" in caplog.text
    assert files(media) == ["a.bin"]
    past = timezone.now() - timedelta(seconds=1)
    await UploadSession.objects.aupdate(expires_at=past)
    await run(cleanup.purge)
    assert files(media) == []
    await run(cleanup.purge, ended_after=timedelta(0))
    assert not await UploadSession.objects.aexists()


async def test_a_receiver_that_comes_too_late_is_not_called_again(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called before the sender deleted the file, and binds afterwards."""
    gone = threading.Event()
    failures: list[Exception] = []

    def bind(session: UploadSession, **kwargs: Any) -> None:
        assert gone.wait(30)
        try:
            with transaction.atomic():
                Document.objects.create(attachment=session.bind())
        except Exception as error:
            failures.append(error)
            raise

    upload_completed.connect(bind)
    try:
        async with connect() as uploads:
            done = await uploads.upload("a.bin", b"hello")
            assert isinstance(await discard(uploads, done.upload), m.Cancelled)
            gone.set()
            await get_service().outbox.join()
            assert await get_service().outbox.deliver_due() == 0
    finally:
        upload_completed.disconnect(bind)
    assert [type(each) for each in failures] == [NotCompleted]
    assert not await Document.objects.aexists()
    assert files(media) == []
