"""The consumer over ASGI: who may upload, from where, what a host's hooks decide, and how a connection ends."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable
from decimal import Decimal
from hashlib import sha256
from http.cookies import SimpleCookie
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from crc32c import crc32c
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client, RequestFactory
from django.utils.translation import gettext_lazy

from django_async_upload import notices
from django_async_upload.admission import MAX_UNAUTHENTICATED
from django_async_upload.consumers import CLOSE_CODES, UploadConsumer
from django_async_upload.engine import drain as drain_module
from django_async_upload.engine.database import Database
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import (
    BY_CODE,
    AuthenticationRequired,
    ConnectionLost,
    DigestMismatch,
    FileRefused,
    FileTooLarge,
    InternalError,
    MetadataInvalid,
    NameRefused,
    NotFound,
    PermissionRefused,
    StorageFailed,
    TicketExpired,
    TicketInvalid,
    TooManyConnections,
    TypeRefused,
    UploadError,
    UploadRefused,
)
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import SUBPROTOCOL
from django_async_upload.sessions import owners
from django_async_upload.sessions.owners import SESSION_TOKEN, ensure_visitor
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import Ticket, issue_ticket
from django_async_upload.websocket import connection as connections
from django_async_upload.websocket import sender

from .fixtures import KIB, MIB, Heard, crc, finish, new_key, row, run, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


def mounted(consumer: type[UploadConsumer]) -> Any:
    return AuthMiddlewareStack(consumer.as_asgi())


async def ends_with(client: UploadCommunicator, error: type[UploadError]) -> UploadError:
    """The client gets the ERROR, and the connection is closed with the error's close code."""
    with pytest.raises(error) as caught:
        await client.wait_for(m.Completed)
    with pytest.raises(ConnectionLost):
        await client.receive()
    expected = next(CLOSE_CODES[cls] for cls in error.__mro__ if cls in CLOSE_CODES)
    assert client.close_code == expected
    return caught.value


# Whole uploads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16 * KIB, 16 * KIB + 1, 5 * MIB])
async def test_a_file_arrives(connect: Connect, media: Path, size: int) -> None:
    data = os.urandom(size)
    async with connect() as client:
        done = await client.upload("a b.bin", data, content_type="x/y", metadata={"album": 7})
    assert (media / done.stored_as).read_bytes() == data
    session = await row(done.upload)
    assert (session.name, session.content_type, session.metadata, session.address) == (
        "a b.bin",
        "x/y",
        {"album": 7},
        "127.0.0.1",
    )


async def test_many_files_before_any_answer(connect: Connect, media: Path, heard: Heard) -> None:
    contents = {number: os.urandom(number) for number in range(1, 101)}
    async with connect() as client:
        for stream, data in contents.items():
            await client.send(m.Create(new_key(), "same.bin", len(data)), stream)
            await client.send_data(stream, 0, data)
            await client.send(finish(data), stream)
        done: dict[int, m.Completed] = {}
        while len(done) < 100:
            stream, message = await client.receive()
            assert not isinstance(message, m.Error)
            if isinstance(message, m.Completed):
                done[stream] = message
    for stream, data in contents.items():
        assert (media / done[stream].stored_as).read_bytes() == data
    assert len({each.stored_as for each in done.values()}) == 100


async def test_the_same_key_gives_the_same_answer(connect: Connect, media: Path) -> None:
    key = new_key()
    async with connect() as client:
        first = await client.upload("a.bin", b"data", key=key)
        assert await client.upload("a.bin", b"data", key=key) == first
    async with connect() as client:
        assert await client.upload("a.bin", b"data", key=key) == first
    assert await UploadSession.objects.acount() == 1
    assert len(list((media / "uploads").rglob("*.bin"))) == 1


async def test_a_dropped_upload_keeps_what_came_and_goes_on(
    connect: Connect, uploads: UploadService, media: Path, heard: Heard
) -> None:
    data, key = os.urandom(200 * KIB), new_key()
    async with connect() as client:
        stream = client.new_stream()
        await client.send(m.Create(key, "a.bin", len(data)), stream)
        created = await client.wait_for(m.Created, stream)
        await client.send_data(stream, 0, data[: created.limit])
    await settled()
    kept = await row(created.upload)
    assert (kept.state, kept.durable) == (State.INTERRUPTED, created.limit)
    async with connect() as client:
        done = await client.upload("a.bin", data, key=key)
    assert (media / done.stored_as).read_bytes() == data
    await uploads.outbox.join()
    assert [name for name, _ in heard] == ["started", "resumed", "completed"]
    assert heard.named("resumed")[0]["offset"] == created.limit


async def test_a_file_that_was_sent_whole_completes_without_its_connection(
    connect: Connect, media: Path
) -> None:
    data = os.urandom(1000)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        await client.send_data(1, 0, data)
        await client.send(finish(data), 1)
    await settled()
    session = await UploadSession.objects.aget()
    assert session.state == State.COMPLETED
    assert (media / session.stored_as).read_bytes() == data


async def test_a_newer_connection_takes_over(connect: Connect, media: Path) -> None:
    data, key = os.urandom(100 * KIB), new_key()
    async with connect() as older, connect() as newer:
        await older.send(m.Create(key, "a.bin", len(data)), 1)
        created = await older.wait_for(m.Created, 1)
        await older.send_data(1, 0, data[: created.limit])
        done = await newer.upload("a.bin", data, key=key)
        with pytest.raises(UploadError) as caught:
            await older.wait_for(m.Completed, 1)
        assert caught.value.code == "taken_over"
        await older.send_data(1, created.limit, b"late")  # in flight: dropped
        assert (await older.upload("b.bin", b"data")).size == 4
    assert (media / done.stored_as).read_bytes() == data


async def test_what_is_queued_behind_a_create_is_void_where_the_upload_is_known(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data that follows a repeated CREATE begins at 0; the upload resumes at a later offset."""
    data, key = os.urandom(40 * KIB), new_key()
    async with connect() as client:
        await client.send(m.Create(key, "a.bin", len(data)), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[: created.limit])
        await client.wait_for(m.Ack, 1)
    await settled()
    async with connect() as client:
        await client.send(m.Create(key, "a.bin", len(data)), 1)
        for start in range(0, 16 * KIB, KIB):
            await client.send_data(1, start, data[start : start + KIB])
            await asyncio.sleep(0.001)
        attached = await client.wait_for(m.Attached, 1)
        durable, received = data[: attached.durable], data[: attached.received]
        await client.send(m.Proof(crc(durable), crc(received)), 1)
        ready = await client.wait_for(m.Ready, 1)
        assert ready.offset == attached.received == created.limit
        stop = min(ready.limit, len(data))
        await client.send_data(1, ready.offset, data[ready.offset : stop])
        if stop < len(data):
            ack = await client.wait_for(m.Ack, 1)
            while ack.limit < len(data):
                ack = await client.wait_for(m.Ack, 1)
            await client.send_data(1, stop, data[stop:])
        await client.send(finish(data), 1)
        done = await client.wait_for(m.Completed, 1)
    assert (media / done.stored_as).read_bytes() == data


async def test_another_file_is_not_taken_for_the_one_that_was_begun(connect: Connect) -> None:
    data = os.urandom(100 * KIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[: created.limit])
        await client.send(m.Release(), 1)
        assert (await client.wait_for(m.Released, 1)).durable == created.limit
        await client.send(m.Attach(created.upload), 2)
        await client.wait_for(m.Attached, 2)
        await client.send(m.Proof("00000000", "00000000"), 2)
        with pytest.raises(UploadError) as caught:
            await client.wait_for(m.Ready, 2)
        assert caught.value.code == "file_changed"
    assert (await row(created.upload)).state == State.INTERRUPTED


async def test_what_lies_above_the_durable_bytes_may_be_sent_anew(
    connect: Connect, uploads: UploadService, media: Path
) -> None:
    data = os.urandom(16 * KIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin"), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[:100])
        await client.send(m.Release(), 1)
        await client.wait_for(m.Released, 1)
        # As after a crash before the last checkpoint was committed.
        await UploadSession.objects.aupdate(durable=40, crc=crc32c(data[:40]))
        await client.send(m.Attach(created.upload), 2)
        attached = await client.wait_for(m.Attached, 2)
        assert (attached.durable, attached.received) == (40, 100)
        await client.send(m.Proof(crc(data[:40])), 2)
        assert (await client.wait_for(m.Ready, 2)).offset == 40
        await client.send_data(2, 40, data[40:])
        await client.send(finish(data), 2)
        done = await client.wait_for(m.Completed, 2)
    assert (media / done.stored_as).read_bytes() == data


async def test_query_and_cancel_need_no_attachment(connect: Connect) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 100), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send(m.Query(created.upload), 2)
        status = await client.wait_for(m.Status, 2)
        assert (status.state, status.name, status.durable, status.size) == (
            "created",
            "a.bin",
            0,
            100,
        )
        await client.send(m.Cancel(created.upload), 3)
        assert (await client.wait_for(m.Cancelled, 3)).upload == created.upload
        await client.send(m.Query(created.upload), 4)
        assert (await client.wait_for(m.Status, 4)).state == "cancelled"


async def test_damage_is_sent_again(connect: Connect, media: Path) -> None:
    data = os.urandom(8000)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        await client.wait_for(m.Created, 1)
        frames: list[bytes] = []
        send_frame, client.send_frame = client.send_frame, _into(frames)
        await client.send_data(1, 0, data)
        client.send_frame = send_frame
        await client.send_frame(frames[0][:-1] + bytes([frames[0][-1] ^ 1]))
        await client.send(finish(data), 1)
        rewind = await client.wait_for(m.Rewind, 1)
        assert (rewind.offset, rewind.code) == (0, "corrupt_chunk")
        await client.send_data(1, 0, data, restart=True)
        await client.send(finish(data), 1)
        done = await client.wait_for(m.Completed, 1)
    assert (media / done.stored_as).read_bytes() == data


def _into(frames: list[bytes]) -> Callable[[bytes], Any]:
    async def keep(frame: bytes) -> None:
        frames.append(frame)

    return keep


async def test_data_beyond_the_declared_size_fails_the_upload(connect: Connect) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"12345")
        with pytest.raises(UploadError) as caught:
            await client.wait_for(m.Completed, 1)
        assert caught.value.code == "size_exceeded"
    assert (await row(created.upload)).state == State.FAILED


async def error_on(client: UploadCommunicator, stream: int) -> m.Error:
    while True:
        number, message = await client.receive()
        if number == stream and isinstance(message, m.Error):
            return message


async def test_a_failure_that_is_told_again_keeps_its_figures(connect: Connect) -> None:
    key = new_key()
    async with connect() as client:
        await client.send(m.Create(key, "a.bin", 4), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"12345")
        first = await error_on(client, 1)
        assert (first.code, first.facts) == ("size_exceeded", {"end": 5, "size": 4})
        asks = [m.Attach(created.upload), m.Create(key, "a.bin", 4), m.Cancel(created.upload)]
        for stream, message in enumerate(asks, 2):
            await client.send(message, stream)
            assert await error_on(client, stream) == first


async def test_a_refusal_of_the_host_is_told_again_in_its_words(connect: Connect) -> None:
    """Without the characters that no database can store."""

    class Wordy(UploadConsumer):
        async def inspect(self, session: UploadSession, file: Any) -> None:
            raise FileRefused("Page 7 \0is blank.", page=7, found="a\0b", half="\ud800")

    async with connect(mounted(Wordy)) as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"data")
        await client.send(finish(b"data"), 1)
        assert (await error_on(client, 1)).code in ("file_refused", "internal_error")
        await client.send(m.Attach(created.upload), 2)
        again = await error_on(client, 2)
    assert again.code == "file_refused"
    assert again.message == "Page 7 is blank."
    assert again.facts == {"page": 7, "found": "ab", "half": "?"}


@pytest.mark.parametrize(
    ("declared", "sent", "finished", "retryable"),
    [
        (10, 4, 10, True),
        (10, 4, 4, False),
        (10, 10, 9, False),
        (None, 4, 10, True),
        (None, 4, 3, False),
    ],
)
async def test_a_size_that_can_never_match_is_not_to_be_tried_again(
    connect: Connect, declared: int | None, sent: int, finished: int, retryable: bool
) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", declared), 1)
        await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, bytes(sent))
        await client.send(m.Finish(finished, crc(bytes(finished))), 1)
        error = await error_on(client, 1)
    assert (error.code, error.retryable) == ("size_mismatch", retryable)
    known = {} if declared is None else {"declared": declared}
    assert error.facts == {"size": finished, "received": sent, **known}  # never null


# Hooks --------------------------------------------------------------------------------------------


class Refusing(UploadConsumer):
    async def may_upload(self, user: Any) -> bool:
        return bool(user.username != "alice")


class Small(UploadConsumer):
    async def get_max_size(self, user: Any) -> int | None:
        return 10


class Picky(UploadConsumer):
    allowed_extensions = ("jpg", "png")
    allowed_types = ("image/*",)
    max_size = 1000


class Curious(UploadConsumer):
    async def check(self, session: UploadSession) -> None:
        await super().check(session)
        if session.metadata.get("album") != 7:
            raise MetadataInvalid(reason="album is missing")
        session.metadata["checked"] = True


class Suspicious(UploadConsumer):
    async def inspect(self, session: UploadSession, file: Any) -> None:
        if b"virus" in await asyncio.to_thread(file.read):
            raise FileRefused("A virus.", name=session.name)


class Unutterable(UploadConsumer):
    """Refuses with what is no JSON: a lazy text, a decimal, an id, and an object that cannot even be text."""

    async def check(self, session: UploadSession) -> None:
        if session.name == "mute":
            raise FileRefused("Not this one.", culprit=Mute())
        if session.name == "long":
            raise FileRefused("No. " * 20_000)
        raise FileRefused(
            gettext_lazy("Not this one."), share=Decimal("0.5"), culprit=uuid.UUID(int=7)
        )


class Mute:
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class Broken(UploadConsumer):
    async def get_name(self, session: UploadSession) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("consumer", "name", "content_type", "error"),
    [
        (Refusing, "a.jpg", "image/jpeg", PermissionRefused),
        (Small, "a.jpg", "image/jpeg", FileTooLarge),
        (Picky, "a.exe", "image/jpeg", TypeRefused),
        (Picky, "a.jpg", "text/html", TypeRefused),
        (Curious, "a.jpg", "image/jpeg", MetadataInvalid),
        (UploadConsumer, "../../etc/passwd", "", NameRefused),
    ],
)
async def test_a_host_refuses_before_a_byte_is_sent(
    connect: Connect, consumer: Any, name: str, content_type: str, error: type[UploadRefused]
) -> None:
    async with connect(mounted(consumer)) as client:
        with pytest.raises(error):
            await client.upload(name, b"eleven byte", content_type=content_type)
        assert not await UploadSession.objects.aexists()


async def test_a_host_may_let_in_and_change(connect: Connect) -> None:
    async with connect(mounted(Curious)) as client:
        done = await client.upload("a.jpg", b"x", metadata={"album": 7})
    assert (await row(done.upload)).metadata == {"album": 7, "checked": True}
    async with connect(mounted(Picky)) as client:
        await client.upload("a.JPG", b"x" * 1000, content_type="image/jpeg; q=1")


async def test_an_unknown_size_is_limited_as_the_bytes_come(connect: Connect, heard: Heard) -> None:
    async with connect(mounted(Picky)) as client:
        await client.send(m.Create(new_key(), "a.png", content_type="image/png"), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"x" * 1001)
        with pytest.raises(FileTooLarge):
            await client.wait_for(m.Completed, 1)
    session = await row(created.upload)
    assert (session.state, session.error) == (State.FAILED, "file_too_large")


async def test_the_right_to_upload_is_looked_at_again_at_attach(connect: Connect) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 100), 1)
        created = await client.wait_for(m.Created, 1)
    async with connect(mounted(Refusing)) as client:
        await client.send(m.Attach(created.upload), 1)
        with pytest.raises(PermissionRefused):
            await client.wait_for(m.Attached, 1)


class Fickle(UploadConsumer):
    allowed = True

    async def may_upload(self, user: Any) -> bool:
        return Fickle.allowed


async def test_the_right_to_upload_is_looked_at_again_at_finish(
    connect: Connect, heard: Heard, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(mounted(Fickle)) as client:
        await client.send(m.Create(new_key(), "a.bin", 5), 1)
        created = await client.wait_for(m.Created, 1)
        monkeypatch.setattr(Fickle, "allowed", False)
        await client.send_data(1, 0, b"hello")
        await client.send(finish(b"hello"), 1)
        with pytest.raises(PermissionRefused):
            await client.wait_for(m.Completed, 1)
    session = await row(created.upload)
    assert (session.state, session.error) == (State.FAILED, "permission_denied")
    assert not media.exists()


async def test_the_right_to_upload_is_looked_at_again_after_an_inspection(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take hours."""

    async def inspect(self: Fickle, session: UploadSession, file: Any) -> None:
        monkeypatch.setattr(Fickle, "allowed", False)

    monkeypatch.setattr(Fickle, "inspect", inspect)
    async with connect(mounted(Fickle)) as client:
        with pytest.raises(PermissionRefused):
            await client.upload("a.bin", b"hello")
    assert not media.exists()


class ByPermission(UploadConsumer):
    """As docs/reference/consumer.md shows it: Django caches the permissions in the user object."""

    async def may_upload(self, user: Any) -> bool:
        return bool(await user.ahas_perm("auth.add_group"))

    async def get_max_size(self, user: Any) -> int | None:
        return None if user.is_staff else 10


def take_the_permission_away(user: Any) -> None:
    user.user_permissions.clear()


def take_the_staff_status_away(user: Any) -> None:
    get_user_model().objects.update(is_staff=False)


@pytest.mark.parametrize("by", ["ticket", "cookie"])
@pytest.mark.parametrize("moment", ["create", "attach", "finish"])
@pytest.mark.parametrize(
    ("lose", "error"),
    [(take_the_permission_away, PermissionRefused), (take_the_staff_status_away, FileTooLarge)],
)
async def test_rights_that_were_taken_away_are_gone_on_a_connection_that_is_open(
    connect: Connect, alice: Any, by: str, moment: str, lose: Any, error: type[UploadRefused]
) -> None:
    def permit() -> None:
        alice.user_permissions.add(Permission.objects.get(codename="add_group"))
        get_user_model().objects.update(is_staff=True)

    await run(permit)
    options = {"ticket": issue_ticket(alice)} if by == "ticket" else {}
    async with connect(mounted(ByPermission), **options) as client:
        await client.send(m.Create(new_key(), "a.bin"), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, bytes(20))
        while (await client.wait_for(m.Ack, 1)).received < 20:
            pass
        await run(lose, alice)
        stream, messages = {
            "create": (2, [m.Create(new_key(), "b.bin", 20), finish(bytes(20))]),
            "attach": (2, [m.Attach(created.upload)]),
            "finish": (1, [finish(bytes(20))]),
        }[moment]
        for message in messages:
            await client.send(message, stream)
        if (moment, error) == ("attach", FileTooLarge):  # what is too large is found at FINISH
            attached = await client.wait_for(m.Attached, 2)
            assert attached.received == 20
            await client.send(m.Proof(crc(bytes(20)), crc(bytes(20))), 2)
            await client.wait_for(m.Ready, 2)
            await client.send(finish(bytes(20)), 2)
        with pytest.raises(error):
            await client.wait_for(m.Completed, stream)


async def test_a_file_whose_sender_may_not_finish_it_is_neither_hashed_nor_inspected(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    looked: list[str] = []

    class Inspecting(Fickle):
        async def inspect(self, session: UploadSession, file: Any) -> None:
            looked.append(session.name)

    async with connect(mounted(Inspecting)) as client:
        await client.send(m.Create(new_key(), "a.bin", 5), 1)
        await client.wait_for(m.Created, 1)
        monkeypatch.setattr(Fickle, "allowed", False)
        await client.send_data(1, 0, b"hello")
        await client.send(finish(b"hello"), 1)
        with pytest.raises(PermissionRefused):
            await client.wait_for(m.Completed, 1)
    assert looked == []


class NamedTooLong(UploadConsumer):
    async def get_name(self, session: UploadSession) -> str:
        return "/".join(["long"] * 200)


async def test_a_name_that_no_row_holds_is_found_before_anything_is_published(
    connect: Connect, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(mounted(NamedTooLong)) as client:
        with pytest.raises(InternalError):
            await client.upload("a.txt", b"data")
    assert "more than 512" in caplog.text
    assert not media.exists()


async def test_a_scanner_sees_the_whole_file(connect: Connect, heard: Heard, media: Path) -> None:
    async with connect(mounted(Suspicious)) as client:
        done = await client.upload("a.txt", b"harmless")
        with pytest.raises(FileRefused) as caught:
            await client.upload("b.txt", b"a virus")
    assert caught.value.message == "A virus."
    assert [path.name for path in media.rglob("*.txt")] == [Path(done.stored_as).name]


async def test_a_broken_hook_is_an_internal_error_that_can_be_tried_again(
    connect: Connect, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key()
    async with connect(mounted(Broken)) as client:
        with pytest.raises(UploadError) as caught:
            await client.upload("a.bin", b"data", key=key)
    assert (caught.value.code, caught.value.retryable) == ("internal_error", True)
    assert "ZeroDivisionError" in caplog.text
    async with connect() as client:
        done = await client.upload("a.bin", b"data", key=key)
    assert (media / done.stored_as).read_bytes() == b"data"


async def test_an_error_with_texts_and_figures_that_are_no_json_is_told(connect: Connect) -> None:
    async with connect(mounted(Unutterable)) as client:
        with pytest.raises(FileRefused) as caught:
            await client.upload("a.bin", b"data")
    assert caught.value.message == "Not this one."
    assert caught.value.facts == {"share": "0.5", "culprit": str(uuid.UUID(int=7))}


@pytest.mark.parametrize(
    ("name", "reason"), [("mute", "ZeroDivisionError"), ("long", "do not fit a control frame")]
)
async def test_an_error_that_cannot_be_told_is_an_internal_error(
    connect: Connect, caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    async with connect(mounted(Unutterable)) as client:
        with pytest.raises(InternalError):
            await client.upload(name, b"data")
    assert reason in caplog.text


def name_it(session: UploadSession, name: str) -> str:
    return f"by-size/{session.size}/{name}"


class NamedByDate(UploadConsumer):
    upload_to = "%Y/files/"


class NamedByFunction(UploadConsumer):
    upload_to = staticmethod(name_it)


class NamedByPath(UploadConsumer):
    upload_to = "tests.test_consumers.name_it"


class NamedByHook(UploadConsumer):
    async def get_name(self, session: UploadSession) -> str:
        return f"{session.owner_id}/{session.pk}"


async def test_where_it_goes(connect: Connect, alice: Any) -> None:
    stored = {}
    for consumer in (NamedByDate, NamedByFunction, NamedByPath, NamedByHook):
        async with connect(mounted(consumer)) as client:
            stored[consumer] = await client.upload("é b.txt", b"data")
    session = await row(stored[NamedByDate].upload)
    assert stored[NamedByDate].stored_as == f"{session.created_at:%Y}/files/é_b.txt"
    assert stored[NamedByFunction].stored_as == "by-size/4/é_b.txt"
    assert stored[NamedByPath].stored_as.startswith("by-size/4/é_b")
    hooked = stored[NamedByHook]
    assert hooked.stored_as == f"{alice.pk}/{hooked.upload}"


# A server that cannot write ------------------------------------------------------------------------


async def test_a_server_that_cannot_write_says_so_to_the_client_the_log_and_the_row(
    connect: Connect, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    media.write_text("in the way of the folder")
    key = new_key()
    for _ in range(3):
        async with connect() as client:
            with pytest.raises(StorageFailed) as caught:
                await client.upload("a.bin", b"data", key=key)
            assert caught.value.facts["errno"] == "ENOTDIR"
        await settled()
    (line,) = (each for each in caplog.records if each.levelno == logging.ERROR)  # once a minute
    assert str(media) in line.getMessage()
    assert "Not a directory" in line.getMessage()
    assert line.code == "storage_error"  # type: ignore[attr-defined]
    session = await UploadSession.objects.aget()
    assert (session.state, session.error) == (State.FINALIZING, "storage_error")
    assert session.error_message == caught.value.message
    async with connect() as client:
        await client.send(m.Query(str(session.pk)), 1)
        status = await client.wait_for(m.Status, 1)
        assert (status.state, status.error) == ("finalizing", None)  # it is not over
    media.unlink()
    async with connect() as client:
        done = await client.upload("a.bin", b"data", key=key)
    assert (media / done.stored_as).read_bytes() == b"data"
    assert (await row(done.upload)).error == ""


async def test_an_upload_that_goes_on_has_no_trouble_any_more(
    connect: Connect, media: Path, staging: Path
) -> None:
    staging.write_text("in the way of the folder")
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin"), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"data")
        with pytest.raises(StorageFailed):
            await client.wait_for(m.Completed, 1)
        await settled_row(created.upload, "storage_error")
        staging.unlink()
        await client.send(m.Attach(created.upload), 2)
        assert (await client.wait_for(m.Attached, 2)).received == 0
        assert (await row(created.upload)).error == ""
        await client.send(m.Proof("00000000"), 2)
        await client.wait_for(m.Ready, 2)
        await client.send_data(2, 0, b"data")
        await client.send(finish(b"data"), 2)
        await client.wait_for(m.Completed, 2)
    assert (await row(created.upload)).error == ""


async def settled_row(pk: str, error: str) -> None:
    async with asyncio.timeout(10):
        while (await row(pk)).error != error:
            await asyncio.sleep(0.01)


# Origin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.com", "https://testserver", "", "http://["])
async def test_a_foreign_page_gets_no_handshake_and_the_log_says_what_to_set(
    connect: Connect, login: Client, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    cookie = f"sessionid={login.cookies['sessionid'].value}".encode()
    headers = [(b"cookie", cookie), (b"origin", origin.encode())]
    for _ in range(3):
        client = connect(cookies=None, headers=headers)
        with pytest.raises(ConnectionLost):
            await client.connect()
        await client.disconnect()
    (line,) = caplog.records  # once a minute
    for part in (origin, "http://testserver", "CSRF_TRUSTED_ORIGINS", "SECURE_PROXY_SSL_HEADER"):
        assert part in line.getMessage()
    assert vars(line).items() >= {
        ("code", "origin_refused"),
        ("owner", None),
        ("endpoint", "default"),
        ("address", "127.0.0.1"),
    }


async def test_a_cookie_without_an_origin_proves_nothing(connect: Connect, login: Client) -> None:
    cookie = f"sessionid={login.cookies['sessionid'].value}".encode()
    async with connect(cookies=None, headers=[(b"cookie", cookie)]) as client:
        assert not client.hello.authenticated
        await client.send(m.Create(new_key(), "a.bin", 1), 1)
        await ends_with(client, AuthenticationRequired)


# Who is there -------------------------------------------------------------------------------------


def log_out(login: Client) -> None:
    login.logout()


def change_password(login: Client) -> None:
    user = get_user_model().objects.get(username="alice")
    user.set_password("another")
    user.save()


def deactivate(login: Client) -> None:
    get_user_model().objects.update(is_active=False)


def delete_sessions(login: Client) -> None:
    import_module(django_settings.SESSION_ENGINE).SessionStore(
        login.cookies["sessionid"].value
    ).delete()


@pytest.mark.parametrize("end", [log_out, change_password, deactivate, delete_sessions])
@pytest.mark.parametrize("moment", ["create", "attach", "finish", "auth", "connect"])
async def test_a_login_that_ended_is_noticed(
    connect: Connect, login: Client, end: Any, moment: str
) -> None:
    client = connect()
    if moment != "connect":
        await client.connect()
        await client.send(m.Create(new_key(), "a.bin", 20 * KIB), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, bytes(16 * KIB))
        ack = await client.wait_for(m.Ack, 1)
        while ack.limit < 20 * KIB:
            ack = await client.wait_for(m.Ack, 1)
        await client.send_data(1, 16 * KIB, bytes(4 * KIB))
    await run(end, login)
    if moment == "connect":
        async with connect() as late:
            assert not late.hello.authenticated
        return
    stream, message = {
        "create": (2, m.Create(new_key(), "b.bin", 1)),
        "attach": (2, m.Attach(created.upload)),
        "finish": (1, finish(bytes(20 * KIB))),
        "auth": (0, m.Auth()),
    }[moment]
    await client.send(message, stream)
    with pytest.raises(AuthenticationRequired):
        await client.wait_for(m.Completed, stream)
    await client.disconnect()
    await settled()
    session = await row(created.upload)
    assert (session.state, session.durable) == (State.INTERRUPTED, 20 * KIB)


async def test_a_ticket_lets_a_program_in(connect: Connect, alice: Any) -> None:
    async with connect(ticket=issue_ticket(alice)) as client:
        assert not client.hello.authenticated
        done = await client.upload("a.bin", b"data")
    assert (await row(done.upload)).owner_id == alice.pk


async def test_a_ticket_may_limit_the_size(connect: Connect, alice: Any) -> None:
    async with connect(ticket=issue_ticket(alice, max_size=3)) as client:
        await client.upload("a.bin", b"123")
        with pytest.raises(FileTooLarge):
            await client.upload("a.bin", b"1234")


def tampered(alice: Any) -> str:
    return issue_ticket(alice)[:-1] + "?"


def foreign(alice: Any) -> str:
    return issue_ticket(alice, endpoint="other")


def expired(alice: Any) -> str:
    return issue_ticket(alice, max_age=-1)


def outdated(alice: Any) -> str:
    ticket = issue_ticket(alice)
    change_password(Client())
    return ticket


def of_no_user(alice: Any) -> str:
    ticket = issue_ticket(alice)
    get_user_model().objects.all().delete()
    return ticket


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (tampered, TicketInvalid),
        (foreign, TicketInvalid),
        (expired, TicketExpired),
        (outdated, AuthenticationRequired),
        (of_no_user, AuthenticationRequired),
        (lambda alice: "junk", TicketInvalid),
    ],
)
async def test_a_ticket_that_does_not_hold_ends_the_connection(
    application: Any, alice: Any, make: Any, error: type[UploadError]
) -> None:
    ticket = await run(make, alice)
    async with UploadCommunicator(application) as client:
        await client.send(m.Auth(ticket))
        await client.send(m.Create(new_key(), "a.bin", 1), 1)
        await ends_with(client, error)
    await settled()
    assert not await UploadSession.objects.aexists()


async def test_a_ticket_of_another_user_opens_none_of_ones_uploads(
    connect: Connect, bob: Any
) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 100), 1)
        created = await client.wait_for(m.Created, 1)
        async with connect(ticket=issue_ticket(bob)) as stranger:
            for stream, message in enumerate(
                (m.Attach(created.upload), m.Query(created.upload), m.Cancel(created.upload)), 1
            ):
                await stranger.send(message, stream)
                with pytest.raises(NotFound):
                    await stranger.wait_for(m.Completed, stream)
        assert await client.receives_nothing()


async def test_a_fresh_ticket_in_the_middle_of_an_upload(connect: Connect, alice: Any) -> None:
    async with connect(ticket=issue_ticket(alice, max_age=0.4)) as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"data")
        await asyncio.sleep(0.5)
        await client.send(finish(b"data"), 1)
        with pytest.raises(TicketExpired):
            await client.wait_for(m.Completed, 1)
        await client.send(m.Auth(issue_ticket(alice)))
        told = await client.wait_for(m.Authenticated)
        assert told.user == "alice"
        assert told.expires_in == pytest.approx(900, abs=10)
        await client.send(m.Attach(created.upload), 2)
        await client.wait_for(m.Attached, 2)
        await client.send(m.Proof(crc(b"data"), crc(b"data")), 2)
        await client.wait_for(m.Ready, 2)
        await client.send(finish(b"data"), 2)
        await client.wait_for(m.Completed, 2)


@pytest.mark.parametrize("message", ["attach", "finish", "query", "create"])
async def test_what_follows_a_fresh_ticket_at_once_is_judged_by_it(
    connect: Connect, alice: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(ticket=issue_ticket(alice)) as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"data")
        while (await client.wait_for(m.Ack, 1)).received < 4:
            pass
        later = SimpleNamespace(time=lambda: time.time() + 1000)  # the first ticket has run out
        monkeypatch.setattr(owners, "time", later)
        await client.send(m.Auth(issue_ticket(alice, max_age=5000)))
        if message == "finish":
            await client.send(finish(b"data"), 1)
            assert (await client.wait_for(m.Completed, 1)).size == 4
        elif message == "attach":
            await client.send(m.Attach(created.upload), 2)
            assert (await client.wait_for(m.Attached, 2)).received == 4
        elif message == "query":
            await client.send(m.Query(created.upload), 2)
            assert (await client.wait_for(m.Status, 2)).upload == created.upload
        else:
            await client.send(m.Create(new_key(), "b.bin"), 2)
            assert (await client.wait_for(m.Created, 2)).name == "b.bin"


async def test_credit_that_came_before_the_ticket_counts_for_its_user(
    connect: Connect, uploads: UploadService, alice: Any
) -> None:
    async with connect(ticket=None) as client:
        await client.send(m.Auth(issue_ticket(alice)))
        await client.send(m.Create(new_key(), "a.bin"), 1)  # the ticket is not read yet
        created = await client.wait_for(m.Created, 1)
        assert uploads.active[uuid.UUID(created.upload)].account.share.owner == f"user:{alice.pk}"


async def test_what_follows_a_fresh_ticket_that_does_not_hold_is_not_begun(
    connect: Connect, alice: Any
) -> None:
    async with connect(ticket=issue_ticket(alice)) as client:
        await client.send(m.Auth("junk"))
        await client.send(m.Create(new_key(), "a.bin"), 1)
        await ends_with(client, TicketInvalid)
    await settled()
    assert not await UploadSession.objects.aexists()


async def test_a_ticket_of_another_user_in_the_middle_ends_the_connection(
    connect: Connect, alice: Any, bob: Any
) -> None:
    async with connect(ticket=issue_ticket(alice)) as client:
        await client.send(m.Auth(issue_ticket(bob)))
        await ends_with(client, TicketInvalid)


async def test_a_login_is_looked_at_again_when_asked(connect: Connect) -> None:
    async with connect() as client:
        await client.send(m.Auth())
        assert (await client.wait_for(m.Authenticated)).expires_in is None


async def test_a_login_that_is_none_cannot_be_reloaded(application: Any) -> None:
    async with UploadCommunicator(application) as client:
        await client.send(m.Auth())
        await ends_with(client, AuthenticationRequired)


async def test_a_ticket_must_come_in_time(
    application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "AUTHENTICATION_SECONDS", 0.05)
    async with UploadCommunicator(application) as client:
        await ends_with(client, BY_CODE["authentication_timeout"])


async def test_a_handshake_without_a_cookie_costs_no_query(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Database.call
    asked: list[Any] = []

    async def watched(self: Database, function: Any, item: Any, **options: Any) -> Any:
        asked.append(function)
        return await call(self, function, item, **options)

    monkeypatch.setattr(Database, "call", watched)
    stranger = connect(cookies=SimpleCookie({"theme": "dark"}))
    assert not (await stranger.connect()).authenticated
    assert owners.look_up not in asked
    await stranger.disconnect()
    async with connect() as guest:
        assert guest.hello.authenticated
    assert owners.look_up in asked


async def test_a_ticket_that_came_in_time_is_not_late_because_the_database_is(
    application: Any, alice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "AUTHENTICATION_SECONDS", 0.2)
    call = Database.call

    async def late(self: Database, function: Any, item: Any, **options: Any) -> Any:
        if isinstance(item, Ticket):
            await asyncio.sleep(0.5)
        return await call(self, function, item, **options)

    async with UploadCommunicator(application) as client:
        monkeypatch.setattr(Database, "call", late)
        await client.send(m.Auth(issue_ticket(alice)))
        assert (await client.wait_for(m.Authenticated)).user == str(alice)
        assert (await client.upload("a.bin", b"data")).size == 4


async def test_a_client_that_goes_while_its_ticket_is_read_leaves_no_trace(
    application: Any, alice: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = UploadCommunicator(application)
    await client.connect()
    await client.send(m.Auth(issue_ticket(alice)))
    await client.send(m.Create(new_key(), "a.bin", 1), 1)
    await client.disconnect()
    await settled()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def visitor() -> Client:
    client = Client()
    request = RequestFactory().get("/")
    request.session = client.session
    ensure_visitor(request)
    ensure_visitor(request)  # keeps the token
    request.session.save()
    client.cookies[django_settings.SESSION_COOKIE_NAME] = request.session.session_key
    return client


async def test_visitors_upload_where_they_may(
    connect: Connect, settings: Any, application: Any
) -> None:
    one, other = await run(visitor), await run(visitor)
    async with connect(cookies=one.cookies) as client:
        assert not client.hello.authenticated
    settings.ASYNC_UPLOAD = {"ALLOW_ANONYMOUS": True}
    async with connect(cookies=one.cookies) as client:
        done = await client.upload("a.bin", b"data")
    session = await row(done.upload)
    key = one.cookies["sessionid"].value
    assert session.owner_id is None
    assert session.owner_key.startswith("visitor:")
    assert key not in session.owner_key
    async with connect(cookies=other.cookies) as client:
        await client.send(m.Query(done.upload), 1)
        with pytest.raises(NotFound):
            await client.wait_for(m.Status, 1)
    async with connect(cookies=Client().cookies) as client:  # a visitor without a token
        assert not client.hello.authenticated
    stored = await run(lambda: one.session[SESSION_TOKEN])
    assert session.owner_key == f"visitor:{stored}"


# Connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{"USER_MAX_CONNECTIONS": 2}, {"ADDRESS_MAX_CONNECTIONS": 2}])
async def test_connections_are_capped(connect: Connect, settings: Any, limits: Any) -> None:
    settings.ASYNC_UPLOAD = limits
    async with connect() as first:
        async with connect():
            refused = connect()
            with pytest.raises(TooManyConnections) as caught:
                await refused.connect()
            assert caught.value.retry_after
            with pytest.raises(ConnectionLost):
                await refused.receive()
            assert refused.close_code == 4429
            await refused.disconnect()
        async with connect():  # one went
            pass
        assert (await first.upload("a.bin", b"data")).size == 4


async def test_a_ticket_counts_as_a_connection_of_its_user(
    connect: Connect, settings: Any, alice: Any
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_CONNECTIONS": 1}
    async with connect(), connect(cookies=None) as second:
        await second.send(m.Auth(issue_ticket(alice)))
        await ends_with(second, TooManyConnections)


async def test_the_subprotocol_must_be_offered(connect: Connect) -> None:
    client = connect(subprotocols=["chat"])
    with pytest.raises(UploadError) as caught:
        await client.connect()
    assert caught.value.code == "subprotocol_required"
    assert caught.value.facts == {"subprotocol": SUBPROTOCOL}
    with pytest.raises(ConnectionLost):
        await client.receive()
    assert client.close_code == 4406
    await client.disconnect()


async def test_a_silent_connection_is_cut(connect: Connect, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"IDLE_TIMEOUT": 0.3}
    async with connect() as client:
        for _ in range(4):
            await asyncio.sleep(0.15)
            await client.send(m.Ping(7))
            assert (await client.wait_for(m.Pong)).nonce == 7
        await ends_with(client, BY_CODE["idle_timeout"])


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"junk", "malformed_frame"),
        (b"", "malformed_frame"),
        (bytes(2_000_000), "corrupt_frame"),
        (b"\x01" + bytes(20), "corrupt_frame"),
    ],
)
async def test_junk_ends_the_connection(
    connect: Connect, frame: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect() as client:
        await client.send_frame(frame)
        await ends_with(client, BY_CODE[code])
    assert "Traceback" not in caplog.text


async def test_text_is_no_frame(connect: Connect) -> None:
    async with connect() as client:
        await client.socket.send_input({"type": "websocket.receive", "text": "hello"})
        await ends_with(client, BY_CODE["malformed_frame"])


async def test_data_past_its_limit_ends_the_connection_and_nothing_else(
    connect: Connect,
) -> None:
    async with connect() as other, connect() as client:
        await client.send(m.Create(new_key(), "a.bin", MIB), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, bytes(created.limit))
        await client.send_data(1, created.limit, bytes(512 * KIB))
        await ends_with(client, BY_CODE["flow_control"])
        assert (await other.upload("b.bin", b"data")).size == 4


def test_every_error_has_a_close_code() -> None:
    for error in BY_CODE.values():
        code = next(CLOSE_CODES[cls] for cls in error.__mro__ if cls in CLOSE_CODES)
        assert 4400 <= code < 4600


@pytest.mark.parametrize(
    ("code", "close"),
    [
        ("malformed_frame", 4400),
        ("subprotocol_required", 4406),
        ("ticket_invalid", 4401),
        ("idle_timeout", 4408),
        ("authentication_timeout", 4408),
        ("too_many_connections", 4429),
        ("database_unavailable", 4500),
        ("internal_error", 4500),
    ],
)
def test_close_codes_are_those_of_the_specification(code: str, close: int) -> None:
    mro = BY_CODE[code].__mro__
    assert next(CLOSE_CODES[cls] for cls in mro if cls in CLOSE_CODES) == close


async def test_a_digest_that_was_promised_and_not_brought_is_no_null(connect: Connect) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 4, digest="sha-256"), 1)
        await client.send_data(1, 0, b"data")
        await client.send(finish(b"data"), 1)
        with pytest.raises(DigestMismatch) as caught:
            await client.wait_for(m.Completed, 1)
    assert caught.value.facts == {"algorithm": "sha-256", "actual": sha256(b"data").hexdigest()}
    assert "None" not in caught.value.message


async def test_a_stranger_who_is_sent_away_is_told_and_who_signs_in_is_not(
    connect: Connect, alice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "AUTHENTICATION_SECONDS", 600.0)
    strangers = [connect(cookies=None) for _ in range(MAX_UNAUTHENTICATED)]
    for stranger in strangers:
        await stranger.connect()
    call, looking, found = Database.call, asyncio.Event(), asyncio.Event()

    async def slow(self: Database, function: Any, item: Any, **options: Any) -> Any:
        if isinstance(item, Ticket):
            looking.set()
            await found.wait()
        return await call(self, function, item, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "call", slow)
        await strangers[0].send(m.Auth(issue_ticket(alice)))  # it has done its part
        await looking.wait()
        late = connect(cookies=None)
        await late.connect()
        refused = await ends_with(strangers[1], TooManyConnections)
        assert 1.0 <= (refused.retry_after or 0) <= 3.0
        await late.disconnect()
        found.set()
    await strangers[0].wait_for(m.Authenticated)
    async with connect(ticket=issue_ticket(alice)) as client:
        assert (await client.upload("a.bin", b"data")).size == 4
        assert await strangers[2].receives_nothing()
    for stranger in strangers:
        await stranger.disconnect()


async def test_what_is_no_address_reaches_no_row(connect: Connect) -> None:
    for address, counted in [("junk", None), ("", None), ("2001:db8:1:2:3::4", "2001:db8:1:2::")]:
        async with connect(address=address) as client:
            assert client.hello.address == (address if counted else None)
            done = await client.upload("a.bin", b"data")
        assert (await row(done.upload)).address == counted


async def test_refusals_are_logged_once_a_minute(
    connect: Connect, alice: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if "closed" in record.getMessage()]

    async def send_junk() -> None:
        async with connect() as client:
            await client.send_frame(b"junk")
            await ends_with(client, BY_CODE["malformed_frame"])

    for _ in range(3):
        await send_junk()
    (line,) = lines()
    assert "malformed_frame" in line
    assert "127.0.0.1" in line
    (record,) = (each for each in caplog.records if "closed" in each.getMessage())
    assert vars(record).items() >= {
        ("code", "malformed_frame"),
        ("owner", f"user:{alice.pk}"),
        ("endpoint", "default"),
        ("address", "127.0.0.1"),
    }
    monkeypatch.setattr(notices, "SECONDS", 0)
    await send_junk()
    assert "2 more like this" in lines()[1]


async def test_refused_uploads_are_logged_as_news(
    connect: Connect, alice: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_async_upload")
    owner = f"user:{alice.pk}"
    unknown = str(uuid.uuid4())
    async with connect(mounted(Small)) as client:
        for _ in range(3):
            with pytest.raises(FileTooLarge):
                await client.upload("a.bin", b"eleven byte")
        await client.send(m.Create(new_key(), "a.bin", 1, metadata={"a": "\0"}), 7)
        await client.wait_for(m.Error, 7)
        for number in (9, 11):
            await client.send(m.Attach(unknown), number)
            await client.wait_for(m.Error, number)
        await client.send(m.Query(unknown), 13)
        await client.wait_for(m.Error, 13)
        done = await client.upload("b.bin", b"1")
        await client.send(m.Query(done.upload), 19)  # an answer is no refusal
        await client.wait_for(m.Status, 19)
    await settled()
    lines = [each for each in caplog.records if each.name == "django_async_upload"]
    assert {each.levelno for each in lines} == {logging.INFO}
    assert [(each.code, each.owner, each.endpoint, each.upload) for each in lines] == [  # type: ignore[attr-defined]
        ("file_too_large", owner, "default", None),
        ("metadata_invalid", owner, "default", None),
        ("not_found", owner, "default", unknown),
    ]
    assert all(owner in each.getMessage() for each in lines)


async def test_an_upload_that_fails_is_logged_with_its_id(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_async_upload")
    data = bytes(40 * KIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "b.bin", len(data)), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[: 16 * KIB])
        await client.send(m.Release(), 1)
        await client.wait_for(m.Released, 1)
        await client.send(m.Attach(created.upload), 3)
        await client.wait_for(m.Attached, 3)
        await client.send(m.Proof("00000000", "00000000"), 3)
        assert (await client.wait_for(m.Error, 3)).code == "file_changed"
    (line,) = (each for each in caplog.records if each.levelno == logging.INFO)
    assert (line.code, line.upload) == ("file_changed", created.upload)  # type: ignore[attr-defined]


async def test_a_client_that_does_not_read_is_dropped(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CLOSING_SECONDS", 0.1)
    client = connect()
    await client.connect()
    client.socket._output_queue._maxsize = 1  # as a socket whose buffers are full
    monkeypatch.setattr(sender, "MAX_UNSENT", 16 * KIB)
    for nonce in range(16 * KIB // 40):  # a PONG has 16 bytes and its nonce
        await client.send(m.Ping(nonce))
    await asyncio.wait_for(asyncio.shield(client.socket.future), 5)


async def test_acks_for_a_client_that_does_not_read_take_no_room(connect: Connect) -> None:
    data = os.urandom(MIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        limit = (await client.wait_for(m.Created, 1)).limit
        client.socket._output_queue._maxsize = 1
        for offset in range(0, limit, 64):
            await client.send_data(1, offset, data[offset : offset + 64])
            if offset % 1024 == 0:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        (consumer,) = drain_module.connections
        assert len(consumer._sender._frames) <= 2
        client.socket._output_queue._maxsize = 0
        while (ack := await client.wait_for(m.Ack, 1)).received < limit:
            pass
        assert ack.received == limit


async def test_a_database_that_is_away_at_the_handshake_is_told(
    connect: Connect, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_async_upload.exceptions import DatabaseUnavailable

    async def away(*args: Any, **kwargs: Any) -> Any:
        raise DatabaseUnavailable(retry_after=1.0)

    client = connect()
    with monkeypatch.context() as patch:
        patch.setattr(type(uploads.database), "call_many", away)
        with pytest.raises(DatabaseUnavailable):
            await client.connect()
    with pytest.raises(ConnectionLost):
        await client.receive()
    assert client.close_code == 4500
    await client.disconnect()


async def test_a_host_without_sessions_may_set_the_user_itself(
    uploads: UploadService, alice: Any
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await UploadConsumer.as_asgi()({**scope, "user": alice}, receive, send)

    headers = [(b"origin", b"http://testserver")]
    async with UploadCommunicator(application, headers=headers) as client:
        assert client.hello.authenticated
        assert (await client.upload("a.bin", b"data")).size == 4
        await sync_to_async(deactivate)(Client())
        with pytest.raises(AuthenticationRequired):
            await client.upload("a.bin", b"data")


async def test_a_database_without_the_tables_is_told_by_a_code_that_no_client_waits_for(
    connect: Callable[..., UploadCommunicator], caplog: pytest.LogCaptureFixture
) -> None:
    """The server was started before ``migrate``: the client must not try again and again."""

    def rename(source: str, target: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {source} RENAME TO {target}")

    table = UploadSession._meta.db_table
    async with connect() as client:
        await run(rename, table, f"{table}_away")
        try:
            await client.send(m.Create(new_key(), "a.bin", 100_000), 1)
            error = await client.wait_for(m.Error, 1)
        finally:
            await run(rename, f"{table}_away", table)
        assert (error.code, error.retryable) == ("database_not_migrated", False)
        assert "manage.py migrate" in caplog.text
        assert (await client.upload("b.bin", b"data")).size == 4
