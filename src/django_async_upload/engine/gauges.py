"""The gauges of a process: credit, uploads, connections, watchers, the outbox, and the lag of the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence, Sized
from typing import Final

from django.db.models import Count

from ..exceptions import UploadError
from ..models import UploadSession
from ..sessions.state import ACTIVE
from .drain import connections
from .outbox import backlogs
from .runtime import Runtime
from .telemetry import NoTelemetry

logger = logging.getLogger("django_async_upload")

SECONDS: Final = 10.0
"""Seconds between two values of a gauge."""
TICK_SECONDS: Final = 0.25
"""Seconds between two looks at the clock, for the lag of the event loop."""


class Gauges:
    """Measures while the setting ``TELEMETRY`` names a class."""

    def __init__(self, runtime: Runtime, active: Sized, watching: Sized) -> None:
        self._runtime = runtime
        self._active = active
        self._watching = watching
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to measure, unless it has started, or no class is named."""
        if not self._tasks and not isinstance(self._runtime.telemetry, NoTelemetry):
            self._tasks = [
                asyncio.create_task(self._measure_process()),
                asyncio.create_task(self._measure_rows()),
            ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _measure_process(self) -> None:
        telemetry = self._runtime.telemetry
        while True:
            telemetry.gauge("loop.lag", await self._worst_lag())
            telemetry.gauge("credit.used", self._runtime.budget.promised)
            telemetry.gauge("uploads.open", len(self._active))
            telemetry.gauge("connections.open", len(connections))
            telemetry.gauge("watchers.open", len(self._watching))

    async def _worst_lag(self) -> float:
        """The most by which a timer was late within :data:`SECONDS`, seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        worst = 0.0
        while (now := loop.time()) < end:
            await asyncio.sleep(TICK_SECONDS)
            worst = max(worst, loop.time() - now - TICK_SECONDS)
        return worst

    async def _measure_rows(self) -> None:
        telemetry, database = self._runtime.telemetry, self._runtime.database
        while True:
            try:
                backlog = await database.call(backlogs, None)
                counts = await database.call(active_by_state, None)
            except UploadError:  # the database is unavailable, which is logged
                pass
            except Exception:  # a bug, or an error of the database: the next look may succeed
                logger.exception("The rows could not be measured")
            else:
                telemetry.gauge("outbox.waiting", backlog.waiting)
                telemetry.gauge("outbox.age", backlog.age)
                telemetry.gauge("outbox.attempts", backlog.attempts)
                telemetry.gauge("outbox.dead", backlog.dead)
                for state, count in counts.items():
                    telemetry.gauge("uploads.active", count, state=state)
            await asyncio.sleep(SECONDS)


def active_by_state(items: Sequence[None]) -> list[dict[str, int]]:
    """The number of uploads in each state in which an upload is neither over nor published, for all callers."""
    found = UploadSession.objects.active().order_by().values_list("state")
    counts = dict.fromkeys(map(str, ACTIVE), 0) | dict(found.annotate(Count("pk")))
    return [counts] * len(items)
