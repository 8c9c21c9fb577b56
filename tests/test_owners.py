"""Owners: found once, then checked against the database."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.test import Client, RequestFactory

from django_async_upload.exceptions import AuthenticationRequired, TicketExpired
from django_async_upload.sessions.owners import (
    SESSION_TOKEN,
    Owner,
    ensure_visitor,
    owner_from_scope_user,
    owner_from_session,
    owner_from_ticket,
)
from django_async_upload.tickets import issue_ticket, read_ticket

pytest_plugins = ["tests.fixtures"]


def session_of(login: Client) -> SessionStore:
    return SessionStore(login.cookies["sessionid"].value)


def set_password(user: Any) -> None:
    user.set_password("another")
    user.save()


def deactivate(user: Any) -> None:
    user.is_active = False
    user.save()


def delete(user: Any) -> None:
    user.delete()


@pytest.mark.parametrize("end", [None, set_password, deactivate, delete])
@pytest.mark.parametrize("how", ["session", "ticket", "scope"])
def test_an_owner_is_looked_at_again(alice: Any, login: Client, how: str, end: Any) -> None:
    if how == "session":
        owner = owner_from_session(session_of(login))
    elif how == "ticket":
        owner = owner_from_ticket(read_ticket(issue_ticket(alice), endpoint="default"))
    else:
        owner = owner_from_scope_user(alice)
    assert (owner.key, owner.user_id) == (f"user:{alice.pk}", alice.pk)
    if end is not None:
        end(alice)
    if end is None or (how == "scope" and end is set_password):  # the host checks these itself
        assert owner.check().key == owner.key
    else:
        with pytest.raises(AuthenticationRequired):
            owner.check()


def test_a_logout_ends_a_login(login: Client) -> None:
    owner = owner_from_session(session_of(login))
    login.logout()
    with pytest.raises(AuthenticationRequired):
        owner.check()


def test_a_session_that_is_another_users_now_is_not_the_owners(
    login: Client, alice: Any, bob: Any
) -> None:
    owner = owner_from_session(session_of(login))
    with pytest.raises(AuthenticationRequired):
        owner_from_session(session_of(login), f"user:{bob.pk}")
    assert owner_from_session(session_of(login), owner.key)


def test_a_ticket_runs_out(alice: Any) -> None:
    owner = owner_from_ticket(read_ticket(issue_ticket(alice, max_age=0.05), endpoint="default"))
    assert owner.expires_in == pytest.approx(0.05, abs=0.05)
    time.sleep(0.06)
    with pytest.raises(TicketExpired):
        owner.check()


def test_a_login_has_no_end_of_its_own(login: Client) -> None:
    assert owner_from_session(session_of(login)).expires_in is None


@pytest.mark.parametrize("user", [None, AnonymousUser()])
def test_without_a_user_there_is_no_owner(user: Any) -> None:
    with pytest.raises(AuthenticationRequired):
        owner_from_scope_user(user)


def visit() -> SessionStore:
    request = RequestFactory().get("/")
    request.session = SessionStore()
    ensure_visitor(request)
    request.session.save()
    return SessionStore(request.session.session_key)


def test_visitors_are_known_by_a_token_where_they_may_upload(db: None, settings: Any) -> None:
    with pytest.raises(AuthenticationRequired):
        owner_from_session(visit())
    settings.ASYNC_UPLOAD = {"ALLOW_ANONYMOUS": True}
    one, other = owner_from_session(visit()), owner_from_session(visit())
    assert one.key != other.key
    assert one.check().key == one.key
    assert one.user_id is None
    assert one.session is not None
    assert one.session.session_key not in one.key
    with pytest.raises(AuthenticationRequired):  # a visitor without a token
        owner_from_session(SessionStore())
    settings.ASYNC_UPLOAD = {}
    with pytest.raises(AuthenticationRequired):
        one.check()


def test_a_visitor_keeps_the_token(db: None) -> None:
    request = RequestFactory().get("/")
    request.session = SessionStore()
    ensure_visitor(request)
    token = request.session[SESSION_TOKEN]
    ensure_visitor(request)
    assert request.session[SESSION_TOKEN] == token
    assert len(token) >= 32


def test_a_visitor_who_signs_in_is_another_owner(login: Client, alice: Any, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"ALLOW_ANONYMOUS": True}
    session = session_of(login)
    session[SESSION_TOKEN] = "token"
    session.save()
    assert owner_from_session(session_of(login)).key == f"user:{alice.pk}"
    visitor = Owner("visitor:token", AnonymousUser(), session=session_of(login))
    with pytest.raises(AuthenticationRequired):
        visitor.check()
