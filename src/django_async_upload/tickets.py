"""Tickets: short-lived, signed proofs of who uploads, for programs that have no login.

A ticket is bound to one endpoint, one user and that user's session-auth hash (a new password voids it). It
travels in the first message, never in a URL.
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
    """What a ticket says."""

    user: str
    """The user's primary key, as text."""
    auth_hash: str
    """See :func:`auth_hash`."""
    expires: float
    """Seconds since the epoch."""
    max_size: int | None
    """Largest file, bytes; None is as the endpoint has it."""


def auth_hash(session_auth_hash: str) -> str:
    """Changes with the user's password, as the session-auth hash does; tells nothing about either.

    Under a key of its own: a new ``SECRET_KEY`` changes what it is given, and nothing else.
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
    """A ticket for ``user``, valid for ``max_age`` seconds (default: the setting ``TICKET_MAX_AGE``)."""
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
    """Raises :class:`TicketInvalid` (also for one of another endpoint) and :class:`TicketExpired`."""
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
