"""Policies: checks of a new upload's name, type, size and metadata. They refuse by raising, and change nothing."""

from __future__ import annotations

import json
import mimetypes
import re
import unicodedata
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from django.core.exceptions import SuspiciousFileOperation
from django.utils.text import get_valid_filename

from ..exceptions import FileTooLarge, MetadataInvalid, NameRefused, TypeRefused

MAX_NAME: Final = 255
"""Characters of a file name, and bytes of the name in the storage."""
MAX_METADATA: Final = 16 * 1024
"""Bytes of the metadata as JSON."""
MAX_METADATA_VALUES: Final = 1024
"""Number of values in the metadata: a value of 3 bytes in JSON takes up to 72 in memory."""
_VALUE: Final = 100
"""Bytes of memory that a value takes beside its text: an empty dict has 64, and its entry in another some more."""

# An escaped NUL in JSON: after an even number of backslashes.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_FORBIDDEN: Final = frozenset("/\\\x7f\u2028\u2029")
# Bidirectional controls display "gpj.exe" as "exe.jpg": https://trojansource.codes
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Letters and symbols that are blank: Hangul fillers, an empty Braille cell, a null note head.
_BLANK: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800\U0001d159")
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)


def check_name(name: str) -> None:
    """Raises :class:`NameRefused` for names that no file can have, and for deceptive ones."""
    if (
        len(name) > MAX_NAME
        or not any(_is_visible(char) for char in name.replace(".", ""))
        or any(char in _FORBIDDEN or char in _BIDI or char < " " for char in name)
        or any(unicodedata.category(char) in ("Cs", "Cc") for char in name)
    ):
        raise NameRefused


def _is_visible(char: str) -> bool:
    """Whether a character is visible by itself: a letter, digit, sign or symbol that is not blank.

    Private and unassigned characters count as visible.
    """
    category = unicodedata.category(char)
    return (category[0] in "LNPS" or category in ("Co", "Cn")) and char not in _BLANK


def storage_name(name: str) -> str:
    """Make a name that is safe in any storage from one that :func:`check_name` accepted.

    The extension is kept, even where no character before it is.
    """
    stem, dot, extension = unicodedata.normalize("NFC", name).rpartition(".")
    if not stem.strip(". "):  # .profile, README
        stem, dot, extension = extension, "", ""
    stem, extension = _valid(stem).lstrip(".") or "file", _valid(extension)
    dot = dot if extension else ""
    if stem.partition(".")[0].lower() in _DEVICES:
        stem = f"_{stem}"
    extension = _cut(extension, 32)
    return _cut(stem, MAX_NAME - 40 - len(extension.encode())) + dot + extension


def _valid(text: str) -> str:
    try:
        return get_valid_filename(text)
    except SuspiciousFileOperation:  # no valid character is left
        return ""


def _cut(text: str, size: int) -> str:
    """Shorten a text to at most ``size`` bytes of UTF-8, by whole characters."""
    return text.encode()[:size].decode(errors="ignore")


def check_extension(name: str, allowed: Iterable[str] | None) -> None:
    """Raises :class:`TypeRefused` unless the name ends in one of ``allowed`` (None: any)."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if allowed is not None and extension not in {each.lower().lstrip(".") for each in allowed}:
        raise TypeRefused(type=f".{extension}")


def check_type(content_type: str, allowed: Iterable[str] | None) -> None:
    """Raises :class:`TypeRefused` unless the declared type matches one of ``allowed`` (None: any)."""
    if any(unicodedata.category(char) in ("Cs", "Cc") for char in content_type):
        raise TypeRefused(type=ascii(content_type))
    declared = content_type.partition(";")[0].strip().lower()
    if allowed is not None and not any(fnmatchcase(declared, each.lower()) for each in allowed):
        raise TypeRefused(type=declared or "unknown")


def check_accept(name: str, content_type: str, accept: str) -> None:
    """Raises :class:`TypeRefused` unless a file fits an ``accept`` attribute ("" takes any).

    As in browsers: an entry of ``accept`` is an extension, or a type that equals the declared type or the extension's.
    """
    wanted = [each.strip().lower() for each in accept.split(",") if each.strip()]
    guessed = mimetypes.guess_type(name)[0] or ""
    declared = content_type.partition(";")[0].strip().lower()
    if wanted and not any(
        name.lower().endswith(each)
        if each.startswith(".")
        else fnmatchcase(declared, each) or fnmatchcase(guessed, each)
        for each in wanted
    ):
        raise TypeRefused(type=declared or guessed or "unknown")


def check_size(size: int | None, max_size: int | None) -> None:
    """Raises :class:`FileTooLarge`. An unknown size is checked as bytes are received."""
    if size is not None and max_size is not None and size > max_size:
        raise FileTooLarge(size=size, max_size=max_size)


def check_metadata(metadata: Mapping[str, Any]) -> int:
    """The bytes of memory that the metadata takes at most. Raises :class:`MetadataInvalid` where it is too large.

    Also for JSON that a database cannot store: numbers beyond a double, lone surrogates, and NUL, which PostgreSQL
    refuses.
    """
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except ValueError as error:
        raise MetadataInvalid(reason="it is not interoperable JSON (RFC 7493)") from error
    if size > MAX_METADATA:
        raise MetadataInvalid(reason=f"{size} bytes are more than {MAX_METADATA}")
    if has_nul(text):
        raise MetadataInvalid(reason="it contains a NUL")
    values = _count_values(metadata)
    if values > MAX_METADATA_VALUES:
        raise MetadataInvalid(reason=f"{values} values are more than {MAX_METADATA_VALUES}")
    return size + values * _VALUE


def has_nul(text: str) -> bool:
    """Whether JSON holds the one character that PostgreSQL refuses."""
    return _NUL.search(text) is not None


def _count_values(value: object) -> int:
    """The number of values in a JSON value, itself and keys included. Control frames limit its depth."""
    if isinstance(value, Mapping):
        return 1 + len(value) + sum(map(_count_values, value.values()))
    if isinstance(value, list | tuple):
        return 1 + sum(map(_count_values, value))
    return 1


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises :class:`MetadataInvalid` unless a value of the metadata is one of ``choices``."""
    if value not in (known := list(choices)):
        raise MetadataInvalid(reason=f"{name} must be one of {', '.join(known)}")


def smallest(*limits: int | None) -> int | None:
    """The smallest of several limits, where None is no limit."""
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
