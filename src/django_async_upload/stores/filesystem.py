"""A store that keeps parts as files in one folder, written in place and locked by their writers."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, cast

from crc32c import crc32c

from ..exceptions import Busy, DataLost, StorageFailed
from . import disk
from .base import Checkpoint, Part, Position, Store, Writer
from .disk import boot_id, translate, translated

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

LOCK_WAIT: Final = 0.5
"""Seconds that :meth:`FileSystemStore.open` waits for an earlier writer to unlock a part."""

LEAST_AHEAD: Final = 16 * 1024 * 1024
MOST_AHEAD: Final = 1024 * 1024 * 1024
"""Limits, in bytes, of the space that is reserved ahead: as much as was received, within these."""

_LOCK_POLL: Final = 0.02
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class FileSystemStore(Store):
    """Parts are files of mode 0600 under random names in the folder ``root``, which is created with mode 0700.

    A writer has an exclusive ``flock`` on its file. A part that is not unlocked within
    :data:`LOCK_WAIT` may be open in a suspended process that will write to it again. So its bytes are copied
    to a new file: a writer publishes an inode that no other process can change.

    ``min_free`` bytes of the disk are left for the rest of the site, its database first: below that
    no part is created or written.
    """

    supports_path = True
    supports_reserve = True

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        durability: str = "fsync",
        threads: int = 8,
        min_free: int = 0,
    ) -> None:
        super().__init__(durability=durability, threads=threads)
        self.root = os.path.abspath(root)
        self.min_free = min_free

    def create(self, size: int | None) -> Writer:
        with translated():
            part, fd = self._new(size)
        return FileWriter(self, part, fd, size=size)

    def open(
        self, checkpoint: Checkpoint, *, size: int | None = None, steal: bool = True
    ) -> Writer:
        if not _NAME.fullmatch(checkpoint.part):
            raise StorageFailed(reason="not the name of a part")
        rebooted = checkpoint.token != boot_id()
        # Only with fsync does a checkpoint survive a crash of the machine.
        promised = checkpoint.offset > 0 and not (rebooted and self.durability == "os")
        with translated():
            opened = self._open_part(checkpoint.part)
            if opened is None:
                if promised:
                    raise DataLost(durable=checkpoint.offset, proved=0)
                return self.create(size)
            fd, locked = opened
            part = checkpoint.part
            try:
                if not locked and not steal:
                    raise Busy(retry_after=1.0)
                length = os.fstat(fd).st_size
                if size is not None:
                    length = min(length, size)
                if rebooted:
                    # Bytes that no sync covered may have the right length and read as zeros.
                    length = min(length, checkpoint.offset)
                if not locked:
                    part, copied = self.copy(fd, length, size)
                    os.close(fd)
                    fd = copied
                position = _prove(fd, checkpoint, length, whole=rebooted or not locked)
                if position is None and promised:
                    raise DataLost(durable=checkpoint.offset, proved=0)
                writer = FileWriter(self, part, fd, size=size)
                writer.go_on(position or Position(), checkpoint)
            except BaseException:
                os.close(fd)
                if part != checkpoint.part:
                    self.delete(part)
                raise
        return writer

    def delete(self, part: str) -> None:
        if not _NAME.fullmatch(part):
            return
        with translated(), suppress(FileNotFoundError), self._directory() as root:
            os.unlink(part, dir_fd=root)

    def path(self, part: str) -> str:
        return os.path.join(self.root, part)

    def parts(self) -> Iterator[Part]:
        with translated(), suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                if not _NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):  # deleted during the listing
                    found = entry.stat(follow_symlinks=False)
                    modified = datetime.fromtimestamp(found.st_mtime, UTC)
                    yield Part(entry.name, modified, found.st_size)

    def is_held(self, part: str) -> bool:
        if not _NAME.fullmatch(part):
            return False
        with translated():
            try:
                with self._directory() as root:
                    fd = os.open(part, _FLAGS, dir_fd=root)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                _unlock(fd)
        return False

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        from django.core.checks import Error, Warning  # noqa: A004

        nearest = disk.existing_ancestor(self.root)
        if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK | os.X_OK):
            return [
                Error(
                    f"The staging folder {self.root} is not writable.",
                    hint="Create it, with mode 0700, for the user that the server runs as.",
                    id="async_upload.E020",
                )
            ]
        if nearest != self.root:
            return []
        messages: list[CheckMessage] = []
        if stat.S_IMODE(os.stat(self.root).st_mode) & 0o077:
            messages.append(
                Warning(
                    f"Users other than its owner can enter the staging folder {self.root}.",
                    hint="It contains unfinished and unchecked files: chmod 0700.",
                    id="async_upload.W020",
                )
            )
        try:
            with self._directory() as root:
                fcntl.flock(root, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            messages.append(
                Error(
                    f"Files in the staging folder {self.root} cannot be locked: {error.strerror}.",
                    hint="Put it on a file system with flock, or mount it with its locks on.",
                    id="async_upload.E021",
                )
            )
        return messages

    def sync_all(self, writers: Sequence[Writer]) -> list[Checkpoint]:
        files = cast("Sequence[FileWriter]", writers)
        if self.durability == "fsync" and any(not file.is_named for file in files):
            with translated():
                self.sync_names()
            for file in files:
                file.is_named = True
        return super().sync_all(writers)

    def sync_names(self) -> None:
        """Sync the folder, which makes the names of the parts durable."""
        disk.sync_directory(self.root)

    def copy(self, source: int, length: int, size: int | None) -> tuple[str, int]:
        """Create a part with the first ``length`` bytes of an open file; return its name and descriptor.

        It is synced at once, because a row may name it before the next checkpoint.
        """
        part, fd = self._new(size)
        try:
            disk.copy(source, fd, length)
            if self.durability == "fsync":
                disk.fdatasync(fd)
                self.sync_names()
        except BaseException:
            os.close(fd)
            self.delete(part)
            raise
        return part, fd

    @contextmanager
    def _directory(self) -> Iterator[int]:
        fd = os.open(self.root, _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _make_root(self) -> None:
        parent = os.path.dirname(self.root)
        made = disk.make_directories(parent, None)
        made += disk.make_directories(self.root, 0o700)
        if self.durability == "fsync":
            for directory in made:
                disk.sync_directory(os.path.dirname(directory))

    def _new(self, size: int | None) -> tuple[str, int]:
        """Create a locked, empty file with space for ``size`` bytes; return its name and descriptor."""
        part = secrets.token_hex(16)
        if not os.path.isdir(self.root):
            self._make_root()
        with self._directory() as root:
            fd = os.open(part, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                disk.require_room(fd, size or 0, self.min_free)
            except BaseException:
                os.close(fd)
                os.unlink(part, dir_fd=root)
                raise
        return part, fd

    def _open_part(self, part: str) -> tuple[int, bool] | None:
        """Open a part; return its descriptor and whether it was locked, None where there is no such part."""
        try:
            with self._directory() as root:
                fd = os.open(part, _FLAGS, dir_fd=root)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link has replaced the part
                return None
            raise
        try:
            locked = _lock(fd)
            with self._directory() as root:
                # Another process may have deleted it during the wait: a file without a name is lost.
                named = os.stat(part, dir_fd=root, follow_symlinks=False)
            if disk.is_same_file(named, os.fstat(fd)):
                return fd, locked
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None


class FileWriter(Writer):
    """One open, locked file of a :class:`FileSystemStore`."""

    def __init__(self, store: FileSystemStore, part: str, fd: int, *, size: int | None) -> None:
        self.store = store
        self.part = part
        self._fd = fd
        self._size = size
        self._room = 0
        """The offset up to which there is space: reserved, or where the size is unknown, checked."""
        self._durable = Position()
        self.is_named = False
        """Whether the directory was synced after the file was created."""
        self._lost = False
        """Whether a sync failed: which bytes above ``_durable`` are on the disk is then unknown."""
        self._lock = Lock()
        """Acquired while the file's bytes or the descriptor itself change."""

    def go_on(self, position: Position, checkpoint: Checkpoint) -> None:
        """Continue a part at ``position``, which was proved; bytes above it are discarded."""
        if position.offset >= checkpoint.offset:
            self._durable = Position(checkpoint.offset, checkpoint.crc)
        self.position = position
        if os.fstat(self._fd).st_size > position.offset:
            self._cut(position.offset)

    @property
    def token(self) -> str:
        return boot_id()

    @property
    def settled(self) -> int:
        # The kernel has the written bytes even if the process crashes; `open` proves them by the file's length.
        return self.received if self.store.durability == "os" else 0

    def write(self, payloads: Sequence[memoryview]) -> None:
        with self._lock:
            self._check()
            try:
                self._make_room(self.received + sum(map(len, payloads)))
                disk.write_at(self._fd, payloads, self.received)
            except OSError as error:
                # The part of the batch that was written counts for nothing, after a restart
                # neither.
                with suppress(OSError):
                    self._cut(self.received)
                raise translate(error) from error

    def sync(self) -> Checkpoint:
        self._check()
        position = self.position
        if self.store.durability == "fsync" and not (self.is_named and position == self._durable):
            try:
                self._sync_file()
            except OSError as error:
                self._forget_unsynced()
                raise translate(error) from error
        self._durable = position
        return Checkpoint(self.part, position.offset, position.crc, self.token)

    def _sync_file(self) -> None:
        # A separate descriptor: if the writer is closed in the meantime, the number may be another
        # file's.
        fd = os.dup(self._fd)
        try:
            disk.fdatasync(fd)
        finally:
            os.close(fd)
        if not self.is_named:
            self.store.sync_names()
            self.is_named = True

    def _forget_unsynced(self) -> None:
        """Truncate the file to the bytes that are on the disk.

        The kernel marks pages that it could not write as clean, and reports the error once:
        the next writer in this boot would take them for written, and its sync would
        not fail.
        """
        with self._lock, suppress(OSError):
            self._lost = True
            os.ftruncate(self._fd, self._durable.offset)

    def _check(self) -> None:
        if self._fd < 0:
            raise StorageFailed(reason="the writer is closed")
        if self._lost:
            raise StorageFailed(reason="a sync failed before")

    def rewrite(self, checkpoint: Checkpoint) -> None:
        with translated():
            part, fd = self.store.copy(self._fd, checkpoint.offset, self._size)
        try:
            with translated():
                position = _prove(fd, checkpoint, checkpoint.offset, whole=True)
            if position is None:
                raise DataLost(durable=checkpoint.offset, proved=0)
        except BaseException:
            os.close(fd)
            self.store.delete(part)
            raise
        with self._lock:
            old, self._fd = self._fd, fd
            self.part, self._room = part, position.offset
            self.position = self._durable = position
            self.is_named = self.store.durability == "fsync"
            self._lost = False
            _unlock(old)

    def truncate(self, checkpoint: Checkpoint) -> None:
        if checkpoint.offset > self.received:
            raise DataLost(durable=checkpoint.offset, proved=self.received)
        with self._lock, translated():
            self._check()
            self._cut(checkpoint.offset)
            self.position = Position(checkpoint.offset, checkpoint.crc)
            if self._durable.offset > checkpoint.offset:
                self._durable = self.position

    def _cut(self, offset: int) -> None:
        os.ftruncate(self._fd, offset)
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
                disk.require_room(self._fd, target - there, self.store.min_free)
                if self._size is not None:
                    disk.reserve(self._fd, target)
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
            yield from disk.read_at(self._fd, start, stop, size)

    def path(self) -> str:
        path = os.path.join(self.store.root, self.part)
        with translated():
            mine, named = os.fstat(self._fd), os.stat(path, follow_symlinks=False)
        if not disk.is_same_file(mine, named) or mine.st_size != self.received:
            raise StorageFailed(reason="the part is not locked by this writer")
        return path

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                if self._room > self.received:
                    with suppress(OSError):  # space reserved too much is freed with the part
                        os.ftruncate(fd, os.fstat(fd).st_size)
                _unlock(fd)


def _lock(fd: int) -> bool:
    """Wait for the exclusive lock, at most :data:`LOCK_WAIT` seconds; returns whether it was acquired."""
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL)
        else:
            return True


def _unlock(fd: int) -> None:
    """Unlock and close a descriptor. Closing alone is not enough: a forked child's copy would keep the lock."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    with suppress(OSError):  # the next sync of the part reports the same errors
        os.close(fd)


def _prove(fd: int, checkpoint: Checkpoint, length: int, *, whole: bool) -> Position | None:
    """The end of the bytes proved within the first ``length``; None where it is below the checkpoint.

    With ``whole`` the bytes below the checkpoint are read again, otherwise only those above it.
    """
    if length < checkpoint.offset:
        return None
    if whole and _crc(fd, 0, checkpoint.offset, 0) != Position(checkpoint.offset, checkpoint.crc):
        return None
    return _crc(fd, checkpoint.offset, length, checkpoint.crc)


def _crc(fd: int, start: int, stop: int, crc: int) -> Position:
    for piece in disk.read_at(fd, start, stop):
        crc = crc32c(piece, crc)
        start += len(piece)
    return Position(start, crc)
