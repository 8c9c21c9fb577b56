"""One stream: the messages that announce its end, and how it serves while the host is slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import attachment
from django_async_upload.engine.outcomes import Released, end_of
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import Busy, DataLost, FileTooLarge, UploadError, UploadOver
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.receipts import receipt_of
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.websocket.stream import ended_message, error_message, status_message

from .fixtures import KIB, crc, finish, new_key, row, settled

pytest_plugins = ["tests.fixtures"]


def session(**fields: Any) -> UploadSession:
    return UploadSession(
        **{"name": "a.bin", "size": 4, "durable": 4, "crc": 0xABC, "stored_as": "x/a.bin", **fields}
    )


@pytest.mark.parametrize("state", [State.COMPLETED, State.BOUND])
def test_a_published_upload_ends_in_its_result(state: State) -> None:
    done = session(state=state, digests={"sha-256": "00"})
    assert ended_message(end_of(done)) == m.Completed(
        str(done.pk), "a.bin", 4, "00000abc", "x/a.bin", {"sha-256": "00"}, receipt_of(done)
    )


def test_other_ends() -> None:
    cancelled = session(state=State.CANCELLED)
    assert ended_message(end_of(cancelled)) == m.Cancelled(str(cancelled.pk))
    assert ended_message(Released(7)) == m.Released(7)


def test_an_upload_without_a_file_ends_in_its_error() -> None:
    with pytest.raises(UploadOver) as expired:
        end_of(session(state=State.EXPIRED))
    assert expired.value.facts == {"state": "expired"}
    with pytest.raises(DataLost):
        end_of(session(state=State.FAILED, error=DataLost.code))


def test_a_status_tells_the_stored_name_only_of_what_is_published() -> None:
    assert status_message(session(state=State.FINALIZING)).stored_as is None
    assert status_message(session(state=State.COMPLETED)).stored_as == "x/a.bin"
    failed = status_message(session(state=State.FAILED, error="data_lost", size=None))
    assert (failed.state, failed.error, failed.size) == ("failed", "data_lost", None)


def test_an_error_carries_its_facts_and_when_to_come_back() -> None:
    assert error_message(FileTooLarge(size=5, max_size=4)) == m.Error(
        "file_too_large",
        "The file has 5 bytes; at most 4 are allowed.",
        False,
        None,
        {"size": 5, "max_size": 4},
    )
    assert error_message(Busy(retry_after=1.5)).retry_after == 1.5
    assert error_message(Busy(retry_after=1.5)).facts == {}


class Scanning(UploadConsumer):
    released: asyncio.Event

    async def inspect(self, session: UploadSession, file: Any) -> None:
        await type(self).released.wait()


@pytest.fixture
def scanning(application: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    from channels.auth import AuthMiddlewareStack

    monkeypatch.setattr(attachment, "PROGRESS_SECONDS", 0.05)
    Scanning.released = asyncio.Event()
    return AuthMiddlewareStack(Scanning.as_asgi())


Connect = Callable[..., UploadCommunicator]


async def test_a_slow_scanner_is_told_as_progress_to_everybody_who_waits(
    connect: Connect, scanning: Any
) -> None:
    key = new_key()
    async with connect(scanning) as client, connect(scanning) as other:
        await client.send(m.Create(key, "a.bin", 4), 1)
        await client.send_data(1, 0, b"data")
        await client.send(finish(b"data"), 1)
        assert await client.wait_for(m.Progress, 1) == m.Progress("inspecting", 0, 4)
        await other.send(m.Create(key, "a.bin", 4), 1)  # a client that lost the answer
        await asyncio.sleep(0.1)
        await client.send(m.Ping(1))  # other frames are still answered
        await client.wait_for(m.Pong)
        Scanning.released.set()
        assert await client.wait_for(m.Completed, 1) == await other.wait_for(m.Completed, 1)


async def test_a_scan_goes_on_when_its_client_has_gone(connect: Connect, scanning: Any) -> None:
    async with connect(scanning) as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        await client.send_data(1, 0, b"data")
        await client.send(finish(b"data"), 1)
        await client.wait_for(m.Progress, 1)
    Scanning.released.set()
    await settled()
    assert (await UploadSession.objects.aget()).state == State.COMPLETED


async def test_a_cancel_stops_a_scan(connect: Connect, scanning: Any) -> None:
    async with connect(scanning) as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        await client.send_data(1, 0, b"data")
        await client.send(finish(b"data"), 1)
        await client.wait_for(m.Progress, 1)
        await client.send(m.Cancel(), 1)
        await asyncio.sleep(0.02)
        Scanning.released.set()
        await client.wait_for(m.Cancelled, 1)


async def test_a_mistake_of_the_server_is_logged_and_told_as_such(
    connect: Connect,
    uploads: UploadService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    async with connect() as client:
        with monkeypatch.context() as patch:
            patch.setattr(uploads, "create", broken)
            await client.send(m.Create(new_key(), "a.bin", 20 * KIB), 1)
            with pytest.raises(UploadError) as caught:
                await client.wait_for(m.Created, 1)
        assert caught.value.code == "internal_error"
        assert (await client.upload("b.bin", b"data")).size == 4
    assert [each for each in caplog.records if each.levelno >= logging.ERROR]


@pytest.mark.parametrize("wish", [m.Cancel(), m.Release()])
async def test_an_attached_stream_may_be_left_before_its_proof(
    connect: Connect, wish: m.Message
) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 20 * KIB), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, b"data")
        await client.send(m.Release(), 1)
        await client.wait_for(m.Released, 1)
        await client.send(m.Attach(created.upload), 2)
        await client.wait_for(m.Attached, 2)
        await client.send(wish, 2)
        expected = m.Cancelled if isinstance(wish, m.Cancel) else m.Released
        await client.wait_for(expected, 2)
    cancelled = isinstance(wish, m.Cancel)
    state = (await row(created.upload)).state
    assert state == (State.CANCELLED if cancelled else State.INTERRUPTED)


async def test_idle_credit_is_called_back_for_another_stream(
    connect: Connect, uploads: UploadService
) -> None:
    uploads.budget.total = 128 * KIB
    data = bytes(200 * KIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        limit = (await client.wait_for(m.Created, 1)).limit
        sent = 0
        while limit - sent <= 16 * KIB:
            await client.send_data(1, sent, data[sent:limit])
            sent = limit
            while limit == sent:
                limit = (await client.wait_for(m.Ack, 1)).limit
        await asyncio.sleep(2.1)  # idle, with more than the floor
        for stream in range(2, 20):
            await client.send(m.Create(new_key(), f"{stream}.bin", 4), stream)
            try:
                await client.wait_for(m.Created, stream)
            except Busy:
                break  # all that the owner may have
        await client.send(m.Paused(sent), 1)
        assert (await client.wait_for(m.Ack, 1)).limit <= sent + 16 * KIB
        await client.send(m.Create(new_key(), "20.bin", 4), 20)
        await client.send_data(20, 0, b"data")
        await client.send(m.Finish(4, crc(b"data")), 20)
        await client.wait_for(m.Completed, 20)
