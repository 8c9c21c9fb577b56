"""Tickets: bound to an endpoint, a user and the user's password; short-lived."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.core import signing

from django_async_upload.exceptions import TicketExpired, TicketInvalid
from django_async_upload.tickets import auth_hash, issue_ticket, read_ticket

pytest_plugins = ["tests.fixtures"]


def test_a_ticket_says_what_was_put_in(alice: Any) -> None:
    ticket = read_ticket(issue_ticket(alice, max_size=7), endpoint="default")
    assert (ticket.user, ticket.max_size) == (str(alice.pk), 7)
    assert ticket.auth_hash == auth_hash(alice.get_session_auth_hash())
    assert ticket.expires == pytest.approx(time.time() + 900, abs=5)


def test_how_long_it_holds_is_a_setting(alice: Any, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"TICKET_MAX_AGE": 60}
    ticket = read_ticket(issue_ticket(alice), endpoint="default")
    assert ticket.expires == pytest.approx(time.time() + 60, abs=5)


def test_an_expired_one_is_told_from_a_forged_one(alice: Any) -> None:
    with pytest.raises(TicketExpired):
        read_ticket(issue_ticket(alice, max_age=0), endpoint="default")


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_a_changed_ticket_is_refused(alice: Any, place: int) -> None:
    text = issue_ticket(alice)
    changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    with pytest.raises(TicketInvalid):
        read_ticket(changed, endpoint="default")


@pytest.mark.parametrize(
    "text",
    ["", "junk", ":::", "\0", "é" * 100, signing.dumps({"u": "1"})],
    ids=["empty", "junk", "colons", "nul", "not ascii", "signed for something else"],
)
def test_junk_is_refused(text: str) -> None:
    with pytest.raises(TicketInvalid):
        read_ticket(text, endpoint="default")


def test_another_endpoints_ticket_is_refused(alice: Any) -> None:
    with pytest.raises(TicketInvalid):
        read_ticket(issue_ticket(alice, endpoint="other"), endpoint="default")
    assert read_ticket(issue_ticket(alice, endpoint="other"), endpoint="other")


def test_another_sites_ticket_is_refused(alice: Any, settings: Any) -> None:
    text = issue_ticket(alice)
    settings.SECRET_KEY = "another"
    with pytest.raises(TicketInvalid):
        read_ticket(text, endpoint="default")


def test_the_hash_changes_with_the_password_and_tells_nothing(alice: Any) -> None:
    before = auth_hash(alice.get_session_auth_hash())
    alice.set_password("another")
    assert auth_hash(alice.get_session_auth_hash()) != before
    assert before not in alice.get_session_auth_hash()
