"""The management commands: what they print, what they do, and how they refuse."""

from __future__ import annotations

import os
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from django_async_upload import signals
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.tickets import read_ticket

from .fixtures import Heard, publish
from .test_cleanup import LONG_AGO, part, parts, unfinished

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)


def call(*arguments: Any, **options: Any) -> str:
    output = StringIO()
    call_command(*arguments, stdout=output, **options)
    return output.getvalue()


def test_a_ticket_is_printed_alone(alice: Any) -> None:
    ticket = read_ticket(call("upload_ticket", "alice").strip(), endpoint="default")
    assert ticket.user == str(alice.pk)


def test_a_ticket_takes_its_limits_from_options(alice: Any) -> None:
    text = call("upload_ticket", "alice", "--endpoint=films", "--max-size=7", "--max-age=60")
    ticket = read_ticket(text.strip(), endpoint="films")
    assert ticket.max_size == 7
    assert 0 < ticket.expires - timezone.now().timestamp() <= 60


@pytest.mark.parametrize("option", ["--max-size=0", "--max-size=x", "--max-age=-1"])
def test_a_limit_that_is_none_is_refused(alice: Any, option: str) -> None:
    with pytest.raises(CommandError):
        call("upload_ticket", "alice", option)


def test_an_unknown_user_gets_no_ticket(alice: Any) -> None:
    with pytest.raises(CommandError, match="no user 'carol'"):
        call("upload_ticket", "carol")
    alice.is_active = False
    alice.save()
    with pytest.raises(CommandError, match="not active"):
        call("upload_ticket", "alice")


def test_the_purge_says_what_it_did(owner: Owner, staging: Path) -> None:
    part(staging, b"orphan", age=LONG_AGO)
    old = unfinished(owner, part(staging), expires_at=timezone.now() - LONG_AGO)
    dry = call("purge_uploads", "--dry-run")
    assert "Would expire 1 uploads; 2 files, 10 bytes; 0 old rows." in dry
    assert str(old.pk) in dry
    assert len(parts(staging)) == 2
    assert call("purge_uploads") == "Expired 1 uploads; 2 files, 10 bytes; 0 old rows.\n"
    assert UploadSession.objects.get().state == State.EXPIRED
    assert not os.listdir(staging)
    assert call("purge_uploads") == "Expired 0 uploads; 0 files, 0 bytes; 0 old rows.\n"


def test_the_purge_deletes_what_no_form_has_taken(owner: Owner, media: Path) -> None:
    def completed(age: timedelta, **fields: Any) -> UploadSession:
        session = publish(owner)
        UploadSession.objects.filter(pk=session.pk).update(
            completed_at=timezone.now() - age, **fields
        )
        return session

    old = completed(LONG_AGO)
    kept = [
        completed(timedelta(hours=1)),
        completed(LONG_AGO, taker="receiver"),
        completed(LONG_AGO, state=State.BOUND),
        completed(
            LONG_AGO, expires_at=timezone.now() + timedelta(minutes=1)
        ),  # a form takes it now
    ]
    assert str(old.pk) in call("purge_uploads", "--unbound-after", "1", "--dry-run")
    assert UploadSession.objects.count() == 5
    call("purge_uploads")
    assert UploadSession.objects.count() == 5, "only where it is asked for"
    call("purge_uploads", "--unbound-after", "1")
    assert {each.pk for each in UploadSession.objects.all()} == {each.pk for each in kept}
    names = {each.stored_as for each in kept}
    assert {str(path.relative_to(media)) for path in media.rglob("*.*")} == names


def test_the_purge_tells_more_when_asked(owner: Owner, staging: Path) -> None:
    orphan = part(staging, b"orphan", age=LONG_AGO)
    assert orphan in call("purge_uploads", verbosity=2)


def test_signals_are_delivered_that_no_process_has_claimed(
    owner: Owner, media: Path, heard: Heard
) -> None:
    event = CompletionEvent.objects.create(session=publish(owner))
    CompletionEvent.objects.create(
        session=publish(owner), due_at=timezone.now() + timedelta(minutes=1)
    )
    assert call("deliver_upload_signals") == "Delivered 1 completions.\n"
    assert [each["event_id"] for each in heard.named("completed")] == [event.pk]
    assert call("deliver_upload_signals") == "Delivered 0 completions.\n"


def test_what_was_given_up_is_sent_again_where_that_is_asked_for(
    owner: Owner, media: Path, heard: Heard, capsys: Any
) -> None:
    event = CompletionEvent.objects.create(
        session=publish(owner), given_up_at=timezone.now(), attempts=20, error="broken"
    )
    assert call("deliver_upload_signals") == "Delivered 0 completions.\n"
    assert "1 are given up" in capsys.readouterr().err
    assert call("deliver_upload_signals", "--given-up") == "Delivered 1 completions.\n"
    assert [each["event_id"] for each in heard.named("completed")] == [event.pk]


def test_the_command_tells_of_receivers_that_fail(
    owner: Owner, media: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receiver(**kwargs: Any) -> None:
        raise ValueError("broken")

    signals.upload_completed.connect(receiver)
    try:
        CompletionEvent.objects.create(session=publish(owner))
        assert call("deliver_upload_signals") == "Delivered 0 completions.\n"
    finally:
        signals.upload_completed.disconnect(receiver)
    assert "1 failed and will be retried" in capsys.readouterr().err
