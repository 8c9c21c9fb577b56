"""A worker answers the commands of this machine, and of other machines where a channel layer reaches it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command

from django_async_upload.engine import drain, worker
from django_async_upload.engine.bus import LocalBus
from django_async_upload.engine.checkpoints import Checkpoints
from django_async_upload.engine.service import UploadService
from django_async_upload.engine.worker import ANSWER, ASK, WorkerStatus
from django_async_upload.exceptions import Draining
from django_async_upload.operations import workers as asking
from django_async_upload.operations.workers import Workers
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import new_key

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]
ME = os.getpid()


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A site of the test's own: others are tested on this machine at the same time."""
    monkeypatch.setattr(worker, "site", lambda alias: tmp_path.name + tmp_path.parent.name[-9:])
    yield
    drain.undrain()


@pytest.fixture
async def service(uploads: UploadService) -> UploadService:
    """A service that has started to answer."""
    uploads.start()
    async with asyncio.timeout(20):
        while not await names():
            await asyncio.sleep(0.01)
    return uploads


async def names() -> list[str]:
    return list(Workers()._names())


async def ask(question: dict[str, Any], **options: Any) -> list[WorkerStatus]:
    async with Workers(**options) as workers:
        answers = await workers.ask(question)
    assert answers.silent == []
    return answers.workers


async def command(*arguments: str) -> str:
    out = StringIO()
    await sync_to_async(call_command)(*arguments, stdout=out)
    return out.getvalue()


async def test_it_says_what_it_does(service: UploadService, connect: Connect) -> None:
    (idle,) = await ask({"do": "status"})
    assert (idle.pid, idle.parent, idle.host) == (ME, os.getppid(), socket.gethostname())
    assert (idle.connections, idle.uploads, idle.credit) == (0, 0, 0)
    assert not idle.draining
    async with connect() as client:
        await client.send(m.Create(new_key(), "a.bin", 100_000), 1)
        created = await client.wait_for(m.Created, 1)
        (busy,) = await ask({"do": "status"})
        assert (busy.connections, busy.uploads) == (1, 1)
        assert busy.credit >= created.limit
        await client.send(m.Cancel(), 1)
        await client.wait_for(m.Cancelled, 1)


async def test_commands_drain_it_and_end_that(service: UploadService, connect: Connect) -> None:
    async with connect() as client:
        assert await command("upload_drain", "--retry-after", "3", "--wait") == (
            "1 workers are drained.\n"
        )
        assert (await client.wait_for(m.Drain)).retry_after == 3.0
        with pytest.raises(Draining):
            await client.wait_for(m.Hello)
    (status,) = await ask({"do": "status"})
    assert (status.draining, status.drained, status.connections) == (True, True, 0)
    refused = connect()
    with pytest.raises(Draining) as caught:
        await refused.connect()
    assert caught.value.retry_after == 3.0
    await refused.disconnect()
    assert "drained" in await command("upload_status")

    assert await command("upload_undrain") == "1 workers take clients.\n"
    async with connect() as client:
        assert (await client.upload("a.bin", b"data")).size == 4
    assert "serving" in await command("upload_status")


async def test_a_drain_can_be_for_one_server_of_the_machine(service: UploadService) -> None:
    for pid in (ME, os.getppid()):
        assert len(await ask({"do": "status"}, pid=pid)) == 1
    assert await ask({"do": "status"}, pid=1 if os.getppid() != 1 else 2) == []
    with pytest.raises(CommandError, match="No worker of this site answered"):
        await command("upload_drain", "--pid", "2147483647")
    assert drain.retry_after() is None


async def test_a_wait_for_a_drain_has_a_limit(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "DRAIN_SECONDS", 0.3)
    released = asyncio.Event()
    drain.spawn(released.wait())
    with pytest.raises(CommandError, match=f"Not drained yet: .* {ME}"):
        await command("upload_drain", "--wait")
    released.set()
    assert "1 workers are drained" in await command("upload_drain", "--wait")


async def test_uploads_that_begin_during_a_drain_are_refused(
    service: UploadService, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has not read DRAIN yet, and its connection is still saved and closed."""
    saving, saved = asyncio.Event(), asyncio.Event()

    async def save(self: Checkpoints) -> None:
        saving.set()
        await saved.wait()

    monkeypatch.setattr(Checkpoints, "make_now", save)
    async with connect() as client:
        await client.send(m.Create(new_key(), "early.bin", 100_000), 1)
        await client.wait_for(m.Created, 1)
        draining = asyncio.create_task(drain.drain(3.0))
        await saving.wait()
        await client.send(m.Create(new_key(), "late.bin", 100_000), 2)
        error = await client.wait_for(m.Error, 2)
        assert (error.code, error.retry_after) == ("draining", 3.0)
        saved.set()
        with pytest.raises(Draining):
            await client.wait_for(m.Hello)
        await draining


@pytest.mark.parametrize("line", [b"\n", b"{", b"[]\n", b'{"do": "drain"}\n', b"x" * 100_000])
async def test_nonsense_changes_nothing(service: UploadService, line: bytes) -> None:
    (name,) = await names()
    reader, writer = await asyncio.open_unix_connection(name)
    writer.write(line)
    writer.write_eof()
    await reader.read()
    writer.close()
    (status,) = await ask({"do": "status"})
    assert not status.draining


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_another_user_gets_no_answer(service: UploadService) -> None:
    (name,) = await names()
    code = (
        "import os, socket, sys; os.setuid(65534)\n"
        "asking = socket.socket(socket.AF_UNIX); asking.connect('\\0' + sys.argv[1])\n"
        'try: asking.sendall(b\'{"do": "drain", "retry_after": 1.0}\\n\'); print(asking.recv(100))\n'
        "except OSError: print(b'')"  # it has hung up already
    )
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, name[1:], stdout=subprocess.PIPE
    )
    out, _ = await stranger.communicate()
    assert out == b"b''\n"
    assert drain.retry_after() is None


async def test_one_that_does_not_answer_is_named(
    service: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as suspended:
        suspended.bind(f"{worker.prefix('default')}4711/token")
        suspended.listen()
        with pytest.raises(CommandError, match="did not answer: 4711"):
            await command("upload_drain")
        assert "Process 4711 does not answer" in await command("upload_status")
    assert await command("upload_undrain") == "1 workers take clients.\n"


async def test_a_service_that_is_closed_answers_no_more(service: UploadService) -> None:
    assert await names()
    await service.close()
    async with asyncio.timeout(20):
        while await names():
            await asyncio.sleep(0.01)


async def test_all_machines_need_a_layer(service: UploadService) -> None:
    with pytest.raises(CommandError, match="other machines were not reached"):
        await command("upload_drain", "--all")
    assert drain.retry_after() == 1.0, "this machine drains all the same"
    await command("upload_undrain")
    assert "others are not reached" in await command("upload_status")


async def test_it_answers_on_the_bus(service: UploadService) -> None:
    bus = service.bus
    assert isinstance(bus, LocalBus)
    heard: list[dict[str, Any]] = []
    bus.subscribe(ANSWER, lambda message: heard.append(dict(message)))
    bus.publish(ASK, {"do": "drain", "retry_after": 2.0, "ask": "a"})
    async with asyncio.timeout(20):
        while not heard:
            await asyncio.sleep(0.01)
    assert heard[0].pop("ask") == "a"
    assert WorkerStatus(**heard[0]).draining
    assert drain.retry_after() == 2.0


async def test_the_status_is_json_on_request(service: UploadService, connect: Connect) -> None:
    async with connect() as client:
        await client.upload("a.bin", b"data")
        status = json.loads(await command("upload_status", "--json"))
    assert status["scope"] == "machine"
    assert status["silent"] == []
    assert status["uploads"] == {"completed": 1}
    assert set(status["outbox"]) == {"waiting", "age", "attempts", "dead"}
    (mine,) = status["workers"]
    assert (mine["pid"], mine["connections"]) == (ME, 1)
