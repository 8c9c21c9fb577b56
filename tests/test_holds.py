"""Holds on finished uploads, and the end of a published name."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("is_own", [False, True])
def test_with_fsync_a_withdrawn_name_cannot_come_back_once_the_row_forgets_it(
    owner: Owner, media: Path, journal: list[str], is_own: bool
) -> None:
    until = timezone.now() + timedelta(minutes=1)
    pk = uuid.uuid4()
    name = f"a_{pk.hex}.bin" if is_own else "a.bin"
    session = publish(owner, name=name, pk=pk, state=State.CANCELLED, expires_at=until)
    journal.clear()
    holds.withdraw(session)
    gone = "remove" if is_own else "rename"
    aside = [] if is_own else ["unlink media-staging/*.link"]
    assert journal == [f"{gone} media/uploads/{name}", "fsync media/uploads", "UPDATE", *aside]


def test_with_durability_os_a_withdrawn_name_is_not_synced(
    owner: Owner, settings: Any, journal: list[str]
) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    session = publish(owner, state=State.CANCELLED, expires_at=timezone.now())
    journal.clear()
    holds.withdraw(session)
    assert journal == ["rename media/uploads/a.bin", "UPDATE", "unlink media-staging/*.link"]
