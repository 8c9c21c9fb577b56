"""How a finished part becomes a file of a Django storage (rules 11 and 12 of the design).

Where :func:`links_into` says so, the part gets its second name in the storage by :func:`link`:
nothing is copied, and a name that is taken is never overwritten. Everywhere else :func:`save`
streams it through the storage's own ``save()``, under an :func:`own_name`: a storage may overwrite
(``FileSystemStorage(allow_overwrite=True)``, django-storages' S3 unless told otherwise). Both block.
"""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import copy
from typing import Final

from django.core.exceptions import SuspiciousFileOperation
from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage
from django.core.files.utils import validate_file_name

from ..exceptions import StorageFailed
from . import disk
from .base import Writer
from .disk import translate, translated

NAME_MAX: Final = 255
"""Bytes of one name in the file systems of today (NAME_MAX of limits.h)."""

_SUFFIX: Final = 8  # what Storage.get_alternative_name puts in: "_" and 7 characters
_NO_LINKS: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)


STORED_NAME_MAX: Final = 512
"""Characters of a name in a storage, directories included: what a row has room for."""


class NotLinkable(StorageFailed):
    """The part cannot be linked to this name, though :func:`links_into` hoped so: :func:`save` it.

    Two mounts of one file system, a mount below the storage's location, a file system without
    links, a part that has another name already: what is published has no name but its own.
    """


def links_into(storage: Storage, path: str) -> bool:
    """Whether a file at ``path`` can be published in ``storage`` by a link.

    True for a storage that saves as :class:`FileSystemStorage` does, never overwrites, and lies on
    the file's own file system. Its location need not exist yet.
    """
    cls = storage.__class__  # not type(): the default storage is a lazy object
    if not (
        isinstance(storage, FileSystemStorage)
        and cls._save is FileSystemStorage._save  # type: ignore[attr-defined]
        and cls.save is Storage.save
        and not getattr(storage, "_allow_overwrite", False)
        # How storages overwrote before allow_overwrite; gone in Django 6.0.
        and getattr(cls, "OS_OPEN_FLAGS", None) == getattr(FileSystemStorage, "OS_OPEN_FLAGS", None)
    ):
        return False
    try:
        here = os.lstat(path).st_dev
        return here == os.stat(disk.existing_ancestor(os.fspath(storage.location))).st_dev
    except OSError:
        return False


def checked_name(storage: Storage, name: str) -> str:
    """The name as the storage would have it.

    Raises :class:`SuspiciousFileOperation` for one that leaves the storage, or is longer than
    :data:`STORED_NAME_MAX`: before it is written down, since nobody could go on with it.
    """
    name = storage.generate_filename(name)
    validate_file_name(name, allow_relative_path=True)
    if len(name) > STORED_NAME_MAX:
        raise SuspiciousFileOperation(
            f"The name has {len(name)} characters, more than {STORED_NAME_MAX}."
        )
    return name


def overwrites(storage: Storage) -> bool:
    """Whether a storage calls a name available that is taken, and saves over what has it."""
    taken = "taken.bin"
    probe = copy(storage)
    probe.exists = lambda name: name == taken  # type: ignore[method-assign]
    try:
        return probe.get_available_name(taken) == taken
    except Exception:  # of a storage that asks something else first: then nothing is known
        return False


def own_name(name: str, upload: uuid.UUID) -> str:
    """``name`` with the id of its upload, so that no other file has it: ``report_<32 hex digits>.pdf``.

    A name that has the id in it, its directories included, stays as it is.
    """
    if is_own_name(name, upload):
        return name
    directory, base = os.path.split(name)
    added = f"_{upload.hex}"
    root, extension = os.path.splitext(_shortened(base, NAME_MAX - len(added)))
    excess = max(0, len(name) + len(added) - STORED_NAME_MAX)
    return os.path.join(directory, f"{root[: max(0, len(root) - excess)]}{added}{extension}")


def is_own_name(name: str, upload: uuid.UUID) -> bool:
    """Whether a name has the id of that upload in it, so that it is of no other file."""
    return upload.hex in name or str(upload) in name


def available_name(storage: Storage, name: str, *, max_length: int | None = None) -> str:
    """A free name like ``name``, by the storage's own ``get_available_name``.

    Unlike that alone it fits the file system: a last component of more than :data:`NAME_MAX` bytes,
    or one that grows beyond them when the storage makes it unique, is shortened before its
    extension.

    Raises :class:`SuspiciousFileOperation` for a name that leaves the storage, or when
    ``max_length`` characters leave no room.
    """
    validate_file_name(name, allow_relative_path=True)
    found = storage.get_available_name(_shortened(name, NAME_MAX), max_length=max_length)
    if len(os.fsencode(os.path.basename(found))) > NAME_MAX:
        short = _shortened(name, NAME_MAX - _SUFFIX)
        found = storage.get_available_name(short, max_length=max_length)
    validate_file_name(found, allow_relative_path=True)
    return found


def _shortened(name: str, limit: int) -> str:
    directory, base = os.path.split(name)
    excess = len(os.fsencode(base)) - limit
    if excess <= 0:
        return name
    root, extension = os.path.splitext(base)
    if len(os.fsencode(extension)) > limit // 2:
        root, extension = base, ""
    kept = os.fsencode(root)[: limit - len(os.fsencode(extension))]
    return os.path.join(directory, kept.decode(errors="ignore") + extension)


def link(storage: FileSystemStorage, path: str, name: str, *, durability: str = "fsync") -> None:
    """Give the file at ``path`` the name ``name`` in ``storage``; ``path`` stays as it is.

    Directories, modes and group become what the storage's own ``save()`` makes of them, before the
    name can be seen. With durability ``fsync`` the file and its name survive a crash of the machine
    when this returns.

    Raises :class:`FileExistsError` when the name is taken (also by this very file: see
    :func:`is_linked`), :class:`NotLinkable`, :class:`StorageFull`, :class:`StorageFailed`, and
    :class:`SuspiciousFileOperation` for a name that leaves the storage.
    """
    sync_names(link_unsynced(storage, path, name, durability=durability))


def sync_names(directories: Iterable[str]) -> None:
    """Make the names in some directories durable. Raises :class:`StorageFailed`."""
    with translated():
        for directory in directories:
            disk.sync_directory(directory)


def sync_link(storage: FileSystemStorage, name: str, *, durability: str = "fsync") -> None:
    """Make durable a name that :func:`link` made before a crash, and the folders that it stands in.

    Raises :class:`StorageFailed`.
    """
    if durability == "fsync":
        sync_names(_directories(storage, name))


def _directories(storage: FileSystemStorage, name: str) -> list[str]:
    """The folder of a name, and those above it up to the one that holds the storage's own."""
    directory = os.path.dirname(storage.path(name))
    found = [directory]
    while len(directory) >= len(os.fspath(storage.location)):
        directory = os.path.dirname(directory)
        found.append(directory)
    return found


def link_unsynced(
    storage: FileSystemStorage, path: str, name: str, *, durability: str = "fsync"
) -> list[str]:
    """:func:`link`, but the name is durable only after :func:`sync_names` of the directories it returns."""
    validate_file_name(name, allow_relative_path=True)
    target = storage.path(name)
    directory = os.path.dirname(target)
    with translated():
        try:
            made = disk.make_directories(directory, storage.directory_permissions_mode)
        except FileExistsError as error:
            raise NotADirectoryError(
                errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory
            ) from error
        if os.lstat(path).st_nlink != 1 and not is_linked(storage, path, name):
            raise NotLinkable(reason="the part has another name")
        _adopt(storage, path)
        if durability == "fsync":
            _sync_file(path)
    try:
        os.link(path, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise NotLinkable(errno=errno.errorcode[error.errno]) from error
        raise translate(error) from error
    return [directory, *map(os.path.dirname, made)] if durability == "fsync" else []


def is_linked(storage: FileSystemStorage, path: str, name: str) -> bool:
    """Whether ``name`` in ``storage`` is the very file at ``path``: a crash came after :func:`link`."""
    try:
        return disk.is_same_file(os.lstat(path), os.lstat(storage.path(name)))
    except FileNotFoundError:
        return False


def is_same_place(one: Storage, name: str, other: Storage, other_name: str) -> bool:
    """Whether two storages' names are those of one file, as far as one can know: in doubt they are."""
    if isinstance(one, FileSystemStorage) and isinstance(other, FileSystemStorage):
        return os.path.realpath(one.path(name)) == os.path.realpath(other.path(other_name))
    return name == other_name and one.__class__ is other.__class__


def save(
    storage: Storage,
    name: str,
    writer: Writer,
    progress: Callable[[int], None] | None = None,
    *,
    durability: str = "fsync",
    max_length: int | None = None,
) -> str:
    """Stream what ``writer`` received through ``storage.save()``; return the name it has there.

    ``progress`` is called with the bytes that the storage has read so far, from whatever thread it
    reads in: it must be thread-safe. With durability ``fsync`` a file of a file system storage is
    synced.

    Raises :class:`StorageFull`, :class:`StorageFailed`, and whatever the storage itself raises.
    """
    reader = io.BufferedReader(PartReader(writer, progress), buffer_size=1 << 20)
    content = File(reader, name=os.path.basename(name))
    content.size = writer.received
    with translated():
        stored = storage.save(name, content, max_length=max_length)
        if durability == "fsync" and isinstance(storage, FileSystemStorage):
            _sync_file(storage.path(stored))
            sync_names(_directories(storage, stored))
    return stored


class PartReader(io.RawIOBase):
    """What a writer received, as a file: storages seek in it and read it in parts."""

    def __init__(self, writer: Writer, progress: Callable[[int], None] | None = None) -> None:
        self._writer = writer
        self._progress = progress
        self._offset = 0
        self._reported = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._writer.received}
        self._offset = max(0, start[whence] + offset)
        return self._offset

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        wanted = len(buffer)
        stop = self._offset + wanted
        piece = next(iter(self._writer.read(self._offset, stop, size=wanted)), b"")
        buffer[: len(piece)] = piece
        self._offset += len(piece)
        if self._progress is not None and self._offset > self._reported:
            self._reported = self._offset
            self._progress(self._offset)
        return len(piece)


def _adopt(storage: FileSystemStorage, path: str) -> None:
    """Give a file the storage's group and mode, as ``FileSystemStorage._save`` does at its end."""
    group = os.stat(storage.location).st_gid
    if os.stat(path).st_gid != group:
        with suppress(PermissionError):
            os.chown(path, -1, group)
    if storage.file_permissions_mode is not None:
        os.chmod(path, storage.file_permissions_mode)


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
