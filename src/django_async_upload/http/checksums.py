"""Checksums of request bodies and of files: the algorithms of tus and of RFC 9530."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

from ..stores.base import crc32c


class Hash(Protocol):
    """A running checksum."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class Crc32c:
    """CRC-32C as a :class:`Hash`: four bytes, the most significant one first."""

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: bytes, /) -> None:
        self._crc = crc32c(data, self._crc)

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big")


ALGORITHMS: Final[dict[str, Callable[[], Hash]]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32c": Crc32c,
}
"""By names in lower case without hyphens; a language has names of its own."""
