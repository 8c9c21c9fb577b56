"""Publication: a finished part becomes a file of a Django storage.

Where :func:`links_into` is true, :func:`link` gives the part a second name in the storage:
nothing is copied, and an existing name is never overwritten. Otherwise :func:`save`
streams it through the storage's own ``save()``, under an :func:`own_name`, since a storage may overwrite
(``FileSystemStorage(allow_overwrite=True)``, django-storages' S3 by default). Both block.
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
"""Bytes of one path component in common file systems (NAME_MAX of limits.h)."""

_SUFFIX: Final = 8  # Storage.get_alternative_name inserts "_" and 7 characters
_NO_LINKS: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
)


STORED_NAME_MAX: Final = 512
"""Characters of a name in a storage, directories included: the length of the row's column."""


class NotLinkable(StorageFailed):
    """The part cannot be linked, although :func:`links_into` was true: :func:`save` it.

    Causes are two mounts of one file system, a mount below the storage's location, a file system without
    links, or a part that has another name already: a published file must have one name only.
    """


def links_into(storage: Storage, path: str) -> bool:
    """Whether a file at ``path`` can be published in ``storage`` by a link.

    True for a storage that saves as :class:`FileSystemStorage` does, never overwrites, and lies on
    the file's own file system. Its location need not exist yet.
    """
    cls = storage.__class__  # not type(), since the default storage is a lazy object
    if not (
        isinstance(storage, FileSystemStorage)
        and cls._save is FileSystemStorage._save  # type: ignore[attr-defined]
        and cls.save is Storage.save
        and not getattr(storage, "_allow_overwrite", False)
        # Before allow_overwrite storages overwrote by this flag; Django 6.0 removed it.
        and getattr(cls, "OS_OPEN_FLAGS", None) == getattr(FileSystemStorage, "OS_OPEN_FLAGS", None)
    ):
        return False
    try:
        here = os.lstat(path).st_dev
        return here == os.stat(disk.existing_ancestor(os.fspath(storage.location))).st_dev
    except OSError:
        return False


def checked_name(storage: Storage, name: str) -> str:
    """The name as the storage normalizes it.

    Raises :class:`SuspiciousFileOperation` for a name that leaves the storage, or is longer than
    :data:`STORED_NAME_MAX`: before it is stored in a row, since its publication could never succeed.
    """
    name = storage.generate_filename(name)
    validate_file_name(name, allow_relative_path=True)
    if len(name) > STORED_NAME_MAX:
        raise SuspiciousFileOperation(
            f"The name has {len(name)} characters, more than {STORED_NAME_MAX}."
        )
    return name


def overwrites(storage: Storage) -> bool:
    """Whether a storage overwrites existing files: it calls the name of one available."""
    taken = "taken.bin"
    probe = copy(storage)
    probe.exists = lambda name: name == taken  # type: ignore[method-assign]
    try:
        return probe.get_available_name(taken) == taken
    except Exception:  # raised by a storage that needs a network, for example: unknown
        return False


def own_name(name: str, upload: uuid.UUID) -> str:
    """Add the id of the upload to ``name``, so that it is unique: ``report_<32 hex digits>.pdf``.

    A name that contains the id already, also in a directory, stays unchanged.
    """
    if is_own_name(name, upload):
        return name
    directory, base = os.path.split(name)
    added = f"_{upload.hex}"
    root, extension = os.path.splitext(_shortened(base, NAME_MAX - len(added)))
    excess = max(0, len(name) + len(added) - STORED_NAME_MAX)
    return os.path.join(directory, f"{root[: max(0, len(root) - excess)]}{added}{extension}")


def is_own_name(name: str, upload: uuid.UUID) -> bool:
    """Whether a name contains the id of that upload, so that no other file has it."""
    return upload.hex in name or str(upload) in name


def available_name(storage: Storage, name: str, *, max_length: int | None = None) -> str:
    """A free name similar to ``name``, by the storage's own ``get_available_name``.

    Unlike that, it fits the file system: a last component that has more than :data:`NAME_MAX` bytes,
    also after the storage made it unique, is shortened before its extension.

    Raises :class:`SuspiciousFileOperation` for a name that leaves the storage, or where no name of
    ``max_length`` characters is possible.
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


def sync_names(directories: Iterable[str]) -> None:
    """Sync directories, which makes the names in them durable. Raises :class:`StorageFailed`."""
    with translated():
        for directory in directories:
            disk.sync_directory(directory)


def sync_link(storage: FileSystemStorage, name: str, *, durability: str = "fsync") -> None:
    """Make a name durable that :func:`link` created before a crash, and the folders that contain it.

    Raises :class:`StorageFailed`.
    """
    if durability == "fsync":
        sync_names(_directories(storage, name))


def _directories(storage: FileSystemStorage, name: str) -> list[str]:
    """The directory of a name, and its ancestors up to the parent of the storage's location."""
    directory = os.path.dirname(storage.path(name))
    found = [directory]
    while len(directory) >= len(os.fspath(storage.location)):
        directory = os.path.dirname(directory)
        found.append(directory)
    return found


def link(
    storage: FileSystemStorage, path: str, name: str, *, durability: str = "fsync"
) -> list[str]:
    """Link the file at ``path`` to ``name`` in ``storage``; ``path`` remains.

    Directories, modes and group are set as by the storage's own ``save()``, before the name exists. Returns the
    directories that :func:`sync_names` has to make durable; none with durability ``os``. With ``fsync`` the bytes of
    the file are durable when this returns.

    Raises :class:`FileExistsError` when the name is taken (also by this very file: see
    :func:`is_linked`), :class:`NotLinkable`, :class:`StorageFull`, :class:`StorageFailed`, and
    :class:`SuspiciousFileOperation` for a name that leaves the storage.
    """
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
    """Whether ``name`` in ``storage`` is the same file as ``path``: a crash happened after :func:`link`."""
    try:
        return disk.is_same_file(os.lstat(path), os.lstat(storage.path(name)))
    except FileNotFoundError:
        return False


def is_same_place(one: Storage, name: str, other: Storage, other_name: str) -> bool:
    """Whether names in two storages are of the same file. In doubt, they are."""
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
    """Stream the bytes of ``writer`` through ``storage.save()``; return the file's name in the storage.

    ``progress`` is called with the number of bytes that the storage has read so far, in any
    thread. With durability ``fsync`` the file of a file system storage is
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
    """The bytes of a writer as a file object: storages seek in it and read pieces."""

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
    """Set a file's group and mode as ``FileSystemStorage._save`` does at its end."""
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
