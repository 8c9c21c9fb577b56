"""The open file of one part: its descriptor, its lock, and the proof of its bytes."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from crc32c import crc32c

from . import disk
from .base import Checkpoint, Position


class PartFile:
    """An open file, which owns its descriptor."""

    def __init__(self, name: str, fd: int, *, is_new: bool = False) -> None:
        self.name = name
        """The file's name in the staging folder."""
        self.fd = fd
        """The descriptor; -1 when closed."""
        self.is_new = is_new
        """Whether the file was just created: no row names it, and no other process has it open."""
        self.is_locked = False
        """Whether this process has the exclusive lock."""

    @property
    def length(self) -> int:
        return os.fstat(self.fd).st_size

    def lock(self) -> None:
        """Lock the file, unless another writer has the lock."""
        self.is_locked = self._lock_now(fcntl.LOCK_EX)

    def is_held(self) -> bool:
        """Whether a writer has locked the file, which is not locked here."""
        return not self._lock_now(fcntl.LOCK_SH)

    def _lock_now(self, how: int) -> bool:
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def is_file(self, stat: os.stat_result) -> bool:
        """Whether a ``stat`` result is that of this file."""
        return disk.is_same_file(stat, os.fstat(self.fd))

    def prove(self, checkpoint: Checkpoint, length: int, *, whole: bool) -> Position | None:
        """The end of the bytes proved within the first ``length``; None where it is below the checkpoint.

        With ``whole`` the bytes below the checkpoint are read again, otherwise only those above it.
        """
        durable = Position(checkpoint.offset, checkpoint.crc)
        if length < durable.offset:
            return None
        if whole and self._read_on(Position(), durable.offset) != durable:
            return None
        return self._read_on(durable, length)

    def _read_on(self, position: Position, stop: int) -> Position:
        offset, crc = position
        for piece in disk.read_at(self.fd, offset, stop):
            crc = crc32c(piece, crc)
            offset += len(piece)
        return Position(offset, crc)

    def sync(self) -> None:
        # A separate descriptor: if the file is closed in the meantime, the number may be another
        # file's.
        fd = os.dup(self.fd)
        try:
            disk.fdatasync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unlock and close. Closing alone is not enough: a forked child's copy would keep the lock."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        with suppress(OSError):  # the next sync of the part reports the same errors
            os.close(fd)
