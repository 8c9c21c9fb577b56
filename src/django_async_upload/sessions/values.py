"""Plain values that the use cases and the rows exchange, without wire format or queries."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto
from typing import Any, Final, NamedTuple

from django.utils import timezone

from ..exceptions import UploadError
from ..models import UploadSession
from .owners import Owner
from .quotas import Growth
from .state import State

MAX_WATCHED: Final = 1000
"""Uploads that one watcher follows at most."""
CLAIM: Final = timedelta(seconds=10)
"""How long a process has the claim on a completion event, unless it renews the claim."""


# From the client -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload that a client wants to create."""

    key: str
    """Random, chosen by the client: the same request finds the same upload by it. 32 hexadecimal digits."""
    name: str
    size: int | None = None
    """Bytes; None where it is unknown."""
    content_type: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    """The algorithm whose digest the client promises to send at the end."""
    is_partial: bool = False
    """Whether its bytes are only to be concatenated with those of others: it is never published."""
    parts: tuple[uuid.UUID, ...] = ()
    """The partial uploads that it is concatenated from."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Checksums of the whole file that the client knows already, hexadecimal, by algorithm; ``crc32c`` is one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Size and checksums of the whole file, which the client sends at the end."""

    size: int
    crc32c: str | None
    """Eight hexadecimal digits; None where the client's door has no such checksum."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Hexadecimal digests by algorithm."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The client's proof that it resumes the same file: CRC-32C of its prefixes, eight hexadecimal digits each."""

    durable_crc32c: str | None
    """CRC of the bytes below ``durable``; None over HTTP, where clients prove nothing."""
    received_crc32c: str | None = None
    """CRC of the bytes below ``received``; None where the client has fewer bytes."""


class Stop(Enum):
    """How a client stops writing before the end of the file."""

    CANCEL = auto()
    RELEASE = auto()
    """The upload stays unfinished: the client asked for that, or its connection was lost."""


class Progress(NamedTuple):
    """Progress of the checks and the publication, after the last byte."""

    phase: str
    """``verifying``, ``inspecting`` or ``finalizing``."""
    done: int
    total: int
    """Bytes."""


# For the rows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Creation:
    session: UploadSession
    owner: Owner


@dataclass(frozen=True, slots=True)
class UploadAccess:
    upload: uuid.UUID
    owner: Owner
    endpoint: str


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state by the holder of ``epoch``."""

    upload: uuid.UUID
    epoch: int
    to: State
    values: dict[str, Any] = field(default_factory=dict)
    owner: Owner | None = None
    """The owner, where the change requires checking the owner again."""
    growth: Growth | None = None
    """The growth of an upload of unknown size, which a quota may refuse."""


@dataclass(frozen=True, slots=True)
class Ending:
    """A request to cancel, fail or expire an upload."""

    upload: uuid.UUID
    to: State
    error: UploadError | None = None
    epoch: int | None = None
    """Epoch of the holder that asks. None: asked by the owner or the host, so any holder is overruled, and EXPIRED is
    allowed early."""
    ended: list[UploadSession] = field(default_factory=list, compare=False)
    """The row before it was ended, by which a second run, after a COMMIT without an answer, recognizes its work."""


@dataclass(frozen=True, slots=True)
class UploadProblem:
    """An error for which the server could not continue an upload that has not ended."""

    upload: uuid.UUID
    epoch: int
    error: UploadError


class WatchScope(StrEnum):
    """What a watcher follows beside the uploads that it names: nothing, all of its owner's, all of the endpoint's."""

    UPLOADS = "uploads"
    OWN = "own"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class WatchQuery:
    """A watcher's question about the uploads that it follows. The caller checks who may see what is found."""

    endpoint: str
    scope: WatchScope
    owner_key: str
    uploads: tuple[uuid.UUID, ...]
    """Those that it names, and those under way that it knows."""
    since: datetime | None
    """Also those of the scope that were created since then, even if they have ended."""


class HolderQuery(NamedTuple):
    """A question whether the holder of ``epoch`` may continue."""

    upload: uuid.UUID
    epoch: int


@dataclass(frozen=True, slots=True)
class Adoption:
    """A takeover of an upload in ``finalizing`` from a process that does not publish it any more."""

    upload: uuid.UUID
    epoch: int
    """Of the row, as it was read."""
    part: str
    """The part's name from now on."""
    at: datetime = field(default_factory=timezone.now)
    """The row's time, by which a second run, after a COMMIT without an answer, recognizes its work."""


@dataclass(frozen=True, slots=True)
class AbandonedQuery:
    """A request for publications that a crashed process left."""

    seconds: float
    """Seconds of inactivity after which a publication counts as left by a crashed process."""
    most: int
