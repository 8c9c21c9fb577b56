"""``healthz``: whether this process can take uploads, as JSON for load balancers and monitoring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict
from threading import Lock
from typing import Any, Final, Generic, TypeVar

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .concurrency.threads import DaemonExecutor
from .engine.database import says_no_tables
from .engine.drain import retry_after
from .engine.outbox import Backlog, backlogs
from .exceptions import (
    DatabaseNotMigrated,
    DatabaseUnavailable,
    Draining,
    StorageFailed,
    UploadError,
)
from .stores.configured import make_store

logger = logging.getLogger("django_async_upload")

SECONDS: Final = 5.0
"""Seconds that the store and the database may take: a network file system, or a lock, may hang."""
LAYER_SECONDS: Final = 2.0
"""Seconds that the channel layer may take."""

Found = TypeVar("Found")


class Probe(Generic[Found]):
    """A call that may hang, in a thread of its own. While it hangs, later requests wait for the same call."""

    def __init__(self, name: str, call: Callable[[], Found]) -> None:
        self._thread = DaemonExecutor(1, f"async-upload-health-{name}")
        self._call = call
        self._running: Future[Found] | None = None
        self._lock = Lock()

    def start(self) -> Future[Found]:
        """Start the call unless it runs."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = self._thread.submit(self._call)
            return self._running


@login_not_required
@transaction.non_atomic_requests
@never_cache
@require_safe
def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 where this process can take uploads, else 503, with the codes of the errors in ``problems``.

    ``warnings`` are for people: uploads go on. The answer names no path, user or upload.
    """
    trying, reading = _store.start(), _outbox.start()
    store_error, free_bytes = _outcome_of_store(trying)
    database_error, backlog = _outcome_of_outbox(reading)
    layer_answers = _ask_layer()
    seconds = retry_after()
    draining = None if seconds is None else Draining(retry_after=seconds)
    problems = [error.code for error in (draining, store_error, database_error) if error]
    warnings = ["layer_unavailable"] if layer_answers is False else []
    warnings += ["outbox_dead"] if backlog is not None and backlog.dead else []
    answer = {
        "status": "unavailable" if problems else "warning" if warnings else "ok",
        "problems": problems,
        "warnings": warnings,
        "draining": draining is not None,
        "store": {"writable": store_error is None, "free_bytes": free_bytes},
        "database": {"available": database_error is None},
        "layer": None if layer_answers is None else {"available": layer_answers},
        "outbox": None if backlog is None else asdict(backlog),
    }
    return JsonResponse(answer, status=503 if problems else 200)


def _outcome_of_store(
    trying: Future[tuple[UploadError | None, int | None]],
) -> tuple[UploadError | None, int | None]:
    """The error, and the free bytes where the store knows them."""
    try:
        return trying.result(SECONDS)
    except TimeoutError:
        logger.error("The store did not answer for %.0f s", SECONDS)
    except Exception:  # of a store of the host's, or its configuration
        logger.exception("The store failed")
    return StorageFailed(), None


def _create_part() -> tuple[UploadError | None, int | None]:
    """Create a part and delete it."""
    error: UploadError | None = None
    free_bytes: int | None = None
    with closing(make_store()) as store:
        try:
            with closing(store.create(None)) as writer:
                pass
            store.delete(writer.part)
        except UploadError as failure:
            error = failure
        with suppress(StorageFailed):
            free_bytes = store.free_space()
    return error, free_bytes


def _read_outbox() -> Backlog:
    try:
        return backlogs([None])[0]
    finally:
        connections.close_all()  # those of this thread


def _outcome_of_outbox(reading: Future[Backlog]) -> tuple[UploadError | None, Backlog | None]:
    try:
        return None, reading.result(SECONDS)
    except TimeoutError:
        logger.error("The database did not answer for %.0f s", SECONDS)
    except (DatabaseError, InterfaceError) as error:
        logger.warning("Database: %s", error)
        if says_no_tables(error):
            return DatabaseNotMigrated(), None
    return DatabaseUnavailable(retry_after=1.0), None


_store = Probe("store", _create_part)
_outbox = Probe("outbox", _read_outbox)


def _ask_layer() -> bool | None:
    """Whether the channel layer answers; None where none is configured. A group without members keeps nothing."""
    layer = get_channel_layer()
    if layer is None:
        return None
    try:
        return async_to_sync(_send)(layer)
    except Exception as error:  # each layer raises its own
        logger.warning("The channel layer does not answer: %r", error)
        return False


async def _send(layer: Any) -> bool | None:
    if "groups" not in layer.extensions:  # some layers know that on an event loop only
        return None
    async with asyncio.timeout(LAYER_SECONDS):
        await layer.group_send("async-upload-health", {"type": "health"})
    return True
