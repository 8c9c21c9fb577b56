"""One client's work on one upload, as a door sees it: callbacks, and the outcome or the error that ends it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from django_async_upload.engine import attachment as module
from django_async_upload.engine.active import ActiveUpload
from django_async_upload.engine.attachment import Attachment, Outcome
from django_async_upload.engine.flow import Flow
from django_async_upload.engine.outcomes import Cancelled, Published, Released
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import FileChanged, FileRefused, FileTooLarge, PermissionRefused
from django_async_upload.models import UploadSession
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import NewUpload, Progress, Proof, UploadAccess

from .fixtures import KIB, crc, facts, new_key, row
from .test_service import Host, RecordingListener, feed, interrupted, new_session

pytest_plugins = ["tests.fixtures"]

DATA = os.urandom(64 * KIB)


class Door(RecordingListener):
    """A door to a client that reacts to each callback."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.progress: list[Progress] = []
        self.upload: ActiveUpload
        self.react: Callable[[str, ActiveUpload], None] = lambda call, upload: None

    def created(self, session: UploadSession, flow: Flow) -> None:
        self.called("created")

    def attached(self, session: UploadSession, flow: Flow) -> None:
        self.called("attached")

    def ready(self, flow: Flow) -> None:
        self.called("ready")

    def progressed(self, progress: Progress) -> None:
        self.progress.append(progress)

    def called(self, call: str) -> None:
        self.calls.append(call)
        self.react(call, self.upload)


class Hooks(Host):
    """A host that creates sessions and admits everybody, unless it has a refusal."""

    responds = False
    max_size: int | None = None

    async def admit(self) -> int | None:
        if self.refusal is not None and not self.inspects:
            raise self.refusal
        return None

    async def new_session(self, new: NewUpload) -> tuple[UploadSession, int | None]:
        return new_session(self.owner, DATA[: new.size], key=new.key), self.max_size


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def hooks(owner: Owner) -> Hooks:
    return Hooks(owner)


@pytest.fixture
def attaching(uploads: UploadService, door: Door, hooks: Hooks) -> Any:
    """An attachment, which is left in the end."""

    @asynccontextmanager
    async def attaching() -> AsyncIterator[Attachment]:
        attachment = Attachment(uploads, door, hooks, owner="user:1")  # type: ignore[arg-type]
        door.upload = attachment.upload
        try:
            async with asyncio.timeout(20):
                yield attachment
        finally:
            await attachment.leave()

    return attaching


def new_upload(size: int = len(DATA)) -> NewUpload:
    return NewUpload(new_key(), "a.bin", size)


def sends(data: bytes = DATA) -> Callable[[str, ActiveUpload], None]:
    """A client that sends the rest of the file and FINISH when it may."""

    def react(call: str, upload: ActiveUpload) -> None:
        if call in ("created", "ready"):
            feed(upload, data, upload.flow.received)
            upload.finish(facts(data))
        else:
            proof = Proof(crc(data[: upload.flow.durable]), crc(data[: upload.flow.received]))
            upload.prove(proof)

    return react


async def test_a_new_upload_is_created_written_and_published(attaching: Any, door: Door) -> None:
    door.react = sends()
    async with attaching() as attachment:
        outcome = await attachment.create(new_upload(), "default")
    assert isinstance(outcome, Published)
    assert outcome.session == attachment.session
    assert door.calls == ["created"]
    assert (await row(outcome.session.pk)).is_completed


async def test_a_key_that_is_known_attaches_to_its_upload(attaching: Any, door: Door) -> None:
    new = new_upload()
    door.react = lambda call, upload: upload.release()
    async with attaching() as attachment:
        await attachment.create(new, "default")
    door.react = sends()
    async with attaching() as attachment:
        again = await attachment.create(new, "default")
    async with attaching() as attachment:
        published = await attachment.create(new, "default")
    assert door.calls == ["created", "attached", "ready"]
    assert isinstance(again, Published)
    assert isinstance(published, Published)
    assert published.session.pk == again.session.pk


@pytest.mark.parametrize(("stop", "kind"), [("release", Released), ("cancel", Cancelled)])
async def test_a_client_stops_before_the_end(
    attaching: Any, door: Door, stop: str, kind: type[Outcome]
) -> None:
    def react(call: str, upload: ActiveUpload) -> None:
        feed(upload, DATA[:KIB])
        getattr(upload, stop)()

    door.react = react
    async with attaching() as attachment:
        outcome = await attachment.create(new_upload(), "default")
    assert isinstance(outcome, kind)
    assert not isinstance(outcome, Released) or outcome.durable == KIB


async def test_a_client_that_proves_its_file_is_ready_to_send_the_rest(
    uploads: UploadService, owner: Owner, attaching: Any, door: Door
) -> None:
    pk = await interrupted(uploads, owner, DATA, 5 * KIB)
    door.react = sends()
    async with attaching() as attachment:
        outcome = await attachment.attach(UploadAccess(pk, owner, "default"))
    assert isinstance(outcome, Published)
    assert door.calls == ["attached", "ready"]


async def test_a_client_with_another_file_changes_nothing(
    uploads: UploadService, owner: Owner, attaching: Any, door: Door
) -> None:
    pk = await interrupted(uploads, owner, DATA, 5 * KIB)
    door.react = sends(b"x" + DATA[1:])
    async with attaching() as attachment:
        with pytest.raises(FileChanged) as caught:
            await attachment.attach(UploadAccess(pk, owner, "default"))
    assert caught.value.facts == {"offset": 5 * KIB}
    assert door.calls == ["attached"]
    session = await row(pk)
    assert (session.state, session.durable) == (State.INTERRUPTED, 5 * KIB)


async def test_a_client_that_has_only_the_durable_bytes_goes_on_from_there(
    uploads: UploadService, owner: Owner, attaching: Any, door: Door
) -> None:
    pk = await interrupted(uploads, owner, DATA, 5 * KIB)
    # Bytes above the checkpoint, of a holder that did not get to its next one.
    await UploadSession.objects.filter(pk=pk).aupdate(
        durable=4 * KIB, crc=int(crc(DATA[: 4 * KIB]), 16)
    )
    offsets: list[int] = []

    def react(call: str, upload: ActiveUpload) -> None:
        offsets.append(upload.flow.received)
        if call == "attached":
            upload.prove(Proof(crc(DATA[: upload.flow.durable])))
        else:
            sends()(call, upload)

    door.react = react
    async with attaching() as attachment:
        outcome = await attachment.attach(UploadAccess(pk, owner, "default"))
    assert isinstance(outcome, Published)
    assert offsets == [5 * KIB, 4 * KIB]


async def test_an_owner_who_may_not_upload_attaches_to_nothing(
    uploads: UploadService, owner: Owner, attaching: Any, hooks: Hooks, door: Door
) -> None:
    pk = await interrupted(uploads, owner, DATA, 5 * KIB)
    hooks.refusal = PermissionRefused()
    async with attaching() as attachment:
        with pytest.raises(PermissionRefused):
            await attachment.attach(UploadAccess(pk, owner, "default"))
    assert door.calls == []
    assert (await row(pk)).state == State.INTERRUPTED


async def test_a_final_error_fails_the_upload_and_another_one_keeps_it(
    attaching: Any, hooks: Hooks, door: Door
) -> None:
    door.react = sends()
    hooks.inspects = True
    for refusal, state in ((FileRefused(), State.FAILED), (ZeroDivisionError(), State.INTERRUPTED)):
        hooks.refusal = refusal  # type: ignore[assignment]
        async with attaching() as attachment:
            with pytest.raises(type(refusal)):
                await attachment.create(new_upload(), "default")
        assert (await row(attachment.session.pk)).state == state


async def test_a_file_that_is_too_large_fails_while_it_is_written(
    attaching: Any, hooks: Hooks, door: Door
) -> None:
    door.react = sends()
    hooks.max_size = KIB
    async with attaching() as attachment:
        with pytest.raises(FileTooLarge):
            await attachment.create(new_upload(), "default")
    assert (await row(attachment.session.pk)).state == State.FAILED


async def test_progress_is_reported_while_the_client_waits(
    attaching: Any, hooks: Hooks, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.01)
    door.react = sends()
    hooks.inspects = True
    hooks.released.clear()
    async with attaching() as attachment:
        creating = asyncio.create_task(attachment.create(new_upload(), "default"))
        async with asyncio.timeout(20):
            while Progress("inspecting", len(DATA), len(DATA)) not in door.progress:
                await asyncio.sleep(0.01)
        hooks.released.set()
        await creating


async def test_leaving_gives_the_credit_back_and_ends_nothing(
    uploads: UploadService, attaching: Any, door: Door
) -> None:
    async with attaching() as attachment:
        creating = asyncio.create_task(attachment.create(new_upload(), "default"))
        while not door.calls:
            await asyncio.sleep(0.001)
        creating.cancel()
        await asyncio.wait({creating})
        assert uploads.budget.promised
    assert not uploads.budget.promised
    assert not uploads.active
    assert (await row(attachment.session.pk)).state == State.UPLOADING
