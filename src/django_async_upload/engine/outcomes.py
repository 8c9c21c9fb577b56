"""Results of the use cases, each a type of its own. Everything else is raised as an error."""

from __future__ import annotations

from dataclasses import dataclass

from ..models import UploadSession
from ..sessions import rows
from ..sessions.state import PUBLISHED, State

# Of CREATE and ATTACH ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    """A new upload: the client may send."""

    session: UploadSession


@dataclass(frozen=True, slots=True)
class Known:
    """The upload of an earlier CREATE with the same key: it can be attached."""

    session: UploadSession


@dataclass(frozen=True, slots=True)
class Attached:
    """The upload was taken over from its holder, and can be resumed."""

    session: UploadSession


@dataclass(frozen=True, slots=True)
class Finishing:
    """The upload is past writing: the result of its verification and publication is the answer."""

    session: UploadSession


# Of an upload, or of its attachment ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Published:
    session: UploadSession


@dataclass(frozen=True, slots=True)
class Cancelled:
    session: UploadSession


@dataclass(frozen=True, slots=True)
class Released:
    """The client released the upload, which stays unfinished."""

    durable: int
    """The offset at which it can be resumed."""


End = Published | Cancelled


def end_of(session: UploadSession) -> End:
    """The end of an upload, by its state. Raises the error of one that has failed, has expired or has not ended."""
    if session.state in PUBLISHED:
        return Published(session)
    if session.state == State.CANCELLED:
        return Cancelled(session)
    raise rows.error_of(session)
