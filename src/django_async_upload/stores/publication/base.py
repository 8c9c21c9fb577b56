"""The interface of publications, the methods by which parts become files."""

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
    """A verified part to be published in a storage."""

    writer: Writer
    storage: Storage
    upload: uuid.UUID
    name: str
    """The name in the storage; the upload's row contains it before the file exists."""
    progressed: Callable[[int], None]
    """Called with the number of copied bytes, in any thread."""
    attempt: int = 0
    """The epoch of the process that resumed the publication; 0 for the first attempt."""


class NameTaken(Exception):
    """Another file has the name: publish again under :meth:`Publication.next_name`."""


class Unsuited(Exception):
    """This publication cannot publish the part after all: use another one."""


class Publication(abc.ABC):
    """A method by which parts become files of a storage. All its functions block."""

    copies: ClassVar[bool] = False
    """Whether bytes are copied, which takes long and must not use the threads of chunks."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @abc.abstractmethod
    def suits(self, part: Finished) -> bool:
        """Whether this can publish the part in its storage. Raises :class:`StorageFailed` where the part was
        changed."""

    @abc.abstractmethod
    def first_name(self, part: Finished) -> str:
        """A name like ``part.name`` for the row. Raises :class:`SuspiciousFileOperation`, and what storages raise."""

    @abc.abstractmethod
    def next_name(self, part: Finished) -> str:
        """Another name, after :class:`NameTaken`."""

    @abc.abstractmethod
    def publish(self, parts: Sequence[Finished]) -> list[str | Exception]:
        """Publish each part as a file of its storage, durable according to the store's durability.

        Returns for each the file's name, or an exception: :class:`NameTaken`, :class:`Unsuited`, :class:`StorageFull`,
        :class:`StorageFailed`, or the storage's own. It recognizes the file of an earlier attempt and creates no
        second one.
        """

    @abc.abstractmethod
    def withdraw(self, part: Finished) -> None:
        """Delete the file that :meth:`publish` created, and no other, after the upload's row was deleted."""
