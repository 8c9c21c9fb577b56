"""The session and the outbox as a host sees them: their properties, and what a state allows."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.utils import timezone

from django_async_upload.exceptions import AlreadyBound, NotCompleted
from django_async_upload.models import STATE_CHOICES, CompletionEvent, UploadSession
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import ACTIVE, OVER, PUBLISHED, State
from django_async_upload.stores.base import Checkpoint

from .fixtures import crc, new_key, publish

pytest_plugins = ["tests.fixtures"]


def make(owner: Owner, **fields: Any) -> UploadSession:
    return UploadSession.objects.create(
        key=new_key(), owner_id=owner.user_id, owner_key=owner.key, name="a.bin", **fields
    )


@pytest.fixture
def one_of_each(owner: Owner) -> dict[State, UploadSession]:
    return {state: make(owner, state=state) for state in State}


def states(sessions: Any) -> set[str]:
    return {session.state for session in sessions}


def test_querysets_ask_for_groups_of_states(one_of_each: Any) -> None:
    assert states(UploadSession.objects.active()) == ACTIVE
    assert states(UploadSession.objects.completed()) == PUBLISHED
    assert states(UploadSession.objects.ended()) == OVER
    assert set(State) == ACTIVE | PUBLISHED | OVER


def test_a_user_sees_only_what_is_theirs_and_a_visitor_nothing(
    owner: Owner, alice: Any, bob: Any
) -> None:
    mine = make(owner)
    UploadSession.objects.create(key=new_key(), owner_key="visitor:token", name="b")
    assert list(UploadSession.objects.for_user(alice)) == [mine]
    assert not UploadSession.objects.for_user(bob)
    assert not UploadSession.objects.for_user(AnonymousUser())


def test_expired_are_active_ones_without_a_sign_of_life_but_never_a_publication(
    owner: Owner,
) -> None:
    now = timezone.now()
    for state in State:
        make(owner, state=state, expires_at=now - timedelta(seconds=1))
        make(owner, state=state, expires_at=now + timedelta(seconds=1))
        make(owner, state=state)
    expired = UploadSession.objects.expired(now)
    assert states(expired) == ACTIVE - {State.FINALIZING}
    assert expired.count() == 4
    assert UploadSession.objects.expired(now + timedelta(seconds=2)).count() == 8


def test_every_state_can_be_shown(one_of_each: Any) -> None:
    assert [value for value, _label in STATE_CHOICES] == [str(state) for state in State]
    for session in one_of_each.values():
        session.full_clean(exclude=["endpoint"])
        assert str(session) == f"a.bin ({session.get_state_display()})"


def test_a_state_that_is_none_is_refused(owner: Owner) -> None:
    with pytest.raises(ValidationError):
        make(owner, state="nonsense", endpoint="default").full_clean()


def test_a_key_is_unique_per_owner_and_endpoint(owner: Owner) -> None:
    first = make(owner)
    with pytest.raises(IntegrityError), transaction.atomic():
        UploadSession.objects.create(key=first.key, owner_key=owner.key, name="b")
    UploadSession.objects.create(key=first.key, owner_key=owner.key, name="b", endpoint="other")
    UploadSession.objects.create(key=first.key, owner_key="user:0", name="b")


def test_a_session_tells_its_checkpoint_and_crc(owner: Owner) -> None:
    session = make(owner, part="p", durable=7, crc=0xABC, token="b")
    assert session.checkpoint == Checkpoint("p", 7, 0xABC, "b")
    assert session.crc32c == "00000abc"


def test_large_offsets_fit(owner: Owner) -> None:
    session = make(owner, size=2**48 - 1, durable=2**48 - 1, crc=2**32 - 1)
    session.refresh_from_db()
    assert (session.size, session.durable, session.crc32c) == (2**48 - 1, 2**48 - 1, "ffffffff")


def test_the_file_of_a_completed_upload_opens(owner: Owner, media: Path) -> None:
    session = publish(owner, b"hello")
    with session.file as file:
        assert file.read() == b"hello"
    assert session.is_completed
    assert session.crc32c == crc(b"hello")


@pytest.mark.parametrize("state", sorted(set(State) - PUBLISHED))
def test_an_upload_that_has_not_completed_has_no_file(owner: Owner, state: State) -> None:
    session = make(owner, state=state)
    with pytest.raises(NotCompleted) as caught:
        _ = session.file
    assert caught.value.facts == {"state": state}
    with pytest.raises(NotCompleted), transaction.atomic():
        session.bind()
    assert not session.is_completed


def test_the_file_of_a_bound_upload_is_the_hosts(owner: Owner) -> None:
    with pytest.raises(AlreadyBound):
        _ = make(owner, state=State.BOUND).file


def test_a_user_takes_sessions_and_events_along(owner: Owner, alice: Any) -> None:
    session = make(owner, state=State.FAILED)
    CompletionEvent.objects.create(session=session)
    alice.delete()
    assert not UploadSession.objects.exists()
    assert not CompletionEvent.objects.exists()


def event(owner: Owner, **fields: Any) -> CompletionEvent:
    return CompletionEvent.objects.create(session=make(owner, state=State.COMPLETED), **fields)


def test_events_are_due_until_they_are_delivered_or_claimed(owner: Owner) -> None:
    fresh = event(owner)
    now = timezone.now()
    lapsed = event(owner, due_at=now - timedelta(seconds=1))
    event(owner, due_at=now + timedelta(seconds=5))
    event(owner, due_at=lapsed.due_at, delivered_at=now)
    given_up = event(owner, due_at=lapsed.due_at, given_up_at=now)
    assert list(CompletionEvent.objects.given_up()) == [given_up]
    assert set(CompletionEvent.objects.due(now)) == {fresh, lapsed}


def test_an_event_is_claimed_once(owner: Owner) -> None:
    due = event(owner)
    until = timezone.now() + timedelta(seconds=5)
    assert CompletionEvent.objects.claim([due.pk, uuid.uuid4()], until) == [due]
    assert CompletionEvent.objects.claim([due.pk], until) == []
    due.refresh_from_db()
    assert (due.due_at, due.attempts) == (until, 1)
    assert str(due) == str(due.pk)


def test_the_migrations_are_complete(db: None) -> None:
    call_command("makemigrations", "async_upload", check=True, dry_run=True, verbosity=0)
