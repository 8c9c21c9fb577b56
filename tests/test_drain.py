"""A process that drains saves all uploads, asks its clients to reconnect later, and refuses new connections."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from django_async_upload.consumers import CLOSE_CODES
from django_async_upload.engine import drain as module
from django_async_upload.engine.drain import drain, retry_after, spawn, undrain
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import ConnectionLost, Draining, UploadError
from django_async_upload.protocol import messages as m
from django_async_upload.sessions import owners
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, new_key, row

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


class Connection:
    def __init__(self) -> None:
        self.drained: list[float] = []

    async def drain(self, retry_after: float) -> None:
        self.drained.append(retry_after)


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    module.connections.add(connection)
    yield connection
    module.connections.discard(connection)
    undrain()


async def test_each_connection_is_told_when_to_come_back(connection: Connection) -> None:
    assert retry_after() is None
    await drain(retry_after=3.0)
    assert connection.drained == [3.0]
    assert retry_after() == 3.0
    await drain(retry_after=5.0)
    assert retry_after() == 5.0
    undrain()
    assert retry_after() is None


async def test_connections_are_drained_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that come back at once would wait for each other at the process that takes them."""
    monkeypatch.setattr(module, "SPREAD_SECONDS", 1.0)
    told: list[float] = []

    class Counting:
        async def drain(self, retry_after: float) -> None:
            told.append(time.monotonic())

    crowd = [Counting() for _ in range(100)]
    module.connections.update(crowd)
    try:
        began = time.monotonic()
        await drain()
        waits = [at - began for at in told]
        assert len(waits) == 100
        assert waits[50] >= 0.4
        assert 0.9 <= waits[-1] < 5
        told.clear()
        draining = asyncio.create_task(drain())
        while not told:
            await asyncio.sleep(0)
        undrain()
        await draining
        assert len(told) < 100, "the others stay"
    finally:
        module.connections.difference_update(crowd)
        undrain()


async def test_a_drain_waits_for_what_outlives_its_connection(connection: Connection) -> None:
    done = []

    async def complete() -> None:
        await asyncio.sleep(0.01)
        done.append(True)

    spawn(complete())
    await drain()
    assert done
    assert not module.tasks


async def test_a_drain_waits_for_nothing_without_a_limit(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.01)
    released = asyncio.Event()
    spawn(released.wait())
    (task,) = module.tasks
    async with asyncio.timeout(20):
        await drain()
    assert not task.done()
    released.set()
    await task


async def test_a_drain_saves_tells_and_closes(connect: Connect) -> None:
    data = os.urandom(100 * KIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", len(data)), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[: created.limit])
        await client.wait_for(m.Ack, 1)
        await drain(retry_after=3.0)
        assert (await client.wait_for(m.Drain)).retry_after == 3.0
        last = await client.wait_for(m.Ack, 1)
        while last.durable < created.limit:
            last = await client.wait_for(m.Ack, 1)
        with pytest.raises(UploadError):
            await client.wait_for(m.Hello)
        with pytest.raises(ConnectionLost):
            await client.receive()
        assert client.close_code == CLOSE_CODES[Draining]
    session = await row(created.upload)
    assert (session.state, session.durable) == (State.INTERRUPTED, created.limit)


async def test_a_process_that_drains_refuses_new_connections_until_it_is_undrained(
    connect: Connect,
) -> None:
    await drain(retry_after=3.0)
    for _ in range(2):
        refused = connect()
        with pytest.raises(Draining) as caught:
            await refused.connect()
        assert caught.value.retry_after == 3.0
        with pytest.raises(ConnectionLost):
            await refused.receive()
        assert refused.close_code == CLOSE_CODES[Draining]
        await refused.disconnect()
    undrain()
    async with connect() as client:
        assert (await client.upload("a.bin", b"data")).size == 4


async def test_a_drain_beside_a_handshake_refuses_it_and_waits_for_the_others(
    connect: Connect, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(16 * KIB)
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin"), 1)
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data)
        looking, found = asyncio.Event(), asyncio.Event()
        call = type(uploads.database).call

        async def slow(self: Any, function: Any, item: Any, **options: Any) -> Any:
            if function is owners.look_up:
                looking.set()
                await found.wait()
            return await call(self, function, item, **options)

        monkeypatch.setattr(type(uploads.database), "call", slow)
        late = connect()
        handshake = asyncio.create_task(late.connect())
        await looking.wait()
        await drain(retry_after=3.0)
        assert (await row(created.upload)).durable == len(data)
        found.set()
        with pytest.raises(Draining):
            await handshake
        await late.disconnect()
        with pytest.raises(Draining):
            await client.wait_for(m.Hello)


async def test_sigterm_drains_before_the_servers_own_handler_runs(connection: Connection) -> None:
    stopped = asyncio.Event()
    before: list[list[float]] = []

    def stop(number: int, frame: object) -> None:
        before.append(list(connection.drained))
        stopped.set()

    ours = signal.signal(signal.SIGTERM, stop)
    try:
        first = module.DrainFirst()
        first.install()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await stopped.wait()
        assert before == [[1.0]]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(before) == 2, "a second one does not wait"
        first.uninstall()
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, ours)


async def test_a_drain_by_sigterm_has_a_limit(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSING_SECONDS", 0.01)
    stopped, released = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(connection, "drain", lambda retry_after: released.wait())
    ours = signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    try:
        module.DrainFirst().install()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await stopped.wait()
        released.set()
    finally:
        signal.signal(signal.SIGTERM, ours)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
async def test_sigterm_is_left_alone_where_the_server_has_no_handler(handler: Any) -> None:
    ours = signal.signal(signal.SIGTERM, handler)
    try:
        first = module.DrainFirst()
        first.install()
        first.uninstall()
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, ours)
