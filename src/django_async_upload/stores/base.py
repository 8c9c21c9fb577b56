"""What a store is: where the bytes of an unfinished upload are kept.

A :class:`Store` makes, opens, lists and deletes *parts*; a :class:`Writer` is one open part. All
methods are synchronous and may block: the caller runs them in the store's own pool with
:meth:`Store.run`, never on the event loop. One writer is used by one caller; only
:meth:`Writer.sync` may run beside :meth:`Writer.append`, and :meth:`Writer.close` waits for a write
that is running.
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
"""For ``crc32c``: a chunk takes 40 microseconds, and to let go of the GIL and get it back takes longer."""

DURABILITIES: Final = ("fsync", "os")
"""What a checkpoint survives: ``fsync`` a crash of the machine, ``os`` a crash of the process."""


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    return _crc32c.crc32c(data, value, HOLD_GIL)


class Seal(NamedTuple):
    """What the sender of a piece vouches for: ``crc32c(payload, start) == crc``."""

    start: int
    """CRC-32C of what the sender put before the payload."""
    crc: int


class Piece(NamedTuple):
    """Bytes of a file, in order; a door cuts them out of what it receives."""

    payload: bytes | memoryview
    seal: Seal | None = None
    """None where nothing vouches for this piece alone: the CRC of the whole file stands for it at the end."""

    @property
    def is_intact(self) -> bool:
        return self.seal is None or crc32c(self.payload, self.seal.start) == self.seal.crc


class Position(NamedTuple):
    """An offset and the CRC of all below it: one value, so that no thread sees half of a move."""

    offset: int = 0
    crc: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the upload's row knows about its part: all that a restart can build on."""

    part: str
    """The part's name in the store."""
    offset: int = 0
    """Bytes that were durable when this was written down."""
    crc: int = 0
    """CRC-32C of those bytes."""
    token: str = ""
    """What the store needs to know to open the part again. Of files: the machine's run in which the bytes were
    written, see :func:`.disk.boot_id`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part as :meth:`Store.parts` lists it."""

    name: str
    modified: datetime
    """Aware, UTC."""
    size: int


class Store(abc.ABC):
    """Where parts live. One instance serves a process; it is thread-safe."""

    supports_path: ClassVar[bool] = False
    """A part is a local file, and :meth:`Writer.path` may be linked into a storage beside it."""

    supports_reserve: ClassVar[bool] = False
    """:meth:`create` asks for room for ``size`` bytes: a full disk is an error at creation."""

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
        """Run a blocking call in the store's pool and return what it returns.

        The call is never abandoned half way: a cancelled caller gets its cancellation after the
        call has ended, so that nothing is written behind its back.
        """
        return await self._run(self._executor, partial(function, *args, **kwargs))

    async def run_slow(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As :meth:`run`, for what waits for a lock or reads a whole file: in threads that chunks do not need."""
        return await self._run(self._slow_executor, partial(function, *args, **kwargs))

    async def _run(self, executor: ThreadPoolExecutor, function: Callable[[], T]) -> T:
        # aiofiles' way to call the file system. Its own files would take a thread hop for each read, write and sync.
        call = asyncio.ensure_future(aiofiles.os.wrap(function)(executor=executor))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            while not call.done():
                with suppress(asyncio.CancelledError):  # a second one: still not before the end
                    await asyncio.wait({call})
            if not call.cancelled():
                call.exception()  # seen; the caller is no longer there to hear of it
            raise

    @abc.abstractmethod
    def create(self, size: int | None) -> Writer:
        """A new, empty part. Raises :class:`StorageFull`, :class:`StorageFailed`."""

    @abc.abstractmethod
    def open(
        self, checkpoint: Checkpoint, *, size: int | None = None, steal: bool = True
    ) -> Writer:
        """Open a part again and prove what is in it (rule 4 of the design).

        The writer's ``received`` is what can be proved, at least ``checkpoint.offset``. The writer
        is the only one from then on: where another process may still have the part open, its bytes
        are copied into a part of another name, and ``writer.part`` says so. Then, as after
        :meth:`Writer.rewrite`, the part of the old name stays: the caller writes the new name down
        first and deletes the old part afterwards, or a crash in between would leave a row that
        names nothing.

        Without ``steal`` such a part is left alone, and :class:`Busy` raised.

        A part that is gone is opened as a new, empty one where nothing was promised (offset 0).

        Raises :class:`DataLost` when less than ``checkpoint.offset`` can be proved,
        :class:`StorageFull`, and :class:`StorageFailed`, also for a name that no store gave.
        """

    @abc.abstractmethod
    def delete(self, part: str) -> None:
        """Forget a part. It is no error when it is not there. Raises :class:`StorageFailed`."""

    @abc.abstractmethod
    def parts(self) -> Iterator[Part]:
        """All parts, also those that no row knows: the purge compares."""

    def path(self, part: str) -> str:
        """The local path of a part, where the store ``supports_path``."""
        raise NotImplementedError(f"{type(self).__name__} has no local files")

    def is_held(self, part: str) -> bool:
        """Whether a writer, of this process or another one, has the part open; False where that cannot be known.

        The purge asks: no clock, however wrong, ends an upload that a process is writing.
        """
        return False

    def sync_all(self, writers: Sequence[Writer]) -> list[Checkpoint]:
        """:meth:`Writer.sync` of each: what they have in common needs to be synced only once."""
        return [writer.sync() for writer in writers]

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """The store's own system checks."""
        return []

    def close(self) -> None:
        """End the pool's threads; running calls are waited for."""
        for name in ("_executor", "_slow_executor"):
            if (executor := self.__dict__.pop(name, None)) is not None:
                executor.shutdown(wait=True)


class Writer(abc.ABC):
    """One open part. Bytes go in order from :attr:`received` on; there are no holes."""

    part: str
    position: Position = Position()
    """What was verified and written, as one value: for whoever runs beside :meth:`append`."""

    @property
    def received(self) -> int:
        """Bytes verified and written, from the start of the file."""
        return self.position.offset

    @property
    def crc(self) -> int:
        """CRC-32C of them."""
        return self.position.crc

    @property
    def token(self) -> str:
        """:attr:`Checkpoint.token` of a checkpoint that is made now."""
        return ""

    @property
    def settled(self) -> int:
        """Bytes that outlive what the store's durability names as soon as a row names the part.

        0 where only a checkpoint makes bytes durable.
        """
        return 0

    def append(self, pieces: Sequence[Piece]) -> int:
        """Verify pieces that follow each other and write them at :attr:`received`.

        Returns how many were good, from the first on; the one after them is damaged, and neither it
        nor any later one was written. Raises :class:`StorageFull` and :class:`StorageFailed`: then
        nothing of the batch counts.
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
        """Write at :attr:`received`, all or an error. :meth:`append` moves it afterwards."""

    @abc.abstractmethod
    def sync(self) -> Checkpoint:
        """Make what was received durable, as far as the store's durability goes.

        May run beside :meth:`append`. The checkpoint covers what was received when the call began,
        or less (parts of S3). Raises :class:`StorageFailed` or :class:`StorageFull`: then the
        writer takes and syncs nothing more, and the caller goes back with :meth:`rewrite` or closes
        it (a failed fdatasync drops the error and the pages:
        https://wiki.postgresql.org/wiki/Fsync_Errors).
        """

    @abc.abstractmethod
    def rewrite(self, checkpoint: Checkpoint) -> None:
        """Go back to a durable checkpoint, in a new part; :attr:`part` and :attr:`received` change.

        The old part stays until the caller has written the new name down and deletes it. Raises
        :class:`DataLost` when the bytes below the checkpoint cannot be read back with the right
        CRC, :class:`StorageFull` and :class:`StorageFailed`.
        """

    @abc.abstractmethod
    def truncate(self, checkpoint: Checkpoint) -> None:
        """Throw away what is above a checkpoint of this part: :attr:`received` goes back to it.

        Raises :class:`StorageFull` and :class:`StorageFailed`.
        """

    @abc.abstractmethod
    def read(
        self, start: int = 0, stop: int | None = None, *, size: int = 1 << 20
    ) -> Iterator[bytes]:
        """The bytes received from ``start`` up to ``stop``, in pieces of ``size`` bytes.

        Raises :class:`StorageFailed`, in the iteration.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the part, which stays. Closing twice is no error."""

    def path(self) -> str:
        """The part's local path, where the store ``supports_path``; the writer is still open.

        Raises :class:`StorageFailed` when the file there is not the writer's own, whole and no
        longer.
        """
        raise NotImplementedError(f"{type(self).__name__} has no local files")
