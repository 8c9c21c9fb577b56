"""Cleanup: the files of deleted sessions, and the purge of inactive uploads and orphaned files."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.core.files.storage import FileSystemStorage
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models import Q
from django.db.models.signals import post_delete, pre_delete
from django.dispatch import receiver
from django.utils import timezone

from .. import signals
from ..binding.linked import abandoned_links
from ..exceptions import UploadError
from ..failpoints import failpoint
from ..models import Taker, Tombstone, UploadSession, Usage
from ..notices import about
from ..sessions import rows
from ..sessions.commits import after_commit
from ..sessions.holds import BATCH, HOLD, WITHDRAWABLE, withdraw
from ..sessions.state import OVER, State
from ..sessions.values import Ending
from ..stores.base import Part, Store
from ..stores.configured import make_store
from ..stores.publication.link import is_linked
from ..stores.publication.names import is_own_name

logger = logging.getLogger("django_async_upload")

ENDED_AFTER: Final = timedelta(days=7)
"""Age at which rows of cancelled, expired and failed uploads are deleted. Clients remember uploads for as long."""
GRACE: Final = timedelta(hours=1)
"""Age below which parts and links stay: a part exists before its row names it, and a link before it is bound."""
USAGE_AFTER: Final = timedelta(days=1)
"""Age of an owner's count from which on the purge deletes it."""
_CLOCKS: Final = {"postgresql": "SELECT clock_timestamp()", "mysql": "SELECT UTC_TIMESTAMP(6)"}
OPEN_GRACE: Final = timedelta(days=7)
"""Extra time before an upload that a writer has open expires: the clock of this machine may be wrong by days."""


@receiver(pre_delete, sender=UploadSession)
def refresh_session(instance: UploadSession, using: str, **kwargs: Any) -> None:
    """Re-read the row under a lock, so that a file bound in the meantime is not deleted."""
    if instance.state in OVER:
        return  # ended for good: nothing can change
    rows = UploadSession.objects.using(using).select_for_update()
    with suppress(UploadSession.DoesNotExist):
        fields = ["state", "stored_as", "part", "expires_at"]
        instance.refresh_from_db(using, fields, from_queryset=rows)


@receiver(post_delete, sender=UploadSession)
def delete_file(instance: UploadSession, using: str, **kwargs: Any) -> None:
    """Delete the file of a deleted session after the commit. A bound file is the host's and stays."""
    if not (instance.part or instance.stored_as):
        return
    tombstone = None
    if _is_published(instance):
        tombstone = Tombstone.objects.using(using).create(
            pk=instance.pk, storage=instance.storage, stored_as=instance.stored_as
        )
    failpoint("delete.before_commit")
    after_commit(using, _delete_files, instance.part, tombstone)


def _is_published(session: UploadSession) -> bool:
    """Whether a session has a file in its storage that is not the host's."""
    if session.state == State.FINALIZING:
        with closing(make_store()) as store:
            return _has_published(session, store)
    is_left = session.state in WITHDRAWABLE and _is_past(session.expires_at)
    return bool(session.stored_as) and (session.state == State.COMPLETED or is_left)


def _delete_files(part: str, tombstone: Tombstone | None) -> None:
    """Delete the part and the published file of a deleted session."""
    failpoint("delete.after_commit")
    try:
        if tombstone is not None:
            withdraw(tombstone)
    finally:
        if part:
            with closing(make_store()) as store:
                store.delete(part)


def _is_past(moment: datetime | None) -> bool:
    return moment is not None and moment < timezone.now()


def _has_published(session: UploadSession, store: Store) -> bool:
    """Whether the publication of an upload in ``finalizing`` has already created its file in the storage."""
    if session.state != State.FINALIZING or not (session.stored_as and session.part):
        return False
    storage = session.get_storage()
    if is_own_name(session.stored_as, session.pk):
        return storage.exists(session.stored_as)
    return (
        isinstance(storage, FileSystemStorage)
        and store.supports_path
        and is_linked(storage, store.path(session.part), session.stored_as)
    )


@dataclass(slots=True)
class Purge:
    """The counts of a purge, or of a dry run."""

    sessions: int = 0
    parts: int = 0
    bytes: int = 0
    rows: int = 0
    """Deleted rows of uploads that ended long ago."""


def purge(
    *,
    dry_run: bool = False,
    ended_after: timedelta = ENDED_AFTER,
    unbound_after: timedelta | None = None,
    takers: Sequence[str] = (Taker.FORM, Taker.API),
    log: Callable[[str], None] = lambda line: None,
) -> Purge:
    """Expire inactive uploads, and delete what is no longer needed. Synchronous.

    It deletes parts that no row names, published names that a crash left after the host bound the file, links of
    forms, and rows of uploads that were cancelled, expired or failed longer than ``ended_after`` ago. With
    ``unbound_after`` it also deletes uploads for ``takers`` that completed longer ago than that and were not taken: the
    user chose a file and left the page.

    Safe while uploads run: a part that a writer has open stays for :data:`OPEN_GRACE` more, where the store can tell. A
    session expires by compare-and-set, and a holder that is still running gets an error, since its epoch is outdated.
    Parts are deleted only when they are older than :data:`GRACE` and no session names them.
    """
    done = Purge()
    now = _now()
    store = make_store()
    try:
        # First what frees space without writing to the database, which may be on the full disk.
        sizes = {part.name: part.size for part in store.parts()}
        for part in _orphans(store, datetime.now(UTC) - GRACE):
            if store.is_held(part.name):  # a clock is wrong: its row may not be written yet
                continue
            if not dry_run:
                store.delete(part.name)
                failpoint("purge.after_unlink")
            done.parts += 1
            done.bytes += part.size
            log(f"part {part.name}: {part.size} bytes that belong to no upload")
        # Django fetches all rows first: no cursor stays open during the updates.
        for session in UploadSession.objects.expired(now):
            if _may_be_alive(session, store, now):
                continue
            if dry_run or _expire(session, store):
                done.sessions += 1
                done.parts += session.part in sizes
                done.bytes += sizes.get(session.part, 0)
                log(f"{session.pk} {session.name!r}: inactive since {session.updated_at:%F %T}")
    finally:
        store.close()
    if unbound_after is not None:
        for session in UploadSession.objects.for_taker(*takers).unbound(now - unbound_after):
            if dry_run or _delete_unbound(session):
                done.sessions += 1
                done.bytes += session.size or 0
                log(
                    f"{session.pk} {session.name!r}: not taken by {session.get_taker_display()} since "
                    f"{session.completed_at:%F %T}"
                )
    given_up = UploadSession.objects.filter(state__in=WITHDRAWABLE, expires_at__lt=now)
    for session in given_up.exclude(stored_as=""):
        log(
            f"{session.pk} {session.name!r}: {session.state}, but still stored as {session.stored_as}"
        )
        if not dry_run:
            _withdraw(session)
    for tombstone in Tombstone.objects.filter(created_at__lt=now - HOLD):
        log(f"{tombstone.pk}: deleted, but still stored as {tombstone.stored_as}")
        if not dry_run:
            _withdraw(tombstone)
    for path in abandoned_links(GRACE):
        if not dry_run:
            failpoint("purge.before_unlink_of_link")
            with suppress(FileNotFoundError):
                os.unlink(path)
            failpoint("purge.after_unlink_of_link")
        log(f"link {os.path.basename(path)}: not used by any storage")
    for pks in _ended_before(now - ended_after):
        done.rows += len(pks) if dry_run else _delete_rows(pks)
    while not dry_run and _delete_usage(now - USAGE_AFTER):
        pass
    return done


def _may_be_alive(session: UploadSession, store: Store, now: datetime) -> bool:
    """Whether an expired upload is open in a process, and expired by this clock only recently."""
    expired = session.expires_at
    is_recent = expired is not None and expired > now - OPEN_GRACE
    return is_recent and bool(session.part) and store.is_held(session.part)


def _now() -> datetime:
    """The current time, by the database server's clock where there is one: this machine's may be wrong by days."""
    connection = connections[router.db_for_write(UploadSession)]
    if connection.vendor not in _CLOCKS:
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute(_CLOCKS[connection.vendor])
        moment: datetime = cursor.fetchone()[0]
    if connection.vendor == "mysql":
        moment = moment.replace(tzinfo=UTC)
        return moment if timezone.is_aware(timezone.now()) else timezone.make_naive(moment)
    return moment  # aware or naive, as the site's other datetimes


def _delete_unbound(session: UploadSession) -> bool:
    """Delete a completed upload with its file, unless a request has taken or holds it in the meantime."""
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        rows = UploadSession.objects.select_for_update().filter(pk=session.pk, epoch=session.epoch)
        free = rows.filter(state=State.COMPLETED).exclude(expires_at__gte=timezone.now())
        if found := free.first():
            found.delete()
        failpoint("purge.before_commit")
    failpoint("purge.after_commit")
    return found is not None


def _expire(session: UploadSession, store: Store) -> bool:
    try:
        outcome = _end(session)
    except DatabaseError as error:
        if not _is_disk_full(error) or not session.part:
            raise
        store.delete(session.part)  # makes room for the update of the row
        outcome = _end(session)
    if isinstance(outcome, UploadError) or not outcome[1]:
        return False
    if outcome[0].part:
        store.delete(outcome[0].part)
    failpoint("expire.after_unlink")
    signals.send_and_wait(signals.upload_expired, outcome[0])
    failpoint("expire.after_signal")
    return True


def _end(session: UploadSession) -> tuple[UploadSession, bool] | UploadError:
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        outcome = rows.end([Ending(session.pk, State.EXPIRED, epoch=session.epoch)])[0]
        failpoint("expire.before_commit")
    failpoint("expire.after_commit")
    return outcome


def _is_disk_full(error: DatabaseError) -> bool:
    """Whether SQLite (https://sqlite.org/rescode.html#full), PostgreSQL (class 53) or MariaDB reports a full disk."""
    cause = error.__cause__
    return (
        getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL"
        or getattr(cause, "sqlstate", "") == "53100"
        or (cause is not None and cause.args[:1] in ((1021,), (1114,)))
    )


def _withdraw(session: UploadSession | Tombstone) -> None:
    try:
        withdraw(session)
    except Exception:  # of the host's storage: the next file may succeed, or the next purge
        logger.exception(
            "The published file of upload %s could not be deleted", session.pk, extra=about(session)
        )


def _ended_before(before: datetime) -> Iterator[list[uuid.UUID]]:
    """Ids, in batches, of uploads that ended before that time."""
    rows = UploadSession.objects.ended().filter(updated_at__lt=before).order_by("pk")
    last: list[uuid.UUID] = []
    while pks := list(
        rows.filter(**({"pk__gt": last[-1]} if last else {})).values_list("pk", flat=True)[:BATCH]
    ):
        yield pks
        last = pks


def _delete_rows(pks: Sequence[uuid.UUID]) -> int:
    """Delete rows; returns how many. A host's own objects may protect some."""
    try:
        return _delete(pks)
    except (models.ProtectedError, models.RestrictedError):
        if len(pks) == 1:
            return 0
        return sum(_delete_rows([pk]) for pk in pks)


def _delete(pks: Sequence[uuid.UUID]) -> int:
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        deleted = UploadSession.objects.filter(pk__in=pks).delete()[1]
        failpoint("delete_ended.before_commit")
    failpoint("delete_ended.after_commit")
    return deleted.get(UploadSession._meta.label, 0)


def _delete_usage(before: datetime) -> int:
    """Delete some counts that were not used since; returns how many. Those of active owners are made anew."""
    alias = router.db_for_write(Usage)
    skip = connections[alias].features.has_select_for_update_skip_locked
    with transaction.atomic(using=alias):
        old = Usage.objects.filter(Q(counted_at=None) | Q(counted_at__lt=before))
        unused = old.select_for_update(skip_locked=skip).values_list("pk", flat=True)[:BATCH]
        deleted = Usage.objects.filter(pk__in=list(unused)).delete()[0]
        failpoint("delete_usage.before_commit")
    failpoint("delete_usage.after_commit")
    return deleted


def _orphans(store: Store, before: datetime) -> list[Part]:
    old = [part for part in store.parts() if part.modified < before]
    known: set[str] = set()
    for start in range(0, len(old), 500):
        names = [part.name for part in old[start : start + 500]]
        known.update(UploadSession.objects.filter(part__in=names).values_list("part", flat=True))
    return [part for part in old if part.name not in known]
