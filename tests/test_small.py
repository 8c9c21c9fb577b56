"""Small files that arrive whole: published in a group, or one by one where something is unusual."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from django.db import OperationalError

from django_async_upload import signals
from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import small
from django_async_upload.engine.database import Database
from django_async_upload.engine.publish import Finalization, Publisher
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.engine.small import SmallFile
from django_async_upload.exceptions import StorageFailed
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import build_data
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.stores import disk
from django_async_upload.stores.filewriter import FileWriter
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.websocket import connection as connection_module

from .fixtures import crc, crc32c, new_key, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


async def send_small_files(
    uploads: UploadCommunicator,
    files: Sequence[tuple[str, bytes]],
    *,
    keys: Sequence[str] | None = None,
    damaged: int | None = None,
    lying: int | None = None,
    first: int = 1,
) -> list[m.Message]:
    """Send all files without waiting for an answer; returns the last message of each stream.

    ``first`` is the number of the first stream.
    """
    for number, (name, data) in enumerate(files, start=first):
        key = keys[number - first] if keys else new_key()
        frame = bytearray(build_data(number, 0, data, crc32c)) if data else b""
        if damaged == number - first:
            frame[-1] ^= 1
        wrong = crc(b"something else") if lying == number - first else crc(data)
        await uploads.send(m.Create(key, name, len(data)), number)
        if frame:
            await uploads.send_frame(bytes(frame))
        await uploads.send(m.Finish(len(data), wrong), number)
    ends: dict[int, m.Message] = {}
    while len(ends) < len(files):
        number, message = await uploads.receive()
        if isinstance(message, m.Rewind):
            data = files[number - first][1]
            await uploads.send_data(number, message.offset, data, restart=True)
            await uploads.send(m.Finish(len(data), crc(data)), number)
        elif isinstance(message, m.Completed | m.Error):
            ends[number] = message
    return [ends[number + first] for number in range(len(files))]


async def emptied(folder: Path) -> None:
    """Parts are deleted behind the answer."""
    async with asyncio.timeout(10):
        while list(folder.iterdir()):
            await asyncio.sleep(0.01)


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls shared each transaction."""
    counted: list[int] = []
    transact = Database._transact

    def counting(self: Database, group: Any) -> Any:
        counted.append(len(group))
        return transact(self, group)

    monkeypatch.setattr(Database, "_transact", counting)
    return counted


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of those that were published one by one."""
    names: list[str] = []
    for step in ("publish_one", "resume_one"):
        real = getattr(Publisher, step)

        async def noting(self: Publisher, item: Finalization, real: Any = real) -> CompletionEvent:
            names.append(item.session.name)
            return await real(self, item)  # type: ignore[no-any-return]

        monkeypatch.setattr(Publisher, step, noting)
    return names


async def test_many_files_share_few_transactions(
    connect: Connect,
    media: Path,
    staging: Path,
    transactions: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "GATHER_SECONDS", 5.0)  # however busy the machine is
    files = [(f"{n}.bin", os.urandom(1000 + n)) for n in range(100)]
    async with connect() as uploads:
        transactions.clear()
        ends = await send_small_files(uploads, files)
    assert len(transactions) <= 20
    for (name, data), end in zip(files, ends, strict=True):
        assert isinstance(end, m.Completed)
        assert (end.name, end.size, end.crc32c) == (name, len(data), crc(data))
        assert (media / end.stored_as).read_bytes() == data
    assert await UploadSession.objects.filter(state=State.COMPLETED).acount() == 100
    assert await CompletionEvent.objects.acount() == 100
    await emptied(staging)


async def test_the_same_files_once_more_share_as_few(
    connect: Connect,
    media: Path,
    transactions: list[int],
    alone: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "GATHER_SECONDS", 5.0)
    files = [(f"{n}.bin", os.urandom(100)) for n in range(100)]
    async with connect() as uploads:
        first = await send_small_files(uploads, files)
        transactions.clear()
        second = await send_small_files(uploads, files, first=101)
    assert len(transactions) <= 20
    assert alone == []
    stored = [end.stored_as for end in first + second if isinstance(end, m.Completed)]
    assert len(set(stored)) == 200
    for (_name, data), name in zip(files * 2, stored, strict=True):
        assert (media / name).read_bytes() == data


async def test_one_whose_part_cannot_be_linked_leaves_the_others_together(
    connect: Connect,
    media: Path,
    alone: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "GATHER_SECONDS", 5.0)
    asked: list[str] = []
    path = FileWriter.path

    def failing(self: FileWriter) -> str:
        asked.append(self.part)
        if self.part == asked[0] and asked.count(self.part) == 2:
            raise StorageFailed
        return path(self)

    monkeypatch.setattr(FileWriter, "path", failing)
    files = [(f"{n}.bin", os.urandom(100)) for n in range(50)]
    async with connect() as uploads:
        ends = await send_small_files(uploads, files)
    assert len(alone) == 1
    for (_name, data), end in zip(files, ends, strict=True):
        assert isinstance(end, m.Completed)
        assert (media / end.stored_as).read_bytes() == data


async def test_what_many_files_have_in_common_is_synced_once(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "GATHER_SECONDS", 5.0)
    synced: list[str] = []
    sync_directory = disk.sync_directory
    files = [(f"{n}.bin", os.urandom(100)) for n in range(100)]

    def counting(path: str) -> None:
        synced.append(os.fspath(path))
        sync_directory(path)

    monkeypatch.setattr(disk, "sync_directory", counting)
    async with connect() as uploads:
        assert get_service().store.durability == "fsync"
        ends = await send_small_files(uploads, files)
    assert all(isinstance(end, m.Completed) for end in ends)
    assert str(media) in synced
    assert len(synced) < 100


async def test_files_that_want_one_name_all_survive(connect: Connect, media: Path) -> None:
    files = [("same.bin", os.urandom(100)) for _ in range(20)]
    async with connect() as uploads:
        ends = await send_small_files(uploads, files)
    stored = [end.stored_as for end in ends if isinstance(end, m.Completed)]
    assert len(set(stored)) == 20
    for (_name, data), name in zip(files, stored, strict=True):
        assert (media / name).read_bytes() == data


async def test_an_empty_file_is_one_of_them(connect: Connect, media: Path) -> None:
    async with connect() as uploads:
        (end,) = await send_small_files(uploads, [("empty", b"")])
    assert isinstance(end, m.Completed)
    assert (media / end.stored_as).read_bytes() == b""


async def test_a_damaged_one_is_sent_again_and_the_others_do_not_notice(
    connect: Connect, media: Path
) -> None:
    files = [(f"{n}.bin", os.urandom(500)) for n in range(5)]
    async with connect() as uploads:
        ends = await send_small_files(uploads, files, damaged=2)
    for (_name, data), end in zip(files, ends, strict=True):
        assert isinstance(end, m.Completed)
        assert (media / end.stored_as).read_bytes() == data


async def test_one_whose_sender_lies_fails_alone(
    connect: Connect, media: Path, staging: Path
) -> None:
    files = [(f"{n}.bin", os.urandom(500)) for n in range(5)]
    async with connect() as uploads:
        ends = await send_small_files(uploads, files, lying=1)
    assert [type(end) for end in ends].count(m.Completed) == 4
    assert isinstance(ends[1], m.Error)
    assert ends[1].code == "digest_mismatch"
    await emptied(staging)


async def test_one_key_is_one_upload(connect: Connect, media: Path) -> None:
    data, key = os.urandom(300), new_key()
    async with connect() as uploads:
        ends = await send_small_files(uploads, [("a.bin", data)] * 2, keys=[key, key])
    assert isinstance(ends[0], m.Completed)
    assert ends[1] == ends[0]
    assert await UploadSession.objects.acount() == 1
    assert len(list((media / ends[0].stored_as).parent.iterdir())) == 1


async def test_a_quota_refuses_the_one_that_is_too_many(
    connect: Connect, settings: Any, media: Path, staging: Path
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": 1000}
    async with connect() as uploads:
        ends = await send_small_files(uploads, [("a.bin", bytes(600)), ("b.bin", bytes(600))])
    codes = [end.code if isinstance(end, m.Error) else "" for end in ends]
    assert codes == ["", "byte_quota"]
    await emptied(staging)


async def test_a_batch_that_fails_half_way_goes_one_by_one(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch, staging: Path
) -> None:
    """The files are linked when the database fails: they must not be linked a second time."""
    complete = rows.complete
    failures = iter([True])

    def failing(items: Sequence[UploadSession]) -> Any:
        if next(failures, False):
            raise ZeroDivisionError("once")
        return complete(items)

    monkeypatch.setattr(rows, "complete", failing)
    files = [(f"{n}.bin", os.urandom(200)) for n in range(3)]
    async with connect() as uploads:
        ends = await send_small_files(uploads, files)
    for (_name, data), end in zip(files, ends, strict=True):
        assert isinstance(end, m.Completed)
        assert (media / end.stored_as).read_bytes() == data
    assert isinstance(ends[0], m.Completed)
    assert len(list((media / ends[0].stored_as).parent.iterdir())) == 3
    assert await CompletionEvent.objects.acount() == 3
    await emptied(staging)


async def test_who_listens_to_chunks_hears_of_small_ones_too(
    connect: Connect, uploads: UploadService
) -> None:
    chunks: list[tuple[int, int]] = []

    async def receiver(offset: int, size: int, **kwargs: Any) -> None:
        chunks.append((offset, size))

    signals.chunk_received.connect(receiver)
    try:
        async with connect() as connection:
            (end,) = await send_small_files(connection, [("a.bin", bytes(10))])
    finally:
        signals.chunk_received.disconnect(receiver)
    assert isinstance(end, m.Completed)
    assert chunks == [(0, 10)]


async def test_a_client_that_waits_for_created_gets_it(connect: Connect) -> None:
    async with connect() as uploads:
        stream = uploads.new_stream()
        await uploads.send(m.Create(new_key(), "slow.bin", 10), stream)
        created = await uploads.wait_for(m.Created, stream)
        assert created.name == "slow.bin"
        await uploads.send_data(stream, 0, bytes(10))
        await uploads.send(m.Finish(10, crc(bytes(10))), stream)
        assert (await uploads.wait_for(m.Completed, stream)).size == 10


async def test_a_connection_that_is_lost_behind_finish_loses_no_file(
    connect: Connect, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = os.urandom(700)
    with caplog.at_level(logging.ERROR, "django_async_upload"):
        async with connect() as uploads:
            await uploads.send(m.Create(new_key(), "a.bin", len(data)), 1)
            await uploads.send_data(1, 0, data)
            await uploads.send(m.Finish(len(data), crc(data)), 1)
    await settled()
    session = await UploadSession.objects.aget()
    assert session.state == State.COMPLETED
    assert (media / session.stored_as).read_bytes() == data
    assert not caplog.records


async def test_a_commit_whose_answer_was_lost_costs_no_file(
    connect: Connect, media: Path, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection to the database broke after COMMIT: the same step run again finds its own rows."""
    monkeypatch.setattr(connection_module, "GATHER_SECONDS", 5.0)
    transact = Database._transact
    lost: list[bool] = []

    def losing(self: Database, group: Any) -> Any:
        results = transact(self, group)
        if not lost and any(call.function is rows.create for call in group):
            lost.append(True)
            raise OperationalError("server closed the connection unexpectedly")
        return results

    monkeypatch.setattr(Database, "_transact", losing)
    files = [(f"{n}.bin", os.urandom(1000)) for n in range(5)]
    async with connect() as uploads:
        ends = await send_small_files(uploads, files)
    assert lost
    assert [type(end) for end in ends] == [m.Completed] * 5
    for (_name, data), end in zip(files, ends, strict=True):
        assert isinstance(end, m.Completed)
        assert (media / end.stored_as).read_bytes() == data
    await emptied(staging)
    assert await UploadSession.objects.acount() == await CompletionEvent.objects.acount() == 5


@pytest.mark.parametrize("inspects", [False, True])
async def test_a_host_is_asked_for_a_name_once_and_not_before_it_has_inspected_the_file(
    connect: Connect, media: Path, monkeypatch: pytest.MonkeyPatch, inspects: bool
) -> None:
    monkeypatch.setattr(connection_module, "GATHER_SECONDS", 5.0)
    asked: list[str] = []

    class Named(UploadConsumer):
        async def get_name(self, session: UploadSession) -> str:
            asked.append("name")
            return "taken.bin"

    class Inspecting(Named):
        async def inspect(self, session: UploadSession, file: Any) -> None:
            asked.append("inspect")

    app = AuthMiddlewareStack((Inspecting if inspects else Named).as_asgi())
    async with connect(app) as uploads:  # the second one is published by itself
        ends = await send_small_files(uploads, [("a.bin", b"a"), ("b.bin", b"b")], damaged=1)
    assert {type(end) for end in ends} == {m.Completed}
    assert sorted(asked) == sorted(["name", *(["inspect"] if inspects else [])] * 2)
    if inspects:
        assert asked[0] == "inspect"


async def test_files_of_a_burst_wait_for_each_other_and_one_alone_for_none(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "GROUP_SECONDS", 0.2)
    small_files = small.SmallFiles(uploads)
    groups: list[int] = []

    async def published(group: Sequence[SmallFile]) -> None:
        groups.append(len(group))
        await asyncio.sleep(0)

    monkeypatch.setattr(small_files, "_publish", published)

    async def publish() -> None:
        session = UploadSession(owner_key=owner.key)
        await small_files.publish(SmallFile(session, owner, [], "", ""))

    async with asyncio.timeout(5), asyncio.TaskGroup() as burst:
        burst.create_task(publish())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert groups == [1]
        for _ in range(10):
            burst.create_task(publish())
            burst.create_task(publish())
            await asyncio.sleep(0)
    assert groups == [1, 20]
