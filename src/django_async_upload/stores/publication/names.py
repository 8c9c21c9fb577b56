"""Names of published files: checked, free, or an upload's own."""

from __future__ import annotations

import os
import re
import uuid
from copy import copy
from typing import Final

from django.core.exceptions import SuspiciousFileOperation
from django.core.files.storage import FileSystemStorage, Storage
from django.core.files.utils import validate_file_name

NAME_MAX: Final = 255
"""Bytes of one path component in common file systems (NAME_MAX of limits.h)."""
STORED_NAME_MAX: Final = 512
"""Characters of a name in a storage, directories included: the length of the row's column."""

_SUFFIX: Final = 8  # Storage.get_alternative_name inserts "_" and 7 characters


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


def own_name(name: str, upload: uuid.UUID, attempt: int = 0) -> str:
    """Add the id of the upload to ``name``, so that it is unique: ``report_<32 hex digits>.pdf``.

    A name that contains the id already, also in a directory, stays unchanged. With ``attempt`` it is that attempt's
    alone: ``report_<32 hex digits>-2.pdf``.
    """
    if is_own_name(name, upload) and not attempt:
        return name
    directory, base = os.path.split(name)
    base = re.sub(f"_{upload.hex}(-[0-9]+)?", "", base)
    added = f"_{upload.hex}" + (f"-{attempt}" if attempt else "")
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


def is_same_place(one: Storage, name: str, other: Storage, other_name: str) -> bool:
    """Whether names in two storages are of the same file. In doubt, they are."""
    if isinstance(one, FileSystemStorage) and isinstance(other, FileSystemStorage):
        return os.path.realpath(one.path(name)) == os.path.realpath(other.path(other_name))
    return name == other_name and one.__class__ is other.__class__
