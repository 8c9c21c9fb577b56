"""No orphans: what goes with a session that is deleted, and the purge of what was left behind."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.core.files.storage import FileSystemStorage
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models.signals import post_delete, pre_delete
from django.dispatch import receiver
from django.utils import timezone

from .. import signals
from ..binding.linked import abandoned_links
from ..exceptions import UploadError
from ..models import Taker, UploadSession
from ..sessions import rows
from ..sessions.commits import after_commit
from ..sessions.holds import BATCH, GIVEN_UP, withdraw
from ..sessions.rows import Ending
from ..sessions.state import OVER, State
from ..stores.base import Part, Store
from ..stores.configured import make_store
from ..stores.publication import is_linked, is_own_name

logger = logging.getLogger("django_async_upload")

OVER_AFTER: Final = timedelta(days=7)
"""After so long the row of an upload that was cancelled, expired or failed goes: clients remember it as long."""
GRACE: Final = timedelta(hours=1)
"""A part is written before its row knows its name, and linked before it is bound: younger ones stay."""
HELD_GRACE: Final = timedelta(days=7)
"""For so long an upload that a writer has open does not expire: the clock of this machine may be wrong by days."""


@receiver(pre_delete, sender=UploadSession)
def reload_owner(instance: UploadSession, using: str, **kwargs: Any) -> None:
    """What was read before may be old: a host that bound the file meanwhile keeps it."""
    if instance.state in OVER:
        return  # for good
    rows = UploadSession.objects.using(using).select_for_update()
    with suppress(UploadSession.DoesNotExist):
        fields = ["state", "stored_as", "part", "expires_at"]
        instance.refresh_from_db(using, fields, from_queryset=rows)


@receiver(post_delete, sender=UploadSession)
def forget_file(instance: UploadSession, using: str, **kwargs: Any) -> None:
    """The file of a deleted session goes with it; one that a host has bound is the host's."""
    if instance.part or instance.stored_as:
        after_commit(using, _forget, copy(instance))


def _forget(session: UploadSession) -> None:
    """Delete what a session that is no more had of its own."""
    store = make_store()
    try:
        if session.state == State.COMPLETED or _has_published(session, store):
            session.get_storage().delete(session.stored_as)
        elif session.stored_as and session.state in GIVEN_UP and _is_past(session.expires_at):
            withdraw(session)
    finally:
        if session.part:
            store.delete(session.part)
        store.close()


def _is_past(moment: datetime | None) -> bool:
    return moment is not None and moment < timezone.now()


def _has_published(session: UploadSession, store: Store) -> bool:
    """Whether an upload in ``finalizing`` has come so far that its name in the storage is its own file."""
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
    """What a purge did, or would do."""

    sessions: int = 0
    parts: int = 0
    bytes: int = 0
    rows: int = 0
    """Of uploads that had been over for long."""


def purge(
    *,
    dry_run: bool = False,
    over_after: timedelta = OVER_AFTER,
    unbound_after: timedelta | None = None,
    takers: Sequence[str] = (Taker.FORM, Taker.API),
    log: Callable[[str], None] = lambda line: None,
) -> Purge:
    """Expire uploads without a sign of life, and delete what is no longer needed. Synchronous.

    That is: parts that no row knows, published names that a crash left after the host had bound the file, links of
    forms, and rows of uploads that have been cancelled, expired or failed for ``over_after``. With ``unbound_after``,
    the uploads for ``takers``, too, that completed so long ago and that none of them has taken: the person
    chose a file and left the page.

    Safe beside live uploads: what a writer has open stays for :data:`HELD_GRACE` more, where the store can tell. A
    session expires by compare-and-set, and a holder that still lives gets an error, as its epoch is over. Parts are
    deleted only when they are older than :data:`GRACE` and no session names them.
    """
    done = Purge()
    now = _now()
    store = make_store()
    try:
        # First what frees room without a word to the database: it may lie on the disk that is full.
        sizes = {part.name: part.size for part in store.parts()}
        for part in _orphans(store, datetime.now(UTC) - GRACE):
            if store.is_held(part.name):  # a clock is wrong: its row is not written yet
                continue
            if not dry_run:
                store.delete(part.name)
            done.parts += 1
            done.bytes += part.size
            log(f"part {part.name}: {part.size} bytes that belong to no upload")
        for session in UploadSession.objects.expired(
            now
        ):  # no cursor stays open beside the updates
            if _may_be_alive(session, store, now):
                continue
            if dry_run or _expire(session, store):
                done.sessions += 1
                done.parts += session.part in sizes
                done.bytes += sizes.get(session.part, 0)
                log(f"{session.pk} {session.name!r}: nothing came since {session.updated_at:%F %T}")
    finally:
        store.close()
    if unbound_after is not None:
        for session in UploadSession.objects.for_taker(*takers).unbound(now - unbound_after):
            if dry_run or _delete_unbound(session):
                done.sessions += 1
                done.bytes += session.size or 0
                log(
                    f"{session.pk} {session.name!r}: {session.get_taker_display()} did not take it since "
                    f"{session.completed_at:%F %T}"
                )
    given_up = UploadSession.objects.filter(state__in=GIVEN_UP, expires_at__lt=now)
    for session in given_up.exclude(stored_as=""):
        log(
            f"{session.pk} {session.name!r}: {session.state}, and still there as {session.stored_as}"
        )
        if not dry_run:
            _withdraw(session)
    for path in abandoned_links(GRACE):
        if not dry_run:
            with suppress(FileNotFoundError):
                os.unlink(path)
        log(f"link {os.path.basename(path)}: no storage took it")
    for pks in _over(now - over_after):
        done.rows += len(pks) if dry_run else _delete_rows(pks)
    return done


def _may_be_alive(session: UploadSession, store: Store, now: datetime) -> bool:
    """Whether an upload that has expired, by this clock, is open in a process, and not for long."""
    expired = session.expires_at
    is_recent = expired is not None and expired > now - HELD_GRACE
    return is_recent and bool(session.part) and store.is_held(session.part)


def _now() -> datetime:
    """By the clock of the database where it has one of its own: this machine's may be wrong by days."""
    connection = connections[router.db_for_write(UploadSession)]
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment  # aware or not, as the site's other moments are


def _delete_unbound(session: UploadSession) -> bool:
    """With its file; not when a form has taken it meanwhile, or is about to."""
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        rows = UploadSession.objects.select_for_update().filter(pk=session.pk, epoch=session.epoch)
        free = rows.filter(state=State.COMPLETED).exclude(expires_at__gte=timezone.now())
        if found := free.first():
            found.delete()
    return found is not None


def _expire(session: UploadSession, store: Store) -> bool:
    try:
        outcome = _end(session)
    except DatabaseError as error:
        if not _is_disk_full(error) or not session.part:
            raise
        store.delete(session.part)  # there is room then to write down that it expired
        outcome = _end(session)
    if isinstance(outcome, UploadError) or not outcome[1]:
        return False
    if outcome[0].part:
        store.delete(outcome[0].part)
    signals.send_and_wait(signals.upload_expired, outcome[0])
    return True


def _end(session: UploadSession) -> tuple[UploadSession, bool] | UploadError:
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        return rows.end([Ending(session.pk, State.EXPIRED, epoch=session.epoch)])[0]


def _is_disk_full(error: DatabaseError) -> bool:
    """As SQLite and PostgreSQL say it: https://sqlite.org/rescode.html#full, class 53 of PostgreSQL's error codes."""
    cause = error.__cause__
    return (
        getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL"
        or getattr(cause, "sqlstate", "") == "53100"
    )


def _withdraw(session: UploadSession) -> None:
    try:
        withdraw(session)
    except (
        Exception
    ):  # of the host's storage: the next file is another matter, and so is the next purge
        logger.exception("The published file of upload %s could not be deleted", session.pk)


def _over(before: datetime) -> Iterator[list[uuid.UUID]]:
    """Ids of uploads that have been over since before then, in batches."""
    rows = UploadSession.objects.over().filter(updated_at__lt=before).order_by("pk")
    last: list[uuid.UUID] = []
    while pks := list(
        rows.filter(**({"pk__gt": last[-1]} if last else {})).values_list("pk", flat=True)[:BATCH]
    ):
        yield pks
        last = pks


def _delete_rows(pks: Sequence[uuid.UUID]) -> int:
    """How many went: a host's own objects may protect some."""
    try:
        return _delete(pks)
    except (models.ProtectedError, models.RestrictedError):
        if len(pks) == 1:
            return 0
        return sum(_delete_rows([pk]) for pk in pks)


def _delete(pks: Sequence[uuid.UUID]) -> int:
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        return (
            UploadSession.objects.filter(pk__in=pks).delete()[1].get(UploadSession._meta.label, 0)
        )


def _orphans(store: Store, before: datetime) -> list[Part]:
    old = [part for part in store.parts() if part.modified < before]
    known: set[str] = set()
    for start in range(0, len(old), 500):
        names = [part.name for part in old[start : start + 500]]
        known.update(UploadSession.objects.filter(part__in=names).values_list("part", flat=True))
    return [part for part in old if part.name not in known]
