"""Every error that an upload can end with, for hosts, for the server's shells and for the client.

UploadError
├── ProtocolViolation            the connection is closed
│   ├── MalformedFrame           malformed_frame
│   ├── CorruptFrame             corrupt_frame          (retryable)
│   ├── UnexpectedMessage        unexpected_message
│   ├── UnknownStream            unknown_stream
│   ├── FlowControlViolation     flow_control
│   ├── TooManyStreams           too_many_streams
│   ├── MalformedRequest         malformed_request      (these four: an HTTP request fails)
│   ├── VersionUnsupported       version_unsupported
│   ├── MethodRefused            method_refused
│   ├── MediaTypeRefused         media_type_refused
│   └── SubprotocolRequired      subprotocol_required
├── ConnectionRefused            the connection is closed
│   ├── AuthenticationRequired   authentication_required (retryable: after signing in again)
│   ├── AuthenticationTimeout    authentication_timeout  (retryable)
│   ├── TicketInvalid            ticket_invalid
│   ├── TicketExpired            ticket_expired          (retryable: with a new ticket)
│   ├── TooManyConnections       too_many_connections    (retryable)
│   ├── IdleTimeout              idle_timeout            (retryable)
│   ├── OriginRefused            origin_refused
│   └── Draining                 draining                (retryable)
├── UploadRefused                a rule of the host refuses the upload; nothing is kept
│   ├── PermissionRefused        permission_denied
│   ├── FileTooLarge             file_too_large
│   ├── TypeRefused              type_refused
│   ├── NameRefused              name_refused
│   ├── MetadataInvalid          metadata_invalid
│   ├── FileRefused              file_refused
│   ├── PartsRefused             parts_refused
│   ├── SessionQuotaExceeded     session_quota           (retryable)
│   └── ByteQuotaExceeded        byte_quota              (retryable)
├── UploadInterrupted            this connection has lost the upload, which can be resumed
│   ├── TakenOver                taken_over
│   ├── WrongOffset              wrong_offset            (retryable)
│   ├── ContentMismatch          content_mismatch        (retryable)
│   ├── SizeMismatch             size_mismatch           (retryable)
│   ├── Busy                     busy                    (retryable)
│   ├── TooSlow                  too_slow                (retryable)
│   ├── StorageFull              storage_full            (retryable)
│   ├── StorageFailed            storage_error           (retryable)
│   ├── DatabaseUnavailable      database_unavailable    (retryable)
│   ├── DatabaseNotMigrated      database_not_migrated
│   └── InternalError            internal_error          (retryable)
├── UploadFailed                 the upload has ended
│   ├── NotFound                 not_found
│   ├── UploadOver               upload_over
│   ├── Joined                   joined
│   ├── KeyReused                key_reused
│   ├── FileChanged              file_changed
│   ├── DataLost                 data_lost
│   ├── SizeExceeded             size_exceeded
│   ├── CorruptChunks            corrupt_chunks
│   └── DigestMismatch           digest_mismatch
├── BindError                    the host bound a file that cannot be bound
│   ├── NotCompleted             not_completed
│   └── AlreadyBound             already_bound
└── ConnectionLost               connection_lost         (client only; retryable)

An error contains no close code and no HTTP status: each shell has one table that maps errors to them.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar


class UploadError(Exception):
    """Base of every error of this package.

    ``code`` is stable: programs may compare it. ``message`` is English for people and may change.
    ``retryable`` says whether the same attempt can succeed later. ``facts`` holds the figures
    behind the message, as JSON values: other values (a lazy string, a decimal, an id) are converted to text, and
    NaN raises :class:`ValueError`.
    """

    code: ClassVar[str] = "upload_error"
    retryable: bool = False
    template: ClassVar[str] = "The upload failed."

    def __init__(self, message: str | None = None, /, **facts: Any) -> None:
        self.facts: dict[str, Any] = json.loads(json.dumps(facts, default=str, allow_nan=False))
        self.message = str(message or self.template.format_map(_Facts(self.facts)))
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)

    @property
    def is_final(self) -> bool:
        """Whether this error ends the upload: it failed, or was refused for good."""
        return isinstance(self, UploadFailed | UploadRefused) and not self.retryable

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before another attempt, where the server gave a number."""
        return self.facts.get("retry_after")


class _Facts(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def _rebuild(cls: type[UploadError], message: str, facts: dict[str, Any]) -> UploadError:
    return cls(message, **facts)


# The connection is closed -------------------------------------------------------------------------


class ProtocolViolation(UploadError):
    """The peer violated the protocol; the connection is closed and nothing was changed."""

    code = "protocol_violation"
    template = "The peer violated the upload protocol."


class MalformedFrame(ProtocolViolation):
    code = "malformed_frame"
    template = "Not a frame of this protocol: {reason}."


class CorruptFrame(ProtocolViolation):
    """A checksum did not match, and the header cannot be trusted to name the frame's stream."""

    code = "corrupt_frame"
    retryable = True
    template = "A frame was damaged in transit."


class UnexpectedMessage(ProtocolViolation):
    code = "unexpected_message"
    template = "{type} is not expected here ({state})."


class UnknownStream(ProtocolViolation):
    code = "unknown_stream"
    template = "Stream {stream} was never opened."


class FlowControlViolation(ProtocolViolation):
    code = "flow_control"
    template = "Data up to {end} was sent; the limit is {limit}."


class TooManyStreams(ProtocolViolation):
    code = "too_many_streams"
    template = "At most {max_streams} streams may be open at once."


class SubprotocolRequired(ProtocolViolation):
    code = "subprotocol_required"
    template = "Offer the WebSocket subprotocol {subprotocol}."


class MalformedRequest(ProtocolViolation):
    """An HTTP request that no language of this address has."""

    code = "malformed_request"
    template = "The request is not valid: {reason}."


class VersionUnsupported(ProtocolViolation):
    code = "version_unsupported"
    template = "This version of the protocol is not supported: {version}."


class MethodRefused(ProtocolViolation):
    code = "method_refused"
    template = "{method} is not possible here."


class MediaTypeRefused(ProtocolViolation):
    code = "media_type_refused"
    template = "The Content-Type has to be {expected}."


class ConnectionRefused(UploadError):
    """The server refuses this client, and closes the connection."""

    code = "connection_refused"
    template = "The server refused the connection."


class AuthenticationRequired(ConnectionRefused):
    code = "authentication_required"
    retryable = True
    template = "Sign in, or send a ticket."


class AuthenticationTimeout(ConnectionRefused):
    code = "authentication_timeout"
    retryable = True
    template = "No ticket was received within {seconds} s."


class TicketInvalid(ConnectionRefused):
    code = "ticket_invalid"
    template = "The ticket is not valid here."


class TicketExpired(ConnectionRefused):
    code = "ticket_expired"
    retryable = True
    template = "The ticket has expired."


class TooManyConnections(ConnectionRefused):
    code = "too_many_connections"
    retryable = True
    template = "At most {max_connections} connections may be open at once."


class IdleTimeout(ConnectionRefused):
    code = "idle_timeout"
    retryable = True
    template = "Nothing was received for {seconds} s."


class OriginRefused(ConnectionRefused):
    """A page of another site sent the request."""

    code = "origin_refused"
    template = "Pages of {origin} may not upload here."


class Draining(ConnectionRefused):
    code = "draining"
    retryable = True
    template = "The server is about to restart."


# A rule of the host refuses the upload ------------------------------------------------------------


class UploadRefused(UploadError):
    """A rule of the host refuses this upload. Hooks raise it, or a subclass."""

    code = "upload_refused"
    template = "This upload is not allowed."


class PermissionRefused(UploadRefused):
    code = "permission_denied"
    template = "You may not upload here."


class FileTooLarge(UploadRefused):
    code = "file_too_large"
    template = "The file has {size} bytes; at most {max_size} are allowed."


class TypeRefused(UploadRefused):
    code = "type_refused"
    template = "Files of type {type} are not allowed."


class NameRefused(UploadRefused):
    code = "name_refused"
    template = "This file name is not allowed."


class MetadataInvalid(UploadRefused):
    code = "metadata_invalid"
    template = "The metadata is not valid: {reason}."


class FileRefused(UploadRefused):
    """The ``inspect`` hook refused the whole file."""

    code = "file_refused"
    template = "The file was refused."


class PartsRefused(UploadRefused):
    """Partial uploads that cannot be concatenated."""

    code = "parts_refused"
    template = "The uploads cannot be concatenated: {reason}."


class SessionQuotaExceeded(UploadRefused):
    code = "session_quota"
    retryable = True
    template = (
        "At most {max_sessions} uploads may be open, or have ended unfinished within the last hour."
    )


class ByteQuotaExceeded(UploadRefused):
    code = "byte_quota"
    retryable = True
    template = "Open uploads may hold {max_bytes} bytes at most; {open_bytes} are in use."


# This connection has lost the upload --------------------------------------------------------------


class UploadInterrupted(UploadError):
    """The stream is closed; the upload is unchanged and can be resumed."""

    code = "upload_interrupted"
    retryable = True
    template = "The upload was interrupted."


class TakenOver(UploadInterrupted):
    """Another connection resumed the upload. Never retried automatically: two clients would alternate for ever."""

    code = "taken_over"
    retryable = False
    template = "Another connection has taken this upload over."


class WrongOffset(UploadInterrupted):
    code = "wrong_offset"
    template = "Data was received at offset {offset}; {expected} was expected."


class ContentMismatch(UploadInterrupted):
    """The body of an HTTP request did not have the checksum that its headers gave. It was discarded."""

    code = "content_mismatch"
    template = "The {algorithm} of the body differs from the one in the headers."


class SizeMismatch(UploadInterrupted):
    """Retryable only where bytes are missing: not where the size contradicts the declared one, or what was received."""

    code = "size_mismatch"
    template = "The upload was finished at {size} bytes; {received} were received."

    def __init__(self, message: str | None = None, /, **facts: Any) -> None:
        super().__init__(message, **facts)
        size, received, declared = (facts.get(name) for name in ("size", "received", "declared"))
        if size is not None and received is not None:
            self.retryable = received < size and declared in (None, size)


class Busy(UploadInterrupted):
    code = "busy"
    template = "The server is busy."


class TooSlow(UploadInterrupted):
    """The client sent less than the setting ``MIN_RATE`` asks for."""

    code = "too_slow"
    template = "Less than {min_rate} bytes a second were received."


class StorageFull(UploadInterrupted):
    code = "storage_full"
    template = "The server has no room for this file."


class StorageFailed(UploadInterrupted):
    code = "storage_error"
    template = "The server could not write the file."


class DatabaseUnavailable(UploadInterrupted):
    code = "database_unavailable"
    template = "The server's database does not answer."


class DatabaseNotMigrated(UploadInterrupted):
    """Tables of this app are missing. No client retries: the operator has to run ``migrate``."""

    code = "database_not_migrated"
    retryable = False
    template = "The server's database is not prepared for uploads."


class InternalError(UploadInterrupted):
    code = "internal_error"
    template = "The server has a problem."


# The upload has ended -----------------------------------------------------------------------------


class UploadFailed(UploadError):
    """The upload has ended, or never existed; the same attempt cannot succeed later."""

    code = "upload_failed"
    template = "The upload failed."


class NotFound(UploadFailed):
    """There is no such upload, or another owner's: both get the same answer."""

    code = "not_found"
    template = "There is no such upload."


class UploadOver(UploadFailed):
    code = "upload_over"
    template = "The upload is over: {state}."


class Joined(UploadFailed):
    """A partial upload was concatenated with others, and deleted."""

    code = "joined"
    template = "The upload has become a part of upload {upload}."


class KeyReused(UploadFailed):
    code = "key_reused"
    template = "This key belongs to an upload with another {field}."


class FileChanged(UploadFailed):
    code = "file_changed"
    template = "The file is not the one that was begun: its first {offset} bytes differ."


class DataLost(UploadFailed):
    """Bytes are missing that were acknowledged as durable, or that the client has discarded."""

    code = "data_lost"
    template = "Bytes that were acknowledged up to {durable} are gone; {proved} can be proved."


class SizeExceeded(UploadFailed):
    code = "size_exceeded"
    template = "Data up to {end} was sent; the declared size is {size}."


class CorruptChunks(UploadFailed):
    code = "corrupt_chunks"
    template = "The chunk at {offset} was damaged {times} times in a row."


class DigestMismatch(UploadFailed):
    code = "digest_mismatch"
    template = "The file's {algorithm} is {actual}; the sender's is {expected}."


# Hosts and clients --------------------------------------------------------------------------------


class BindError(UploadError):
    code = "bind_error"
    template = "The file cannot be bound."


class NotCompleted(BindError):
    code = "not_completed"
    template = "The upload is {state}, not completed."


class AlreadyBound(BindError):
    code = "already_bound"
    template = "The file is bound already."


class ConnectionLost(UploadError):
    """Client only: the server cannot be reached, or the connection broke."""

    code = "connection_lost"
    retryable = True
    template = "The connection to the server was lost."


def _tree(cls: type[UploadError]) -> list[type[UploadError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


BY_CODE: dict[str, type[UploadError]] = {cls.code: cls for cls in _tree(UploadError)}


def from_code(code: str, message: str, facts: dict[str, Any]) -> UploadError:
    """The error that a peer reported. An unknown code (a newer peer) gives an :class:`UploadError`."""
    cls = BY_CODE.get(code, UploadError)
    error = cls(message, **facts)
    if cls.code != code:
        error.facts = {**facts, "code": code}
    return error
