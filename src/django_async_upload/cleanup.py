"""No orphans: what goes with a session that is deleted, and the purge of what was left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from asgiref.sync import async_to_sync
from django.db import router, transaction
from django.db.models.signals import post_delete, pre_delete
from django.dispatch import receiver
from django.utils import timezone

from . import leases, signals
from .exceptions import UploadError
from .leases import Ending
from .models import Taker, UploadSession
from .protocol.state import State
from .stores.base import Part, Store
from .stores.configured import make_store
from .uploaded import abandoned_links

GRACE: Final = timedelta(hours=1)
"""A part is written before its row knows its name, and linked before it is bound: younger ones stay."""


@receiver(pre_delete, sender=UploadSession)
def reload_owner(instance: UploadSession, using: str, **kwargs: Any) -> None:
    """What was read before may be old: a host that bound the file meanwhile keeps it."""
    rows = UploadSession.objects.using(using).select_for_update()
    if rows.filter(pk=instance.pk).exists():
        instance.refresh_from_db(using, ["state", "stored_as", "part"], from_queryset=rows)


@receiver(post_delete, sender=UploadSession)
def forget_file(instance: UploadSession, using: str, **kwargs: Any) -> None:
    """The file of a deleted session goes with it; one that a host has bound is the host's."""
    if instance.part:
        transaction.on_commit(partial(_delete_part, instance.part), using=using)
    if instance.stored_as and instance.state == State.COMPLETED:
        delete = instance.get_storage().delete
        transaction.on_commit(partial(delete, instance.stored_as), using=using)


def _delete_part(part: str) -> None:
    store = make_store()
    try:
        store.delete(part)
    finally:
        store.close()


@dataclass(slots=True)
class Purge:
    """What a purge did, or would do."""

    sessions: int = 0
    parts: int = 0
    bytes: int = 0


def purge(
    *,
    dry_run: bool = False,
    unbound_after: timedelta | None = None,
    takers: Sequence[str] = (Taker.FORM, Taker.API),
    log: Callable[[str], None] = lambda line: None,
) -> Purge:
    """Expire uploads without a sign of life, and delete parts that no row knows. Synchronous.

    With ``unbound_after``, delete the uploads for ``takers``, too, that completed so long ago and that none of
    them has taken: somebody chose a file and left the page.

    Safe beside live uploads: a session expires by compare-and-set, and a holder that still lives loses its
    epoch and is told so; parts are deleted only when they are older than :data:`GRACE` and no
    session names them.
    """
    store = make_store()
    done = Purge()
    try:
        sizes = {part.name: part.size for part in store.parts()}
        for session in UploadSession.objects.expired():  # no cursor stays open beside the updates
            if dry_run or _expire(session, store):
                done.sessions += 1
                done.parts += session.part in sizes
                done.bytes += sizes.get(session.part, 0)
                log(f"{session.pk} {session.name!r}: nothing came since {session.updated_at:%F %T}")
        for part in _orphans(store, timezone.now() - GRACE):
            if not dry_run:
                store.delete(part.name)
            done.parts += 1
            done.bytes += part.size
            log(f"part {part.name}: {part.size} bytes that belong to no upload")
    finally:
        store.close()
    if unbound_after is not None:
        for session in UploadSession.objects.for_taker(*takers).unbound(
            timezone.now() - unbound_after
        ):
            if dry_run or _delete_unbound(session):
                done.sessions += 1
                done.bytes += session.size or 0
                log(
                    f"{session.pk} {session.name!r}: {session.get_taker_display()} did not take it since "
                    f"{session.completed_at:%F %T}"
                )
    for path in abandoned_links(GRACE):
        if not dry_run:
            with suppress(FileNotFoundError):
                os.unlink(path)
        log(f"link {os.path.basename(path)}: no storage took it")
    return done


def _delete_unbound(session: UploadSession) -> bool:
    """With its file; not when a form has taken it meanwhile, or is about to."""
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        rows = UploadSession.objects.select_for_update().filter(pk=session.pk, epoch=session.epoch)
        free = rows.filter(state=State.COMPLETED).exclude(expires_at__gte=timezone.now())
        if found := free.first():
            found.delete()
    return found is not None


def _expire(session: UploadSession, store: Store) -> bool:
    with transaction.atomic(using=router.db_for_write(UploadSession)):
        outcome = leases.end([Ending(session.pk, State.EXPIRED, epoch=session.epoch)])[0]
    if isinstance(outcome, UploadError) or not outcome[1]:
        return False
    if outcome[0].part:
        store.delete(outcome[0].part)
    async_to_sync(signals.send)(signals.upload_expired, outcome[0])
    return True


def _orphans(store: Store, before: datetime) -> list[Part]:
    old = [part for part in store.parts() if part.modified < before]
    known: set[str] = set()
    for start in range(0, len(old), 500):
        names = [part.name for part in old[start : start + 500]]
        known.update(UploadSession.objects.filter(part__in=names).values_list("part", flat=True))
    return [part for part in old if part.name not in known]
