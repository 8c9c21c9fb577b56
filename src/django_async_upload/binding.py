"""The file that :meth:`UploadSession.bind` gives to a host: linked where possible, else read."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage

from .stores.configured import staging_root

if TYPE_CHECKING:
    from .models import UploadSession


class BoundFile(File[bytes]):
    """A published file under the name that its sender gave it, for a host's ``FileField``."""

    def __init__(self, session: UploadSession) -> None:
        super().__init__(None, session.name)
        self.content_type = session.content_type
        self.size = session.size or 0
        self._session = session
        self._consumed = False

    def open(self, mode: str | None = None, *args: object, **kwargs: object) -> BoundFile:
        if self.file is None or self.closed:
            self.file = self._session.get_storage().open(self._session.stored_as, mode or "rb")
        self.file.seek(0)
        return self

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        self.open()
        yield from super().chunks(chunk_size)
        self._consumed = True

    def forget(self, storage: Storage, name: str) -> None:
        """After the commit: remove the published name, if the host took the file."""
        self.close()
        if self._consumed:
            storage.delete(name)


class LinkedFile(BoundFile):
    """As :class:`BoundFile`, for files of a :class:`FileSystemStorage`: Django moves a hard link of it."""

    _link: str | None = None

    def temporary_file_path(self) -> str:
        """The path of a hard link, which Django's ``FileSystemStorage`` renames to its place."""
        if self._link is None:
            storage = self._session.get_storage()
            root = staging_root(storage)
            os.makedirs(root, mode=0o700, exist_ok=True)
            self._link = os.path.join(root, secrets.token_hex(16))
            os.link(storage.path(self._session.stored_as), self._link)
        return self._link

    def forget(self, storage: Storage, name: str) -> None:
        if self._link is not None:
            # Still there: the host's storage has not moved it.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._link)
            with contextlib.suppress(FileNotFoundError):
                self._consumed |= os.stat(storage.path(name)).st_nlink > 1
        super().forget(storage, name)


def bound_file(session: UploadSession) -> BoundFile:
    storage = session.get_storage()
    return (LinkedFile if isinstance(storage, FileSystemStorage) else BoundFile)(session)
