"""The compliance suite of taps: subclass it in your own tests, with pytest.

::

    class TestMyTap(TapCompliance):
        data = PICTURE

        def make_tap(self):
            return MyTap()

Each test checks a promise of :class:`django_async_upload.engine.taps.Tap`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ..engine.taps import Tap
from ..exceptions import UploadRefused
from ..stores.base import Piece


class TapCompliance:
    """Tests of a tap. Subclass it and implement :meth:`make_tap`."""

    data = random.Random(1).randbytes(300_000)  # noqa: S311
    """A file that the tap accepts, of at least three bytes."""

    def make_tap(self) -> Tap:
        """Create a tap."""
        raise NotImplementedError

    @pytest.fixture
    def expected(self) -> dict[str, str]:
        """The tap's result for :attr:`data` in one piece."""
        return self.found(self.make_tap(), [Piece(self.data)])

    @staticmethod
    def found(tap: Tap, pieces: list[Piece]) -> dict[str, str]:
        offset = 0
        for piece in pieces:
            tap.feed(offset, [piece])
            offset += len(piece.payload)
        return dict(tap.end())

    def cut(self, size: int) -> list[Piece]:
        view = memoryview(self.data)
        return [Piece(view[start : start + size]) for start in range(0, len(view), size)]

    def test_it_gives_digests_in_hexadecimal_digits(self, expected: dict[str, str]) -> None:
        for algorithm, digest in expected.items():
            assert isinstance(algorithm, str)
            bytes.fromhex(digest)

    @pytest.mark.parametrize("size", [1, 1000, 65_536])
    def test_pieces_of_any_size_are_one_file(self, expected: dict[str, str], size: int) -> None:
        beginning = self.cut(size)[:1000]
        seen = sum(len(piece.payload) for piece in beginning)
        rest = [Piece(memoryview(self.data)[seen:])] if seen < len(self.data) else []
        assert self.found(self.make_tap(), beginning + rest) == expected

    def test_many_pieces_come_in_one_call(self, expected: dict[str, str]) -> None:
        tap = self.make_tap()
        tap.feed(0, self.cut(10_000))
        assert dict(tap.end()) == expected

    def test_no_piece_is_kept(self, expected: dict[str, str]) -> None:
        tap = self.make_tap()
        buffer = bytearray(self.data)
        with memoryview(buffer) as view:
            tap.feed(0, [Piece(view)])
        buffer[:] = bytes(len(buffer))  # the memory is reused for a later message
        buffer.clear()  # BufferError while the tap holds a view of it
        assert dict(tap.end()) == expected

    def test_restarted_it_sees_the_whole_file(self, expected: dict[str, str]) -> None:
        tap = self.make_tap()
        tap.restart(self._prefix())
        assert dict(tap.end()) == expected

    def test_restarted_in_the_middle_it_forgets_what_it_saw(self, expected: dict[str, str]) -> None:
        tap = self.make_tap()
        tap.feed(0, self.cut(len(self.data) // 3)[:1])
        tap.restart(self._prefix())
        assert dict(tap.end()) == expected

    def test_the_end_of_a_file_without_bytes_raises_nothing_but_a_refusal(self) -> None:
        with suppress(UploadRefused):
            assert isinstance(dict(self.make_tap().end()), dict)

    def _prefix(self) -> Iterator[bytes]:
        return (bytes(piece.payload) for piece in self.cut(70_000))
