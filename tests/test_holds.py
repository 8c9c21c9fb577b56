"""Holds on finished uploads, and the end of a published name."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from django_async_upload.models import UploadSession
from django_async_upload.sessions import holds
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State

from .fixtures import publish

pytest_plugins = ["tests.fixtures"]


def test_what_one_has_is_not_given_to_another_who_knows_its_epoch(
    owner: Owner, media: Path
) -> None:
    held = publish(owner, expires_at=timezone.now() + timedelta(minutes=1))
    free = publish(owner, name="b.bin")
    assert holds.hold([held, free]) == {free.pk}
    assert holds.hold([free]) == set()


def test_a_name_that_could_not_be_removed_is_one_that_the_purge_still_knows(
    owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = timezone.now() + timedelta(minutes=1)
    session = publish(owner, state=State.BOUND, expires_at=until)

    def fail(session: UploadSession) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(holds, "put_aside", fail)
        with pytest.raises(OSError):
            holds.withdraw(session)
    session.refresh_from_db()
    assert session.expires_at == until
    holds.withdraw(session)
    session.refresh_from_db()
    assert session.expires_at is None
    assert not session.get_storage().exists(session.stored_as)
