"""HTTP requests as values, and what they ask for, whatever language they speak."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote

from ..admission import own_origin
from ..exceptions import MalformedRequest
from ..sessions.values import NewUpload

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


def upload_of(segment: str) -> uuid.UUID | None:
    """The upload whose id this is; None for anything else: ids match exactly, in lower case."""
    return uuid.UUID(segment) if _UUID.fullmatch(segment) else None


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request."""

    method: str
    path: str
    """The path as the client sees it, percent-decoded: with the prefix that a proxy or a server took off."""
    segment: str
    """What follows the address of the endpoint: an upload's id, the name of a new file, or nothing."""
    headers: Mapping[str, str]
    """By name in lower case; a header that was sent several times is joined by ", " (RFC 9110, section 5.3)."""
    origin: str = ""
    """Scheme and host by which the client reached the server, "" for a page's request."""

    @classmethod
    def of(cls, scope: dict[str, Any], segment: str) -> Self:
        """Read an ASGI scope. X-HTTP-Method-Override replaces the method, for networks that pass no PATCH."""
        headers: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1").lower()
            text = value.decode("latin-1").strip()
            headers[name] = f"{headers[name]}, {text}" if name in headers else text
        method = headers.get("x-http-method-override", scope["method"])
        origin = "" if "origin" in headers else own_origin(scope) or ""
        return cls(method, scope["path"], segment, headers, origin)

    @property
    def upload(self) -> uuid.UUID | None:
        """The upload that the path names; None where it names none."""
        return upload_of(self.segment)

    def address_of(self, upload: uuid.UUID) -> str:
        """The path of an upload of this endpoint, percent-encoded: a relative reference (RFC 9110, section 10.2.2)."""
        return f"{quote(self.path.removesuffix(self.segment))}{upload}"

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where it is sent in chunks."""
        return None if "transfer-encoding" in self.headers else self.number("content-length")

    @property
    def media_type(self) -> str:
        """The Content-Type in lower case, without parameters; "" where there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def number(self, name: str) -> int | None:
        """A header that is a number of at most 18 digits, None where it was not sent.

        Raises :class:`MalformedRequest`.
        """
        text = self.headers.get(name)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            raise MalformedRequest(reason=f"{name} is not a number")
        return int(text)


# What a request asks for ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum of one request's body, which is discarded where it differs."""

    algorithm: str
    """One of :data:`.checksums.ALGORITHMS`."""
    digest: bytes


@dataclass(frozen=True, slots=True)
class Create:
    """Create an upload, of which the body is the beginning."""

    new: NewUpload
    completes: bool | None
    """Whether the end of the body is the end of the file. None: it is where the declared size is reached."""
    has_key: bool = False
    """Whether the client chose the key: then it finds the upload again although it got no answer."""
    checksum: Checksum | None = None
    """Of the body."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the whole file, hexadecimal, by algorithm: ``crc32c``, or ``sha-256``, which ``new.digest`` promises."""
    parts: tuple[uuid.UUID, ...] = ()
    """The partial uploads that the file consists of; then there is no body."""


@dataclass(frozen=True, slots=True)
class Append:
    """Append the body to an upload."""

    upload: uuid.UUID
    offset: int
    """Where the client believes the upload to be; refused with :class:`WrongOffset` where it is not."""
    completes: bool | None
    """Whether the end of the body is the end of the file. None: it is where the declared size is reached."""
    size: int | None = None
    """The size of the file, where the client declares it now."""
    checksum: Checksum | None = None
    """Of the body."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the whole file, as in :class:`Create`, where ``completes``."""


@dataclass(frozen=True, slots=True)
class Offset:
    """Where an upload can be continued. A request that still writes it is ended, so that the answer stays true."""

    upload: uuid.UUID


@dataclass(frozen=True, slots=True)
class Look:
    """How an upload stands. Nothing is changed."""

    upload: uuid.UUID


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel an upload; a completed one that is not taken yet is deleted."""

    upload: uuid.UUID


Question = Create | Append | Offset | Look | Cancel
