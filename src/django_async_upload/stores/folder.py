"""The staging folder, which contains the files of parts under random names."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from ..failpoints import failpoint
from . import disk
from .base import Part
from .partfile import PartFile

_NAME: Final = re.compile(r"([0-9a-f]{32})(?:-([0-9]{1,9}))?")
"""Random digits, and how often the part got another name."""
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """Files of mode 0600 in the folder ``root``, which is created with mode 0700.

    All methods raise :class:`OSError`.
    """

    def __init__(self, root: str, *, durability: str, min_free: int) -> None:
        self.root = root
        self.durability = durability
        self.min_free = min_free
        """Bytes of the disk that are left free."""

    @staticmethod
    def has_name_for(part: str) -> bool:
        """Whether a text is a valid name of a part."""
        return _NAME.fullmatch(part) is not None

    def path(self, part: str) -> str:
        return os.path.join(self.root, part)

    def create(self, size: int | None) -> PartFile:
        """Create a locked, empty file; raises ``ENOSPC`` where the disk has no space for ``size`` bytes."""
        if not os.path.isdir(self.root):
            self._make_root()
        name = secrets.token_hex(16)
        file = PartFile(name, self._open(name, os.O_CREAT | os.O_EXCL), is_new=True)
        with self.closing_on_error(file):
            file.lock()
            disk.require_room(file.fd, size or 0, self.min_free)
        failpoint("part.after_create")
        return file

    def find(self, part: str) -> PartFile | None:
        """Open a file, and lock it unless another writer has the lock; None where there is no such part."""
        try:
            file = PartFile(part, self._open(part))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link has replaced the part
                return None
            raise
        with self.closing_on_error(file):
            file.lock()
            # Another process may have deleted it since it was opened: a file without a name is lost.
            if self.has(file):
                return file
        file.close()
        return None

    def rename(self, part: str) -> str | None:
        """Give a file its next name beside the old one, and sync it; returns the name.

        The names follow from each other, so that a crash before the old one was deleted leaves nothing for ever, and
        processes that do this at once make one name. Returns None where the part is missing, or cannot have two names.
        """
        match = _NAME.fullmatch(part)
        assert match is not None
        number = int(match[2] or 0)
        older = match[1] if number <= 1 else f"{match[1]}-{number - 1}"
        name = f"{match[1]}-{number + 1}"
        if number:
            self.delete(older)
        with self.directory() as root:
            failpoint("part_name.before_link")
            try:
                os.link(part, name, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
                failpoint("part_name.after_link")
            except FileExistsError:
                named = (os.stat(each, dir_fd=root, follow_symlinks=False) for each in (part, name))
                if not disk.is_same_file(*named):
                    return None
            except OSError as error:
                if error.errno in disk.NO_LINKS or isinstance(error, FileNotFoundError):
                    return None
                raise
        if self.durability == "fsync":
            failpoint("part_name.before_sync")
            self.sync_names()
            failpoint("part_name.after_sync")
        return name

    def copy(self, source: PartFile, length: int, size: int | None) -> PartFile:
        """Create a file with the first ``length`` bytes of another one.

        It is synced at once, because a row may name it before the next checkpoint.
        """
        file = self.create(size)
        with self.closing_on_error(file):
            disk.copy(source.fd, file.fd, length)
            if self.durability == "fsync":
                failpoint("part_copy.before_sync")
                disk.fdatasync(file.fd)
                failpoint("part_copy.after_sync")
                self.sync_names()
                failpoint("part_copy.after_sync_of_names")
        return file

    @contextmanager
    def closing_on_error(self, file: PartFile) -> Iterator[None]:
        """Close the file if the block fails and, if it is new, delete it; otherwise it stays open."""
        try:
            yield
        except BaseException:
            file.close()
            if file.is_new:
                self.delete(file.name)
            raise

    def has(self, file: PartFile) -> bool:
        """Whether the file's name still refers to this file."""
        with suppress(FileNotFoundError), self.directory() as root:
            return file.is_file(os.stat(file.name, dir_fd=root, follow_symlinks=False))
        return False

    def is_held(self, part: str) -> bool:
        """Whether a writer of any process has locked the file."""
        try:
            file = PartFile(part, self._open(part))
        except FileNotFoundError:
            return False
        with closing(file):
            return file.is_held()

    def delete(self, part: str) -> None:
        with suppress(FileNotFoundError), self.directory() as root:
            failpoint("part.before_unlink")
            os.unlink(part, dir_fd=root)
            failpoint("part.after_unlink")

    def parts(self) -> Iterator[Part]:
        with suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                if not self.has_name_for(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):  # deleted during the listing
                    found = entry.stat(follow_symlinks=False)
                    modified = datetime.fromtimestamp(found.st_mtime, UTC)
                    yield Part(entry.name, modified, found.st_size)

    def sync_names(self) -> None:
        """Sync the folder, which makes the names of the files durable."""
        disk.sync_directory(self.root)

    def try_locks(self) -> None:
        """Test the locks of the file system; raises where it has none."""
        with self.directory() as root:
            fcntl.flock(root, fcntl.LOCK_SH | fcntl.LOCK_NB)

    @contextmanager
    def directory(self) -> Iterator[int]:
        """Open a descriptor of the folder."""
        fd = os.open(self.root, _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, part: str, flags: int = 0) -> int:
        with self.directory() as root:
            return os.open(part, _FLAGS | flags, 0o600, dir_fd=root)

    def _make_root(self) -> None:
        parent = os.path.dirname(self.root)
        made = disk.make_directories(parent, None)
        made += disk.make_directories(self.root, 0o700)
        if self.durability == "fsync":
            for directory in made:
                failpoint("staging.before_sync")
                disk.sync_directory(os.path.dirname(directory))
                failpoint("staging.after_sync")
