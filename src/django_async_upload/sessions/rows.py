"""Functions that read and change rows. The epoch in a row makes sure that an upload has one writer.

Each function takes and returns one item per caller, for :meth:`Database.call`; a refusal is returned, not
raised, so that it does not roll back the work of others. Every change is one compare-and-set: it fails for a holder
with an older epoch, whose upload was taken over.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Hashable, Sequence
from copy import copy
from datetime import timedelta
from typing import Any, Final

from django.db import connections, router
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Cast
from django.utils import timezone

from .. import conf, signals
from ..exceptions import (
    BY_CODE,
    Busy,
    ConnectionRefused,
    KeyReused,
    NotFound,
    TakenOver,
    UploadError,
    UploadOver,
)
from ..models import MAX_ERROR_MESSAGE, CompletionEvent, UploadSession
from ..stores.base import Checkpoint
from .holds import HOLD
from .quotas import Quota
from .state import ACTIVE, OVER, PAST_WRITING, PUBLISHED, State
from .values import (
    CLAIM,
    MAX_WATCHED,
    AbandonedQuery,
    Adoption,
    Change,
    Creation,
    Ending,
    HolderQuery,
    UploadAccess,
    UploadProblem,
    WatchQuery,
    WatchScope,
)


def expiry() -> Any:
    """The time at which an upload that is active now expires."""
    return timezone.now() + timedelta(seconds=conf.uploads().expire_after)


def checkpoint_values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "part": checkpoint.part,
        "durable": checkpoint.offset,
        "crc": checkpoint.crc,
        "token": checkpoint.token,
        "expires_at": expiry(),
    }


_CHECKPOINT_COLUMNS: Final = {"part", "durable", "crc", "token", "expires_at"}


def error_values(error: UploadError | None) -> dict[str, Any]:
    """The values of a row for an error, so that later answers repeat it with its facts."""
    if error is None:
        return {"error": "", "error_message": "", "error_facts": {}}
    facts = {name: fact for name, fact in error.facts.items() if name != "retry_after"}
    return {
        "error": error.code,
        # PostgreSQL cannot store a NUL or half a character, and a host's text may have any length.
        "error_message": _storable(error.message)[:MAX_ERROR_MESSAGE],
        "error_facts": json.loads(_storable(json.dumps(facts, ensure_ascii=False))),
    }


def _storable(text: str) -> str:
    return text.replace("\\u0000", "").replace("\0", "").encode(errors="replace").decode()


def create(items: Sequence[Creation]) -> list[UploadSession | UploadError]:
    """Insert new uploads. For a key that the owner has used, return the existing upload instead.

    A caller that gets another session than its own has to take it over.
    """
    outcomes: list[UploadSession | UploadError | None] = _checked_owners(items)
    # Its locks come first: afterwards no other process adds a key of these owners.
    quota = Quota(item.session for item in items)
    known = {
        (session.endpoint, session.owner_key, session.key): session
        for session in UploadSession.objects.filter(
            # All columns of the unique index, so that the database can use it.
            endpoint__in={item.session.endpoint for item in items},
            owner_key__in={item.owner.key for item in items},
            key__in=[item.session.key for item in items],
        )
    }
    fresh = []
    for index, item in enumerate(items):
        if outcomes[index] is not None:
            continue
        session = item.session
        where = (session.endpoint, session.owner_key, session.key)
        if found := known.get(where):
            outcomes[index] = _same_facts(found, session)
        elif refusal := quota.refusal(session):
            outcomes[index] = refusal
        else:
            outcomes[index] = known[where] = session
            fresh.append(session)
    UploadSession.objects.bulk_create(fresh)
    quota.save()
    return [outcome for outcome in outcomes if outcome is not None]


def _same_facts(found: UploadSession, asked: UploadSession) -> UploadSession | UploadError:
    for fact in ("name", "content_type", "digest", "size"):
        # An unknown size is in the row once the upload is finished.
        expected = getattr(asked, fact)
        if getattr(found, fact) != expected and expected is not None:
            return KeyReused(field=fact)
    return found


def delete_new(items: Sequence[uuid.UUID]) -> list[None]:
    """Delete sessions that are created and have no part yet."""
    UploadSession.objects.filter(pk__in=items, state=State.CREATED, part="").delete()
    return [None for _ in items]


def take_over(items: Sequence[UploadAccess]) -> list[UploadSession | UploadError]:
    """Take uploads over for writing: the newest holder wins, since the epoch rises.

    A published upload, and one in ``finalizing``, is returned unchanged: its result is the answer.
    """
    found = find(items)
    return [_take_over(item, session) for item, session in zip(items, found, strict=True)]


def _take_over(
    item: UploadAccess, found: UploadSession | UploadError
) -> UploadSession | UploadError:
    session = found
    # Where another connection changes it between the SELECT and the UPDATE, once more with the row locked.
    for _attempt in range(2):
        if isinstance(session, UploadError):
            return session
        if session.state in OVER:
            return error_of(session)
        if session.state in PAST_WRITING:
            return session
        epoch = session.epoch + 1
        # A checkpoint may have been saved since the SELECT: the part and the offset must be the last ones.
        if UploadSession.objects.filter(updated_at=session.updated_at).transition(
            [session.pk],
            State.UPLOADING,
            holder=session.epoch,
            epoch=epoch,
            expires_at=expiry(),
            **error_values(None),
        ):
            session.epoch, session.state = epoch, State.UPLOADING
            return session
        session = find([item], lock=True)[0]
    return TakenOver()


def find(items: Sequence[UploadAccess], *, lock: bool = False) -> list[UploadSession | UploadError]:
    """Read uploads for their owners, all in one query. A missing upload and another owner's get the same answer.

    With ``lock`` the rows stay locked until the transaction ends (SELECT FOR UPDATE; nothing on SQLite).
    """
    refusals = _checked_owners(items)
    rows = UploadSession.objects.select_for_update() if lock else UploadSession.objects
    sessions = rows.in_bulk({item.upload for item in items})
    outcomes: list[UploadSession | UploadError] = []
    for item, refusal in zip(items, refusals, strict=True):
        session = sessions.get(item.upload)
        if refusal is not None:
            outcomes.append(refusal)
        elif session is None or (item.owner.key, item.endpoint) != (
            session.owner_key,
            session.endpoint,
        ):
            outcomes.append(NotFound())
        else:
            outcomes.append(copy(session))
    return outcomes


def reload(items: Sequence[uuid.UUID]) -> list[UploadSession | UploadError]:
    """Read uploads again, for the server itself."""
    found = UploadSession.objects.in_bulk(items)
    return [found.get(pk) or NotFound() for pk in items]


def watched(items: Sequence[WatchQuery]) -> list[list[UploadSession]]:
    """The uploads that watchers follow, for each at most :data:`MAX_WATCHED` of each kind, in no order."""
    return [_watched(item) for item in items]


def _watched(item: WatchQuery) -> list[UploadSession]:
    # In several queries, each by one index; the newest first would lead PostgreSQL through the whole index of times.
    here = UploadSession.objects.filter(endpoint=item.endpoint).order_by()
    found = list(here.filter(pk__in=item.uploads)) if item.uploads else []
    if item.scope is not WatchScope.UPLOADS:
        scope = here if item.scope is WatchScope.ALL else here.filter(owner_key=item.owner_key)
        found += scope.filter(state__in=ACTIVE)[:MAX_WATCHED]
        if item.since is not None:
            found += scope.filter(created_at__gte=item.since)[:MAX_WATCHED]
    return found


def error_of(session: UploadSession) -> UploadError:
    """The error with which an ended upload is answered."""
    failure = BY_CODE.get(session.error)
    if failure is None:
        return UploadOver(state=str(session.state))
    return failure(session.error_message or None, **session.error_facts)


def change(items: Sequence[Change]) -> list[UploadError | None]:
    """Change states; :class:`TakenOver`, or the error that ended the upload, for a holder with an older epoch.

    :class:`Busy` for a process that would publish an upload that another one publishes."""
    refusals = _checked_owners(items)
    quota = Quota(item.growth for item in items if item.growth is not None)
    saved = _save_together([item for item in items if _is_plain_checkpoint(item)])
    outcomes = [
        None
        if item.upload in saved and _is_plain_checkpoint(item)
        else (refusal if refusal is not None else _change(item, quota))
        for item, refusal in zip(items, refusals, strict=True)
    ]
    quota.save()
    return outcomes


def _change(item: Change, quota: Quota) -> UploadError | None:
    if item.growth is not None and (refusal := quota.growth_refusal(item.growth)):
        return refusal
    if UploadSession.objects.transition([item.upload], item.to, holder=item.epoch, **item.values):
        return None
    session = UploadSession.objects.filter(pk=item.upload).first()
    if session is not None and (session.epoch, session.state) == (item.epoch, item.to):
        return None  # an earlier COMMIT, whose answer was lost, succeeded
    if item.to is State.FINALIZING and _is_published_by_another(session, item.epoch):
        return Busy(retry_after=1.0)  # its result is the answer
    return _outdated(session)


def _is_plain_checkpoint(item: Change) -> bool:
    """Whether the change saves a checkpoint of a running upload, and nothing else."""
    plain = item.to is State.UPLOADING and item.owner is None and item.growth is None
    return plain and item.values.keys() == _CHECKPOINT_COLUMNS


def _save_together(items: Sequence[Change]) -> set[uuid.UUID]:
    """Save the checkpoints of many uploads in one statement, since each one takes as long as the database is away.

    Returns the uploads whose rows were changed: all of them or, where a holder is outdated, none that is known.
    """
    pks = {item.upload for item in items}
    if len(items) < 2 or len(pks) < len(items):
        return set()
    holders = Q()
    for epoch in {item.epoch for item in items}:
        holders |= Q(epoch=epoch, pk__in=[item.upload for item in items if item.epoch == epoch])
    features = connections[router.db_for_write(UploadSession)].features
    needs_cast = features.requires_casted_case_in_updates
    values: dict[str, Any] = {}
    for field in UploadSession._meta.concrete_fields:
        if field.name in _CHECKPOINT_COLUMNS:
            cases = (
                When(pk=each.upload, then=Value(each.values[field.name], field)) for each in items
            )
            case = Case(*cases, output_field=field)
            # As bulk_update() does: PostgreSQL does not know the type of the parameters.
            values[field.name] = Cast(case, field) if needs_cast else case
    changed = UploadSession.objects.filter(holders).transition(pks, State.UPLOADING, **values)
    return pks if changed == len(items) else set()


def _is_published_by_another(session: UploadSession | None, epoch: int) -> bool:
    """Whether the row went past writing under a newer epoch."""
    return session is not None and session.state in PAST_WRITING and session.epoch > epoch


def _outdated(session: UploadSession | None) -> UploadError:
    """The error for the holder of an older epoch than the row's."""
    if session is None:
        return NotFound()
    return error_of(session) if session.state in OVER else TakenOver()


def check_holders(items: Sequence[HolderQuery]) -> list[UploadError | None]:
    """None for each holder that has the row's epoch; otherwise the error with which it has to stop.

    Also None for a published upload: it has no holder, and holds of requests raise its epoch.
    """
    current = UploadSession.objects.filter(pk__in=[item.upload for item in items])
    epochs = dict(current.values_list("pk", "epoch"))
    outdated = {item for item in items if epochs.get(item.upload) != item.epoch}
    found = UploadSession.objects.in_bulk({item.upload for item in outdated}) if outdated else {}
    published = {pk for pk, session in found.items() if session.state in PUBLISHED}
    return [
        _outdated(found.get(item.upload))
        if item in outdated and item.upload not in published
        else None
        for item in items
    ]


def find_abandoned(items: Sequence[AbandonedQuery]) -> list[list[UploadSession]]:
    """Uploads in ``finalizing`` whose process seems to have crashed, the oldest first, for each caller.

    An upload returned to one caller is not returned to another one for ``seconds``.
    """
    return [_find_abandoned(item) for item in items]


def _find_abandoned(item: AbandonedQuery) -> list[UploadSession]:
    now = timezone.now()
    lifeless = UploadSession.objects.filter(
        state=State.FINALIZING, updated_at__lt=now - timedelta(seconds=item.seconds)
    )
    return [
        session
        for session in lifeless.order_by("updated_at")[: item.most]
        if lifeless.filter(pk=session.pk, updated_at=session.updated_at).update(updated_at=now)
    ]


def adopt(items: Sequence[Adoption]) -> list[UploadSession | UploadError]:
    """Take uploads in ``finalizing`` over from processes that do not publish them any more: the epoch rises.

    Returns each as it is now; :class:`Busy` where another process was faster.
    """
    return [_adopt(item) for item in items]


def _adopt(item: Adoption) -> UploadSession | UploadError:
    UploadSession.objects.filter(state=State.FINALIZING).transition(
        [item.upload],
        State.FINALIZING,
        holder=item.epoch,
        epoch=item.epoch + 1,
        part=item.part,
        updated_at=item.at,
    )
    session = UploadSession.objects.filter(pk=item.upload).first()
    if session is None:
        return NotFound()
    # Changed here, or by an earlier COMMIT, whose answer was lost.
    if (session.epoch, session.updated_at) == (item.epoch + 1, item.at):
        return session
    return error_of(session) if session.state in OVER else Busy(retry_after=1.0)


def touch(items: Sequence[uuid.UUID]) -> list[None]:
    """Mark uploads that this process verifies or publishes as active, so that no other process adopts them."""
    past_writing = (State.VERIFYING, State.FINALIZING)
    running = UploadSession.objects.filter(pk__in=items, state__in=past_writing)
    running.update(updated_at=timezone.now())
    return [None] * len(items)


def complete(items: Sequence[UploadSession]) -> list[CompletionEvent | UploadError]:
    """``finalizing`` -> ``completed``, once, with the outbox row in the same transaction.

    The caller has the claim on the event, and delivers it after the commit. :class:`Busy` for a process from which
    another one has adopted the publication.
    """
    now = timezone.now()
    pks = [session.pk for session in items]
    values = {"part": "", "completed_at": now, "expires_at": None, **error_values(None)}
    changed = sum(
        UploadSession.objects.transition(
            [session.pk for session in items if session.epoch == epoch],
            State.COMPLETED,
            holder=epoch,
            **values,
        )
        for epoch in {session.epoch for session in items}
    )
    delivered = None if signals.upload_completed.has_listeners(UploadSession) else now
    events = {
        session.pk: CompletionEvent(
            session=session,
            created_at=now,
            due_at=now + CLAIM,
            attempts=1 if delivered is None else 0,
            delivered_at=delivered,
        )
        for session in items
    }
    if changed == len(items):
        CompletionEvent.objects.bulk_create(events.values())
        return [events[session.pk] for session in items]
    # Some were completed before, by this call or by another process; others have ended.
    known = UploadSession.objects.select_related("completion").in_bulk(pks)
    found = {
        session.pk: _event_or_error(known.get(session.pk), session.epoch, events[session.pk])
        for session in items
    }
    CompletionEvent.objects.bulk_create(
        [event for event in events.values() if event is found[event.session_id]]
    )
    return [found[session.pk] for session in items]


def _event_or_error(
    session: UploadSession | None, epoch: int, new: CompletionEvent
) -> CompletionEvent | UploadError:
    if session is None:
        return NotFound()
    if session.state not in PAST_WRITING:
        return _outdated(session)
    if _is_published_by_another(session, epoch):
        return Busy(retry_after=1.0)
    return getattr(session, "completion", new)


def end(items: Sequence[Ending]) -> list[tuple[UploadSession, bool] | UploadError]:
    """Cancel, fail or expire uploads; returns each as it is now, and whether this call ended it.

    The epoch rises, so that no holder continues. The caller deletes the part that the returned
    session names.
    """
    return [_end(item) for item in items]


def _end(item: Ending) -> tuple[UploadSession, bool] | UploadError:
    session = UploadSession.objects.filter(pk=item.upload).first()
    if session is None:
        return NotFound()
    for before in item.ended:
        if (session.state, session.epoch) == (item.to, before.epoch + 1):
            session.part, session.metadata = before.part, before.metadata
            return session, True
    # An upload that was active after the purge read its row does not expire.
    is_purge = item.to is State.EXPIRED and item.epoch is not None
    rows = UploadSession.objects.expired() if is_purge else UploadSession.objects.active()
    changed = rows.transition(
        [item.upload],
        item.to,
        holder=item.epoch,
        epoch=F("epoch") + 1,
        part="",
        metadata={},  # nothing reads it any longer
        **error_values(item.error),
    )
    if changed:
        item.ended[:] = [copy(session)]
        session.state = item.to
        for column, value in error_values(item.error).items():
            setattr(session, column, value)
    elif item.epoch not in (None, session.epoch) and session.state not in OVER:
        return TakenOver()
    return session, bool(changed)


def discard(items: Sequence[uuid.UUID]) -> list[tuple[UploadSession, bool] | UploadError]:
    """Cancel completed uploads that are not taken; returns each as it is now, and whether this call cancelled it.

    An upload that a request holds stays. ``expires_at`` stays until the file is deleted: see
    :func:`mark_withdrawn`.
    """
    return [_discard(pk) for pk in items]


def _discard(pk: uuid.UUID) -> tuple[UploadSession, bool] | UploadError:
    now = timezone.now()
    free = UploadSession.objects.filter(Q(expires_at=None) | Q(expires_at__lte=now))
    changed = free.filter(state=State.COMPLETED).transition(
        [pk],
        State.CANCELLED,
        epoch=F("epoch") + 1,
        metadata={},
        response=None,
        expires_at=now + HOLD,
    )
    if changed:
        CompletionEvent.objects.filter(
            session=pk
        ).delete()  # receivers need not be notified any more
    session = UploadSession.objects.filter(pk=pk).first()
    return (session, bool(changed)) if session is not None else NotFound()


def mark_withdrawn(items: Sequence[uuid.UUID]) -> list[None]:
    """Record that the published files of cancelled uploads were deleted."""
    UploadSession.objects.filter(pk__in=items, state=State.CANCELLED).update(expires_at=None)
    return [None for _ in items]


def note_error(items: Sequence[UploadProblem]) -> list[None]:
    """Store errors in rows whose uploads did not end, until they continue."""
    for item in items:
        UploadSession.objects.active().filter(pk=item.upload, epoch=item.epoch).update(
            **error_values(item.error)
        )
    return [None] * len(items)


def _checked_owners(
    items: Sequence[Creation | UploadAccess | Change],
) -> list[Any]:
    """Check the owners of items again, each once: None or an error for each item."""
    refusals: dict[Hashable, ConnectionRefused | None] = {None: None}
    credentials = [None if item.owner is None else item.owner.credential for item in items]
    for item, credential in zip(items, credentials, strict=True):
        if item.owner is not None and credential not in refusals:
            try:
                item.owner.check()
            except ConnectionRefused as refusal:
                refusals[credential] = refusal
            else:
                refusals[credential] = None
    return [refusals[credential] for credential in credentials]
