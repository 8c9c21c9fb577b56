"""Taps, which see the verified bytes of an upload while they are written.

A digest is a tap, and so is a scanner, or a sniffer that refuses a file after its first bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final, Protocol, TypeVar

from ..exceptions import StorageFailed
from ..stores.base import Piece, Writer
from .runtime import Runtime

Result = TypeVar("Result")

SHA256: Final = "sha-256"
MAX_BEHIND: Final = 8
"""Number of pieces that taps may lag behind writing; beyond that writing waits for them."""
READ_BYTES: Final = 4 * 1024 * 1024
TAP_SECONDS: Final = 60.0
"""Seconds after which a call of a host's tap is given up. In ``restart`` they begin again with each piece it reads."""


class Tap(Protocol):
    """Sees the verified bytes of one upload, in order and once.

    All methods run in a thread and may block, for :data:`TAP_SECONDS`: then the upload is interrupted with
    ``internal_error``, and the tap is not called again. :meth:`feed` and :meth:`restart` may raise an
    :class:`~django_async_upload.exceptions.UploadRefused`: the upload fails at once, before the client sends the rest.
    """

    def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Process the next bytes, from ``offset`` on. Do not keep the pieces, whose memory is reused."""

    def restart(self, prefix: Iterable[bytes]) -> None:
        """Start over: ``prefix`` are all bytes of the file so far, from the first on.

        Called where the tap missed bytes, since the upload was resumed or rewritten. Then
        no more is fed, and ``prefix`` is the whole file.
        """

    def end(self) -> Mapping[str, str]:
        """Called after the last byte; returns hexadecimal digests by the name of their algorithm.

        They are compared with the client's, and saved as ``session.digests``. A door sends the client those
        that its protocol knows.
        """


class Digest:
    """A digest of the whole file, as a tap."""

    def __init__(self, algorithm: str = SHA256) -> None:
        self._algorithm = algorithm
        self._digest = hashlib.new(algorithm.replace("-", ""))

    def feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._digest.update(piece.payload)

    def restart(self, prefix: Iterable[bytes]) -> None:
        self._digest = hashlib.new(self._algorithm.replace("-", ""))
        for piece in prefix:
            self._digest.update(piece)

    def end(self) -> Mapping[str, str]:
        return {self._algorithm: self._digest.hexdigest()}


class Taps:
    """The taps of one upload, which are fed during the next write, so that no write waits for them."""

    def __init__(
        self, runtime: Runtime, owner: str, taps: Sequence[Tap], fail: Callable[[Exception], None]
    ) -> None:
        """``owner`` is the key of the upload's owner. ``fail`` is called when a tap has raised, or was given up."""
        self._runtime = runtime
        self._owner = owner
        self._taps = taps
        self._fail = fail
        self._waiting: list[Piece] = []
        self._offset = 0
        """Offset of the first waiting piece."""
        self._feeding: asyncio.Task[None] | None = None
        self.has_missed = False
        """Whether the taps missed bytes, so that :meth:`end` reads the file again."""

    def __bool__(self) -> bool:
        return bool(self._taps)

    async def feed(self, pieces: Sequence[Piece]) -> None:
        """Feed written pieces. Waits only if the taps lag too far behind."""
        if len(self._waiting) > MAX_BEHIND:
            await self.caught_up()
        if not self._taps or self.has_missed:
            return
        self._waiting += pieces
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed_waiting())

    async def caught_up(self) -> None:
        """Wait until the taps have seen all written bytes, or have failed."""
        if self._feeding is not None:
            await asyncio.wait({self._feeding})

    async def _feed_waiting(self) -> None:
        pieces: list[Piece] = []
        try:
            while self._waiting and not self.has_missed:
                pieces, self._waiting = self._waiting, []
                for tap in self._taps:
                    await self._call(tap, partial(tap.feed, self._offset, pieces))
                self._offset += sum(len(piece.payload) for piece in pieces)
        except Exception as error:  # a refusal, or a bug in a tap
            self.miss()
            self._fail(error)
        finally:
            pieces.clear()  # a call that was given up keeps no more than one of them
            self._feeding = None

    async def _call(
        self, tap: Tap, work: Callable[[], Result], progress: Callable[[], int] = lambda: 0
    ) -> Result:
        """Call a method of a tap: a digest's in the store's threads, a host's where it can hang."""
        if type(tap) is Digest:
            return await self._runtime.store.run_slow(work)
        return await self._runtime.tap_threads.call(self._owner, TAP_SECONDS, work, progress)

    def miss(self) -> None:
        """Discard the state of the taps: they missed written bytes, or bytes were rewritten."""
        self.has_missed = True
        self._waiting.clear()

    async def end(self, writer: Writer, report: Callable[[int], None]) -> dict[str, str]:
        """The digests of the taps. Reads the whole file again for each where they missed bytes.

        ``report`` is called with the number of bytes read so far, in a thread. Raises what the taps raise,
        :class:`StorageFailed`, and :class:`.Unfinished`.
        """
        found: dict[str, str] = {}
        for tap in self._taps:
            if self.has_missed:
                await self._restart(tap, _Prefix(writer, report))
            found.update(await self._call(tap, partial(_end, tap)))
        return found

    async def _restart(self, tap: Tap, prefix: _Prefix) -> None:
        # No turn of the store's slow threads for a tap of the host: resumes wait for these.
        own = type(tap) is Digest
        try:
            async with self._runtime.slow_turns(self._owner) if own else nullcontext():
                await self._call(tap, partial(tap.restart, prefix.pieces()), prefix.progress)
        finally:
            prefix.is_closed = True


class _Prefix:
    """All bytes of a file, for one restart of a tap."""

    def __init__(self, writer: Writer, report: Callable[[int], None]) -> None:
        self._writer = writer
        self._report = report
        self._done = 0
        self.is_closed = False
        """Whether the restart has ended, or was given up."""

    def progress(self) -> int:
        """Number of bytes read so far."""
        return self._done

    def pieces(self) -> Iterator[bytes]:
        for piece in self._writer.read(size=READ_BYTES):
            if self.is_closed:  # the writer may be closed too, and the bytes another file's
                raise StorageFailed(reason="the restart was given up")
            yield piece
            self._done += len(piece)
            self._report(self._done)


def _end(tap: Tap) -> dict[str, str]:
    return dict(tap.end())
