"""The control messages: one frozen dataclass per frame type, with the JSON fields as its fields.

A field without a default is required; unknown fields are ignored, so that a later minor
version can add some. CRCs and digests are lower-case hex strings, integers are 0 to 2**48 - 1, sizes
and offsets are bytes, times are seconds.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from ..exceptions import MalformedFrame, UploadError, from_code
from . import frames
from .frames import CRC, MAX_CHUNK, MAX_FRAME, FrameType

DIGESTS: typing.Final = {"sha-256": 64}
"""Digest algorithms (names as in RFC 9530) and their lengths in hex digits."""
CRC32C: typing.Final = "crc32c"
SCOPES: typing.Final = ("uploads", "own", "all")
"""What WATCH may follow: the named uploads only, all of the owner's, or all of the endpoint's."""
MAX_WATCHED: typing.Final = 1000
"""Number of uploads that one WATCH may name."""

_KEY = re.compile(r"[0-9a-f]{32}\Z")
_CRC = re.compile(r"[0-9a-f]{8}\Z")
_HEX = re.compile(r"[0-9a-f]+\Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")

_BY_TYPE: dict[FrameType, type[Message]] = {}


def _is_digests(value: object) -> bool:
    if isinstance(value, list):  # HELLO has the names only
        return all(isinstance(name, str) for name in value)
    return isinstance(value, dict) and all(
        name in DIGESTS
        and isinstance(digest, str)
        and len(digest) == DIGESTS[name]
        and _HEX.match(digest)
        for name, digest in value.items()
    )


def _are_uploads(value: list[object]) -> bool:
    return len(value) <= MAX_WATCHED and all(
        isinstance(each, str) and _UUID.match(each) for each in value
    )


def _are_standings(value: list[object]) -> bool:
    for each in value:
        if not isinstance(each, dict):
            return False
        try:
            Status.from_fields(each)
        except MalformedFrame:
            return False
    return True


# Conditions on fields by name, beyond their types, in every message.
_RULES: dict[str, Callable[[Any], Any]] = {
    "key": _KEY.match,
    "upload": _UUID.match,
    "name": lambda name: 0 < len(name) <= 1024,
    "content_type": lambda declared: len(declared) <= 255,
    "ticket": lambda ticket: len(ticket) <= 8192,
    "receipt": lambda receipt: len(receipt) <= 4096,
    "crc32c": _CRC.match,
    "durable_crc32c": _CRC.match,
    "received_crc32c": _CRC.match,
    "digest": DIGESTS.__contains__,
    "digests": _is_digests,
    "scope": SCOPES.__contains__,
    "uploads": _are_uploads,
    "missing": _are_uploads,
    "standings": _are_standings,
    "max_streams": lambda streams: streams > 0,
    "max_chunk": lambda size: 0 < size <= MAX_CHUNK,
    **dict.fromkeys(
        ("retry_after", "auth_timeout", "heartbeat", "expires_in"),
        lambda seconds: 0 <= seconds < 1e9,
    ),
}


@dataclass(frozen=True, slots=True)
class Message:
    """Base of the control messages."""

    frame_type: ClassVar[FrameType]

    def __init_subclass__(cls) -> None:
        cls.frame_type = FrameType[cls.__name__.upper()]
        _BY_TYPE[cls.frame_type] = cls

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Build a message. Raises :class:`MalformedFrame`, which names the first missing or invalid field."""
        values = {}
        for name, (accepts, required) in _schema(cls).items():
            if name in fields:
                value = fields[name]
                rule = _RULES.get(name)
                if not accepts(value) or (rule and not rule(value)):
                    raise MalformedFrame(reason=f"{cls.__name__.upper()}: {name} is not valid")
                values[name] = value
            elif required:
                raise MalformedFrame(reason=f"{cls.__name__.upper()}: {name} is missing")
        return cls(**values)

    def to_fields(self) -> dict[str, Any]:
        """The JSON object, without fields that are None."""
        return {
            name: value
            for name in _schema(type(self))
            if (value := getattr(self, name)) is not None
        }

    def to_frame(self, stream: int, crc: CRC) -> bytes:
        return frames.build_control(self.frame_type, stream, self.to_fields(), crc)


# From the client ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Auth(Message):
    """Stream 0. Authenticates by a ticket; without one, asks the server to check the login again."""

    ticket: str | None = None


@dataclass(frozen=True, slots=True)
class Create(Message):
    """Opens a stream and creates an upload. Sent again with the same key, it attaches to that upload."""

    key: str
    name: str
    size: int | None = None
    """None: unknown until FINISH."""
    content_type: str = ""
    digest: str | None = None
    """The algorithm whose digest FINISH will contain, in addition to CRC-32C."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attach(Message):
    """Opens a stream and resumes an upload, also from another connection."""

    upload: str


@dataclass(frozen=True, slots=True)
class Proof(Message):
    """Answers ATTACHED with the CRCs of the client's first ``durable`` and ``received`` bytes."""

    durable_crc32c: str
    received_crc32c: str | None = None


@dataclass(frozen=True, slots=True)
class Finish(Message):
    size: int
    crc32c: str
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Cancels an upload: on an open stream that one, on a new stream the one named."""

    upload: str | None = None
    finished: bool | None = None
    """On a new stream: also cancel a completed upload that is not taken. None is false."""


@dataclass(frozen=True, slots=True)
class Release(Message):
    """Closes the stream; the upload stays unfinished. Ends a WATCH, too."""


@dataclass(frozen=True, slots=True)
class Paused(Message):
    """Answers PAUSE with the end of the last byte sent."""

    offset: int


@dataclass(frozen=True, slots=True)
class Query(Message):
    """Asks on a new stream for an upload's state, without resuming it."""

    upload: str


@dataclass(frozen=True, slots=True)
class Watch(Message):
    """Follows uploads on a new stream, which CHANGED answers until RELEASE."""

    scope: str
    """``uploads``: those named only; ``own``, ``all``: also those of the owner, or of all, that are under way."""
    uploads: list[str] = field(default_factory=list)


# From both ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Stream 0."""

    nonce: int = 0


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Stream 0. Answers PING with its nonce."""

    nonce: int = 0


# From the server ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Stream 0, the first frame of a connection."""

    connection_limit: int
    """The connection's first limit: bytes of DATA payload on all streams together."""
    stream_limit: int
    """The first limit of a stream opened by CREATE."""
    max_streams: int
    version: int = frames.VERSION
    max_frame: int = MAX_FRAME
    max_chunk: int = MAX_CHUNK
    window: int = 8 * 1024 * 1024
    """Bytes that may be sent beyond ``durable``: no limit exceeds this."""
    digests: list[str] = field(default_factory=lambda: list(DIGESTS))
    authenticated: bool = True
    """False: AUTH with a ticket is due within ``auth_timeout``."""
    auth_timeout: float = 5.0
    heartbeat: float = 20.0
    """Seconds. The client sends a message at least this often; after three times as long the server closes."""
    server: str = ""
    address: str | None = None
    """The client's address, as the server sees it and counts by it."""


@dataclass(frozen=True, slots=True)
class Authenticated(Message):
    """Stream 0. Answers AUTH."""

    user: str | None = None
    expires_in: float | None = None
    """Seconds until the ticket expires; None for a login."""


@dataclass(frozen=True, slots=True)
class Created(Message):
    upload: str
    name: str
    """The file's name, as cleaned by the server."""
    limit: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Attached(Message):
    """Answers ATTACH, and CREATE with a key that exists. The client answers with PROOF."""

    upload: str
    name: str
    durable: int
    received: int
    size: int | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """Answers PROOF. The next DATA begins at ``offset``."""

    offset: int
    durable: int
    limit: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """The latest offsets and limit of a stream. It replaces an older ACK that was not sent yet."""

    received: int
    durable: int
    limit: int
    chunk: int
    """Advised size of a chunk, bytes."""


@dataclass(frozen=True, slots=True)
class Rewind(Message):
    """The client sends again from ``offset``; its first frame has the RESTART flag."""

    offset: int
    durable: int
    limit: int
    code: str
    """The reason: ``corrupt_chunk`` or ``storage_error``."""


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """The client stops sending, answers PAUSED, and continues when an ACK raises the limit."""

    code: str = "busy"


@dataclass(frozen=True, slots=True)
class Progress(Message):
    """Progress after FINISH, while ``verifying``, ``inspecting`` or ``finalizing``."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Completed(Message):
    """The upload completed. Closes the stream. ATTACH to a completed upload gets the same answer."""

    upload: str
    name: str
    size: int
    crc32c: str
    stored_as: str
    digests: dict[str, str] = field(default_factory=dict)
    receipt: str | None = None
    """A signed receipt, which a form posts in place of the file."""
    response: dict[str, Any] | None = None
    """The app's own answer."""


@dataclass(frozen=True, slots=True)
class Cancelled(Message):
    """Closes the stream."""

    upload: str


@dataclass(frozen=True, slots=True)
class Released(Message):
    """Closes the stream."""

    durable: int


@dataclass(frozen=True, slots=True)
class Status(Message):
    """Closes the stream."""

    upload: str
    state: str
    name: str
    durable: int
    size: int | None = None
    stored_as: str | None = None
    error: str | None = None
    """The code of the error that ended the upload."""
    received: int | None = None
    """Where it is known to be more than ``durable``."""


@dataclass(frozen=True, slots=True)
class Changed(Message):
    """Answers WATCH: first with the uploads as they are now, then with those that changed."""

    standings: list[dict[str, Any]]
    """The fields of STATUS, for each upload."""
    missing: list[str] = field(default_factory=list)
    """Watched uploads that do not exist, or that the client may not watch."""


@dataclass(frozen=True, slots=True)
class Limit(Message):
    """Stream 0. The connection's new limit, which never decreases."""

    limit: int


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """Stream 0. The server will close: the client opens no stream, and reconnects after ``retry_after``."""

    retry_after: float = 1.0


@dataclass(frozen=True, slots=True)
class Error(Message):
    """An error. Closes the stream; on stream 0, the connection."""

    code: str
    message: str
    retryable: bool
    retry_after: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_exception(self) -> UploadError:
        facts = dict(self.facts)
        if self.retry_after is not None:
            facts["retry_after"] = self.retry_after
        error = from_code(self.code, self.message, facts)
        error.retryable = self.retryable
        return error


FROM_CLIENT: typing.Final = frozenset(kind for kind in FrameType if kind < FrameType.HELLO)


def parse_message(kind: FrameType, fields: Mapping[str, Any]) -> Message:
    """Build the message of a frame type other than DATA. Raises :class:`MalformedFrame`."""
    return _BY_TYPE[kind].from_fields(fields)


# Checking of types --------------------------------------------------------------------------------
# By hand, not by a library: every client would have to install it, and it would have to tell null from a missing field
# and bound the nesting, as JavaScript's half does. tests/vectors/frames.json holds both halves to the same answers.


def _schema(cls: type[Message]) -> dict[str, tuple[Callable[[object], bool], bool]]:
    """Map field names to (predicate of the value's type, is required); computed once per class."""
    found = _SCHEMAS.get(cls)
    if found is None:
        hints = typing.get_type_hints(cls)
        found = _SCHEMAS[cls] = {
            each.name: (
                _accepts(hints[each.name]),
                each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING,
            )
            for each in dataclasses.fields(cls)
        }
    return found


_SCHEMAS: dict[type[Message], dict[str, tuple[Callable[[object], bool], bool]]] = {}


def _accepts(hint: Any) -> Callable[[object], bool]:
    """Build a predicate for an annotation.

    Types must match exactly: ``true`` is not a number, and ``null`` is not a value. Integers fit an offset.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = {typing.get_origin(option) or option for option in options} - {types.NoneType}
    if float in kinds:
        kinds.add(int)
    if kinds == {int}:
        return lambda value: type(value) is int and 0 <= value <= frames.MAX_OFFSET
    return lambda value: type(value) in kinds
