"""One user's uploads, questions and mistakes leave the other users, and the same user's later uploads, their share."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection as database_connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_async_upload.concurrency import pace
from django_async_upload.engine import checkpoints, runtime
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import (
    Busy,
    ByteQuotaExceeded,
    NotFound,
    SessionQuotaExceeded,
    StorageFull,
)
from django_async_upload.models import UploadSession, Usage
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import FrameType, parse_header
from django_async_upload.sessions import quotas, rows
from django_async_upload.sessions.owners import Owner, look_up
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import UploadAccess
from django_async_upload.stores import FileSystemStore, disk
from django_async_upload.stores.filewriter import FileWriter
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.websocket import connection as connections
from django_async_upload.websocket.connection import CONNECTION_WINDOW

from .fixtures import KIB, MIB, crc, new_key, publish

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


@pytest.fixture
async def connect_bob(application: Any, bob: Any) -> Connect:
    """A connection as bob, the other user."""
    client = Client()
    await sync_to_async(client.force_login)(bob)
    return lambda **options: UploadCommunicator(application, cookies=client.cookies, **options)


# The connection's own credit -----------------------------------------------------------------------


async def test_bytes_that_were_dropped_are_given_back_to_the_connection(connect: Connect) -> None:
    async with connect() as uploads:
        for stream in range(1, 1 + CONNECTION_WINDOW // uploads.hello.stream_limit):
            await uploads.send(m.Create(new_key(), "a/b", 100 * MIB), stream)
            assert (await uploads.wait_for(m.Error, stream)).code == "name_refused"
            # In flight to an upload that the server has ended.
            await uploads.send_data(stream, 0, bytes(uploads.hello.stream_limit))
        completed = await uploads.upload("next.bin", b"hello")
        assert completed.size == 5


async def test_more_than_the_connection_window_goes_through_one_connection(
    connect: Connect,
) -> None:
    data = bytes(CONNECTION_WINDOW // 2 + MIB)
    async with connect() as uploads:
        for name in ("a.bin", "b.bin"):
            assert (await uploads.upload(name, data)).size == len(data)


async def test_the_stream_that_waited_longest_is_acked_first(
    application: Any, connect: Connect, uploads: UploadService
) -> None:
    """To a client that reads slowly, too: one fast stream does not take all the answers."""
    acked: list[int] = []
    gate = asyncio.Semaphore(100)

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        async def send_when_read(message: dict[str, Any]) -> None:
            if message.get("bytes", b"")[:1] == bytes([FrameType.ACK]):
                await gate.acquire()
                acked.append(parse_header(message["bytes"]).stream)
            await send(message)

        await application(scope, receive, send_when_read)

    async def send_on(stream: int) -> None:
        """One more byte, and wait until it is written and its ACK is due."""
        offset = offsets[stream]
        await connection.send_data(stream, offset, b"x")
        while not any(each.flow.received > offset for each in held[stream]):
            await asyncio.sleep(0)
        offsets[stream] += 1

    async with connect(slowly) as connection:
        held: dict[int, list[Any]] = {}
        offsets = {1: 0, 2: 0}
        for stream in (1, 2):
            await connection.send(m.Create(new_key(), f"{stream}.bin"), stream)
            created = await connection.wait_for(m.Created, stream)
            held[stream] = [uploads.active[uuid.UUID(created.upload)]]
        gate._value = 0
        await send_on(2)
        await send_on(1)
        for _ in range(5):
            await send_on(2)
            gate.release()
        for _ in range(100):
            gate.release()
        assert 1 in acked[:3]


# The database's time -------------------------------------------------------------------------------


async def test_a_question_waits_behind_its_askers_not_in_front_of_others(
    uploads: UploadService,
) -> None:
    served: list[str] = []

    def note(items: Sequence[str]) -> list[None]:
        served.extend(items)
        return [None for _ in items]

    calls = [uploads.database.call(note, f"mallory {n}", owner="user:mallory") for n in range(1000)]
    calls.append(uploads.database.call(note, "bob", owner="user:bob"))
    await asyncio.gather(*calls)
    assert served.index("bob") < 2


def test_a_group_of_questions_is_one_query(db: None, owner: Owner) -> None:
    sessions = [publish(owner, name=f"{n}.bin") for n in range(20)]
    accesses = [UploadAccess(session.pk, owner, "default") for session in sessions]
    with CaptureQueriesContext(
        database_connection,
    ) as alone:
        rows.find(accesses[:1])
    with CaptureQueriesContext(database_connection) as together:
        found = rows.find(accesses)
    assert len(together) == len(alone)
    assert [each.pk for each in found if not isinstance(each, NotFound)] == [
        session.pk for session in sessions
    ]


def test_an_owner_of_many_connections_is_looked_at_once(db: None, owner: Owner) -> None:
    session = publish(owner)

    def look(connections: int) -> int:
        owners = [replace(owner) for _ in range(connections)]
        with CaptureQueriesContext(database_connection) as queries:
            look_up(owners)
            rows.find([UploadAccess(session.pk, each, "default") for each in owners])
        return len(queries)

    assert look(31) == look(1)


async def test_a_crowd_of_questions_is_answered(connect: Connect) -> None:
    async with connect() as uploads:
        for stream in range(1, 101):
            await uploads.send(m.Query("00000000-0000-0000-0000-000000000000"), stream)
        codes = set()
        for _ in range(100):
            codes.add((await uploads.receive()).message.code)
        assert codes == {"not_found"}


# The process's credit ------------------------------------------------------------------------------


async def opens(uploads: UploadCommunicator, most: int, **fields: Any) -> int:
    """Begin uploads until the server is busy, at most so many; returns how many began."""
    for count in range(most):
        stream = uploads.new_stream()
        await uploads.send(m.Create(new_key(), f"{count}.bin", 17 * KIB, **fields), stream)
        try:
            await uploads.wait_for(m.Created, stream)
        except Busy:
            return count
    return most


async def test_idle_uploads_of_one_user_leave_room_for_another(
    connect: Connect, connect_bob: Connect, uploads: UploadService
) -> None:
    uploads.budget.total = MIB  # 64 floors
    async with connect() as alice, connect_bob() as bob:
        assert 40 < await opens(alice, 100) <= 48  # three quarters, less what their metadata takes
        assert (await bob.upload("b.bin", bytes(100 * KIB))).size == 100 * KIB


async def test_an_idle_upload_of_one_with_many_makes_room_and_can_be_resumed(
    connect: Connect, connect_bob: Connect, uploads: UploadService
) -> None:
    uploads.budget.max_uploads = 8
    data = bytes(20 * KIB)
    async with connect() as alice, connect_bob() as bob:
        stream, key = alice.new_stream(), new_key()
        await alice.send(m.Create(key, "first.bin", len(data)), stream)
        await alice.wait_for(m.Created, stream)
        assert await opens(alice, 100) == 5  # three quarters of 8 are six
        assert await opens(bob, 3) == 3
        with pytest.raises(Busy) as caught:
            await alice.wait_for(m.Completed, stream)
        assert caught.value.retryable
        await bob.disconnect()
        await settled_but_for(uploads, 5)
        assert (await alice.upload("first.bin", data, key=key)).size == len(data)


async def settled_but_for(uploads: UploadService, count: int) -> None:
    while len(uploads.active) > count:
        await asyncio.sleep(0.01)


async def test_metadata_counts_as_memory_and_has_a_bounded_number_of_values(
    connect: Connect, uploads: UploadService
) -> None:
    uploads.budget.total = 2 * MIB
    async with connect() as alice:
        await alice.send(m.Create(new_key(), "a.bin", 1, metadata={"a": [{}] * 5000}), 1)
        assert (await alice.wait_for(m.Error, 1)).code == "metadata_invalid"
        assert not uploads.budget.promised
        # 16 KiB of text beside the floor of 16 KiB: half as many as without.
        assert await opens(alice, 100, metadata={"a": "x" * 16_000}) < 50


async def test_a_flood_of_tiny_chunks_that_cannot_be_written_is_cut_off(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credit counts payload; each frame takes more than that."""
    monkeypatch.setattr(pace, "SHORT_CHUNK", 0)
    written, write = threading.Event(), FileWriter.write

    def hang(self: FileWriter, payloads: Any) -> None:
        written.wait(30)
        write(self, payloads)

    monkeypatch.setattr(FileWriter, "write", hang)
    async with connect() as alice:
        await alice.send(m.Create(new_key(), "a.bin", 17 * KIB), 1)
        await alice.wait_for(m.Created, 1)
        try:
            for offset in range(6000):
                await alice.send_data(1, offset, b"x")
            await alice.send(m.Ping(1))
            await alice.wait_for(m.Pong)
        finally:
            written.set()
        assert (await alice.wait_for(m.Error, 1)).code == "busy"


# Frames in great numbers --------------------------------------------------------------------------


async def test_frames_that_move_no_upload_are_read_only_so_fast_whatever_their_connection(
    connect: Connect, connect_bob: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take no more than a share of the loop's time."""
    monkeypatch.setattr(pace, "FRAMES_PER_SECOND", 0.01)
    monkeypatch.setattr(pace, "BURST_SECONDS", 10_000.0)  # a hundred frames, and then no more
    crowd = first, second = connect(), connect()
    for alice in crowd:
        await alice.connect()
    for _ in range(200):
        await first.send(m.Pong(1))
    await first.send(m.Ping(1))
    assert await first.receives_nothing(0.2)
    for nonce in (1, 2):
        await second.send(m.Ping(nonce))
    assert (await second.wait_for(m.Pong)).nonce == 1
    assert await second.receives_nothing(0.2)
    async with connect_bob() as bob:
        await bob.send(m.Ping(1))
        await bob.wait_for(m.Pong)
        assert (await bob.upload("b.bin", b"hello")).size == 5
    for alice in crowd:  # an hour would be long
        alice.socket.future.cancel()
        await asyncio.wait({alice.socket.future})


async def test_who_floods_for_seconds_is_closed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FRAMES_PER_SECOND", 1000)
    monkeypatch.setattr(connections, "THROTTLE_SECONDS", 0.1)
    async with connect() as alice:
        for _ in range(3000):
            await alice.send(m.Pong(1))
        assert (await alice.wait_for(m.Error)).code == "flow_control"


async def test_questions_are_answered_however_long_it_takes(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FRAMES_PER_SECOND", 1000)
    monkeypatch.setattr(connections, "THROTTLE_SECONDS", 0.01)
    async with connect() as alice:
        for stream in range(1, 51):
            await alice.send(m.Query("00000000-0000-0000-0000-000000000000"), stream)
        for _ in range(50):
            message = (await alice.receive()).message
            assert isinstance(message, m.Error)
            assert message.code == "not_found"


async def test_many_small_files_are_not_held_up(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FRAMES_PER_SECOND", 0.01)
    monkeypatch.setattr(pace, "BURST_SECONDS", 1000.0)  # ten frames
    async with connect() as alice:
        for n in range(20):
            assert (await alice.upload(f"{n}.bin", b"hello")).size == 5


async def test_a_trickle_is_written_down_less_and_less_often(
    uploads: UploadService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.01)
    changes = 0

    def count(items: Sequence[rows.Change]) -> Any:
        nonlocal changes
        changes += len(items)
        return change(items)

    change = rows.change
    monkeypatch.setattr(rows, "change", count)
    async with connect() as alice:
        await alice.send(m.Create(new_key(), "a.bin"), 1)
        created = await alice.wait_for(m.Created, 1)
        held = uploads.active[uuid.UUID(created.upload)]
        for offset in range(100):
            await alice.send_data(1, offset, b"x")
            await asyncio.sleep(0.01)
            while held.flow.received <= offset:
                await asyncio.sleep(0)
        assert changes < 15  # at 10, 20, 40 ms and so on; a hundred if each had its own
        await alice.send(m.Release(), 1)
        assert (await alice.wait_for(m.Released, 1)).durable == 100


# Quotas --------------------------------------------------------------------------------------------


async def test_uploads_of_unknown_size_end_at_the_byte_quota_together(
    connect: Connect, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": MIB}
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.01)
    monkeypatch.setattr(checkpoints, "SLOW_BYTES", 0)
    data = bytes(300 * KIB)
    async with connect() as alice:
        for stream in range(1, 5):
            await alice.send(m.Create(new_key(), f"{stream}.bin"), stream)
            await alice.wait_for(m.Created, stream)
        for stream in range(1, 4):
            await send_all(alice, stream, data)
            while (await alice.wait_for(m.Ack, stream)).durable < len(data):  # counted
                pass
        with pytest.raises(ByteQuotaExceeded):
            await send_all(alice, 4, data, then=m.Completed)


async def test_an_upload_of_unknown_size_that_is_finished_at_once_is_counted_too(
    connect: Connect, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": 10 * KIB}
    data = bytes(11 * KIB)
    async with connect() as alice:
        await alice.send(m.Create(new_key(), "a.bin"), 1)
        await alice.send_data(1, 0, data)
        await alice.send(m.Finish(len(data), crc(data)), 1)
        with pytest.raises(ByteQuotaExceeded):
            await alice.wait_for(m.Completed, 1)
    assert not await UploadSession.objects.completed().aexists()


async def send_all(
    uploads: UploadCommunicator, stream: int, data: bytes, *, then: type[m.Message] | None = None
) -> None:
    """Send the data of an upload within its limits, and wait for the message that follows."""
    offset, limit = 0, uploads.hello.stream_limit
    while offset < len(data):
        while offset == limit:
            limit = (await uploads.wait_for(m.Ack, stream)).limit
        stop = min(len(data), limit)
        await uploads.send_data(stream, offset, data[offset:stop])
        offset = stop
    if then is not None:
        await uploads.wait_for(then, stream)


async def test_uploads_that_were_cancelled_count_for_an_hour(
    connect: Connect, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_SESSIONS": 3}
    async with connect() as alice:
        for stream in range(1, 4):
            create = m.Create(new_key(), f"{stream}.bin", 5, metadata={"album": 7})
            await alice.send(create, stream)
            await alice.wait_for(m.Created, stream)
            await alice.send(m.Cancel(), stream)
            await alice.wait_for(m.Cancelled, stream)
        await alice.send(m.Create(new_key(), "4.bin", 5), 4)
        assert (await alice.wait_for(m.Error, 4)).code == "session_quota"
    rows = UploadSession.objects.all()
    assert [session.metadata async for session in rows] == [{}, {}, {}]
    await rows.aupdate(created_at=timezone.now() - timedelta(hours=1))
    async with connect() as alice:
        assert (await alice.upload("4.bin", b"hello")).size == 5


def test_uploads_are_not_counted_for_each_new_one(db: None, owner: Owner, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_SESSIONS": 4}

    def count() -> int:
        session = UploadSession(key=new_key(), endpoint="default", owner_key=owner.key, name="a")
        with CaptureQueriesContext(database_connection) as queries:
            assert rows.create([rows.Creation(session, owner)]) == [session]
        return sum("COUNT(" in query["sql"] for query in queries)

    assert [count() for _ in range(4)] == [1, 0, 0, 0]
    UploadSession.objects.update(state=State.COMPLETED)
    assert [count() for _ in range(4)] == [1, 0, 0, 0]  # where the bound would refuse one
    Usage.objects.update(counted_at=timezone.now() - quotas.COUNT_AFTER)
    UploadSession.objects.update(state=State.COMPLETED)
    assert [count() for _ in range(2)] == [1, 0]


def test_no_owner_is_refused_by_an_old_count(
    db: None, owner: Owner, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_SESSIONS": 5}
    monkeypatch.setattr(quotas, "PAUSE", timedelta())

    def create() -> Any:
        session = UploadSession(key=new_key(), endpoint="default", owner_key=owner.key, name="a")
        return rows.create([rows.Creation(session, owner)])[0]

    for _ in range(5):
        assert isinstance(create(), UploadSession)
    assert isinstance(create(), SessionQuotaExceeded)
    UploadSession.objects.all()[0].delete()
    assert isinstance(create(), UploadSession)
    assert isinstance(create(), SessionQuotaExceeded)
    monkeypatch.setattr(quotas, "PAUSE", timedelta(hours=1))
    UploadSession.objects.all()[0].delete()
    assert isinstance(create(), SessionQuotaExceeded)  # a flood is not counted for each refusal


async def test_more_frames_for_a_closed_stream_than_were_in_flight_close_the_connection(
    connect: Connect,
) -> None:
    async with connect() as alice:
        await alice.send(m.Create(new_key(), "a/b", 100), 1)
        assert (await alice.wait_for(m.Error, 1)).code == "name_refused"
        for _ in range(20):
            await alice.send_data(1, 0, b"x")
        await alice.send(m.Ping(1))
        await alice.wait_for(m.Pong)
        for _ in range(20):
            await alice.send_data(1, 0, b"x")
        assert (await alice.wait_for(m.Error)).code == "flow_control"


# The disk ------------------------------------------------------------------------------------------


async def test_a_margin_of_the_disk_is_left_whatever_is_asked_for(
    connect: Connect, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"MIN_FREE_SPACE": 100 * MIB}
    monkeypatch.setattr(disk, "free_space", lambda fd: 120 * MIB)
    async with connect() as alice:
        await alice.send(m.Create(new_key(), "a.bin", 21 * MIB), 1)
        assert (await alice.wait_for(m.Error, 1)).code == "storage_full"
        assert await opens(alice, 30) == 30  # none of them takes anything before it sends
        assert (await alice.upload("b.bin", bytes(MIB))).size == MIB
        monkeypatch.setattr(disk, "free_space", lambda fd: 100 * MIB)
        with pytest.raises(StorageFull):
            await alice.upload("c.bin", bytes(MIB))


async def test_what_the_disk_had_no_room_for_does_not_count_against_its_owner(
    connect: Connect, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"USER_MAX_BYTES": 10 * MIB}
    key, data = new_key(), bytes(6 * MIB)
    async with connect() as alice:
        with monkeypatch.context() as patch:
            patch.setattr(disk, "free_space", lambda fd: 0)
            for _ in range(3):
                with pytest.raises(StorageFull):
                    await alice.upload("a.bin", data, key=key)
        assert not await UploadSession.objects.aexists()
        assert (await alice.upload("a.bin", data, key=key)).size == len(data)


# Threads -------------------------------------------------------------------------------------------


async def test_resumes_that_read_whole_files_hold_up_no_chunks(
    uploads: UploadService,
    connect: Connect,
    connect_bob: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a reboot, or where the lock of a part is waited for."""
    read, open_part = threading.Event(), FileSystemStore.open

    def slowly(self: FileSystemStore, *args: Any, **kwargs: Any) -> Any:
        read.wait(30)
        return open_part(self, *args, **kwargs)

    count = uploads.store.threads
    async with connect() as alice, connect_bob() as bob:
        began: dict[UploadCommunicator, list[str]] = {alice: [], bob: []}
        for client, pks in began.items():
            for stream in range(1, 1 + count):
                await client.send(m.Create(new_key(), f"{stream}.bin", 20 * KIB), stream)
                pks.append((await client.wait_for(m.Created, stream)).upload)
                await client.send(m.Release(), stream)
                await client.wait_for(m.Released, stream)
        monkeypatch.setattr(FileSystemStore, "open", slowly)
        try:
            for client, pks in began.items():
                for stream, upload in enumerate(pks, 1 + count):
                    await client.send(m.Attach(upload), stream)
            assert (await bob.upload("b.bin", bytes(100 * KIB))).size == 100 * KIB
        finally:
            read.set()
        for client, pks in began.items():
            for _ in pks:
                assert isinstance((await client.receive()).message, m.Attached)


async def test_an_upload_that_ends_does_not_wait_for_checkpoints_of_others(
    connect: Connect, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of small uploads take turns, and the turns pause; a finished upload does not wait for them."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.01)
    monkeypatch.setattr(runtime, "SLOW_SYNC_REST", 1_000_000)
    async with connect() as alice:
        for stream in range(1, 6):
            await alice.send(m.Create(new_key(), f"{stream}.bin", 20 * KIB), stream)
            await alice.wait_for(m.Created, stream)
            await alice.send_data(stream, 0, bytes(10 * KIB))
        await asyncio.sleep(0.1)  # their checkpoints are due
        for stream in range(1, 6):
            await alice.send_data(stream, 10 * KIB, bytes(10 * KIB))
            await alice.send(m.Finish(20 * KIB, crc(bytes(20 * KIB))), stream)
            await alice.wait_for(m.Completed, stream)


async def test_a_client_that_does_not_close_what_was_closed_is_not_read_for_ever(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.05)
    alice = connect()
    await alice.connect()
    await alice.send_frame(b"no frame of this protocol at all")
    assert isinstance((await alice.receive()).message, m.Error)
    await asyncio.wait_for(asyncio.shield(alice.socket.future), 10)


async def test_a_client_whose_messages_never_end_is_not_read_for_ever(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has messages at hand never waits in receive()."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.05)
    socket, sent = connect().socket, []
    messages = iter([{"type": "websocket.connect"}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "websocket.receive", "bytes": b"no frame at all"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    async with asyncio.timeout(10):
        await socket.application(socket.scope, receive, send)
    assert sent[-1] == "websocket.close"
