"""A store that keeps parts as files in one folder, written in place and locked by their writers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from ..exceptions import Busy, DataLost, StorageFailed
from ..failpoints import failpoint
from . import disk
from .base import Checkpoint, Part, Position, Store, Writer
from .disk import translated
from .filewriter import FileWriter
from .folder import Folder
from .partfile import PartFile

if TYPE_CHECKING:
    from django.core.checks import CheckMessage


class FileSystemStore(Store):
    """Parts are files of mode 0600 under random names in the folder ``root``, which is created with mode 0700.

    A writer has an exclusive ``flock`` on its file. A part that is locked by another one may be open in a suspended
    process that will write to it again. So its bytes are copied to a new file: a writer publishes an inode that no
    other process can change.

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
        self.folder = Folder(self.root, durability=durability, min_free=min_free)

    def create(self, size: int | None) -> Writer:
        with translated():
            return FileWriter(self.folder, self.folder.create(size), size)

    def open(
        self, checkpoint: Checkpoint, *, size: int | None = None, steal: bool = True
    ) -> Writer:
        if not self.folder.has_name_for(checkpoint.part):
            raise StorageFailed(reason="not the name of a part")
        evidence = _Evidence(checkpoint, size, self.durability)
        with translated():
            found = self.folder.find(checkpoint.part)
            if found is None:
                evidence.start_over()
                return self.create(size)
            file = self._take(found, evidence, steal=steal)
            with self.folder.closing_on_error(file):
                position = evidence.prove(file)
                writer = FileWriter(self.folder, file, size)
                writer.resume_at(position, checkpoint)
        return writer

    def adopt(self, checkpoint: Checkpoint, *, size: int | None = None) -> Writer:
        if not self.folder.has_name_for(checkpoint.part):
            raise StorageFailed(reason="not the name of a part")
        with translated():
            part = self.folder.rename(checkpoint.part)
            file = None if part is None else self.folder.find(part)
            if part is None or file is None:
                return self.open(checkpoint, size=size, steal=False)
            with self.folder.closing_on_error(file):
                writer = FileWriter(self.folder, file, size)
                writer.resume_at(
                    _Evidence(checkpoint, size, self.durability).prove(file), checkpoint
                )
        return writer

    def _take(self, found: PartFile, evidence: _Evidence, *, steal: bool) -> PartFile:
        """Return a file of which this process is the only writer: a copy where another one has the lock."""
        if found.is_locked:
            return found
        with closing(found):
            if not steal:
                raise Busy(retry_after=1.0)
            return self.folder.copy(found, evidence.candidate_length(found), evidence.size)

    def delete(self, part: str) -> None:
        if self.folder.has_name_for(part):
            with translated():
                self.folder.delete(part)

    def path(self, part: str) -> str:
        return self.folder.path(part)

    def parts(self) -> Iterator[Part]:
        with translated():
            yield from self.folder.parts()

    def free_space(self) -> int | None:
        with translated(), self.folder.directory() as root:
            return disk.free_space(root)

    def is_held(self, part: str) -> bool:
        with translated():
            return self.folder.has_name_for(part) and self.folder.is_held(part)

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
            self.folder.try_locks()
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
            failpoint("parts.before_sync_of_names")
            with translated():
                self.folder.sync_names()
            failpoint("parts.after_sync_of_names")
            for file in files:
                file.is_named = True
        return super().sync_all(writers)


class _Evidence:
    """What a checkpoint proves, given the durability and whether the machine was rebooted since."""

    def __init__(self, checkpoint: Checkpoint, size: int | None, durability: str) -> None:
        self.size = size
        self._checkpoint = checkpoint
        self._rebooted = checkpoint.token != disk.boot_id()
        # Only with fsync does a checkpoint survive a crash of the machine.
        survives = durability == "fsync" or not self._rebooted
        self._promised = checkpoint.offset if survives else 0

    def candidate_length(self, file: PartFile) -> int:
        """The number of a file's bytes that may be the upload's."""
        length = file.length
        if self.size is not None:
            length = min(length, self.size)
        if self._rebooted:
            # Bytes that no sync covered may have the right length and read as zeros.
            length = min(length, self._checkpoint.offset)
        return length

    def prove(self, file: PartFile) -> Position:
        """The end of the proved bytes. Raises :class:`DataLost`, :class:`OSError`."""
        whole = self._rebooted or file.is_new
        position = file.prove(self._checkpoint, self.candidate_length(file), whole=whole)
        return self.start_over() if position is None else position

    def start_over(self) -> Position:
        """The start of the file. Raises :class:`DataLost` where bytes were acknowledged as durable."""
        if self._promised:
            raise DataLost(durable=self._promised, proved=0)
        return Position()
