"""Partial uploads, and the upload that is concatenated from them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_async_upload.engine.active import ActiveUpload
from django_async_upload.engine.attachment import Attachment, Outcome
from django_async_upload.engine.concatenation import Concatenation
from django_async_upload.engine.outcomes import Published, Released
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import (
    Busy,
    DataLost,
    DigestMismatch,
    Joined,
    KeyReused,
    PartsRefused,
    SessionQuotaExceeded,
    SizeMismatch,
)
from django_async_upload.models import UploadSession
from django_async_upload.operations.cleanup import purge
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import Facts, NewUpload, Proof, UploadAccess
from django_async_upload.stores.base import Piece, combine_crc32c, crc32c

from .fixtures import KIB, MIB, Heard, crc, facts, new_key, row, run
from .test_attachment import Door, Hooks, sends
from .test_service import begun, feed, new_session

pytest_plugins = ["tests.fixtures"]

PARTS = [os.urandom(2 * MIB + 7), b"", os.urandom(300 * KIB), os.urandom(5)]
DATA = b"".join(PARTS)


class Site(Hooks):
    """A host that keeps what a door asks for."""

    async def new_session(self, new: NewUpload) -> tuple[UploadSession, int | None]:
        fields = {"is_partial": new.is_partial, "parts": [str(part) for part in new.parts]}
        session = new_session(self.owner, None, key=new.key, size=new.size, **fields)
        session.name = new.name
        return session, None


@pytest.fixture
def hooks(owner: Owner) -> Site:
    return Site(owner)


class Client:
    """A client that uploads parts, and has them concatenated."""

    def __init__(self, uploads: UploadService, hooks: Site) -> None:
        self.uploads = uploads
        self.hooks = hooks
        self.sent = 0

    async def attached(self, react: Any, new: NewUpload | uuid.UUID) -> tuple[Attachment, Outcome]:
        door = Door()
        door.react = react
        attachment = Attachment(self.uploads, door, self.hooks, owner=self.hooks.owner.key)  # type: ignore[arg-type]
        door.upload = attachment.upload
        try:
            if isinstance(new, NewUpload):
                return attachment, await attachment.create(new, "default")
            access = UploadAccess(new, self.hooks.owner, "default")
            return attachment, await attachment.attach(access)
        finally:
            await attachment.leave()

    async def part(self, data: bytes, *, size: int | None = -1) -> uuid.UUID:
        """A partial upload with all its bytes."""
        new = NewUpload(new_key(), "file", len(data) if size == -1 else size, is_partial=True)
        attachment, outcome = await self.attached(sends(data), new)
        assert outcome == Released(len(data))
        assert attachment.session is not None
        return attachment.session.pk

    async def parts(self, datas: Sequence[bytes] = PARTS) -> list[uuid.UUID]:
        return [await self.part(data) for data in datas]

    async def concatenation(self, parts: Sequence[uuid.UUID]) -> Concatenation:
        return await Concatenation.of(self.uploads, parts, self.hooks.owner, "default")

    async def concatenated(
        self, parts: Sequence[uuid.UUID], *, stop_at: int | None = None, name: str = "film.bin"
    ) -> Outcome:
        """Write the parts as a door does. ``stop_at``: and leave there."""
        concatenation = await self.concatenation(parts)
        new = concatenation.upload(NewUpload(new_key(), name))
        tasks = []

        def react(call: str, upload: ActiveUpload) -> None:
            if call == "attached":
                upload.prove(Proof("", f"{upload.part.crc(upload.flow.received):08x}"))
            else:
                tasks.append(asyncio.create_task(write(upload)))

        async def write(upload: ActiveUpload) -> None:
            offset = upload.flow.received
            async with aclosing(concatenation.read(offset)) as pieces:
                async for data in pieces:
                    assert len(data) <= MIB
                    self.sent += len(data)
                    for start in range(0, len(data), 16 * KIB):
                        while upload.flow.limit < offset + 16 * KIB:
                            await asyncio.sleep(0.001)
                        upload.append(Piece(data[start : start + 16 * KIB]))
                        offset += len(data[start : start + 16 * KIB])
                    if stop_at is not None and offset >= stop_at:
                        upload.release()
                        return
            upload.finish(Facts(offset, concatenation.crc32c))

        _, outcome = await self.attached(react, new)
        for task in tasks:
            await task
        if isinstance(outcome, Published):
            await concatenation.join(outcome.session)
        return outcome


@pytest.fixture
async def client(uploads: UploadService, hooks: Site) -> Client:
    return Client(uploads, hooks)


def stored(media: Path) -> list[bytes]:
    return [path.read_bytes() for path in (media / "uploads").iterdir()] if media.exists() else []


def staged(staging: Path) -> list[Path]:
    return [path for path in staging.rglob("*") if path.is_file()]


# CRC ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_the_crc_of_two_texts_follows_from_theirs(first: bytes, second: bytes) -> None:
    combined = combine_crc32c(crc32c(first), crc32c(second), len(second))
    assert combined == crc32c(first + second)


# Partial uploads ------------------------------------------------------------------------------------


async def test_a_partial_upload_with_all_its_bytes_is_not_published(
    client: Client, media: Path, heard: Heard
) -> None:
    session = await row(await client.part(PARTS[0]))
    assert (session.state, session.durable, session.crc32c) == (
        State.INTERRUPTED,
        len(PARTS[0]),
        crc(PARTS[0]),
    )
    assert not heard.named("completed")
    assert stored(media) == []


async def test_a_partial_upload_of_unknown_size_has_one_at_its_end(client: Client) -> None:
    session = await row(await client.part(PARTS[2], size=None))
    assert (session.size, session.durable) == (len(PARTS[2]), len(PARTS[2]))


async def test_a_partial_upload_that_lacks_bytes_is_not_finished(client: Client) -> None:
    def react(call: str, upload: ActiveUpload) -> None:
        feed(upload, b"12345")
        upload.finish(facts(b"12345"))

    with pytest.raises(SizeMismatch):
        await client.attached(react, NewUpload(new_key(), "file", 6, is_partial=True))


async def test_a_partial_upload_with_another_crc_fails(client: Client) -> None:
    def react(call: str, upload: ActiveUpload) -> None:
        feed(upload, b"12345")
        upload.finish(facts(b"12346"))

    with pytest.raises(DigestMismatch):
        await client.attached(react, NewUpload(new_key(), "file", 5, is_partial=True))
    assert (await UploadSession.objects.aget()).state == State.FAILED


async def test_a_partial_upload_expires_as_others_do(client: Client, staging: Path) -> None:
    pk = await client.part(PARTS[3])
    long_ago = (await row(pk)).created_at.replace(year=2020)
    await UploadSession.objects.filter(pk=pk).aupdate(expires_at=long_ago)
    assert (await run(purge)).sessions == 1
    assert (await row(pk)).state == State.EXPIRED
    assert staged(staging) == []


# Concatenation --------------------------------------------------------------------------------------


async def test_the_bytes_of_parts_in_their_order_are_one_file(
    client: Client, media: Path, staging: Path, heard: Heard
) -> None:
    parts = await client.parts()
    outcome = await client.concatenated(parts)
    assert isinstance(outcome, Published)
    session = await row(outcome.session.pk)
    assert stored(media) == [DATA]
    assert (session.name, session.size, session.crc32c) == ("film.bin", len(DATA), crc(DATA))
    assert session.parts == [str(part) for part in parts]
    assert staged(staging) == []
    assert [each["session"].pk for each in heard.named("completed")] == [session.pk]
    assert not heard.named("cancelled")
    for part in parts:
        gone = await row(part)
        assert (gone.state, gone.error) == (State.CANCELLED, "joined")
        assert gone.error_facts == {"upload": str(session.pk), "size": gone.size}


async def test_a_part_may_come_in_any_order_and_more_than_once(client: Client, media: Path) -> None:
    one, other = await client.parts(PARTS[2:])
    assert isinstance(await client.concatenated([other, one, other]), Published)
    assert stored(media) == [PARTS[3] + PARTS[2] + PARTS[3]]


async def test_parts_without_a_byte_make_an_empty_file(client: Client, media: Path) -> None:
    assert isinstance(await client.concatenated([await client.part(b"")]), Published)
    assert stored(media) == [b""]


async def test_the_same_request_finds_its_own_work(client: Client, media: Path) -> None:
    parts = await client.parts()
    first = await client.concatenated(parts)
    client.sent = 0
    second = await client.concatenated(parts)
    assert isinstance(first, Published)
    assert isinstance(second, Published)
    assert second.session.pk == first.session.pk
    assert client.sent == 0
    assert stored(media) == [DATA]
    with pytest.raises(KeyReused):
        await client.concatenated(parts, name="other.bin")


async def test_a_concatenation_that_was_interrupted_goes_on_where_it_was(
    client: Client, media: Path
) -> None:
    parts = await client.parts()
    assert await client.concatenated(parts, stop_at=MIB) == Released(MIB)
    client.sent = 0
    assert isinstance(await client.concatenated(parts), Published)
    assert client.sent == len(DATA) - MIB
    assert stored(media) == [DATA]


async def test_parts_that_a_crash_left_are_deleted_by_the_same_request(
    client: Client, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await client.parts(PARTS[2:])

    async def crashed(self: Concatenation, final: UploadSession) -> None:
        await self._service.end(
            self._sessions[0], State.CANCELLED, error=Joined(upload=final.pk, size=300 * KIB)
        )

    with monkeypatch.context() as context:
        context.setattr(Concatenation, "join", crashed)
        await client.concatenated(parts)
    assert len(staged(staging)) == 1
    assert isinstance(await client.concatenated(parts), Published)
    assert staged(staging) == []


async def test_a_part_is_not_used_for_two_files(client: Client) -> None:
    one, other = await client.parts(PARTS[2:])
    await client.concatenated([one])
    with pytest.raises(PartsRefused, match="has become a part of another one"):
        await client.concatenation([one, other])


async def test_parts_are_refused_that_are_no_part_of_this_owner(
    client: Client, bob: Any, uploads: UploadService, owner: Owner
) -> None:
    part = await client.part(PARTS[3])
    missing = uuid.uuid4()
    with pytest.raises(PartsRefused) as refused:
        await client.concatenation([part, missing])
    client.hooks.owner = Owner(f"user:{bob.pk}", bob)
    with pytest.raises(PartsRefused) as foreign:
        await client.concatenation([part])
    assert foreign.value.message == refused.value.message.replace(str(missing), str(part))
    client.hooks.owner = owner
    with pytest.raises(PartsRefused, match="none is named"):
        await client.concatenation([])
    async with begun(uploads, owner, PARTS[3]) as upload:
        with pytest.raises(PartsRefused, match="not partial"):
            await client.concatenation([upload.session.pk])


async def test_parts_are_refused_that_lack_bytes_or_are_over(
    client: Client, uploads: UploadService
) -> None:
    def react(call: str, upload: ActiveUpload) -> None:
        feed(upload, b"12345")
        upload.release()

    attachment, _ = await client.attached(react, NewUpload(new_key(), "file", 6, is_partial=True))
    assert attachment.session is not None
    part = attachment.session.pk
    with pytest.raises(PartsRefused, match="not finished") as refused:
        await client.concatenation([part])
    assert refused.value.facts["unfinished"]
    await uploads.cancel(UploadAccess(part, client.hooks.owner, "default"))
    with pytest.raises(PartsRefused, match="is over"):
        await client.concatenation([part])


async def test_a_part_that_is_held_is_waited_for(
    client: Client, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_async_upload.engine.concatenation.LOCK_SECONDS", 0.2)
    part = await client.part(PARTS[2])
    concatenation = await client.concatenation([part])
    checkpoint = (await row(part)).checkpoint
    held = await uploads.store.run_slow(
        uploads.store.open, checkpoint, size=len(PARTS[2]), steal=False
    )
    with pytest.raises(Busy):
        await anext(concatenation.read(0))
    asyncio.get_running_loop().call_later(0.1, held.close)
    pieces = [data async for data in concatenation.read(0)]
    assert b"".join(pieces) == PARTS[2]


async def test_a_part_whose_bytes_are_gone_is_an_error(client: Client, staging: Path) -> None:
    part = await client.part(PARTS[2])
    concatenation = await client.concatenation([part])
    for path in staged(staging):
        path.unlink()
    with pytest.raises(DataLost):
        await anext(concatenation.read(0))


async def test_parts_that_were_joined_are_no_open_uploads(client: Client, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "USER_MAX_SESSIONS": 4}
    for _ in range(3):
        await client.concatenated(await client.parts(PARTS[1:]))
    for _ in range(4):
        await client.part(b"x")
    with pytest.raises(SessionQuotaExceeded):
        await client.part(b"x")
