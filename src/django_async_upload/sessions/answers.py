"""The app's own answer to a finished upload: what it may be, and which process asks for it.

Each client gets the answer that the row has. The row says until when a process asks the app for it, so that no other
process asks meanwhile. If that process dies, no client has an answer yet, and another process may ask.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from django.db.models import Q
from django.utils import timezone

from ..exceptions import Busy, NotFound, UploadError
from ..models import UploadSession
from .policies import has_nul

MAX_RESPONSE: Final = 16 * 1024
"""Bytes of the answer as JSON in UTF-8."""
MAX_DEPTH: Final = 31
"""Objects and arrays within each other: a frame has 32, the object that the answer is a field of being the first."""


class InvalidAnswer(ValueError):
    """An app's answer that a client or a database could not take."""


@dataclass(frozen=True, slots=True)
class Asking:
    upload: uuid.UUID
    until: datetime
    """A time that no other process writes: by it a second run, after a COMMIT without answer, knows its work."""


@dataclass(frozen=True, slots=True)
class Answer:
    upload: uuid.UUID
    response: dict[str, Any]


def as_json(answer: object) -> dict[str, Any]:
    """An app's answer as everybody will read it from the row; None is ``{}``.

    Raises :class:`InvalidAnswer`, which says why.
    """
    if answer is None:
        return {}
    if not isinstance(answer, Mapping):
        raise InvalidAnswer(f"{type(answer).__name__} is no JSON object")
    try:
        text = json.dumps(dict(answer), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except RecursionError as error:
        raise InvalidAnswer("it is nested too deep") from error
    except (TypeError, ValueError) as error:  # names what JSON does not know
        raise InvalidAnswer(str(error)) from error
    if has_nul(text):
        raise InvalidAnswer("it contains a NUL")
    if size <= MAX_RESPONSE:
        response: dict[str, Any] = json.loads(text)
        size += _growth(response, MAX_DEPTH)
    if size > MAX_RESPONSE:
        raise InvalidAnswer(f"{size} bytes are more than {MAX_RESPONSE}")
    return response


def _growth(value: Any, depth: int) -> int:
    """How many bytes longer JSON is when it was in a PostgreSQL column, which writes 1e300 out."""
    if isinstance(value, dict | list):
        if not depth:
            raise InvalidAnswer(f"it is nested deeper than {MAX_DEPTH}")
        return sum(_growth(each, depth - 1) for each in _within(value))
    if isinstance(value, float):
        return max(0, len(format(Decimal(repr(value)), "f")) - len(repr(value)))
    if isinstance(value, int):
        try:
            float(value)
        except OverflowError as error:
            raise InvalidAnswer("a number is beyond a double") from error
    return 0


def _within(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def ask(items: Sequence[Asking]) -> list[UploadSession | UploadError]:
    """Mark finished uploads without an answer: the caller asks for it where the returned session still has none.

    :class:`Busy` where another process is asking.
    """
    now = timezone.now()
    free = Q(response_due=None) | Q(response_due__lte=now)
    for item in items:
        unanswered = UploadSession.objects.completed().filter(pk=item.upload, response__isnull=True)
        unanswered.filter(free).update(response_due=item.until)
    sessions = UploadSession.objects.in_bulk([item.upload for item in items])
    return [_asked(item, sessions.get(item.upload)) for item in items]


def _asked(item: Asking, session: UploadSession | None) -> UploadSession | UploadError:
    if session is None:
        return NotFound()
    if session.is_completed and session.response is None and session.response_due != item.until:
        return Busy(retry_after=1.0)
    return session


def save(items: Sequence[Answer]) -> list[UploadSession | UploadError]:
    """Write answers down; returns the sessions, with the answer that was there first."""
    for item in items:
        unanswered = UploadSession.objects.completed().filter(pk=item.upload, response__isnull=True)
        unanswered.update(response=item.response, response_due=None)
    sessions = UploadSession.objects.in_bulk([item.upload for item in items])
    return [sessions.get(item.upload) or NotFound() for item in items]
