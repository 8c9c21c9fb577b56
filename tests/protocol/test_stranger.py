"""A client that was written from the page alone, against the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import issue_ticket

from .stranger import Failed, Stranger
from .test_live import Wire
from .transcripts import pattern

pytest_plugins = ["tests.fixtures"]

Connect = Callable[[], UploadCommunicator]


def stored(media: Path) -> list[bytes]:
    return [each.read_bytes() for each in media.rglob("*") if each.is_file()]


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 3_000_000])
async def test_a_file_arrives(connect: Connect, media: Path, size: int) -> None:
    file = pattern(1, 0, size)
    async with connect() as communicator:
        stranger = Stranger(Wire(communicator), file)
        await stranger.begin()
        await stranger.create()
    assert stored(media) == [file]


async def test_damaged_chunks_are_sent_again(connect: Connect, media: Path) -> None:
    file = pattern(1, 0, 300_000)
    async with connect() as communicator:
        stranger = Stranger(Wire(communicator), file, damage=(0, 16_384))
        await stranger.begin()
        await stranger.create()
    assert stranger.rewinds >= 1
    assert stored(media) == [file]


@pytest.mark.parametrize("by", ["attach", "create"])
async def test_it_goes_on_after_a_lost_connection(connect: Connect, media: Path, by: str) -> None:
    file = pattern(1, 0, 3_000_000)
    first = connect()
    await first.connect()
    stranger = Stranger(Cut(first, after=1_000_000), file)
    await stranger.begin()
    with pytest.raises(ConnectionResetError):
        await stranger.create()
    await first.disconnect(1006)
    async with connect() as second:
        stranger.wire, stranger.stream = Wire(second), 0
        await stranger.begin()
        await (stranger.attach() if by == "attach" else stranger.create())
    assert stranger.resumed_at > 0
    assert stored(media) == [file]


class Cut(Wire):
    """The line breaks before so many bytes of the client are passed."""

    def __init__(self, communicator: UploadCommunicator, after: int) -> None:
        super().__init__(communicator)
        self._left = after

    async def send(self, frame: bytes) -> None:
        self._left -= len(frame)
        if self._left < 0:
            raise ConnectionResetError
        await super().send(frame)


async def test_a_ticket_goes_first_and_the_upload_right_behind(
    application: Any, alice: Any, media: Path
) -> None:
    ticket = await sync_to_async(issue_ticket)(alice)
    async with UploadCommunicator(application) as communicator:
        stranger = Stranger(Wire(communicator), b"data")
        await stranger.begin(ticket)
        await stranger.create()
    assert stored(media) == [b"data"]


async def test_another_file_is_not_the_one_that_was_begun(connect: Connect) -> None:
    first = connect()
    await first.connect()
    stranger = Stranger(Cut(first, after=1_000_000), pattern(1, 0, 3_000_000))
    await stranger.begin()
    with pytest.raises(ConnectionResetError):
        await stranger.create()
    await first.disconnect(1006)
    async with connect() as second:
        stranger.wire, stranger.stream = Wire(second), 0
        stranger.file = pattern(2, 0, 3_000_000)
        await stranger.begin()
        with pytest.raises(Failed, match="file_changed"):
            await asyncio.wait_for(stranger.attach(), 30)
