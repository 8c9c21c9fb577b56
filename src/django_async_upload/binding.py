"""The file that :meth:`UploadSession.bind` gives to a host: linked where possible, else read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage

from .stores.configured import staging_root

if TYPE_CHECKING:
    from .models import UploadSession

    BytesFile = File[bytes]
else:
    BytesFile = File  # Django's own cannot be subscripted


class BoundFile(BytesFile):
    """A published file under the name that its sender gave it, for a host's ``FileField``."""

    def __init__(self, session: UploadSession) -> None:
        self._opened: Any = None
        self._session = session
        self._is_taken = False
        super().__init__(None, session.name)
        self.content_type = session.content_type
        self.size = session.size or 0

    @property
    def file(self) -> Any:
        """Opened when somebody reads: storages seek and read without asking for it."""
        if self._opened is None:
            self._opened = self._session.get_storage().open(self._session.stored_as, "rb")
        return self._opened

    @file.setter
    def file(self, opened: Any) -> None:
        self._opened = opened

    @property
    def closed(self) -> bool:
        return self._opened is None or self._opened.closed

    def open(self, mode: str | None = None, *args: object, **kwargs: object) -> BoundFile:
        if self.closed:
            self._opened = None
        self.file.seek(0)
        return self

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def read(self, size: int = -1) -> bytes:
        piece: bytes = self.file.read(size)
        self._is_taken |= size < 0 or len(piece) < size
        return piece

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        self.open()
        yield from super().chunks(chunk_size)
        self._is_taken = True

    def forget(self, storage: Storage, name: str) -> None:
        """After the commit: remove the published name, if the host took the file (read it to its end)."""
        self.close()
        if self._is_taken:
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
            try:
                os.unlink(self._link)
            except FileNotFoundError:
                self._is_taken = True  # the host's storage has moved it to its place
        super().forget(storage, name)


def bound_file(session: UploadSession) -> BoundFile:
    storage = session.get_storage()
    return (LinkedFile if isinstance(storage, FileSystemStorage) else BoundFile)(session)
