"""The writer of one part of a :class:`.filesystem.FileSystemStore`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Lock
from typing import Final

from ..exceptions import DataLost, StorageFailed
from ..failpoints import failpoint
from . import disk
from .base import Checkpoint, Position, Writer
from .disk import translate, translated
from .folder import Folder
from .partfile import PartFile

LEAST_AHEAD: Final = 16 * 1024 * 1024
MOST_AHEAD: Final = 1024 * 1024 * 1024
"""Limits, in bytes, of the space that is reserved ahead: as much as was received, within these."""


class FileWriter(Writer):
    """Writes one locked file, in place."""

    def __init__(self, folder: Folder, file: PartFile, size: int | None) -> None:
        """The writer owns ``file``, and closes it."""
        self.part = file.name
        self._folder = folder
        self._file = file
        self._size = size
        self._room = 0
        """The offset up to which there is space: reserved, or where the size is unknown, checked."""
        self._durable = Position()
        self.is_named = False
        """Whether the directory was synced after the file was created."""
        self._lost = False
        """Whether a sync failed: which bytes above ``_durable`` are on the disk is then unknown."""
        self._lock = Lock()
        """Acquired while the file's bytes or the file itself change."""

    def resume_at(self, position: Position, checkpoint: Checkpoint) -> None:
        """Continue a part at ``position``, which was proved; bytes above it are discarded. Raises :class:`OSError`."""
        if position.offset >= checkpoint.offset:
            self._durable = Position(checkpoint.offset, checkpoint.crc)
        self.position = position
        if self._file.length > position.offset:
            self._truncate(position.offset)

    @property
    def token(self) -> str:
        return disk.boot_id()

    @property
    def durable_unsynced(self) -> int:
        # The kernel has the written bytes even if the process crashes; `open` proves them by the file's length.
        return self.received if self._folder.durability == "os" else 0

    def write(self, payloads: Sequence[memoryview]) -> None:
        with self._lock:
            self._check()
            try:
                self._make_room(self.received + sum(map(len, payloads)))
                disk.write_at(self._file.fd, payloads, self.received)
            except OSError as error:
                # Bytes of the batch that were written do not count as received, not even after a
                # restart.
                with suppress(OSError):
                    self._truncate(self.received)
                raise translate(error) from error

    def sync(self) -> Checkpoint:
        self._check()
        position = self.position
        if self._folder.durability == "fsync" and not (self.is_named and position == self._durable):
            try:
                self._sync_file()
            except OSError as error:
                self._drop_unsynced()
                raise translate(error) from error
        self._durable = position
        return Checkpoint(self.part, position.offset, position.crc, self.token)

    def _sync_file(self) -> None:
        failpoint("part.before_sync")
        self._file.sync()
        failpoint("part.after_sync")
        if not self.is_named:
            self._folder.sync_names()
            failpoint("part.after_sync_of_names")
            self.is_named = True

    def _drop_unsynced(self) -> None:
        """Truncate the file to the bytes that are on the disk.

        The kernel marks pages that it could not write as clean, and reports the error once:
        the next writer in this boot would take them for written, and its sync would
        not fail.
        """
        with self._lock, suppress(OSError):
            self._lost = True
            os.ftruncate(self._file.fd, self._durable.offset)

    def _check(self) -> None:
        if self._file.fd < 0:
            raise StorageFailed(reason="the writer is closed")
        if self._lost:
            raise StorageFailed(reason="a sync failed before")

    def rewrite(self, checkpoint: Checkpoint) -> None:
        with translated():
            file = self._folder.copy(self._file, checkpoint.offset, self._size)
            with self._folder.closing_on_error(file):
                position = file.prove(checkpoint, checkpoint.offset, whole=True)
                if position is None:
                    raise DataLost(durable=checkpoint.offset, proved=0)
        with self._lock:
            old, self._file = self._file, file
            self.part, self._room = file.name, position.offset
            self.position = self._durable = position
            self.is_named = self._folder.durability == "fsync"
            self._lost = False
            old.close()

    def truncate(self, checkpoint: Checkpoint) -> None:
        if checkpoint.offset > self.received:
            raise DataLost(durable=checkpoint.offset, proved=self.received)
        with self._lock, translated():
            self._check()
            self._truncate(checkpoint.offset)
            self.position = Position(checkpoint.offset, checkpoint.crc)
            if self._durable.offset > checkpoint.offset:
                self._durable = self.position

    def _truncate(self, offset: int) -> None:
        os.ftruncate(self._file.fd, offset)
        self._room = offset  # truncation frees the space reserved above it

    def _make_room(self, end: int) -> None:
        """Make sure of space up to ``end``, and some ahead where possible. Raises ``ENOSPC``."""
        if end <= self._room:
            return
        there = max(self._room, self.received)
        ahead = end + min(max(end, LEAST_AHEAD), MOST_AHEAD)
        if self._size is not None:
            ahead = max(end, min(ahead, self._size))
        for target in (ahead, end):
            try:
                disk.require_room(self._file.fd, target - there, self._folder.min_free)
                if self._size is not None:
                    disk.reserve(self._file.fd, target)
            except OSError as error:
                if error.errno != errno.ENOSPC or target == end:
                    raise
            else:
                self._room = target
                return

    def read(
        self, start: int = 0, stop: int | None = None, *, size: int = 1 << 20
    ) -> Iterator[bytes]:
        self._check()
        stop = self.received if stop is None else min(stop, self.received)
        with translated():
            yield from disk.read_at(self._file.fd, start, stop, size)

    def path(self) -> str:
        path = self._folder.path(self.part)
        with translated():
            named = os.stat(path, follow_symlinks=False)
            is_mine = self._file.is_file(named)
        if not is_mine or named.st_size != self.received:
            raise StorageFailed(reason="the part is not locked by this writer")
        return path

    def close(self) -> None:
        with self._lock:
            # Nothing after the last byte of a declared size, since the file may be published and the host's by then.
            if self._file.fd >= 0 and self._size is not None and self._room > self.received:
                with suppress(OSError):  # space reserved too much is freed with the part
                    os.ftruncate(self._file.fd, self._file.length)
            self._file.close()
