"""Holds: exclusive, time-limited rights of requests to finished uploads. And deletion of published names.

A hold is recorded in the row by ``epoch`` and ``expires_at``.
"""

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

from django.core.files.storage import FileSystemStorage, Storage
from django.db import connections, router, transaction
from django.db.models import Q
from django.utils import timezone

from .. import conf
from ..failpoints import failpoint
from ..models import Tombstone, UploadSession
from ..stores import disk
from ..stores.configured import staging_root
from ..stores.publication.names import is_own_name
from .state import State

HOLD: Final = timedelta(minutes=2)
"""How long a request holds an upload, unless it releases it earlier, or extends it to save the file."""
WITHDRAWABLE: Final = (State.BOUND, State.CANCELLED)
"""States in which a published name is no longer needed."""
BATCH: Final = 500
"""Rows per statement: SQLite limits the number of parameters."""


def upload_database() -> str:
    """The alias of the database that uploads are written to: a replica may lag."""
    return router.db_for_write(UploadSession)


def hold(sessions: Iterable[UploadSession]) -> set[uuid.UUID]:
    """Hold completed uploads for a request, for at most :data:`HOLD`; returns the ids of those it obtained.

    The epoch of each becomes the given session's plus one, so that an earlier hold is void.
    """
    # A random fraction of a second makes the time unique to this request: it identifies the hold.
    until = timezone.now() + HOLD + timedelta(microseconds=secrets.randbelow(1_000_000))
    rows = UploadSession.objects.using(upload_database())
    got: set[uuid.UUID] = set()
    with transaction.atomic(using=upload_database()):
        for epoch, pks in _by_epoch((session.epoch, session.pk) for session in sessions):
            free = Q(expires_at=None) | Q(expires_at__lte=timezone.now())
            asked = rows.filter(free, pk__in=pks, state=State.COMPLETED, epoch=epoch)
            if connections[upload_database()].features.has_select_for_update:
                # Lock in one order, so that two requests with the same uploads cannot deadlock.
                list(asked.order_by("pk").select_for_update().values_list("pk"))
            if asked.update(epoch=epoch + 1, expires_at=until) == len(pks):
                got.update(pks)
            else:
                mine = rows.filter(pk__in=pks, epoch=epoch + 1, expires_at=until)
                got.update(mine.values_list("pk", flat=True))
        failpoint("hold.before_commit")
    failpoint("hold.after_commit")
    return got


def release(holds: Iterable[tuple[int, uuid.UUID]]) -> None:
    """Release holds of a request: pairs of the hold's epoch and the upload's id. Bound uploads stay bound."""
    rows = UploadSession.objects.using(upload_database()).filter(state=State.COMPLETED)
    for epoch, pks in _by_epoch(holds):
        failpoint("release.before_commit")
        rows.filter(pk__in=pks, epoch=epoch).update(expires_at=None)
        failpoint("release.after_commit")


def _by_epoch(
    found: Iterable[tuple[int, uuid.UUID]],
) -> Iterator[tuple[int, list[uuid.UUID]]]:
    """Sorted ids, in groups of one epoch and at most :data:`BATCH`."""
    for epoch, group in groupby(sorted(found), key=itemgetter(0)):
        pks = [pk for _, pk in group]
        for start in range(0, len(pks), BATCH):
            yield epoch, pks[start : start + BATCH]


def withdraw(session: UploadSession | Tombstone) -> None:
    """Delete the published name of an upload that was bound, cancelled by its owner, or whose row was deleted.

    Raises what the storage raises.

    A name without the upload's id can be given to another file as soon as it is free. So the file is first moved aside,
    then the row is updated: after a crash at any point the purge can tell which file to delete.
    """
    aside = put_aside(session)
    failpoint("withdraw.before_commit")
    if isinstance(session, Tombstone):
        Tombstone.objects.using(upload_database()).filter(pk=session.pk).delete()
    else:
        rows = UploadSession.objects.using(upload_database()).filter(pk=session.pk)
        rows.filter(state__in=WITHDRAWABLE).update(expires_at=None)
    failpoint("withdraw.after_commit")
    if aside is not None:
        with suppress(FileNotFoundError):
            os.unlink(aside)
    failpoint("withdraw.after_unlink")


def put_aside(session: UploadSession | Tombstone) -> str | None:
    """Remove the published file from its storage: move it to the staging folder and return its path, or delete it.

    With durability ``fsync`` the name does not come back when the power fails: soon the row forgets it.
    """
    storage, name = session.get_storage(), session.stored_as
    try:
        return _put_aside(session.pk, storage, name)
    finally:
        if isinstance(storage, FileSystemStorage) and conf.uploads().durability == "fsync":
            failpoint("aside.before_sync")
            with suppress(FileNotFoundError):
                disk.sync_directory(os.path.dirname(storage.path(name)))
            failpoint("aside.after_sync")


def _put_aside(upload: uuid.UUID, storage: Storage, name: str) -> str | None:
    if (
        isinstance(storage, FileSystemStorage)
        and storage.__class__.delete is FileSystemStorage.delete
        and not is_own_name(name, upload)
    ):
        root = staging_root(storage)
        aside = os.path.join(root, f"{upload.hex}.link")
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            if not os.path.lexists(aside):
                failpoint("aside.before_rename")
                os.rename(storage.path(name), aside)
                failpoint("aside.after_rename")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EXDEV:  # the staging folder is on another file system now
                raise
        else:
            return aside
    failpoint("aside.before_delete")
    storage.delete(name)
    failpoint("aside.after_delete")
    return None
