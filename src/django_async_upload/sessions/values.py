"""What the use cases and the rows hand each other: plain values, without a wire format and without a query."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from ..exceptions import UploadError
from ..models import UploadSession
from .owners import Owner
from .quotas import Growth
from .state import State

CLAIM: Final = timedelta(seconds=10)
"""For how long a process keeps a completion event to itself, unless it renews the claim."""


# What a client says --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewUpload:
    """An upload that a client wants to begin."""

    key: str
    """Chosen by the client: with it the same request finds the same upload again. 32 hexadecimal digits."""
    name: str
    size: int | None = None
    """Bytes; None where the client does not know yet."""
    content_type: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    """The algorithm whose digest the client promises for the end."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a client says of the whole file when it has sent all of it."""

    size: int
    crc32c: str
    """Eight hexadecimal digits."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Algorithm -> hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Proof:
    """That the file which is resumed is the one that was begun: CRC-32C of its beginning, eight digits each."""

    durable_crc32c: str
    """Of the bytes below ``durable``."""
    received_crc32c: str | None = None
    """Of those below ``received``."""


class Wish(Enum):
    """What else ends the writing of an upload."""

    CANCEL = auto()
    RELEASE = auto()
    """Leave it as it is: the client asked for that, or its connection is gone."""


class Progress(NamedTuple):
    """After the last byte: how far the checks and the publication are."""

    phase: str
    """``verifying``, ``inspecting`` or ``finalizing``."""
    done: int
    total: int
    """Bytes."""


# What the rows are asked for -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Creation:
    session: UploadSession
    owner: Owner


@dataclass(frozen=True, slots=True)
class Claim:
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
    """Checked again where the change depends on it."""
    growth: Growth | None = None
    """Of an upload of unknown size: refused where a quota is exceeded."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An upload is to be cancelled, to fail or to expire."""

    upload: uuid.UUID
    to: State
    error: UploadError | None = None
    epoch: int | None = None
    """The holder's; None is by right of ownership, whoever holds it, and expires what is not due yet."""
    ended: list[UploadSession] = field(default_factory=list, compare=False)
    """The row before it was ended: a second run, after a COMMIT without answer, knows its work by it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """The server could not go on with an upload, which is not over."""

    upload: uuid.UUID
    epoch: int
    error: UploadError


@dataclass(frozen=True, slots=True)
class TakeUp:
    """Publications that a process which died left behind are wanted."""

    seconds: float
    """For so long there was no sign of life."""
    most: int
