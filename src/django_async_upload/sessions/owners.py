"""Owners of uploads: authenticated when a connection opens, and checked against the database from then on."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare, get_random_string

from .. import conf
from ..exceptions import AuthenticationRequired, TicketExpired, UploadError
from ..tickets import Ticket, auth_hash

SESSION_TOKEN = "async_upload_owner"  # noqa: S105  (the name of a key)


@dataclass(frozen=True, slots=True)
class Owner:
    """The user or visitor who owns uploads, and the credential that proves it. Compare ``key``, never a NULL."""

    key: str
    """``user:<pk>``, or ``visitor:<token>``; rows are compared by it."""
    user: AbstractBaseUser | AnonymousUser
    """The user as last read from the database."""
    session: SessionBase | None = None
    """The session of the login, or of the visitor."""
    ticket: Ticket | None = None

    @property
    def user_id(self) -> Any:
        return self.user.pk

    @property
    def expires_in(self) -> float | None:
        """Seconds until the ticket expires; None for a login."""
        return None if self.ticket is None else max(0.0, self.ticket.expires - time.time())

    @property
    def credential(self) -> Hashable:
        """Equal for owners with the same login or ticket, whom one check covers."""
        session_key = None if self.session is None else self.session.session_key
        return self.key, session_key, self.ticket

    def check(self) -> Owner:
        """Authenticate again: the same owner, read from the database.

        Raises :class:`AuthenticationRequired` where the login ended, the password was changed or the user is no
        longer active, and :class:`TicketExpired`.
        """
        if self.ticket is not None:
            return owner_from_ticket(self.ticket)
        if self.session is not None:
            fresh = type(self.session)(self.session.session_key)
            return owner_from_session(fresh, self.key)
        return _owner_from_user(get_user_model()._default_manager.filter(pk=self.user_id).first())


def owner_from_ticket(ticket: Ticket) -> Owner:
    if ticket.expires <= time.time():
        raise TicketExpired
    user = get_user_model()._default_manager.filter(pk=ticket.user).first()
    owner = _owner_from_user(user)
    if not any(
        constant_time_compare(ticket.auth_hash, auth_hash(each)) for each in _hashes(owner.user)
    ):
        raise AuthenticationRequired
    return Owner(owner.key, owner.user, ticket=ticket)


def owner_from_session(session: SessionBase, expected: str | None = None) -> Owner:
    """The owner by a session: its signed-in user, else the visitor whose token it contains.

    ``expected`` is the owner key that the result must have. Raises :class:`AuthenticationRequired`.
    """
    user = _signed_in(session)
    if user is not None:
        owner = Owner(_owner_from_user(user).key, user, session=session)
    elif conf.uploads().allow_anonymous and (token := session.get(SESSION_TOKEN)):
        owner = Owner(f"visitor:{token}", AnonymousUser(), session=session)
    else:
        raise AuthenticationRequired
    if expected is not None and owner.key != expected:
        raise AuthenticationRequired
    return owner


def _signed_in(session: SessionBase) -> Any:
    """The signed-in user of a session, or None.

    ``django.contrib.auth.get_user`` finds the same user, but may give the session a new key or empty it, and a
    WebSocket cannot send the browser a new cookie.
    """
    try:
        pk = get_user_model()._meta.pk.to_python(session[SESSION_KEY])
        backend = session[BACKEND_SESSION_KEY]
    except KeyError:
        return None
    if backend not in settings.AUTHENTICATION_BACKENDS:
        return None
    user = load_backend(backend).get_user(pk)
    known = session.get(HASH_SESSION_KEY)
    if user is None or not known:
        return None
    return user if any(constant_time_compare(known, each) for each in _hashes(user)) else None


def _hashes(user: Any) -> Iterator[str]:
    """The user's session-auth hashes, including those by ``SECRET_KEY_FALLBACKS``."""
    yield user.get_session_auth_hash()
    yield from user.get_session_auth_fallback_hash()


def owner_of_request(
    request: HttpRequest, user: AbstractBaseUser | AnonymousUser | None = None
) -> Owner:
    """The owner by a request: its user (or ``user``, authenticated in another way), else its session's visitor.

    A visitor who has signed in is a user: earlier uploads have no owner any more. Raises
    :class:`AuthenticationRequired`.
    """
    user = request.user if user is None else user
    if user.is_authenticated:
        return _owner_from_user(user)
    session = getattr(request, "session", {})
    if conf.uploads().allow_anonymous and (token := session.get(SESSION_TOKEN)):
        return Owner(f"visitor:{token}", AnonymousUser())
    raise AuthenticationRequired


def owner_from_scope_user(user: AbstractBaseUser | AnonymousUser | None) -> Owner:
    """The owner where the host's own middleware sets ``scope["user"]`` without a session."""
    if user is None or not user.is_authenticated:
        raise AuthenticationRequired
    return _owner_from_user(user)


def ensure_visitor(request: HttpRequest) -> None:
    """Let an anonymous visitor upload: put a random token into the session's data.

    Call it in the view that renders the page, where ``ALLOW_ANONYMOUS`` is set; the response sets the session's cookie.
    """
    if not request.session.get(SESSION_TOKEN):
        request.session[SESSION_TOKEN] = get_random_string(32)


def _owner_from_user(user: Any) -> Owner:
    if user is None or not user.is_active:
        raise AuthenticationRequired
    return Owner(f"user:{user.pk}", user)


def look_up(items: Sequence[Any]) -> list[Owner | UploadError]:
    """Authenticate sessions, scope users, tickets or owners, one item per caller, for :meth:`Database.call`.

    The same item, or owner, from several callers is read once.
    """
    found: dict[Hashable, Owner | UploadError] = {}
    keys = [item.credential if isinstance(item, Owner) else id(item) for item in items]
    for key, item in zip(keys, items, strict=True):
        if key not in found:
            try:
                found[key] = _look_up(item)
            except UploadError as error:
                found[key] = error
    return [found[key] for key in keys]


def _look_up(item: Any) -> Owner:
    match item:
        case Owner():
            return item.check()
        case SessionBase():
            return owner_from_session(item)
        case dict():
            return owner_from_scope_user(item.get("user"))
        case _:
            return owner_from_ticket(item)
