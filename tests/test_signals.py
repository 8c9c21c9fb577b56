"""Receivers observe: none of them can break or stop an upload, or keep another receiver from its call."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections
from django.dispatch import Signal

from django_async_upload import signals
from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, finish, new_key

pytest_plugins = ["tests.fixtures"]

Listen = Callable[[Signal, Callable[..., Any]], None]


@pytest.fixture
def listen() -> Iterator[Listen]:
    connected: list[tuple[Signal, Callable[..., Any]]] = []

    def listen(signal: Signal, receiver: Callable[..., Any]) -> None:
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))

    yield listen
    for signal, receiver in connected:
        signal.disconnect(receiver)


SESSION = UploadSession(name="a.bin")


async def test_without_receivers_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_task(*args: Any) -> None:
        raise AssertionError("a task was made")

    monkeypatch.setattr(asyncio, "create_task", no_task)
    await signals.send(signals.chunk_received, SESSION, offset=0, size=1)


async def test_sync_and_async_receivers_get_sender_and_session(listen: Listen) -> None:
    got: list[Any] = []

    def sync(sender: Any, session: Any, offset: int, **kwargs: Any) -> None:
        got.append((sender, session, offset, threading.current_thread() is threading.main_thread()))

    async def asynchronous(sender: Any, session: Any, offset: int, **kwargs: Any) -> None:
        got.append((sender, session, offset, threading.current_thread() is threading.main_thread()))

    listen(signals.upload_resumed, sync)
    listen(signals.upload_resumed, asynchronous)
    await signals.send(signals.upload_resumed, SESSION, offset=7)
    assert sorted(got, key=lambda each: each[-1]) == [
        (UploadSession, SESSION, 7, False),
        (UploadSession, SESSION, 7, True),
    ]


async def raise_async(**kwargs: Any) -> None:
    raise ValueError("async")


def raise_sync(**kwargs: Any) -> None:
    raise ValueError("sync")


async def cancel_itself(**kwargs: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def raise_cancelled(**kwargs: Any) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("receiver", [raise_async, raise_sync, cancel_itself, raise_cancelled])
async def test_what_a_receiver_does_is_logged_with_the_id_and_breaks_nothing(
    listen: Listen, caplog: pytest.LogCaptureFixture, receiver: Any
) -> None:
    listen(signals.upload_started, receiver)
    await signals.send(signals.upload_started, SESSION)
    records = [each for each in caplog.records if each.name == "django_async_upload"]
    (record,) = records
    assert record.levelno == logging.ERROR
    assert str(SESSION.pk) in record.getMessage()


async def test_the_others_are_called_when_one_raises(listen: Listen) -> None:
    called: list[str] = []
    listen(signals.upload_started, raise_async)
    listen(signals.upload_started, raise_sync)
    listen(signals.upload_started, lambda **kwargs: called.append("sync"))

    async def receiver(**kwargs: Any) -> None:
        called.append("async")

    listen(signals.upload_started, receiver)
    await signals.send(signals.upload_started, SESSION)
    assert sorted(called) == ["async", "sync"]


@pytest.mark.parametrize("hangs", ["sync", "async"])
async def test_one_that_hangs_is_given_up_and_the_others_are_called(
    listen: Listen, settings: Any, caplog: pytest.LogCaptureFixture, hangs: str
) -> None:
    settings.ASYNC_UPLOAD = {"RECEIVER_TIMEOUT": 0.3}
    called: list[str] = []
    released = threading.Event()

    def hang(**kwargs: Any) -> None:
        released.wait(10)

    async def hang_async(**kwargs: Any) -> None:
        await asyncio.sleep(10)

    async def receiver(**kwargs: Any) -> None:
        called.append("async")

    listen(signals.upload_completed, hang if hangs == "sync" else hang_async)
    listen(signals.upload_completed, lambda **kwargs: called.append("sync"))
    listen(signals.upload_completed, receiver)
    (failure,) = await signals.send(signals.upload_completed, SESSION, event_id=SESSION.pk)
    released.set()
    assert sorted(called) == ["async", "sync"]
    assert "hang" in failure
    assert "did not return within 0.3 s" in failure
    assert str(SESSION.pk) in caplog.text


async def test_slow_sync_receivers_of_two_uploads_run_beside_each_other(listen: Listen) -> None:
    together = threading.Barrier(2, timeout=5)
    listen(signals.upload_started, lambda **kwargs: together.wait())
    one, other = UploadSession(name="a"), UploadSession(name="b")
    await asyncio.wait_for(
        asyncio.gather(
            signals.send(signals.upload_started, one), signals.send(signals.upload_started, other)
        ),
        5,
    )
    assert not together.broken


async def test_a_sync_receivers_connection_is_closed(
    uploads: UploadService, listen: Listen
) -> None:
    opened: list[Any] = []

    def receiver(**kwargs: Any) -> None:
        UploadSession.objects.count()
        opened.append(connections["default"])

    listen(signals.upload_started, receiver)
    await signals.send(signals.upload_started, SESSION)
    assert opened[0].connection is None

    async def cancelled(**kwargs: Any) -> None:
        while len(opened) < 2:
            await asyncio.sleep(0.001)
        raise asyncio.CancelledError

    listen(signals.upload_started, cancelled)
    await signals.send(signals.upload_started, SESSION)
    async with asyncio.timeout(10):
        while opened[1].connection is not None:
            await asyncio.sleep(0.001)


async def test_every_chunk_is_told_in_order_after_it_was_written(
    connect: Callable[..., UploadCommunicator], listen: Listen, uploads: UploadService
) -> None:
    data, got = bytes(range(250)) * 40, []

    async def receiver(session: Any, offset: int, size: int, **kwargs: Any) -> None:
        await asyncio.sleep(0.001)
        written = uploads.active[session.pk].flow.received
        got.append((offset, size, written >= offset + size))

    listen(signals.chunk_received, receiver)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        for offset in range(0, len(data), 1000):
            await client.send_data(1, offset, data[offset : offset + 1000])
        await client.send(finish(data), 1)
        await client.wait_for(m.Completed, 1)
    assert got == [(offset, 1000, True) for offset in range(0, len(data), 1000)]


@pytest.mark.parametrize("signal", [signals.upload_started, signals.chunk_received])
async def test_a_hanging_receiver_delays_its_own_upload_only(
    connect: Callable[..., UploadCommunicator], listen: Listen, signal: Signal
) -> None:
    released = threading.Event()

    def hang(session: Any, **kwargs: Any) -> None:
        if session.name == "slow.bin":
            released.wait(10)

    listen(signal, hang)
    async with connect() as client:
        await client.send(m.Create(new_key(), "slow.bin", 4), 1)
        await client.send_data(1, 0, b"slow")
        await client.send(finish(b"slow"), 1)
        begun = time.monotonic()
        for stream in range(2, 7):
            await client.send(m.Create(new_key(), "fast.bin", 4), stream)
            await client.send_data(stream, 0, b"fast")
            await client.send(finish(b"fast"), stream)
            await client.wait_for(m.Completed, stream)
        assert time.monotonic() - begun < 5
        released.set()
        await client.wait_for(m.Completed, 1)


async def test_failure_and_cancellation_are_told(
    connect: Callable[..., UploadCommunicator], heard: Any
) -> None:
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 20 * KIB), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send(m.Cancel(), 1)
        await client.wait_for(m.Cancelled, 1)
        await client.send(m.Create(new_key(), "b.bin", 4), 2)
        await client.send_data(2, 0, b"data")
        await client.send(m.Finish(4, "00000000"), 2)
        while not isinstance((await client.receive()).message, m.Error):
            pass
    assert [str(each["session"].pk) for each in heard.named("cancelled")] == [created.upload]
    assert [each["error"].code for each in heard.named("failed")] == ["digest_mismatch"]
