"""Publication by a hard link: nothing is copied, and an existing name is never overwritten."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import cast

from django.core.files.storage import FileSystemStorage, Storage
from django.core.files.utils import validate_file_name

from ...exceptions import StorageFailed
from ...failpoints import failpoint
from .. import disk
from ..disk import translate, translated
from .base import Finished, NameTaken, Publication, Unsuited
from .names import STORED_NAME_MAX, available_name


class LinkPublication(Publication):
    """Gives the file of a part a second name, in a storage on its own file system."""

    def suits(self, part: Finished) -> bool:
        return self.store.supports_path and links_into(part.storage, part.writer.path())

    def first_name(self, part: Finished) -> str:
        return available_name(part.storage, part.name, max_length=STORED_NAME_MAX)

    next_name = first_name

    def publish(self, parts: Sequence[Finished]) -> list[str | Exception]:
        results: list[str | Exception] = []
        unsynced: dict[str, None] = {}
        for part in parts:
            try:
                unsynced |= dict.fromkeys(self._link(part))
            except Exception as error:  # one failed file does not fail others
                results.append(error)
            else:
                results.append(part.name)
        try:
            failpoint("link.before_sync")
            sync_names(unsynced)
            failpoint("link.after_sync")
        except StorageFailed as failure:
            return [failure if isinstance(each, str) else each for each in results]
        return results

    def _link(self, part: Finished) -> list[str]:
        """Link a part; returns the directories to sync."""
        storage, path = cast("FileSystemStorage", part.storage), part.writer.path()
        try:
            return link(storage, path, part.name, durability=self.store.durability)
        except FileExistsError as error:
            # The name is its own where a crash happened after the link, perhaps before the sync.
            if not is_linked(storage, path, part.name):
                raise NameTaken from error
            failpoint("link.before_second_sync")
            sync_link(storage, part.name, durability=self.store.durability)
            failpoint("link.after_second_sync")
            return []

    def withdraw(self, part: Finished) -> None:
        if is_linked(cast("FileSystemStorage", part.storage), part.writer.path(), part.name):
            part.storage.delete(part.name)


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
        sync_names(directories_of(storage, name))


def directories_of(storage: FileSystemStorage, name: str) -> list[str]:
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
    :func:`is_linked`), :class:`Unsuited`, :class:`StorageFull`, :class:`StorageFailed`, and
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
            raise Unsuited("the part has another name")
        _adopt(storage, path)
        if durability == "fsync":
            failpoint("link.before_sync_of_file")
            disk.sync_file(path)
    failpoint("link.before_link")
    try:
        os.link(path, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in disk.NO_LINKS:
            raise Unsuited(errno.errorcode[error.errno]) from error
        raise translate(error) from error
    failpoint("link.after_link")
    return [directory, *map(os.path.dirname, made)] if durability == "fsync" else []


def is_linked(storage: FileSystemStorage, path: str, name: str) -> bool:
    """Whether ``name`` in ``storage`` is the same file as ``path``: a crash happened after :func:`link`."""
    try:
        return disk.is_same_file(os.lstat(path), os.lstat(storage.path(name)))
    except FileNotFoundError:
        return False


def _adopt(storage: FileSystemStorage, path: str) -> None:
    """Set a file's group and mode as ``FileSystemStorage._save`` does at its end."""
    group = os.stat(storage.location).st_gid
    if os.stat(path).st_gid != group:
        with suppress(PermissionError):
            os.chown(path, -1, group)
    if storage.file_permissions_mode is not None:
        os.chmod(path, storage.file_permissions_mode)
