"""Taps, which see the verified bytes of an upload while they are written.

A digest is a tap, and so is a scanner, or a sniffer that refuses a file after its first bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from ..stores.base import Piece, Store, Writer

SHA256: Final = "sha-256"
MAX_BEHIND: Final = 8
"""Number of pieces that taps may lag behind writing; beyond that writing waits for them."""
READ_BYTES: Final = 4 * 1024 * 1024


class Tap(Protocol):
    """Sees the verified bytes of one upload, in order and once. All methods run in a thread and may block.

    :meth:`feed` and :meth:`restart` may raise an :class:`~django_async_upload.exceptions.UploadRefused`: the upload
    fails at once, before the client sends the rest.
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
        self, store: Store, taps: Sequence[Tap], fail: Callable[[Exception], None]
    ) -> None:
        """``fail`` is called when a tap has raised."""
        self._store = store
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
        if not self._taps or self.has_missed:
            return
        if len(self._waiting) > MAX_BEHIND:
            await self.caught_up()
        self._waiting += pieces
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed_waiting())

    async def caught_up(self) -> None:
        """Wait until the taps have seen all written bytes."""
        if self._feeding is not None:
            await asyncio.wait({self._feeding})

    async def _feed_waiting(self) -> None:
        try:
            while self._waiting and not self.has_missed:
                pieces, self._waiting = self._waiting, []
                # A tap may block: never in a thread that writes chunks.
                await self._store.run_slow(self._feed, self._offset, pieces)
                self._offset += sum(len(piece.payload) for piece in pieces)
        except Exception as error:  # a refusal, or a bug in a tap
            self._fail(error)
        finally:
            self._feeding = None

    def _feed(self, offset: int, pieces: Sequence[Piece]) -> None:
        for tap in self._taps:
            tap.feed(offset, pieces)

    def miss(self) -> None:
        """Discard the state of the taps: they missed written bytes, or bytes were rewritten."""
        self.has_missed = True
        self._waiting.clear()

    def end(self, writer: Writer, report: Callable[[int], None]) -> dict[str, str]:
        """The digests of the taps. Blocks, and reads the whole file again where they missed bytes.

        ``report`` is called with the number of bytes read so far. Raises what the taps raise, and
        :class:`StorageFailed`.
        """
        found: dict[str, str] = {}
        for tap in self._taps:
            if self.has_missed:
                tap.restart(_counted(writer.read(size=READ_BYTES), report))
            found.update(tap.end())
        return found


def _counted(pieces: Iterable[bytes], report: Callable[[int], None]) -> Iterable[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        report(done)
