"""Quotas of owners and addresses: the number of their open uploads, and the bytes of these."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.db.models import Case, Count, F, Q, Sum, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from .. import conf
from ..exceptions import ByteQuotaExceeded, SessionQuotaExceeded, UploadError
from ..models import UploadSession
from .state import ACTIVE, OVER

ENDED: Final = timedelta(hours=1)
"""Time after its creation for which a failed, cancelled or expired upload counts as open."""
MANY: Final = 1000
"""Number of uploads of one owner or address from which on counts are cached, since counting takes time."""
RECOUNT_SECONDS: Final = 1.0
"""Maximum age of a cached count; uploads of this process are added to it at once."""
REFUSAL_SECONDS: Final = 0.2
"""Maximum age of a cached count that refuses an upload."""


@dataclass(slots=True)
class Usage:
    """The usage of one owner, or one address."""

    sessions: int = 0
    bytes: int = 0
    """Declared bytes, or received bytes where the size is unknown."""


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of an upload of unknown size, from ``before`` bytes, as in its row, to ``after``."""

    owner_key: str
    address: str | None
    before: int
    after: int


Where = tuple[str, Any]
"""A column, and its value for the owner or the address."""

_counted: dict[Where, tuple[float, Usage]] = {}
"""Cached usage of owners and addresses with :data:`MANY` uploads, with the ``time.monotonic`` of its reading."""


class Quota:
    """The usage of the owners and addresses of a group of calls: read once, then increased in memory."""

    def __init__(self, items: Iterable[UploadSession | Growth]) -> None:
        self._limits = conf.uploads()
        self._usage: dict[Where, Usage] = {}
        self._added: dict[Where, Usage] = defaultdict(Usage)
        """What the group adds, and no row contains yet."""
        wheres = {where for item in items for where in _wheres(item)}
        now = time.monotonic()
        for where, (read_at, usage) in list(_counted.items()):
            if now - read_at >= RECOUNT_SECONDS:
                del _counted[where]
            elif where in wheres:
                self._usage[where] = usage
        self._read(wheres - self._usage.keys())

    def _read(self, wheres: Iterable[Where]) -> None:
        for where in wheres:
            self._usage[where] = Usage()
            _counted.pop(where, None)
        for column in ("owner_key", "address"):
            values = [value for name, value in wheres if name == column]
            if not values:
                continue
            counted = Q(state__in=ACTIVE) | Q(state__in=OVER, created_at__gt=timezone.now() - ENDED)
            held = Case(When(state__in=ACTIVE, then=Coalesce(F("size"), F("durable"))), default=0)
            rows = (
                UploadSession.objects.filter(counted, **{f"{column}__in": values})
                .order_by()
                .values_list(column)
                .annotate(sessions=Count("pk"), held=Sum(held))
            )
            for value, sessions, size in rows:
                added = self._added[column, value]
                usage = Usage(sessions + added.sessions, (size or 0) + added.bytes)
                self._usage[column, value] = usage
                if sessions >= MANY:
                    _counted[column, value] = (time.monotonic(), usage)

    def refusal(self, session: UploadSession) -> UploadError | None:
        """The error that refuses a new upload; None where it is allowed, which counts it."""
        return self._checked(_wheres(session), 1, session.size or 0)

    def growth_refusal(self, growth: Growth) -> UploadError | None:
        """The error that refuses an upload's growth; None where it is allowed, which counts it."""
        return self._checked(_wheres(growth), 0, growth.after - growth.before)

    def _checked(self, wheres: Sequence[Where], sessions: int, size: int) -> UploadError | None:
        refusal = self._excess(wheres, sessions, size)
        if refusal and (old := [where for where in wheres if _is_old(where)]):
            self._read(old)
            refusal = self._excess(wheres, sessions, size)
        if refusal is None:
            self._count(wheres, sessions, size)
        return refusal

    def _excess(self, wheres: Sequence[Where], sessions: int, size: int) -> UploadError | None:
        limits = self._limits
        for where in wheres:
            usage = self._usage[where]
            if where[0] == "owner_key":
                max_sessions, max_bytes = limits.user_max_sessions, limits.user_max_bytes
            else:
                max_sessions, max_bytes = limits.address_max_sessions, limits.address_max_bytes
            if usage.sessions + sessions > max_sessions:
                return SessionQuotaExceeded(max_sessions=max_sessions)
            if usage.bytes + size > max_bytes and (sessions or size > 0):
                return ByteQuotaExceeded(max_bytes=max_bytes, open_bytes=usage.bytes)
        return None

    def _count(self, wheres: Sequence[Where], sessions: int, size: int) -> None:
        for where in wheres:
            for usage in (self._usage[where], self._added[where]):
                usage.sessions += sessions
                usage.bytes += size


def _is_old(where: Where) -> bool:
    """Whether the cached count is too old to refuse an upload: some may have ended in the meantime."""
    return where in _counted and time.monotonic() - _counted[where][0] >= REFUSAL_SECONDS


def _wheres(item: UploadSession | Growth) -> list[Where]:
    owner: Where = ("owner_key", item.owner_key)
    return [owner] if item.address is None else [owner, ("address", item.address)]
