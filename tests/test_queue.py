"""The queue of an upload: when its pieces are worth a hop, and which of them make a batch."""

from __future__ import annotations

import asyncio

import pytest

from django_async_upload.engine import queue
from django_async_upload.engine.credit import LARGEST_WINDOW, Budget
from django_async_upload.engine.flow import Flow
from django_async_upload.engine.queue import BATCH_BYTES, MAX_PIECES, Queue
from django_async_upload.stores import Piece

from .fixtures import KIB, MIB


class Upload:
    def __init__(self) -> None:
        self.wakes = 0
        account = Budget(LARGEST_WINDOW).open("alice", pause=self.wake, evict=self.wake)
        self.flow = Flow(account, self.wake)
        self.flow.limit = 64 * MIB
        self.queue = Queue(self.flow, self.wake)

    def wake(self) -> None:
        self.wakes += 1

    def put(self, size: int) -> bool:
        return self.queue.put(Piece(bytes(size)))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "BATCH_SECONDS", 60.0)  # unless a test is about it


async def test_pieces_are_due_when_they_are_many_bytes() -> None:
    upload = Upload()
    assert not upload.queue.is_due, "there are none"
    assert upload.put(BATCH_BYTES - 1)
    assert (upload.queue.is_due, upload.wakes) == (False, 0)
    assert upload.put(1)
    assert (upload.queue.is_due, upload.wakes) == (True, 1)
    upload.queue.clear()


async def test_pieces_are_due_when_they_are_a_quarter_of_the_credit() -> None:
    upload = Upload()
    upload.flow.received, upload.flow.limit = MIB, MIB + 400
    upload.put(99)
    assert not upload.queue.is_due
    upload.put(1)
    assert upload.queue.is_due
    upload.queue.clear()
    upload.flow.received = upload.flow.limit
    assert not upload.queue.is_due, "there are none"


async def test_pieces_stay_due_when_the_limit_rises_before_the_writer_looks() -> None:
    """A checkpoint may raise it: seen as uploads that got no answer, and no more bytes, for a minute."""
    upload = Upload()
    upload.flow.limit = 400
    upload.put(100)
    assert upload.wakes == 1
    upload.flow.limit = 64 * MIB
    assert upload.queue.is_due
    upload.queue.take_batch()
    upload.put(100)
    assert not upload.queue.is_due
    upload.queue.clear()


async def test_pieces_are_due_when_they_are_the_rest_of_the_file() -> None:
    upload = Upload()
    upload.queue.size, upload.flow.received = 2 * MIB, MIB
    upload.put(MIB - 1)
    assert not upload.queue.is_due
    upload.put(1)
    assert upload.queue.is_due
    upload.queue.clear()


async def test_pieces_are_due_when_they_have_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "BATCH_SECONDS", 0.001)
    upload = Upload()
    upload.put(1)
    assert not upload.queue.is_due
    async with asyncio.timeout(5):
        while not upload.queue.is_due:
            await asyncio.sleep(0.001)
    assert upload.wakes == 1
    assert len(upload.queue.take_batch()) == 1
    upload.put(1)
    assert not upload.queue.is_due, "the next one waits again"
    upload.queue.clear()


async def test_pieces_are_due_when_the_client_sends_no_more() -> None:
    upload = Upload()
    upload.put(1)
    upload.queue.end()
    assert (upload.queue.is_due, upload.wakes) == (True, 1)
    upload.queue.take_batch()
    assert not upload.queue.is_due
    upload.put(1)
    assert (upload.queue.is_due, upload.wakes) == (True, 2)
    upload.queue.clear()


async def test_a_batch_leaves_what_is_too_much_which_is_due_next() -> None:
    upload = Upload()
    for _ in range(5):
        upload.put(MIB)
    upload.put(3)
    sizes = []
    while upload.queue.is_due:
        sizes.append([len(piece.payload) for piece in upload.queue.take_batch()])
    assert sizes == [[MIB, MIB], [MIB, MIB], [MIB, 3]]
    assert upload.queue.take_batch() == []


async def test_a_batch_ends_the_wait_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "BATCH_SECONDS", 0.01)
    upload = Upload()
    upload.put(KIB)
    upload.queue.take_batch()
    await asyncio.sleep(0.05)
    assert upload.wakes == 0


async def test_a_flood_of_tiny_pieces_is_refused() -> None:
    upload = Upload()
    for _ in range(MAX_PIECES):
        assert upload.put(1)
    assert not upload.put(1)
    assert len(upload.queue.pieces) == MAX_PIECES
    upload.queue.clear()


async def test_a_cleared_queue_has_nothing_and_waits_for_more() -> None:
    upload = Upload()
    upload.put(BATCH_BYTES - 1)
    upload.queue.end()
    upload.queue.clear()
    assert upload.queue.pieces == []
    upload.put(1)
    assert not upload.queue.is_due
    upload.queue.clear()
