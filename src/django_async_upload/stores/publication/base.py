"""The seam of publication: what every way does."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from django.core.files.storage import Storage

from ..base import Store, Writer


@dataclass(slots=True)
class Finished:
    """A verified part that is to become a file of a storage."""

    writer: Writer
    storage: Storage
    upload: uuid.UUID
    name: str
    """In the storage; the upload's row has it before the file is there."""
    progressed: Callable[[int], None]
    """Called with the number of bytes that were copied, from any thread."""
    is_begun: bool = False
    """An earlier attempt, of this process or of one that crashed, may have left its file."""


class NameTaken(Exception):
    """Another file has the name: publish under :meth:`Publication.next_name`."""


class Unsuited(Exception):
    """This way cannot publish the part after all: take another one."""


class Publication(abc.ABC):
    """One way in which parts become files. All methods block."""

    copies: ClassVar[bool] = False
    """Bytes are copied: it takes long, and needs threads that chunks do not need."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @abc.abstractmethod
    def suits(self, part: Finished) -> bool:
        """Whether this way can publish the part in its storage. Raises :class:`StorageFailed` where the part is not
        what it was."""

    @abc.abstractmethod
    def first_name(self, part: Finished) -> str:
        """A name like ``part.name`` for the row. Raises :class:`SuspiciousFileOperation`, and what storages raise."""

    @abc.abstractmethod
    def next_name(self, part: Finished) -> str:
        """Another name, after :class:`NameTaken`."""

    @abc.abstractmethod
    def publish(self, parts: Sequence[Finished]) -> list[str | Exception]:
        """Make each part a file of its storage, durable as far as the store's durability goes.

        Gives for each the name that the file has, or the exception that prevents it: :class:`NameTaken`,
        :class:`Unsuited`, :class:`StorageFull`, :class:`StorageFailed`, what the storage raises. An attempt that was
        made before is recognized: a second file never comes of it.
        """

    @abc.abstractmethod
    def withdraw(self, part: Finished) -> None:
        """Delete the file that :meth:`publish` made, and no other: the upload's row was deleted meanwhile."""
