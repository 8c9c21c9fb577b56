"""Publication by the storage's own ``save()``, under a name that no other upload has: a storage may overwrite
(``FileSystemStorage(allow_overwrite=True)``, django-storages' S3 by default)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from typing import ClassVar

from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage

from ...failpoints import failpoint
from .. import disk
from ..base import Writer
from ..disk import translated
from .base import Finished, Publication
from .link import directories_of, sync_names
from .names import STORED_NAME_MAX, own_name


class CopyPublication(Publication):
    """Streams a part through ``storage.save()``."""

    copies: ClassVar[bool] = True

    def suits(self, part: Finished) -> bool:
        return True

    def first_name(self, part: Finished) -> str:
        return own_name(part.name, part.upload)

    def next_name(self, part: Finished) -> str:
        """Of this attempt alone: what stopped in an earlier one may still write under the earlier name."""
        return own_name(part.name, part.upload, part.attempt)

    def publish(self, parts: Sequence[Finished]) -> list[str | Exception]:
        results: list[str | Exception] = []
        for part in parts:
            try:
                results.append(self._save(part))
            except Exception as error:  # raised by the host's storage
                results.append(error)
        return results

    def _save(self, part: Finished) -> str:
        return save(
            part.storage,
            part.name,
            part.writer,
            part.progressed,
            durability=self.store.durability,
            max_length=STORED_NAME_MAX,
        )

    def withdraw(self, part: Finished) -> None:
        if part.storage.exists(part.name):  # complete or not
            failpoint("copy.before_delete")
            part.storage.delete(part.name)
            failpoint("copy.after_delete")


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
        failpoint("copy.before_save")
        stored = storage.save(name, content, max_length=max_length)
        failpoint("copy.after_save")
        if durability == "fsync" and isinstance(storage, FileSystemStorage):
            disk.sync_file(storage.path(stored))
            failpoint("copy.after_sync_of_file")
            sync_names(directories_of(storage, stored))
            failpoint("copy.after_sync")
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
