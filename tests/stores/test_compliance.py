"""The compliance suite catches stores that break their promises: each class here breaks one."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import StorageFailed
from django_async_upload.stores import Checkpoint, MemoryStore, Piece, Position, Store, Writer
from django_async_upload.stores.memory import MemoryWriter
from django_async_upload.testing.stores import StoreCompliance, damage


class Patched(MemoryStore):
    """A memory store whose writers are of another class."""

    writer: type[MemoryWriter] = MemoryWriter

    def create(self, size: int | None) -> Writer:
        return self.patch(super().create(size))

    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        return self.patch(super().open(checkpoint, **options))

    def patch(self, writer: Writer) -> Writer:
        writer.__class__ = self.writer
        return writer


def with_writer(writer_class: type[MemoryWriter]) -> type[Store]:
    return type(writer_class.__name__, (Patched,), {"writer": writer_class})


@with_writer
class WritesDamage(MemoryWriter):
    def append(self, pieces: Sequence[Piece]) -> int:
        payloads = [memoryview(piece.payload) for piece in pieces]
        self.write(payloads)
        data = b"".join(payloads)
        self.position = Position(self.received + len(data), crc32c(data, self.crc))
        return len(pieces)


@with_writer
class WritesBehindDamage(MemoryWriter):
    def append(self, pieces: Sequence[Piece]) -> int:
        return sum(super(type(self), self).append([piece]) for piece in pieces)


@with_writer
class WritesAtTheEnd(MemoryWriter):
    """As O_APPEND does: correct until bytes have to be written again."""

    def write(self, payloads: Sequence[memoryview]) -> None:
        self._content.data += b"".join(payloads)

    def truncate(self, checkpoint: Checkpoint) -> None:
        self.position = Position(checkpoint.offset, checkpoint.crc)


@with_writer
class CountsNoChecksum(MemoryWriter):
    def append(self, pieces: Sequence[Piece]) -> int:
        good = super(type(self), self).append(pieces)
        self.position = self.position._replace(crc=0)
        return good


@with_writer
class DropsTheTail(MemoryWriter):
    def write(self, payloads: Sequence[memoryview]) -> None:
        super(type(self), self).write(payloads[:1024])


@with_writer
class ReadsPastStop(MemoryWriter):
    def read(
        self, start: int = 0, stop: int | None = None, *, size: int = 1 << 20
    ) -> Iterator[bytes]:
        return super(type(self), self).read(start, None, size=size)


@with_writer
class PromisesTooMuch(MemoryWriter):
    def sync(self) -> Checkpoint:
        checkpoint = super(type(self), self).sync()
        return replace(checkpoint, offset=checkpoint.offset + 1)


@with_writer
class SyncsHalfOfAMove(MemoryWriter):
    def sync(self) -> Checkpoint:
        offset = self.received
        time.sleep(0.001)
        return replace(super(type(self), self).sync(), offset=offset)


@with_writer
class NeverSyncs(MemoryWriter):
    def sync(self) -> Checkpoint:
        return replace(super(type(self), self).sync(), offset=0, crc=0)


@with_writer
class ForgetsTheBoot(MemoryWriter):
    def sync(self) -> Checkpoint:
        return replace(super(type(self), self).sync(), token="")


@with_writer
class TruncatesForward(MemoryWriter):
    def truncate(self, checkpoint: Checkpoint) -> None:
        self.position = Position(checkpoint.offset, checkpoint.crc)
        del self._content.data[checkpoint.offset :]


@with_writer
class RewritesInPlace(MemoryWriter):
    def rewrite(self, checkpoint: Checkpoint) -> None:
        self.truncate(checkpoint)


@with_writer
class RewritesUnread(MemoryWriter):
    def rewrite(self, checkpoint: Checkpoint) -> None:
        self.part, self._content = self._store.renew(self._content.data[: checkpoint.offset])
        self.position = Position(checkpoint.offset, checkpoint.crc)


@with_writer
class DeletesAtRewrite(MemoryWriter):
    def rewrite(self, checkpoint: Checkpoint) -> None:
        super(type(self), self).rewrite(checkpoint)
        self._store.delete(checkpoint.part)


@with_writer
class WritesWhenClosed(MemoryWriter):
    def _check_open(self) -> None:
        pass


@with_writer
class ClosesOnce(MemoryWriter):
    def close(self) -> None:
        self._check_open()
        super(type(self), self).close()


@with_writer
class DeletesAtClose(MemoryWriter):
    def close(self) -> None:
        super(type(self), self).close()
        self._store.delete(self.part)


@with_writer
class HasNoPath(MemoryWriter):
    def path(self) -> str:
        return "/dev/null"


class BelievesTheCheckpoint(MemoryStore):
    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        data = self._contents[checkpoint.part].data
        trusted = replace(checkpoint, crc=crc32c(data[: checkpoint.offset]))
        return super().open(trusted, **options)


class BeginsAgain(MemoryStore):
    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        return self.create(None)


class SharesThePart(MemoryStore):
    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        if content := self._contents.get(checkpoint.part):
            content.is_open = False
        return super().open(checkpoint, **options)


class IgnoresTheSize(MemoryStore):
    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        return super().open(checkpoint)


class AlwaysSteals(MemoryStore):
    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        return super().open(checkpoint, **{**options, "steal": True})


class NamesNothingLost(MemoryStore):
    """A part that is gone is an error, even where nothing was in it."""

    def open(self, checkpoint: Checkpoint, **options: Any) -> Writer:
        if checkpoint.part not in self._contents:
            raise StorageFailed
        return super().open(checkpoint, **options)


class DeletesOnce(MemoryStore):
    def delete(self, part: str) -> None:
        del self._contents[part]


class DeletesNothing(MemoryStore):
    def delete(self, part: str) -> None:
        pass


class ListsNothing(MemoryStore):
    def parts(self) -> Iterator[Any]:
        return iter(())


class ListsLocalTime(MemoryStore):
    def parts(self) -> Iterator[Any]:
        for part in super().parts():
            yield replace(part, modified=part.modified.replace(tzinfo=None))


class ReservesNothing(MemoryStore):
    supports_reserve = True


class Reports(MemoryStore):
    def check(self, **kwargs: Any) -> list[Any]:
        return ["something is wrong"]


class RunsOnTheLoop(MemoryStore):
    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


class AbandonsTheCall(MemoryStore):
    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(function, *args, **kwargs))


class HasNoBound(MemoryStore):
    def __init__(self) -> None:
        super().__init__(threads=64)
        self._executor  # noqa: B018  (made with 64 threads)
        self.threads = 8


def cases(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """The arguments that ``parametrize`` gives a test of the suite."""
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            name, values = mark.args
            return [{name: value} for value in values]
    return [{}]


def breaks(store_class: type[Store], name: str) -> bool:
    """Whether a store fails the suite's test of this name, for any of its arguments."""
    function = getattr(StoreCompliance(), f"test_{name}")
    for arguments in cases(function):
        store = store_class()
        try:
            function(store, **arguments)
        except pytest.skip.Exception:
            pass
        except (Exception, pytest.fail.Exception):
            return True
        finally:
            store.close()
    return False


@with_writer
class DurableTooEarly(MemoryWriter):
    """Reports bytes as durable that a restart does not find."""

    durable_unsynced = property(lambda self: self.received + 1)


EXPECTED = {
    WritesDamage: "a_damaged_piece_ends_the_batch",
    WritesBehindDamage: "a_damaged_piece_ends_the_batch",
    WritesAtTheEnd: "truncate_goes_back_to_a_checkpoint",
    CountsNoChecksum: "pieces_are_written_in_order",
    DropsTheTail: "thousands_of_small_pieces_are_one_batch",
    ReadsPastStop: "read_gives_any_range",
    PromisesTooMuch: "a_checkpoint_tells_the_truth",
    SyncsHalfOfAMove: "sync_may_run_beside_append",
    NeverSyncs: "a_checkpoint_moves",
    DurableTooEarly: "bytes_that_need_no_checkpoint_are_durable",
    ForgetsTheBoot: "a_checkpoint_tells_the_truth",
    TruncatesForward: "truncate_does_not_go_forward",
    RewritesInPlace: "rewrite_goes_on_in_a_new_part",
    RewritesUnread: "rewrite_believes_no_wrong_crc",
    DeletesAtRewrite: "the_old_part_outlives_a_rewrite",
    WritesWhenClosed: "a_closed_writer_takes_nothing",
    ClosesOnce: "close_keeps_the_part_and_may_come_twice",
    DeletesAtClose: "close_keeps_the_part_and_may_come_twice",
    HasNoPath: "the_path_is_the_part",
    BelievesTheCheckpoint: "a_wrong_crc_is_not_believed_after_a_reboot",
    BeginsAgain: "an_opened_part_goes_on",
    SharesThePart: "the_newest_writer_is_the_only_one",
    AlwaysSteals: "a_part_in_use_can_be_left_alone",
    IgnoresTheSize: "no_more_than_the_size_is_received",
    NamesNothingLost: "a_part_of_which_nothing_was_promised_may_be_gone",
    DeletesOnce: "delete_forgets_a_part_and_again",
    DeletesNothing: "delete_forgets_a_part_and_again",
    ListsNothing: "parts_are_listed",
    ListsLocalTime: "parts_are_listed",
    ReservesNothing: "room_is_reserved_at_creation",
    Reports: "a_good_store_has_nothing_to_report",
    RunsOnTheLoop: "run_leaves_the_event_loop_free",
    AbandonsTheCall: "a_cancelled_run_ends_after_its_call",
    HasNoBound: "the_pool_is_bounded",
}


@pytest.mark.parametrize("store_class", EXPECTED, ids=lambda store_class: store_class.__name__)
def test_a_broken_store_is_caught(store_class: type[Store]) -> None:
    assert breaks(store_class, EXPECTED[store_class])


def test_only_the_broken_store_is() -> None:
    assert not [name for name in EXPECTED.values() if breaks(MemoryStore, name)]


def test_damage_is_one_bit() -> None:
    assert damage(Piece(b"abc")).payload == b"abb"
