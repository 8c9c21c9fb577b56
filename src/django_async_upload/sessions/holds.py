"""Holds on finished uploads: a request's for a while, a host's object's for good. And the end of a published name."""

from __future__ import annotations

import errno
import os
import secrets
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final

from django.core.files.storage import FileSystemStorage
from django.db import connections, router, transaction
from django.db.models import Q
from django.utils import timezone

from ..models import UploadSession
from ..stores.configured import staging_root
from ..stores.publication import is_own_name
from .state import State

HOLD: Final = timedelta(minutes=2)
"""For how long a request holds an upload, unless it lets go before or is saving it."""
GIVEN_UP: Final = (State.BOUND, State.CANCELLED)
"""States in which a published name is no longer needed."""
BATCH: Final = 500
"""Rows of one statement: SQLite takes a limited number of parameters."""


def alias() -> str:
    """The database in which uploads are written: a replica may be behind."""
    return router.db_for_write(UploadSession)


def claim(sessions: Iterable[UploadSession]) -> set[uuid.UUID]:
    """Take uploads for a request, for at most :data:`HOLD`; returns the ids of those that it got.

    The epoch of each is raised by one above the given session's, which fences off the holder before.
    """
    # A time that no other request writes at this moment identifies the claim.
    until = timezone.now() + HOLD + timedelta(microseconds=secrets.randbelow(1_000_000))
    rows = UploadSession.objects.using(alias())
    got: set[uuid.UUID] = set()
    with transaction.atomic(using=alias()):
        for epoch, pks in _by_epoch((session.epoch, session.pk) for session in sessions):
            free = Q(expires_at=None) | Q(expires_at__lte=timezone.now())
            asked = rows.filter(free, pk__in=pks, state=State.COMPLETED, epoch=epoch)
            if connections[alias()].features.has_select_for_update:
                # In one order: two requests with the same uploads do not wait for each other.
                list(asked.order_by("pk").select_for_update().values_list("pk"))
            if asked.update(epoch=epoch + 1, expires_at=until) == len(pks):
                got.update(pks)
            else:
                mine = rows.filter(pk__in=pks, epoch=epoch + 1, expires_at=until)
                got.update(mine.values_list("pk", flat=True))
    return got


def let_go(claims: Iterable[tuple[int, uuid.UUID]]) -> None:
    """Release uploads that a request has claimed and not bound: pairs of the epoch that it has and the id."""
    rows = UploadSession.objects.using(alias()).filter(state=State.COMPLETED)
    for epoch, pks in _by_epoch(claims):
        rows.filter(pk__in=pks, epoch=epoch).update(expires_at=None)


def _by_epoch(
    found: Iterable[tuple[int, uuid.UUID]],
) -> Iterator[tuple[int, list[uuid.UUID]]]:
    """Sorted ids, in groups of one epoch and at most :data:`BATCH`."""
    for epoch, group in groupby(sorted(found), key=itemgetter(0)):
        pks = [pk for _, pk in group]
        for start in range(0, len(pks), BATCH):
            yield epoch, pks[start : start + BATCH]


def withdraw(session: UploadSession) -> None:
    """Remove the published name of an upload that the host has bound or its sender has thrown away.

    Raises what the storage raises.

    A name without the upload's id may be another file's as soon as it is free. So the file is put aside first, and
    then the row says that the name is gone: after a crash at any moment the purge can tell which file is meant.
    """
    aside = put_aside(session)
    rows = UploadSession.objects.using(alias()).filter(pk=session.pk, state__in=GIVEN_UP)
    rows.update(expires_at=None)
    if aside is not None:
        with suppress(FileNotFoundError):
            os.unlink(aside)


def put_aside(session: UploadSession) -> str | None:
    """Take the published file out of its storage: into the staging folder, whose path is returned, or for good."""
    storage, name = session.get_storage(), session.stored_as
    if (
        isinstance(storage, FileSystemStorage)
        and storage.__class__.delete is FileSystemStorage.delete
        and not is_own_name(name, session.pk)
    ):
        root = staging_root(storage)
        aside = os.path.join(root, f"{session.pk.hex}.link")
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            if not os.path.lexists(aside):
                os.rename(storage.path(name), aside)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EXDEV:  # the staging folder has moved since
                raise
        else:
            return aside
    storage.delete(name)
    return None
