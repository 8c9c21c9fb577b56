"""Calls of the operating system for the stores and the publication, and the translation of its errors."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Final

from ..exceptions import StorageFailed, StorageFull, UploadInterrupted
from ..notices import notice

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV})
NO_LINKS: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)
"""Errors of link(2) where the file system has no further link for a file."""
_KEEP_SIZE: Final = 0x01  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_PIECE: Final = 1 << 20

fdatasync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


@cache
def boot_id() -> str:
    """Identify the current boot of the machine. The page cache of an earlier boot is lost.

    Where the system has no such id, every process has its own: then only synced bytes
    count.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return secrets.token_hex(16)


def most_descriptors() -> int | None:
    """The limit of open files and sockets of this process; None where there is none."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def translate(error: OSError) -> UploadInterrupted:
    """Translate a system error into an :class:`UploadError` with the errno. Only the log has the path."""
    what = "Files" if error.filename else "Parts in the staging folder"
    cls = StorageFull if error.errno in _NO_ROOM else StorageFailed
    notice(
        f"storage {error.errno}",
        logging.ERROR,
        "%s cannot be written: %s",
        what,
        error,
        code=cls.code,
    )
    return cls(errno=errno.errorcode.get(error.errno or 0, "unknown"))


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate(error) from error


@cache
def _fallocate() -> Callable[..., int] | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        # With 64-bit offsets on every platform; musl has the plain name only.
        function = getattr(libc, "fallocate64", None) or libc.fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


def reserve(fd: int, size: int) -> None:
    """Reserve space for ``size`` bytes, without changing the file's size.

    Not by ``os.posix_fallocate``, which sets the size: after a power cut the file would be full of zeros
    that no client sent. Where the file system cannot reserve, this only compares with the free space.
    """
    fallocate = _fallocate()
    code = errno.EOPNOTSUPP
    if fallocate is not None:
        while fallocate(fd, _KEEP_SIZE, 0, size):
            code = ctypes.get_errno()
            if code != errno.EINTR:
                break
        else:
            return
    if code not in {errno.EOPNOTSUPP, errno.ENOSYS}:
        raise OSError(code, os.strerror(code))
    require_room(fd, size - os.fstat(fd).st_size)


def free_space(fd: int) -> int:
    """Free bytes on a file's disk."""
    room = os.fstatvfs(fd)
    return room.f_bavail * room.f_frsize


def require_room(fd: int, size: int, min_free: int = 0) -> None:
    """Raises ``ENOSPC`` where ``size`` more bytes would leave less than ``min_free`` on a file's disk."""
    if free_space(fd) - max(0, size) < min_free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_at(fd: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Write all ``buffers`` one after another from ``offset`` on, repeating short writes."""
    queue = [buffer for buffer in buffers if buffer]
    first = 0
    while first < len(queue):
        written = os.pwritev(fd, queue[first : first + _IOV_MAX], offset)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        offset += written
        while first < len(queue) and written >= len(queue[first]):
            written -= len(queue[first])
            first += 1
        if written:
            queue[first] = queue[first][written:]


def read_at(fd: int, start: int, stop: int, size: int = _PIECE) -> Iterator[bytes]:
    """The bytes from ``start`` to ``stop``, or to the file's end, in pieces of ``size``."""
    while start < stop:
        piece = os.pread(fd, min(size, stop - start), start)
        if not piece:
            return
        start += len(piece)
        yield piece


def copy(source: int, target: int, length: int) -> None:
    """Copy the first ``length`` bytes, or fewer where the file is shorter, in the kernel where that is possible."""
    done = 0
    copy_range: Callable[..., int] | None = getattr(os, "copy_file_range", None)
    try:
        while copy_range is not None and done < length:
            copied = copy_range(source, target, length - done, done, done)
            if not copied:
                break
            done += copied
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    for piece in read_at(source, done, length):
        write_at(target, [memoryview(piece)], done)
        done += len(piece)


def sync_file(path: str) -> None:
    """fsync the file at ``path``. Raises :class:`OSError`."""
    _sync(path, os.O_RDONLY | os.O_CLOEXEC)


def sync_directory(path: str) -> None:
    """Sync a directory, which makes the names in it durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(path: str, mode: int | None) -> list[str]:
    """Create a directory and its ancestors; return the new ones, the topmost first.

    Each gets exactly ``mode``, or with None the default by the umask. Raises
    :class:`FileExistsError` where a file has one of the names.
    """
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    made: list[str] = []
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o777 if mode is None else mode)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise
        else:
            made.append(directory)
            if mode is not None:
                os.chmod(directory, mode)
    return made


def existing_ancestor(path: str) -> str:
    """The path itself, or its nearest existing ancestor."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def is_same_file(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
