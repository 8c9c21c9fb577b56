"""Any order of creating, sending, damage, drops, takeovers and crashes gives the file that was sent.

Hypothesis drives the real consumer, service, store and database; the model is what a client knows. How many
examples: ``ASYNC_UPLOAD_STATE_MACHINE_EXAMPLES``, of at most 50 steps each.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from crc32c import crc32c
from django.contrib.auth import get_user_model
from django.db import connections
from django.test import override_settings
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_async_upload import admission
from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import checkpoints, drain, service
from django_async_upload.engine.service import get_service
from django_async_upload.models import CompletionEvent, Slot, UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import build_data
from django_async_upload.sessions.state import State
from django_async_upload.stores import disk
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import issue_ticket

from .fixtures import KIB, Heard, crc, finish, new_key, settled

pytest_plugins = ["tests.fixtures"]

EXAMPLES = int(os.environ.get("ASYNC_UPLOAD_STATE_MACHINE_EXAMPLES", "60"))
STEPS = 50
SIZES = [0, 1, 1000, 16 * KIB, 16 * KIB + 1, 100 * KIB, 300 * KIB]
CONNECTIONS = 2
MAX_UPLOADS = 3

EXPECTED = {"taken_over", "size_mismatch", "wrong_offset", "upload_over", "corrupt_chunks"}
"""What may end a stream here."""


@dataclass(eq=False)
class Upload:
    """What a client knows of one file."""

    data: bytes
    sized: bool
    name: str
    key: str = field(default_factory=new_key)
    pk: str | None = None
    durable: int = 0
    stored_as: str | None = None
    end: str | None = None
    """``completed``, ``cancelled`` or ``failed``, once the client got the message."""
    stream: Stream | None = None
    was_cancelled: bool = False
    damaged: int = 0

    @property
    def create(self) -> m.Create:
        return m.Create(self.key, self.name, len(self.data) if self.sized else None)


@dataclass(eq=False)
class Stream:
    """One attachment, and what the client may send on it."""

    upload: Upload
    client: UploadCommunicator
    number: int
    limit: int
    durable: int
    """The most that any answer had promised when this was opened, and what is promised on it since."""
    sent: int = 0
    is_open: bool = True
    restart: bool = False
    is_finished: bool = False


class Uploading(RuleBasedStateMachine):
    heard: Heard
    ticket: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.override = override_settings(MEDIA_ROOT=str(self.folder / "media"))
        self.override.enable()
        self.loop = asyncio.new_event_loop()
        self.random = random.Random(0)
        self.uploads: list[Upload] = []
        self.clients: list[UploadCommunicator | None] = [None] * CONNECTIONS
        self.streams: dict[tuple[UploadCommunicator, int], Stream] = {}
        self.crashes = 0
        self.heard.clear()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(30):
                return await work

        return self.loop.run_until_complete(bounded())

    # What the client does ---------------------------------------------------------------------

    async def _client(self, index: int) -> UploadCommunicator:
        client = self.clients[index]
        if client is None:
            application = AuthMiddlewareStack(UploadConsumer.as_asgi())
            client = UploadCommunicator(application, ticket=self.ticket)
            await client.connect()
            self.clients[index] = client
        return client

    async def _open(self, upload: Upload, index: int, message: m.Message) -> None:
        client = await self._client(index)
        limit = client.hello.stream_limit if isinstance(message, m.Create) else 0
        upload.stream = Stream(upload, client, client.new_stream(), limit, upload.durable)
        self.streams[client, upload.stream.number] = upload.stream
        await client.send(message, upload.stream.number)

    async def _send(self, stream: Stream, size: int, *, damage: bool = False) -> None:
        data, start = stream.upload.data, stream.sent
        stop = min(len(data), stream.limit, start + size)
        if stop > start and not stream.is_finished:
            frame = build_data(
                stream.number, start, data[start:stop], crc32c, restart=stream.restart
            )
            if damage:
                frame = frame[:-1] + bytes([frame[-1] ^ 1])
                stream.upload.damaged += 1
            await stream.client.send_frame(frame)
            stream.sent, stream.restart = stop, False

    async def _finish(self, stream: Stream) -> None:
        if stream.limit and not stream.is_finished:  # not between ATTACHED and READY
            stream.is_finished = True
            await stream.client.send(finish(stream.upload.data), stream.number)

    async def _listen(self, seconds: float) -> None:
        """Give the server some time, and read what it sent."""
        await asyncio.sleep(seconds)
        for index, client in enumerate(self.clients):
            while client is self.clients[index] and client and client.socket.output_queue.qsize():
                number, message = await client.receive()
                stream = self.streams.get((client, number))
                if stream is not None:
                    await self._take_in(stream, message)
                elif isinstance(message, m.Error):
                    # Damage that came too late to be assigned to a stream: reconnect.
                    assert message.code == "corrupt_frame", message
                    assert any(upload.damaged for upload in self.uploads)
                    await self._reconnect_later(index)

    async def _reconnect_later(self, index: int) -> None:
        client, self.clients[index] = self.clients[index], None
        if client is not None:
            self._lose(client)
            await client.disconnect(1006)

    async def _take_in(self, stream: Stream, message: m.Message) -> None:
        upload, data = stream.upload, stream.upload.data
        assert stream.is_open, f"{message} on a closed stream"
        match message:
            case m.Created():
                upload.pk = message.upload
                stream.limit = max(stream.limit, message.limit)
            case m.Attached():
                upload.pk = message.upload
                self._promised(stream, message.durable)
                assert message.durable <= message.received <= len(data)
                stream.limit = 0
                proof = m.Proof(crc(data[: message.durable]), crc(data[: message.received]))
                await stream.client.send(proof, stream.number)
            case m.Ready():
                self._promised(stream, message.durable)
                assert message.durable <= message.offset <= len(data)
                stream.sent, stream.limit = message.offset, message.limit
                stream.is_finished = stream.restart = False
            case m.Ack():
                self._promised(stream, message.durable)
                assert message.durable <= message.received <= stream.sent
                stream.limit = max(stream.limit, message.limit)
            case m.Rewind():
                assert upload.damaged
                self._promised(stream, message.durable)
                assert message.durable <= message.offset <= stream.sent
                stream.sent, stream.limit = message.offset, message.limit
                stream.is_finished, stream.restart = False, True
            case m.Pause():
                stream.limit = stream.sent
                await stream.client.send(m.Paused(stream.sent), stream.number)
            case m.Completed():
                self._close(stream)
                assert upload.end in (None, "completed")
                assert upload.stored_as in (None, message.stored_as)
                upload.end, upload.stored_as, upload.pk = (
                    "completed",
                    message.stored_as,
                    message.upload,
                )
                assert (message.size, message.crc32c) == (len(data), crc(data))
            case m.Cancelled():
                self._close(stream)
                assert upload.was_cancelled
                assert upload.end in (None, "cancelled")
                upload.end = "cancelled"
            case m.Released():
                self._close(stream)
                self._promised(stream, message.durable)
            case m.Error():
                self._close(stream)
                assert message.code in EXPECTED, message
                if message.code == "upload_over":
                    assert upload.was_cancelled
                    assert upload.end in (None, "cancelled")
                    assert message.facts == {"state": "cancelled"}
                    upload.end = "cancelled"
                elif message.code == "corrupt_chunks":
                    assert upload.damaged > 8
                    assert upload.end in (None, "failed")
                    upload.end = "failed"
            case m.Progress():
                pass
            case _:
                raise AssertionError(message)

    def _promised(self, stream: Stream, durable: int) -> None:
        """``durable`` never goes down: neither on a stream, nor from what was known when it was opened."""
        assert durable >= stream.durable
        stream.durable = durable
        stream.upload.durable = max(stream.upload.durable, durable)

    def _close(self, stream: Stream) -> None:
        stream.is_open = False
        if stream.upload.stream is stream:
            stream.upload.stream = None

    def _pick(self, index: int) -> Stream | None:
        """An open stream whose upload has not ended."""
        found = [each.stream for each in self.uploads if each.stream and each.end is None]
        return found[index % len(found)] if found else None

    # Rules --------------------------------------------------------------------------------------

    indexes = st.integers(0, 5)
    pauses = st.sampled_from([0, 0, 0.001, 0.005, 0.03])
    connections = st.integers(0, CONNECTIONS - 1)

    @precondition(lambda self: len(self.uploads) < MAX_UPLOADS)
    @rule(where=connections, size=st.sampled_from(SIZES), sized=st.booleans(), pause=pauses)
    def create(self, where: int, size: int, sized: bool, pause: float) -> None:
        upload = Upload(self.random.randbytes(size), sized, f"{len(self.uploads)}.bin")
        self.uploads.append(upload)
        self.run(self._open(upload, where, upload.create))
        self.run(self._listen(pause))

    @precondition(lambda self: len(self.uploads) < MAX_UPLOADS)
    @rule(where=connections, size=st.sampled_from(SIZES[:4]), pause=pauses)
    def send_before_any_answer(self, where: int, size: int, pause: float) -> None:
        upload = Upload(self.random.randbytes(size), True, "same name.bin")
        self.uploads.append(upload)

        async def send() -> None:
            await self._open(upload, where, upload.create)
            assert upload.stream is not None
            await self._send(upload.stream, size)
            await self._finish(upload.stream)

        self.run(send())
        self.run(self._listen(pause))

    @rule(index=indexes, size=st.sampled_from([1, 5000, 16 * KIB, 100 * KIB]), pause=pauses)
    def send(self, index: int, size: int, pause: float) -> None:
        if stream := self._pick(index):
            self.run(self._send(stream, size))
        self.run(self._listen(pause))

    @rule(index=indexes, size=st.sampled_from([1, 5000, 16 * KIB]), pause=pauses)
    def send_damaged(self, index: int, size: int, pause: float) -> None:
        if stream := self._pick(index):
            self.run(self._send(stream, size, damage=True))
        self.run(self._listen(pause))

    @rule(index=indexes, pause=pauses)
    def send_twice(self, index: int, pause: float) -> None:
        """A chunk that was sent comes once more: the stream ends, the upload does not."""
        stream = self._pick(index)
        may_send = stream and stream.limit and not stream.is_finished and not stream.restart
        if stream and may_send and stream.sent:
            data = stream.upload.data[:1]
            self.run(stream.client.send_data(stream.number, 0, data))
        self.run(self._listen(pause))

    @rule(index=indexes, pause=pauses)
    def finish(self, index: int, pause: float) -> None:
        if (stream := self._pick(index)) and stream.sent == len(stream.upload.data):
            self.run(self._finish(stream))
        self.run(self._listen(pause))

    @rule(index=indexes, pause=pauses)
    def finish_early(self, index: int, pause: float) -> None:
        stream = self._pick(index)
        if stream and stream.upload.sized and stream.sent < len(stream.upload.data):
            self.run(self._finish(stream))
        self.run(self._listen(pause))

    @rule(index=indexes, where=connections, by_id=st.booleans(), pause=pauses)
    def resume(self, index: int, where: int, by_id: bool, pause: float) -> None:
        """Also while another stream, or another connection, holds the upload."""
        if self.uploads:
            upload = self.uploads[index % len(self.uploads)]
            opening = m.Attach(upload.pk) if by_id and upload.pk else upload.create
            self.run(self._open(upload, where, opening))
        self.run(self._listen(pause))

    @rule(index=indexes, pause=pauses)
    def cancel(self, index: int, pause: float) -> None:
        if stream := self._pick(index):
            stream.upload.was_cancelled = True
            self.run(stream.client.send(m.Cancel(), stream.number))
        self.run(self._listen(pause))

    @rule(index=indexes, pause=pauses)
    def release(self, index: int, pause: float) -> None:
        if stream := self._pick(index):
            self.run(stream.client.send(m.Release(), stream.number))
            stream.is_finished = True  # nothing more is sent on it
        self.run(self._listen(pause))

    @rule(where=connections, pause=pauses)
    def drop(self, where: int, pause: float) -> None:
        self.run(self._reconnect_later(where))
        self.run(self._listen(pause))

    def _lose(self, client: UploadCommunicator) -> None:
        for (owner, _number), stream in self.streams.items():
            if owner is client and stream.is_open:
                self._close(stream)

    @rule(reboots=st.booleans())
    def crash(self, reboots: bool) -> None:
        self.crashes += 1
        for index, client in enumerate(self.clients):
            if client is not None:
                self._lose(client)
                self.clients[index] = None
        self.run(self._die())
        Slot.objects.all().delete()  # they would lapse
        if reboots:
            self._lose_power()

    async def _die(self) -> None:
        """End the process, as far as one can from inside: nothing is saved any more."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
        dead = service._services.pop(self.loop, None)
        if dead is not None:
            dead.store.close()
            dead.database.close()
        drain.connections.clear()
        admission.forget()

    def _lose_power(self) -> None:
        """What no sync covered reads as zeros, under another boot id."""
        boots.append(f"boot {len(boots)}")
        for session in UploadSession.objects.exclude(part=""):
            path = self.folder / "media-staging" / session.part
            if path.exists() and (size := path.stat().st_size) > session.durable:
                with path.open("r+b") as part:
                    part.seek(session.durable)
                    part.write(bytes(size - session.durable))

    # What must hold -----------------------------------------------------------------------------

    @invariant()
    def what_completed_is_what_was_sent(self) -> None:
        for upload in self.uploads:
            if upload.stored_as is not None:
                assert (self.folder / "media" / upload.stored_as).read_bytes() == upload.data

    @invariant()
    def the_budget_holds(self) -> None:
        running = service._services.get(self.loop)
        if running is not None:
            budget = running.budget
            assert 0 <= budget.promised <= budget.total
            assert budget.promised == sum(account.promised for account in budget.accounts)

    def teardown(self) -> None:
        try:
            self.run(self._complete_all())
            self._check_all()
        finally:
            self.run(self._die())
            self.loop.close()
            UploadSession.objects.all().delete()
            self.override.disable()
            shutil.rmtree(self.folder)

    async def _complete_all(self) -> None:
        """Every upload that is not over can still be completed."""
        for upload in self.uploads:
            damaged = upload.damaged
            while upload.end is None:
                if upload.stream is None:
                    await self._open(upload, 0, upload.create)
                stream = upload.stream
                assert stream is not None
                waits = 0
                while upload.stream is stream:
                    waits += 1
                    assert waits < 2000, (stream, list(get_service().active.values()))
                    await self._send(stream, 16 * KIB)
                    if stream.sent == len(upload.data):
                        await self._finish(stream)
                    await self._listen(0.002)
            assert upload.damaged == damaged
        for client in self.clients:
            if client is not None:
                await client.disconnect()
        await settled()
        running = get_service()
        await running.outbox.join()
        await running.database.call(let_claims_lapse, None)
        await running.outbox.deliver_due()
        assert running.budget.promised == 0
        assert not running.budget.accounts
        assert not running.active
        await running.close()

    def _check_all(self) -> None:
        rows = {session.key: session for session in UploadSession.objects.all()}
        for upload in self.uploads:
            session = rows.pop(upload.key)
            events = {
                arguments["event_id"]
                for arguments in self.heard.named("completed")
                if arguments["session"].pk == session.pk
            }
            assert len(events) == (upload.end == "completed")
            assert CompletionEvent.objects.filter(session=session).count() == len(events)
            assert session.is_completed == (upload.end == "completed")
            assert session.state in {State.COMPLETED, State.CANCELLED, State.FAILED}
            assert not session.part
        assert not rows
        published = [path for path in (self.folder / "media").rglob("*") if path.is_file()]
        assert len(published) == sum(upload.end == "completed" for upload in self.uploads)
        if not self.crashes:
            staging = self.folder / "media-staging"
            assert not staging.exists() or not os.listdir(staging)


boots = ["boot 0"]


def let_claims_lapse(items: Sequence[None]) -> list[None]:
    """Of processes that died: as if ten seconds had passed."""
    CompletionEvent.objects.filter(delivered_at=None).update(due_at=timezone.now())
    return [None for _ in items]


def test_what_completes_is_what_was_sent(
    transactional_db: None, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = get_user_model().objects.create_user("alice")
    # Checkpoints and locks as they are with large files and long times.
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 40 * KIB)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.02)
    monkeypatch.setattr(service, "LOCK_SECONDS", 0.02)
    monkeypatch.setattr(disk, "boot_id", lambda: boots[-1])
    monkeypatch.setattr(disk, "fdatasync", lambda fd: None)  # the power cut is a simulated one
    monkeypatch.setattr(Uploading, "heard", heard, raising=False)
    monkeypatch.setattr(Uploading, "ticket", issue_ticket(user), raising=False)
    with override_settings(ASYNC_UPLOAD={"DURABILITY": "fsync", "MEMORY_BUDGET": 1024 * KIB}):
        run_state_machine_as_test(
            Uploading,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
    connections.close_all()
