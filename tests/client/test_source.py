"""Where the bytes come from: running checksums, marks, and what may be discarded."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.client.source import Source, open_source
from django_async_upload.exceptions import DataLost, FileChanged
from django_async_upload.protocol.frames import HEADER_SIZE, Flag, is_intact, parse_header

CONTENT = os.urandom(300_000)


def encode(header: bytes, payload: Any) -> list[bytes]:
    return [header + bytes(payload)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


def opened(what: Any, *, sha256: bool = False) -> Source:
    return open_source(what, None, sha256, lambda: None)


class Pipe:
    """A stream whose end and pieces a test controls."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.reader = open(reader, "rb")  # noqa: SIM115
        self.writer = open(writer, "wb", buffering=0)  # noqa: SIM115
        self._more = threading.Event()
        self.source = open_source(self.reader, "pipe", False, self._more.set)

    def write(self, content: bytes) -> None:
        end = self.source.end + len(content)
        self.writer.write(content)
        self.wait(lambda: self.source.end == end)

    def end(self) -> None:
        self.writer.close()
        self.wait(lambda: self.source.size is not None)

    def wait(self, condition: Callable[[], bool]) -> None:
        for _ in range(500):
            if condition():
                return
            self._more.wait(0.01)
            self._more.clear()
        raise AssertionError("the stream was not read")


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def test_a_cut_is_made_of_intact_frames_that_follow_each_other(path: Path) -> None:
    source = opened(path)
    cut = source.cut(7, 0, 10_000, 4_000, False, encode)
    frames = [b"".join(pieces) for _, pieces in cut.messages]
    assert [size for size, _ in cut.messages] == [4_000, 4_000, 2_000]
    assert (cut.start, cut.end) == (0, 10_000)
    assert all(is_intact(each, crc32c) for each in frames)
    assert [parse_header(each).offset for each in frames] == [0, 4_000, 8_000]
    assert b"".join(each[HEADER_SIZE:] for each in frames) == CONTENT[:10_000]
    assert source.crc == crc32c(CONTENT[:10_000])


def test_only_the_first_frame_of_a_cut_restarts(path: Path) -> None:
    cut = opened(path).cut(7, 0, 10_000, 4_000, True, encode)
    flags = [parse_header(b"".join(pieces)).flags for _, pieces in cut.messages]
    assert flags == [Flag.RESTART, Flag.NONE, Flag.NONE]


@pytest.mark.parametrize("offset", [0, 1, 3_999, 4_000, 250_000, 300_000])
def test_the_crc_of_any_prefix_can_be_had(path: Path, offset: int) -> None:
    fresh = opened(path)
    assert fresh.crc_at(offset) == crc32c(CONTENT[:offset])
    used = opened(path, sha256=True)
    used.cut(1, 0, 200_000, 4_000, False, encode)
    used.forget(100_000)
    assert used.crc_at(offset) == crc32c(CONTENT[:offset])


def test_going_back_and_on_again_leaves_the_digests_right(path: Path) -> None:
    source = opened(path, sha256=True)
    for start, end in ((0, 100_000), (30_000, 150_000), (150_000, 160_000), (1, 300_000)):
        source.cut(1, start, end - start, 7_777, False, encode)
    assert source.crc == crc32c(CONTENT)
    assert source.digests == {"sha-256": hashlib.sha256(CONTENT).hexdigest()}


def test_what_was_sent_needs_no_second_reading(path: Path) -> None:
    source = opened(path)
    source.cut(1, 0, 200_000, 4_000, False, encode)
    source.forget(100_000)
    path.write_bytes(b"")
    assert source.crc_at(200_000) == crc32c(CONTENT[:200_000])
    assert source.crc_at(100_000) == crc32c(CONTENT[:100_000])
    with pytest.raises(FileChanged):
        source.crc_at(50_000)


def test_a_file_that_became_shorter_or_longer_has_changed(path: Path) -> None:
    source = opened(path)
    os.truncate(path, 100_000)
    with pytest.raises(FileChanged):
        source.cut(1, 90_000, 20_000, 20_000, False, encode)
    source = opened(path)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileChanged):
        source.cut(1, 0, 100_000, 4_000, False, encode)


def test_a_small_file_is_read_at_once_and_closed(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    source = opened(tmp_path / "small")
    (tmp_path / "small").unlink()
    assert source.in_memory
    assert b"".join(source.cut(1, 0, 5, 5, False, encode).messages[0][1])[HEADER_SIZE:] == b"small"


def test_an_interrupted_source_stops_reading(path: Path) -> None:
    source = opened(path)
    source.interrupt()
    with pytest.raises(InterruptedError):
        source.crc_at(300_000)


def test_a_name_that_is_no_utf_8_can_be_said(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb"):
        assert opened(os.fsdecode(path)).name == "caf\N{REPLACEMENT CHARACTER}.txt"


def test_a_directory_and_a_missing_file_are_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "missing")


def test_a_stream_can_be_sent_again_from_durable_on(pipe: Pipe) -> None:
    for start in range(0, 50_000, 10_000):
        pipe.write(CONTENT[start : start + 10_000])
    source = pipe.source
    source.cut(1, 0, 50_000, 10_000, False, encode)
    source.forget(25_000)
    again = source.cut(1, 25_000, 25_000, 10_000, True, encode)
    payload = b"".join(b"".join(pieces)[HEADER_SIZE:] for _, pieces in again.messages)
    assert payload == CONTENT[25_000:50_000]
    assert source.crc_at(25_000) == crc32c(CONTENT[:25_000])
    with pytest.raises(DataLost):
        source.crc_at(10_000)
    pipe.end()
    assert source.size == 50_000


def test_a_stream_reads_no_further_ahead_than_a_window(pipe: Pipe) -> None:
    pipe.source._capacity = 20_000
    pipe.write(bytes(10_000))
    pipe.write(bytes(10_000))
    pipe.writer.write(bytes(5_000))
    pipe._more.wait(0.1)
    assert pipe.source.end == 20_000
    pipe.source.cut(1, 0, 20_000, 10_000, False, encode)
    pipe.source.forget(10_000)
    pipe.wait(lambda: pipe.source.end == 25_000)


def test_a_stream_that_breaks_is_not_taken_for_a_short_one() -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            if size == 0:
                return b""
            raise OSError("the disk is gone")

    woken = threading.Event()
    source = open_source(Broken(), "broken", False, woken.set)
    assert woken.wait(5)
    with pytest.raises(OSError, match="gone"):
        source.check_unchanged()
