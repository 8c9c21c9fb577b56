"""Tickets: short-lived, signed credentials for programs that have no login.

A ticket is bound to one endpoint, one user and that user's session-auth hash (a new password voids it). The client
sends it in its first message, never in a URL.
"""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core import signing

from . import conf
from .exceptions import TicketExpired, TicketInvalid

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

_SALT = "django_async_upload.ticket"


@dataclass(frozen=True, slots=True)
class Ticket:
    """The content of a ticket."""

    user: str
    """The user's primary key, as text."""
    auth_hash: str
    """See :func:`auth_hash`."""
    expires: float
    """Seconds since the epoch."""
    max_size: int | None
    """Largest file, bytes; None: the endpoint's limit."""


def auth_hash(session_auth_hash: str) -> str:
    """A hash of the session-auth hash: it changes with the user's password, and reveals neither.

    Its key is a constant: only a new ``session_auth_hash``, not a new ``SECRET_KEY`` itself, changes the result.
    """
    digest = hmac.digest(_SALT.encode(), session_auth_hash.encode(), "sha256")
    return digest.hex()[:32]


def issue_ticket(
    user: AbstractBaseUser,
    *,
    endpoint: str = "default",
    max_size: int | None = None,
    max_age: float | None = None,
) -> str:
    """Issue a ticket for ``user``, valid for ``max_age`` seconds (default: the setting ``TICKET_MAX_AGE``)."""
    lifetime = conf.uploads().ticket_max_age if max_age is None else max_age
    claims = {
        "u": str(user.pk),
        "e": endpoint,
        "h": auth_hash(user.get_session_auth_hash()),
        "x": time.time() + lifetime,
        "m": max_size,
    }
    return signing.dumps(claims, salt=_SALT, compress=True)


def read_ticket(text: str, *, endpoint: str) -> Ticket:
    """Verify a ticket. Raises :class:`TicketInvalid`, also for another endpoint's, and :class:`TicketExpired`."""
    try:
        claims = signing.loads(text, salt=_SALT)
    except (signing.BadSignature, UnicodeError) as error:
        raise TicketInvalid from error
    if claims["e"] != endpoint:
        raise TicketInvalid
    ticket = Ticket(claims["u"], claims["h"], claims["x"], claims["m"])
    if ticket.expires <= time.time():
        raise TicketExpired
    return ticket
