"""The compliance suite of stores: subclass it in your own tests, with pytest.

::

    class TestMyStore(StoreCompliance):
        def make_store(self, tmp_path):
            return MyStore(bucket="test")

Each test checks a promise of :mod:`django_async_upload.stores.base`. It needs only pytest, no plugin
and no settings.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from crc32c import crc32c

from ..exceptions import Busy, DataLost, StorageFailed, StorageFull, UploadError
from ..stores.base import Checkpoint, Piece, Seal, Store, Writer

EVIL_NAMES = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "a/b",
    "a\\b",
    "nul\0byte",
    "line\nbreak",
    "0" * 31,
    "0" * 33,
    "0" * 32 + "\n",
    "A" * 32,
    "g" * 32,
    "\N{FULLWIDTH DIGIT ZERO}" * 32,
    "0" * 5000,
    "\udcff" * 32,
]
"""Names that no store uses for parts."""


MAX_PIECE: Final = 1024 * 1024 - 4096
"""Bytes of the longest piece that a door passes on."""


def split(data: bytes, size: int = 4096, *, offset: int = 0) -> list[Piece]:
    """Sealed pieces of ``data``, which starts at ``offset``."""
    return [
        seal(data[start : start + size], crc32c((offset + start).to_bytes(8, "big")))
        for start in range(0, len(data), size)
    ]


def seal(payload: bytes, start: int = 0) -> Piece:
    """A sealed piece, whose CRC continues ``start``, that of the bytes before the payload."""
    return Piece(payload, Seal(start, crc32c(payload, start)))


def damage(piece: Piece) -> Piece:
    """Flip one bit of the piece's payload."""
    payload = bytes(piece.payload)
    return piece._replace(payload=payload[:-1] + bytes([payload[-1] ^ 1]))


class StoreCompliance:
    """Tests of a store. Subclass it and implement :meth:`make_store`."""

    size = 64 * 1024
    """Bytes of a test upload. A store whose ``durable`` advances in parts sets four parts."""

    def make_store(self, tmp_path: Path) -> Store:
        """Create a store without parts; ``tmp_path`` is an empty folder."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = self.make_store(tmp_path)
        yield store
        store.close()

    @property
    def data(self) -> bytes:
        return random.Random(self.size).randbytes(self.size)  # noqa: S311

    def begun(self, store: Store) -> tuple[Writer, Checkpoint]:
        """A part with two halves of :attr:`data`, of which the first is synced."""
        half = self.size // 2
        writer = store.create(self.size)
        writer.append(split(self.data[:half]))
        checkpoint = writer.sync()
        writer.append(split(self.data[half:], offset=half))
        return writer, checkpoint

    def assert_holds(self, writer: Writer, data: bytes) -> None:
        assert writer.received == len(data)
        assert writer.crc == crc32c(data)
        assert b"".join(writer.read()) == data

    # Writing
    # ----------------------------------------------------------------------------------------

    def test_a_new_part_is_empty(self, store: Store) -> None:
        self.assert_holds(store.create(None), b"")

    def test_pieces_are_written_in_order(self, store: Store) -> None:
        writer = store.create(self.size)
        half = self.size // 2
        assert writer.append(split(self.data[:half])) == len(split(self.data[:half]))
        self.assert_holds(writer, self.data[:half])
        writer.append(split(self.data[half:], 1000, offset=half))
        self.assert_holds(writer, self.data)

    def test_a_damaged_piece_ends_the_batch(self, store: Store) -> None:
        writer = store.create(None)
        pieces = split(self.data)
        pieces[3] = damage(pieces[3])
        assert writer.append(pieces) == 3
        self.assert_holds(writer, self.data[: 3 * 4096])
        assert writer.append(split(self.data[3 * 4096 :], offset=3 * 4096)) == len(pieces) - 3
        self.assert_holds(writer, self.data)

    def test_a_batch_that_begins_damaged_writes_nothing(self, store: Store) -> None:
        writer = store.create(None)
        first, *rest = split(self.data)
        assert writer.append([damage(first), *rest]) == 0
        self.assert_holds(writer, b"")

    def test_a_seal_that_was_begun_otherwise_is_damage(self, store: Store) -> None:
        writer = store.create(None)
        piece = seal(b"payload", 1)
        assert piece.seal is not None
        assert writer.append([piece._replace(seal=Seal(2, piece.seal.crc))]) == 0
        self.assert_holds(writer, b"")

    def test_a_piece_without_a_seal_is_written(self, store: Store) -> None:
        writer = store.create(None)
        assert writer.append([Piece(memoryview(self.data)), seal(b"more")]) == 2
        self.assert_holds(writer, self.data + b"more")

    def test_thousands_of_small_pieces_are_one_batch(self, store: Store) -> None:
        data = self.data[:6000]
        writer = store.create(None)
        assert writer.append(split(data, 2)) == 3000
        self.assert_holds(writer, data)

    def test_the_largest_piece_is_written(self, store: Store) -> None:
        data = random.Random(1).randbytes(MAX_PIECE)  # noqa: S311
        writer = store.create(len(data))
        assert writer.append(split(data, MAX_PIECE)) == 1
        self.assert_holds(writer, data)

    def test_a_file_may_have_no_bytes(self, store: Store) -> None:
        writer = store.create(0)
        checkpoint = writer.sync()
        assert (checkpoint.offset, checkpoint.crc) == (0, 0)
        writer.close()
        self.assert_holds(store.open(checkpoint, size=0), b"")

    def test_parts_do_not_mix(self, store: Store) -> None:
        writers = [store.create(None) for _ in range(8)]
        assert len({writer.part for writer in writers}) == 8
        contents = [self.data[index:] for index in range(8)]

        def write(writer: Writer, data: bytes) -> None:
            for piece in split(data):
                writer.append([piece])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, writers, contents))
        for writer, data in zip(writers, contents, strict=True):
            self.assert_holds(writer, data)

    # Reading
    # ----------------------------------------------------------------------------------------

    def test_read_gives_any_range(self, store: Store) -> None:
        writer = store.create(None)
        writer.append(split(self.data))
        for start, stop in [(0, 1), (1, 5000), (4096, 4096), (self.size - 1, None), (7, 10**9)]:
            pieces = list(writer.read(start, stop, size=1000))
            assert b"".join(pieces) == self.data[start:stop]
            assert all(len(piece) == 1000 for piece in pieces[:-1])
        assert list(writer.read(self.size)) == []

    # Checkpoints
    # ------------------------------------------------------------------------------------

    def test_a_checkpoint_tells_the_truth(self, store: Store) -> None:
        writer = store.create(self.size)
        writer.append(split(self.data))
        checkpoint = writer.sync()
        assert checkpoint.part == writer.part
        assert checkpoint.offset <= self.size
        assert checkpoint.crc == crc32c(self.data[: checkpoint.offset])
        assert checkpoint.token

    def test_a_checkpoint_moves(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        assert 0 < checkpoint.offset <= self.size // 2
        assert checkpoint.offset < writer.sync().offset

    def test_sync_may_run_beside_append(self, store: Store) -> None:
        writer = store.create(self.size)

        def append() -> None:
            for piece in split(self.data, 64):
                writer.append([piece])
                time.sleep(0)  # lets the other thread run

        checkpoints = []
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(append)
            while not running.done():
                checkpoints.append(writer.sync())
                time.sleep(0)
            running.result()
        offsets = [checkpoint.offset for checkpoint in checkpoints]
        assert offsets == sorted(offsets)
        for checkpoint in checkpoints:
            assert checkpoint.crc == crc32c(self.data[: checkpoint.offset])
        self.assert_holds(writer, self.data)

    # Opening again
    # ----------------------------------------------------------------------------------

    def test_an_opened_part_goes_on(self, store: Store) -> None:
        writer, _ = self.begun(store)
        checkpoint = writer.sync()
        writer.close()
        writer = store.open(checkpoint)
        assert writer.received >= checkpoint.offset
        self.assert_holds(writer, self.data[: writer.received])
        rest = self.data[writer.received :] + b"more"
        writer.append(split(rest, offset=writer.received))
        self.assert_holds(writer, self.data + b"more")

    def test_bytes_that_need_no_checkpoint_are_durable(self, store: Store) -> None:
        writer = store.create(self.size)
        named = replace(writer.sync(), offset=0, crc=0)
        writer.append(split(self.data[: self.size // 2]))
        durable = writer.durable_unsynced
        assert durable <= writer.received
        writer = store.open(named, size=self.size)  # the older writer was never closed
        assert writer.received >= durable
        self.assert_holds(writer, self.data[: writer.received])

    def test_bytes_above_the_checkpoint_are_proved_or_gone(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.close()
        writer = store.open(checkpoint, size=self.size)
        assert writer.received >= checkpoint.offset
        self.assert_holds(writer, self.data[: writer.received])

    def test_after_a_reboot_the_checkpoint_is_proved_again(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.close()
        writer = store.open(replace(checkpoint, token="another"), size=self.size)  # noqa: S106
        assert writer.received >= checkpoint.offset
        self.assert_holds(writer, self.data[: writer.received])

    def test_a_wrong_crc_is_not_believed_after_a_reboot(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.close()
        wrong = replace(checkpoint, crc=checkpoint.crc ^ 1, token="another")  # noqa: S106
        try:
            writer = store.open(wrong, size=self.size)
        except DataLost:
            return
        assert store.durability != "fsync", "what fsync promised is missing: DataLost"
        self.assert_holds(writer, b"")

    def test_less_than_the_checkpoint_is_data_lost(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.close()
        with pytest.raises(DataLost):
            store.open(replace(checkpoint, offset=self.size + 1))

    def test_no_more_than_the_size_is_received(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.close()
        writer = store.open(checkpoint, size=checkpoint.offset + 1)
        assert writer.received <= checkpoint.offset + 1
        self.assert_holds(writer, self.data[: writer.received])

    def test_a_part_that_is_gone_is_data_lost(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.close()
        store.delete(checkpoint.part)
        with pytest.raises(DataLost):
            store.open(checkpoint)

    def test_a_part_of_which_nothing_was_promised_may_be_gone(self, store: Store) -> None:
        writer = store.create(None)
        checkpoint = Checkpoint(writer.part)
        writer.close()
        store.delete(checkpoint.part)
        writer = store.open(checkpoint, size=self.size)
        writer.append(split(self.data))
        self.assert_holds(writer, self.data)

    def test_the_newest_writer_is_the_only_one(self, store: Store) -> None:
        older, checkpoint = self.begun(store)
        newer = store.open(checkpoint, size=self.size + 4096)
        held = newer.received
        try:
            older.append(split(b"\0" * 4096, offset=older.received))
        except UploadError:
            pass
        else:
            assert newer.part != older.part
        self.assert_holds(newer, self.data[:held])
        newer.append(split(self.data[held:] + b"\1" * 4096, offset=held))
        older.close()
        self.assert_holds(newer, self.data + b"\1" * 4096)
        assert {checkpoint.part, newer.part} <= {part.name for part in store.parts()}

    def test_a_part_in_use_can_be_left_alone(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        with pytest.raises(Busy):
            store.open(checkpoint, size=self.size, steal=False)
        assert [part.name for part in store.parts()] == [checkpoint.part]
        self.assert_holds(writer, self.data)
        checkpoint = writer.sync()
        writer.close()
        writer = store.open(checkpoint, size=self.size, steal=False)
        self.assert_holds(writer, self.data[: writer.received])

    @pytest.mark.parametrize("is_open", [False, True])
    def test_a_part_that_another_process_adopts_is_whole_without_its_old_name(
        self, store: Store, is_open: bool
    ) -> None:
        old, checkpoint = self.begun(store)
        if not is_open:
            old.close()
        size = checkpoint.offset
        try:
            adopted = store.adopt(checkpoint, size=size)
        except Busy:
            assert is_open  # the store can give it no other name
            return
        if adopted.part != checkpoint.part:
            store.delete(checkpoint.part)
        self.assert_holds(adopted, self.data[:size])
        again = adopted.sync()
        adopted.close()
        old.close()
        assert [part.name for part in store.parts()] == [again.part]
        self.assert_holds(store.adopt(again, size=size), self.data[:size])

    @pytest.mark.parametrize("name", EVIL_NAMES)
    def test_a_name_that_no_store_gave_opens_nothing(self, store: Store, name: str) -> None:
        with pytest.raises((StorageFailed, DataLost)):
            store.open(Checkpoint(name, 1, 1))
        kept = store.create(None)
        store.delete(name)
        assert [part.name for part in store.parts()] == [kept.part]

    # Going back
    # -------------------------------------------------------------------------------------

    def test_truncate_goes_back_to_a_checkpoint(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.truncate(checkpoint)
        self.assert_holds(writer, self.data[: checkpoint.offset])
        writer.append(split(b"other", offset=checkpoint.offset))
        expected = self.data[: checkpoint.offset] + b"other"
        self.assert_holds(writer, expected)
        writer.close()
        writer = store.open(checkpoint)
        self.assert_holds(writer, expected[: writer.received])

    def test_truncate_does_not_go_forward(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        with pytest.raises(DataLost):
            writer.truncate(replace(checkpoint, offset=self.size + 1))
        self.assert_holds(writer, self.data)

    def test_rewrite_goes_on_in_a_new_part(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.rewrite(checkpoint)
        assert writer.part != checkpoint.part
        self.assert_holds(writer, self.data[: checkpoint.offset])
        # A crash may happen before the row names the new part, and after.
        assert {checkpoint.part, writer.part} <= {part.name for part in store.parts()}
        writer.append(split(self.data[checkpoint.offset :], offset=checkpoint.offset))
        renewed = writer.sync()
        assert renewed.part == writer.part
        writer.close()
        store.delete(checkpoint.part)
        writer = store.open(renewed)
        self.assert_holds(writer, self.data[: writer.received])

    def test_the_old_part_outlives_a_rewrite(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        writer.rewrite(checkpoint)
        writer.close()
        writer = store.open(checkpoint)
        self.assert_holds(writer, self.data[: writer.received])

    def test_rewrite_believes_no_wrong_crc(self, store: Store) -> None:
        writer, checkpoint = self.begun(store)
        with pytest.raises(DataLost):
            writer.rewrite(replace(checkpoint, crc=checkpoint.crc ^ 1))
        assert [part.name for part in store.parts()] == [checkpoint.part]

    # Parts
    # ------------------------------------------------------------------------------------------

    def test_parts_are_listed(self, store: Store) -> None:
        assert list(store.parts()) == []
        writers = [store.create(None) for _ in range(3)]
        writers[0].append(split(self.data))
        writers[0].sync()
        found = {part.name: part for part in store.parts()}
        assert found.keys() == {writer.part for writer in writers}
        assert 0 < found[writers[0].part].size <= self.size
        for part in found.values():
            assert abs(part.modified - datetime.now(UTC)) < timedelta(minutes=5)

    def test_delete_forgets_a_part_and_again(self, store: Store) -> None:
        writer, _ = self.begun(store)
        other = store.create(None)
        writer.close()
        store.delete(writer.part)
        store.delete(writer.part)
        assert [part.name for part in store.parts()] == [other.part]

    def test_close_keeps_the_part_and_may_come_twice(self, store: Store) -> None:
        writer, _ = self.begun(store)
        writer.close()
        writer.close()
        assert [part.name for part in store.parts()] == [writer.part]

    def test_a_closed_writer_takes_nothing(self, store: Store) -> None:
        writer = store.create(None)
        writer.close()
        with pytest.raises(StorageFailed):
            writer.append(split(b"late"))
        with pytest.raises(StorageFailed):
            list(writer.read())
        with pytest.raises(StorageFailed):
            writer.sync()

    # Abilities
    # --------------------------------------------------------------------------------------

    def test_room_is_reserved_at_creation(self, store: Store) -> None:
        if not store.supports_reserve:
            pytest.skip("this store reserves nothing")
        with pytest.raises(StorageFull):
            store.create(2**50)
        assert list(store.parts()) == []

    def test_the_path_is_the_part(self, store: Store) -> None:
        writer, _ = self.begun(store)
        if not store.supports_path:
            with pytest.raises(NotImplementedError):
                writer.path()
            return
        assert Path(writer.path()).read_bytes() == self.data

    def test_a_good_store_has_nothing_to_report(self, store: Store) -> None:
        assert store.check() == []

    # The pool
    # ---------------------------------------------------------------------------------------

    def test_run_returns_and_raises(self, store: Store) -> None:
        async def main() -> None:
            assert await store.run(divmod, 7, 2) == (3, 1)
            assert await store.run(sorted, [1, 2], reverse=True) == [2, 1]
            with pytest.raises(ZeroDivisionError):
                await store.run(divmod, 1, 0)

        asyncio.run(main())

    def test_run_leaves_the_event_loop_free(self, store: Store) -> None:
        async def main() -> None:
            released = threading.Event()
            waiting = asyncio.ensure_future(store.run(released.wait, 1))
            await asyncio.sleep(0)
            released.set()
            assert await waiting

        asyncio.run(main())

    def test_the_pool_is_bounded(self, store: Store) -> None:
        running: list[int] = []
        most: list[int] = []

        def work() -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(0.005)
            running.pop()

        async def main() -> None:
            await asyncio.gather(*(store.run(work) for _ in range(store.threads * 3)))

        asyncio.run(main())
        assert max(most) <= store.threads

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_cancelled_run_ends_after_its_call(self, store: Store, times: int) -> None:
        started, released, ended = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            released.wait(1)
            ended.set()

        async def main() -> None:
            running = asyncio.ensure_future(store.run(work))
            await asyncio.to_thread(started.wait, 1)
            for _ in range(times):
                running.cancel()
                await asyncio.sleep(0.01)
                assert not running.done()
            released.set()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert ended.is_set()

        try:
            asyncio.run(main())
        finally:
            released.set()
