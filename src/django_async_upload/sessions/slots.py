"""Slots of connections: how many an owner and an address may have open at once, at all processes together.

A process renews its slots. Those of a process that was killed lapse.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from django.db.models import Count, QuerySet
from django.db.models.functions import Now

from .. import conf
from ..exceptions import TooManyConnections
from ..models import Slot
from .quotas import Where, lock, wheres_of

LEASE: Final = timedelta(seconds=45)
"""Time without a renewal after which a slot counts no more."""
RETRY_AFTER: Final = 5.0
"""Seconds after which a refused client may try again."""


def take(items: Sequence[Slot]) -> list[int | TooManyConnections]:
    """Take new slots; returns for each at how many processes its owner has connections now."""
    lock(where for item in items for where in wheres_of(item.owner_key, item.address))
    # Without those of an earlier COMMIT whose answer was lost.
    others = _live().exclude(pk__in=[item.pk for item in items])
    counts: Counter[Where] = Counter()
    processes: defaultdict[str, set[uuid.UUID]] = defaultdict(set)
    owners = others.filter(owner_key__in={item.owner_key for item in items})
    for owner, process, count in owners.values_list("owner_key", "process").annotate(Count("pk")):
        counts[Where("owner_key", owner)] += count
        processes[owner].add(process)
    addresses = others.filter(address__in={item.address for item in items} - {None})
    for address, count in addresses.values_list("address").annotate(Count("pk")):
        counts[Where("address", address)] = count
    outcomes: list[int | TooManyConnections] = []
    taken = []
    for item in items:
        wheres = wheres_of(item.owner_key, item.address)
        if refusal := _refusal(wheres, counts):
            outcomes.append(refusal)
            continue
        counts.update(wheres)
        processes[item.owner_key].add(item.process)
        outcomes.append(len(processes[item.owner_key]))
        taken.append(item)
    _insert(taken)
    return outcomes


def _refusal(wheres: Iterable[Where], counts: Counter[Where]) -> TooManyConnections | None:
    limits = conf.uploads()
    for where in wheres:
        is_owner = where.column == "owner_key"
        most = limits.user_max_connections if is_owner else limits.address_max_connections
        if counts[where] >= most:
            return TooManyConnections(max_connections=most, retry_after=RETRY_AFTER)
    return None


def renew(items: Sequence[Sequence[Slot]]) -> list[dict[str, int]]:
    """Renew the slots of processes; returns at how many processes each of their owners has connections."""
    held = [slot for item in items for slot in item]
    renewed = Slot.objects.filter(pk__in=[slot.pk for slot in held]).update(seen_at=Now())
    if renewed < len(held):  # the process was stopped for longer than the lease
        _insert(held)
    Slot.objects.filter(seen_at__lte=Now() - LEASE).delete()
    owners = _live().filter(owner_key__in={slot.owner_key for slot in held})
    processes = owners.values_list("owner_key").annotate(Count("process", distinct=True))
    return [dict(processes)] * len(items)


def free(items: Sequence[uuid.UUID]) -> list[None]:
    """Free slots."""
    Slot.objects.filter(pk__in=items).delete()
    return [None] * len(items)


def _live() -> QuerySet[Slot, Any]:
    return Slot.objects.filter(seen_at__gt=Now() - LEASE).order_by()


def _insert(slots: Sequence[Slot]) -> None:
    Slot.objects.bulk_create(slots, ignore_conflicts=True)
