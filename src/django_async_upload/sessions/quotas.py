"""Quotas of owners and addresses: the number of their open uploads, and the bytes of these.

They hold exactly, however many processes create uploads: a transaction that adds to an owner's uploads first locks the
owner's row of :class:`Usage`. The row has an upper bound, since what ends is not subtracted. So it is counted anew
before it refuses an upload.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

from django.db import connections
from django.db.models import Case, Count, F, Q, Sum, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from .. import conf
from ..exceptions import ByteQuotaExceeded, Joined, SessionQuotaExceeded, UploadError
from ..models import UploadSession, Usage
from .state import ACTIVE, OVER

ENDED: Final = timedelta(hours=1)
"""Time after its creation for which a failed, cancelled or expired upload counts as open."""
COUNT_AFTER: Final = timedelta(minutes=1)
"""Age of a count from which on it is made anew, so that no row stays wrong that somebody has changed by hand."""
PAUSE: Final = timedelta(microseconds=20)
"""Pause between counts, for each upload counted: counting takes a small part of that."""


@dataclass(slots=True)
class Added:
    """What a group of calls adds, and no row of an upload contains yet."""

    sessions: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of an upload of unknown size, from ``before`` bytes, as in its row, to ``after``."""

    owner_key: str
    address: str | None
    before: int
    after: int


class Where(NamedTuple):
    """A column of :class:`UploadSession`, and its value for the owner or the address."""

    column: str
    value: str

    @property
    def key(self) -> str:
        """The key of its :class:`Usage`. Keys of owners begin with ``user:`` or ``visitor:``."""
        return self.value if self.column == "owner_key" else f"{self.column}:{self.value}"


class Quota:
    """The usage of the owners and addresses of a group of calls, locked until its transaction ends."""

    def __init__(self, items: Iterable[UploadSession | Growth]) -> None:
        self._limits = conf.uploads()
        self._now = timezone.now()
        self._added: dict[Where, Added] = defaultdict(Added)
        wheres = {where for item in items for where in wheres_of(item.owner_key, item.address)}
        locked = lock(wheres)
        self._usage = {where: locked[where.key] for where in wheres}
        self._counted: set[Where] = set()
        self._count([where for where in wheres if self._age(where) >= COUNT_AFTER])

    def _age(self, where: Where) -> timedelta:
        """Time since the count, in either direction: clocks of machines may differ."""
        counted_at = self._usage[where].counted_at
        return timedelta.max if counted_at is None else abs(self._now - counted_at)

    def _count(self, wheres: Iterable[Where]) -> None:
        for where in wheres:
            usage, added = self._usage[where], self._added[where]
            usage.sessions, usage.bytes = added.sessions, added.bytes
            usage.counted_at = self._now
            self._counted.add(where)
        for column in ("owner_key", "address"):
            values = [where.value for where in wheres if where.column == column]
            if not values:
                continue
            ended = Q(state__in=OVER, created_at__gt=self._now - ENDED) & ~Q(error=Joined.code)
            counted = Q(state__in=ACTIVE) | ended
            held = Case(When(state__in=ACTIVE, then=Coalesce(F("size"), F("durable"))), default=0)
            rows = (
                UploadSession.objects.filter(counted, **{f"{column}__in": values})
                .order_by()
                .values_list(column)
                .annotate(sessions=Count("pk"), held=Sum(held))
            )
            for value, sessions, size in rows:
                usage = self._usage[Where(column, value)]
                usage.sessions += sessions
                usage.bytes += int(size or 0)

    def refusal(self, session: UploadSession) -> UploadError | None:
        """The error that refuses a new upload; None where it is allowed, which counts it."""
        return self._checked(session, 1, session.size or 0)

    def growth_refusal(self, growth: Growth) -> UploadError | None:
        """The error that refuses an upload's growth; None where it is allowed, which counts it."""
        return self._checked(growth, 0, growth.after - growth.before)

    def _checked(
        self, item: UploadSession | Growth, sessions: int, size: int
    ) -> UploadError | None:
        wheres = wheres_of(item.owner_key, item.address)
        refusal = self._excess(wheres, sessions, size)
        if refusal and (old := [where for where in wheres if self._may_count(where)]):
            self._count(old)
            refusal = self._excess(wheres, sessions, size)
        if refusal is None:
            self._add(wheres, sessions, size)
        return refusal

    def _may_count(self, where: Where) -> bool:
        """Whether an upload may have ended since the count, and the last one was not just now."""
        return (
            where not in self._counted and self._age(where) >= PAUSE * self._usage[where].sessions
        )

    def _excess(self, wheres: Sequence[Where], sessions: int, size: int) -> UploadError | None:
        limits = self._limits
        for where in wheres:
            usage = self._usage[where]
            if where.column == "owner_key":
                max_sessions, max_bytes = limits.user_max_sessions, limits.user_max_bytes
            else:
                max_sessions, max_bytes = limits.address_max_sessions, limits.address_max_bytes
            if usage.sessions + sessions > max_sessions:
                return SessionQuotaExceeded(max_sessions=max_sessions)
            if usage.bytes + size > max_bytes and (sessions or size > 0):
                return ByteQuotaExceeded(max_bytes=max_bytes, open_bytes=usage.bytes)
        return None

    def _add(self, wheres: Sequence[Where], sessions: int, size: int) -> None:
        for where in wheres:
            for usage in (self._usage[where], self._added[where]):
                usage.sessions += sessions
                usage.bytes += size

    def save(self) -> None:
        """Save what was counted and added, for the next transaction that locks these rows."""
        changed = [self._usage[where] for where in sorted(self._counted | self._added.keys())]
        Usage.objects.bulk_update(changed, ["sessions", "bytes", "counted_at"])


def wheres_of(owner_key: str, address: str | None) -> list[Where]:
    """The owner, and the address where it is known."""
    owner = Where("owner_key", owner_key)
    return [owner] if address is None else [owner, Where("address", address)]


def lock(wheres: Iterable[Where]) -> dict[str, Usage]:
    """Lock the rows of owners and addresses until the transaction ends; returns them by their keys.

    In the order of the keys, so that no two transactions wait for each other. On SQLite there is one writer at a time.
    """
    keys = sorted({where.key for where in wheres})
    rows = Usage.objects.select_for_update().order_by("pk")
    found = {row.key: row for row in rows.filter(pk__in=keys)}
    if missing := [key for key in keys if key not in found]:
        _create(missing)
        found.update((row.key, row) for row in rows.filter(pk__in=missing))
    return found


def _create(keys: Iterable[str]) -> None:
    """Create rows and lock them. One that another transaction creates meanwhile is counted anew.

    Not with ``ignore_conflicts``: on MariaDB two transactions would share a lock, and each wait for the other's end.
    """
    names_key = connections[Usage.objects.all().db].features.supports_update_conflicts_with_target
    Usage.objects.bulk_create(
        [Usage(key=key) for key in keys],
        update_conflicts=True,
        update_fields=["counted_at"],
        unique_fields=["key"] if names_key else None,
    )
