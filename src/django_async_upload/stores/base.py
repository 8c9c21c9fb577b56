"""The interface of stores, which keep the bytes of unfinished uploads.

A :class:`Store` creates, opens, lists and deletes *parts*; a :class:`Writer` is one open part. All
methods are synchronous and may block: the caller runs them in the store's own pool by
:meth:`Store.run`, never on the event loop. A writer has one caller; only
:meth:`Writer.sync` may run concurrently with :meth:`Writer.append`, and :meth:`Writer.close` waits for a
running write.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, ParamSpec, TypeVar

import aiofiles.os
import crc32c as _crc32c

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

P = ParamSpec("P")
T = TypeVar("T")

HOLD_GIL: Final = 0
"""For ``crc32c``: a chunk takes 40 microseconds, and releasing and acquiring the GIL takes longer."""

DURABILITIES: Final = ("fsync", "os")
"""What checkpoints survive: with ``fsync`` a crash of the machine, with ``os`` only a crash of the process."""


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    return _crc32c.crc32c(data, value, HOLD_GIL)


def combine_crc32c(first: int, second: int, length: int) -> int:
    """CRC-32C of two texts one after the other, of their CRCs and the length of the second, bytes.

    The first is multiplied by x to the power of the bits of the second, modulo the polynomial: see ``crc32_combine`` of
    zlib.
    """
    power, square = _ONE, _ONE >> 8  # x to the power of 8: one byte
    while length:
        if length & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        length >>= 1
    return _multiply(first, power) ^ second


_ONE: Final = 1 << 31
_POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's. The coefficient of the lowest power is the highest bit."""


def _multiply(first: int, second: int) -> int:
    """The product of two polynomials, modulo the one of CRC-32C."""
    product = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            product ^= second
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return product


class Seal(NamedTuple):
    """The sender's checksum of a piece: ``crc32c(payload, start) == crc``."""

    start: int
    """CRC-32C of the bytes that the sender put before the payload."""
    crc: int


class Piece(NamedTuple):
    """Consecutive bytes of a file, as a door received them."""

    payload: bytes | memoryview
    seal: Seal | None = None
    """None where the piece has no checksum of its own: the CRC of the whole file covers it at the end."""

    @property
    def is_intact(self) -> bool:
        return self.seal is None or crc32c(self.payload, self.seal.start) == self.seal.crc


class Position(NamedTuple):
    """An offset and the CRC of the bytes below it, as one value, so that threads see both or neither change."""

    offset: int = 0
    crc: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts about a part that the upload's row stores, from which the store opens the part again."""

    part: str
    """The part's name in the store."""
    offset: int = 0
    """Bytes that were durable when the checkpoint was made."""
    crc: int = 0
    """CRC-32C of those bytes."""
    token: str = ""
    """Store-specific text for opening the part again. For files, the boot in which the bytes were written:
    see :func:`.disk.boot_id`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part in the list of :meth:`Store.parts`."""

    name: str
    modified: datetime
    """Aware, UTC."""
    size: int


def _call(function: Callable[[], T]) -> T:
    return function()


# aiofiles' way to call the file system. Its own files would take a thread hop for each read, write and sync.
_in_thread = aiofiles.os.wrap(_call)


class Store(abc.ABC):
    """Keeps parts. It is thread-safe. Several instances may serve a process: the state is in the store, not here."""

    supports_path: ClassVar[bool] = False
    """Whether parts are local files, so that :meth:`Writer.path` can be linked into a storage on the same disk."""

    supports_reserve: ClassVar[bool] = False
    """Whether :meth:`create` reserves space for ``size`` bytes, so that a full disk is an error at creation."""

    def __init__(self, *, durability: str = "fsync", threads: int = 8) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability is one of {DURABILITIES}, not {durability!r}")
        self.durability = durability
        self.threads = threads

    @cached_property
    def _executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="async-upload-store")

    @cached_property
    def _slow_executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix="async-upload-store-slow")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call in the store's pool and return its result.

        A cancelled caller gets the cancellation only after the call has ended, so that nothing is written
        afterwards.
        """
        return await self._run(self._executor, partial(function, *args, **kwargs))

    async def run_slow(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """:meth:`run` for calls that wait for a lock or read a whole file, in threads that chunks do not need."""
        return await self._run(self._slow_executor, partial(function, *args, **kwargs))

    async def _run(self, executor: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        call = asyncio.ensure_future(_in_thread(function, executor=executor))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            while not call.done():
                with suppress(asyncio.CancelledError):  # cancelled again: still wait for the end
                    await asyncio.wait({call})
            if not call.cancelled():
                call.exception()  # retrieved: the cancelled caller does not need it
            raise

    @abc.abstractmethod
    def create(self, size: int | None) -> Writer:
        """Create an empty part. Raises :class:`StorageFull`, :class:`StorageFailed`."""

    @abc.abstractmethod
    def open(
        self, checkpoint: Checkpoint, *, size: int | None = None, steal: bool = True
    ) -> Writer:
        """Open an existing part and prove its bytes by the checkpoint's CRC.

        The writer's ``received`` is the number of proved bytes, at least ``checkpoint.offset``. It is
        the only writer: where another process may still have the part open, its bytes
        are copied into a part of another name, which ``writer.part`` returns. Then, as after
        :meth:`Writer.rewrite`, the old part stays: the caller first saves the new name in the row
        and then deletes the old part, since a crash in between must not leave a row without
        a part.

        Without ``steal`` such a part is left alone, and :class:`Busy` is raised, at once: the caller waits without
        a thread, and tries again.

        Where the part is missing and the checkpoint's offset is 0, a new, empty part is created.

        Raises :class:`DataLost` where less than ``checkpoint.offset`` can be proved,
        :class:`StorageFull`, and :class:`StorageFailed`, also for a name that is not a store's.
        """

    def adopt(self, checkpoint: Checkpoint, *, size: int | None = None) -> Writer:
        """Open a part of which all bytes were received, to continue its publication by another process.

        ``writer.part`` may be another name for the same bytes: then the caller saves it in the row and deletes the
        old name, by which a process that is stopped could still publish the part. A store without such names
        opens the part as :meth:`open` does without ``steal``.

        Raises :class:`Busy` where the part is open and cannot get another name, otherwise as :meth:`open`.
        """
        return self.open(checkpoint, size=size, steal=False)

    @abc.abstractmethod
    def delete(self, part: str) -> None:
        """Delete a part; does nothing where it does not exist. Raises :class:`StorageFailed`."""

    @abc.abstractmethod
    def parts(self) -> Iterator[Part]:
        """List all parts, for the purge, which deletes those that no row names."""

    def path(self, part: str) -> str:
        """The local path of a part, where the store ``supports_path``."""
        raise NotImplementedError(f"{type(self).__name__} has no local files")

    def free_space(self) -> int | None:
        """Bytes of room, for monitoring; None where the store cannot know. Raises :class:`StorageFailed`."""
        return None

    def is_held(self, part: str) -> bool:
        """Whether a writer of any process has the part open; False where the store cannot know.

        The purge uses it, so that a wrong clock does not expire an upload that a process is writing.
        """
        return False

    def sync_all(self, writers: Sequence[Writer]) -> list[Checkpoint]:
        """Call :meth:`Writer.sync` of each writer. A store may sync what they share only once."""
        return [writer.sync() for writer in writers]

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """The store's own system checks."""
        return []

    def close(self) -> None:
        """Wait for running calls and end the pool's threads."""
        for name in ("_executor", "_slow_executor"):
            if (executor := self.__dict__.pop(name, None)) is not None:
                executor.shutdown(wait=True)


class Writer(abc.ABC):
    """One open part. Bytes are written in order from :attr:`received` on, without holes."""

    part: str
    position: Position = Position()
    """End and CRC of the verified and written bytes, for threads that run concurrently with :meth:`append`."""

    @property
    def received(self) -> int:
        """Bytes verified and written, from the start of the file."""
        return self.position.offset

    @property
    def crc(self) -> int:
        """CRC-32C of the received bytes."""
        return self.position.crc

    @property
    def token(self) -> str:
        """The :attr:`Checkpoint.token` of a checkpoint made now."""
        return ""

    @property
    def durable_unsynced(self) -> int:
        """Bytes that are durable without a checkpoint once the row names the part.

        0 where only a checkpoint makes bytes durable.
        """
        return 0

    def append(self, pieces: Sequence[Piece]) -> int:
        """Verify consecutive pieces and write them at :attr:`received`.

        Returns the number of intact pieces, from the first on; the next one is damaged, and neither it
        nor any later one was written. Raises :class:`StorageFull` and :class:`StorageFailed`: then
        no piece of the batch counts as received.
        """
        payloads = []
        offset, crc = self.position
        for piece in pieces:
            if not piece.is_intact:
                break
            payload = memoryview(piece.payload)
            crc = crc32c(payload, crc)
            offset += len(payload)
            payloads.append(payload)
        if payloads:
            self.write(payloads)
            self.position = Position(offset, crc)
        return len(payloads)

    @abc.abstractmethod
    def write(self, payloads: Sequence[memoryview]) -> None:
        """Write all payloads at :attr:`received`, or raise. :meth:`append` advances it afterwards."""

    @abc.abstractmethod
    def sync(self) -> Checkpoint:
        """Make the received bytes durable, according to the store's durability.

        May run concurrently with :meth:`append`. The checkpoint covers the bytes received when the call began,
        or fewer (parts of S3). Raises :class:`StorageFailed` or :class:`StorageFull`: then the
        writer accepts and syncs nothing more, and the caller goes back by :meth:`rewrite` or closes
        it (a failed fdatasync drops the error and the pages:
        https://wiki.postgresql.org/wiki/Fsync_Errors).
        """

    @abc.abstractmethod
    def rewrite(self, checkpoint: Checkpoint) -> None:
        """Go back to a durable checkpoint in a new part; :attr:`part` and :attr:`received` change.

        The old part stays until the caller has saved the new name in the row and deletes it. Raises
        :class:`DataLost` where the bytes below the checkpoint cannot be read back with the right
        CRC, :class:`StorageFull` and :class:`StorageFailed`.
        """

    @abc.abstractmethod
    def truncate(self, checkpoint: Checkpoint) -> None:
        """Discard the bytes above a checkpoint of this part: :attr:`received` goes back to it.

        Raises :class:`StorageFull` and :class:`StorageFailed`.
        """

    @abc.abstractmethod
    def read(
        self, start: int = 0, stop: int | None = None, *, size: int = 1 << 20
    ) -> Iterator[bytes]:
        """Iterate over the received bytes from ``start`` to ``stop``, in pieces of ``size`` bytes.

        The iteration raises :class:`StorageFailed`.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the part, which stays in the store. A second call does nothing."""

    def path(self) -> str:
        """The local path of the part, which is still open, where the store ``supports_path``.

        Raises :class:`StorageFailed` where the file there is not the writer's, or its length is not :attr:`received`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no local files")
