"""The part of an upload: when it is made, and what of it the row and the client may be told."""

from __future__ import annotations

import pytest
from crc32c import crc32c

from django_async_upload.engine.part import UploadPart
from django_async_upload.engine.runtime import Runtime
from django_async_upload.models import UploadSession
from django_async_upload.stores import Checkpoint, Piece
from django_async_upload.stores.memory import MemoryStore, MemoryWriter


class Store(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int | None] = []

    def create(self, size: int | None) -> MemoryWriter:
        self.sizes.append(size)
        writer = super().create(size)
        assert isinstance(writer, MemoryWriter)
        return writer


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def part(store: Store) -> UploadPart:
    part = UploadPart(Runtime(store))
    part.session = UploadSession(size=8)
    return part


def test_it_is_made_with_the_first_bytes_for_the_declared_size(
    part: UploadPart, store: Store
) -> None:
    assert (part.name, store.sizes) == ("", [])
    assert part.append([Piece(b"some"), Piece(b"more")]) == 2
    assert part.append([]) == 0
    assert store.sizes == [8]
    assert part.writer is not None
    assert (part.name, part.writer.received) == (part.writer.part, 8)


async def test_it_is_made_once_where_no_byte_comes(part: UploadPart, store: Store) -> None:
    assert await part.made() is await part.made() is part.writer
    assert store.sizes == [8]
    await part.close()


def test_it_has_a_crc_of_all_bytes_and_one_of_those_that_the_row_has(part: UploadPart) -> None:
    part.append([Piece(b"some")])
    part.checkpoint = Checkpoint(part.name, 4, crc32c(b"some"))
    part.append([Piece(b"more")])
    assert part.crc(8) == crc32c(b"somemore")
    assert part.crc(4) == crc32c(b"some")


async def test_what_the_store_has_is_durable_as_far_as_it_was_acked_once_the_row_names_the_part(
    part: UploadPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryWriter, "durable_unsynced", property(lambda writer: writer.received))
    assert part.durable(0) == 0
    part.append([Piece(b"some")])
    assert part.durable(4) == 0, "no row names the part"
    part.checkpoint = Checkpoint(part.name)
    assert part.durable(4) == 4
    part.append([Piece(b"more")])  # a running write
    assert part.durable(4) == 4


async def test_it_goes_back_to_what_the_row_has(part: UploadPart) -> None:
    part.append([Piece(b"some")])
    part.checkpoint = await part.sync()
    part.append([Piece(b"more")])
    assert await part.truncate() == 4
    part.append([Piece(b"more")])
    name = part.name
    assert await part.rewrite() == 4
    assert part.name != name


async def test_closing_it_is_no_error_where_none_was_made(part: UploadPart) -> None:
    await part.close()
    assert part.name == ""
