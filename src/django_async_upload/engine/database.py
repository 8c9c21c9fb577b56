"""The database access of the engine: a thread that runs calls in groups, one transaction for each group.

The thread keeps the database connections, tests them, and commits in groups: calls made while a
transaction runs share the next one. (Measured: 1,390 rows/s in transactions of their own, 50,000
with 100 rows each; and a receiver that blocked Django's shared thread delayed an UPDATE by a second.)

No call waits without a limit. A call that meets a lock is retried on a second thread, one call at a time,
while others run on the first; a thread that gets no answer is abandoned and replaced.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

from django.db import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.db.utils import DatabaseError

from ..concurrency.threads import DaemonExecutor
from ..concurrency.turns import Turns
from ..exceptions import DatabaseNotMigrated, DatabaseUnavailable, UploadError
from ..failpoints import failpoint
from ..notices import notice

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("django_async_upload")

MAX_GROUP = 256
HEALTH_CHECK_AFTER = 15.0
"""Seconds without use after which a database connection is tested before it is used again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
ANSWER_SECONDS = 5.0
"""Seconds that a call waits for an answer at least, whatever its ``patience``."""
LOCK_SECONDS, STATEMENT_SECONDS, IDLE_SECONDS = 2.0, 10.0, 5.0
"""Seconds that PostgreSQL and MariaDB wait in these transactions for a lock, for a statement and for the next one.

Without the last one a process that is stopped in a transaction would keep other processes from the rows it has locked.
"""
STALLED_SECONDS = 30.0
"""Seconds without an answer after which a thread is abandoned: its database connection may be dead without an error."""
MAX_STALLED = 4
CLOSE_SECONDS = 5.0
"""Seconds that :meth:`Database.close` waits for a running call."""

_LIMITS: Final = """
SELECT set_config(name, seconds, true)
FROM (VALUES ('lock_timeout', %s), ('statement_timeout', %s), ('idle_in_transaction_session_timeout', %s))
     AS limits (name, seconds)
WHERE current_setting(name) = '0'
"""
"""Set for one transaction, since a connection pool may give the database connection to another client afterwards."""
_MARIADB_LIMITS: Final = """
SET innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, %s),
    max_statement_time = IF(@@max_statement_time = 0, %s, @@max_statement_time),
    idle_transaction_timeout = IF(@@idle_transaction_timeout = 0, %s, @@idle_transaction_timeout)
"""
"""Set for the database connection, which is the thread's own."""
_ABOUT_ONE: Final = {"55P03", "57014", 1205, 1969}
"""Errors that concern one call: lock_not_available and query_canceled of PostgreSQL, and the same of MariaDB."""
_IDLE_IN_TRANSACTION: Final = "25P03"
"""PostgreSQL: idle_in_transaction_session_timeout."""
_NO_TABLES: Final = {"42P01", "42703", 1146, 1054}
"""A table or a column does not exist: PostgreSQL, MariaDB."""


@dataclass(slots=True)
class _Call:
    function: Callable[[Sequence[Any]], Sequence[Any]]
    items: Sequence[Any]
    future: asyncio.Future[list[Any]]


class _Lane:
    """A queue, and the thread that empties it in groups of at most ``most`` calls."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: Turns[_Call] = Turns()
        self.draining: asyncio.Task[None] | None = None
        self.used_at = 0.0
        self._thread: DaemonExecutor | None = None

    @property
    def thread(self) -> DaemonExecutor:
        if self._thread is None:
            self._thread = DaemonExecutor(1, "async-upload-database")
        return self._thread

    def retire_thread(self) -> DaemonExecutor | None:
        """Replace the thread: after its current call it closes its database connections and ends."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(connections.close_all)
            thread.shutdown(wait=False)
        return thread


class Database:
    """Runs synchronous functions that read and change rows, on behalf of one event loop."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._lane = _Lane(MAX_GROUP)
        self._slow_lane = _Lane(1)
        self._stalled: list[DaemonExecutor] = []

    async def call(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result | UploadError]],
        item: Item,
        *,
        owner: str = "",
        patience: float = 10.0,
    ) -> Result:
        """Run ``function([item, ...])`` in a transaction shared with others and return the item's result.

        The function gets the items of all waiting callers, and returns a result for each, in order; a
        result that is an :class:`UploadError` is raised to its caller. If the function itself raises, the
        group is rolled back and each call runs again in a transaction of its own: a function may run
        more than once.

        Owners are served in turn; ``owner`` is the key of the call's owner, "" for the server's own calls.

        While the database cannot be reached, is locked or does not answer, the call is retried for ``patience``
        seconds; then :class:`DatabaseUnavailable` is raised, although the work may be done later. Raises
        :class:`DatabaseNotMigrated` where tables of this app are missing.
        """
        outcome = (await self.call_many(function, [item], owner=owner, patience=patience))[0]
        if isinstance(outcome, UploadError):
            raise outcome
        return outcome

    async def call_many(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result | UploadError]],
        items: Sequence[Item],
        *,
        owner: str = "",
        patience: float = 10.0,
    ) -> list[Result | UploadError]:
        """:meth:`call` for several items of one caller: a result or an error for each."""
        if not items:
            return []
        deadline = time.monotonic() + patience
        pause = FIRST_PAUSE
        lane = self._lane
        while True:
            try:
                limit = max(deadline - time.monotonic(), ANSWER_SECONDS)
                async with asyncio.timeout(limit) as answer:
                    return await self._ask(lane, owner, function, items)
            except TimeoutError as error:
                if not answer.expired():  # returned by the function
                    raise
                raise DatabaseUnavailable(retry_after=1.0) from error
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() + pause > deadline:
                    raise DatabaseUnavailable(retry_after=1.0) from error
                if _code(error) in _ABOUT_ONE:
                    lane = self._slow_lane
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ask(
        self, lane: _Lane, owner: str, function: Any, items: Sequence[Any]
    ) -> asyncio.Future[list[Any]]:
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        lane.calls.add(owner, _Call(function, items, future))
        if lane.draining is None:
            lane.draining = asyncio.create_task(self._drain(lane))
        return future

    async def _drain(self, lane: _Lane) -> None:
        try:
            while lane.calls:
                taken = lane.calls.take(lane.most)
                group = [call for call in taken if not call.future.done()]  # the caller still waits
                try:
                    outcomes = await self._run(lane, group) if group else []
                except Exception as error:  # any exception: the callers must get it
                    logger.exception("The database thread failed")
                    outcomes = [error] * len(group)
                for call, outcome in zip(group, outcomes, strict=True):
                    if call.future.done():  # its caller was cancelled
                        continue
                    if isinstance(outcome, Exception):
                        call.future.set_exception(outcome)
                    else:
                        call.future.set_result(outcome)
        finally:
            lane.draining = None

    async def _run(self, lane: _Lane, group: list[_Call]) -> Sequence[list[Any] | Exception]:
        """Run a group on the lane's thread, and replace the thread if it gets no answer."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(lane.thread, self._run_group, lane, group)
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        while not (await asyncio.wait({running}, timeout=STALLED_SECONDS))[0]:
            self._stalled = [thread for thread in self._stalled if thread.is_alive]
            if len(self._stalled) < MAX_STALLED and (thread := lane.retire_thread()) is not None:
                logger.error(
                    "The database did not answer for %.0f s: continuing on another database connection",
                    STALLED_SECONDS,
                )
                self._stalled.append(thread)
                return [OperationalError("The database did not answer.")] * len(group)
        return running.result()

    def _run_group(self, lane: _Lane, group: list[_Call]) -> Sequence[list[Any] | Exception]:
        self._care(lane)
        try:
            return self._run_together(group)
        finally:
            _return_to_pools()

    def _run_together(self, group: list[_Call]) -> Sequence[list[Any] | Exception]:
        try:
            return self._transact(group)
        except (OperationalError, InterfaceError) as error:
            # The error concerns all calls, or an unknown one, and each alone would wait as long.
            return [self._seen(error)] * len(group)
        except Exception as error:
            seen = self._seen(error)
            if len(group) == 1 and not isinstance(error, IntegrityError):
                return [seen]
        outcomes: list[list[Any] | Exception] = []
        for call in group:
            try:
                outcomes += self._transact([call])
            except Exception as error:  # each error is raised to its caller
                outcomes.append(self._seen(error))
        return outcomes

    def _transact(self, group: list[_Call]) -> Sequence[list[Any]]:
        """Run a group in one transaction, with one call per function."""
        together: dict[Any, list[_Call]] = {}
        for call in group:
            together.setdefault(call.function, []).append(call)
        outcomes: dict[int, list[Any]] = {}
        with transaction.atomic(using=self.alias):
            self._limit()
            for function, calls in together.items():
                results = iter(function([item for call in calls for item in call.items]))
                for call in calls:
                    outcomes[id(call)] = list(islice(results, len(call.items)))
            for function in together:
                failpoint(f"{_name(function)}.before_commit")
        for function in together:
            failpoint(f"{_name(function)}.after_commit")
        return [outcomes[id(call)] for call in group]

    def _limit(self) -> None:
        """Set time limits for this transaction, where the site has none. SQLite has its ``timeout``."""
        connection = connections[self.alias]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                limits = (LOCK_SECONDS, STATEMENT_SECONDS, IDLE_SECONDS)
                cursor.execute(_LIMITS, [f"{seconds}s" for seconds in limits])
        elif getattr(connection, "mysql_is_mariadb", False):
            limits = (math.ceil(LOCK_SECONDS), STATEMENT_SECONDS, math.ceil(IDLE_SECONDS))
            with connection.cursor() as cursor:
                cursor.execute(_MARIADB_LIMITS, limits)

    def _care(self, lane: _Lane) -> None:
        """Close broken connections of every database, since users may be in another one than uploads.

        Seen: after a restart of PostgreSQL a kept database connection never recovered by itself.
        """
        now = time.monotonic()
        rested = now - lane.used_at > HEALTH_CHECK_AFTER
        lane.used_at = now
        for connection in connections.all(initialized_only=True):
            if connection.connection is None or not (rested or connection.errors_occurred):
                continue
            if connection.is_usable():
                connection.errors_occurred = False
            else:
                # Drivers may raise when they close a broken connection; Django has dropped it even so.
                with suppress(Exception):
                    connection.close()

    def _seen(self, error: Exception) -> Exception:
        """Log a database's error; returns the one for the caller."""
        if not isinstance(error, DatabaseError | InterfaceError):
            return error
        if not says_no_tables(error):
            notice(f"database {type(error).__name__}", logging.WARNING, "Database: %s", error)
            # The connection is lost, although psycopg does not raise an OperationalError.
            is_lost = _code(error) == _IDLE_IN_TRANSACTION
            return OperationalError(str(error)) if is_lost else error
        missing = "Tables of this app are missing in the database: run manage.py migrate (%s)"
        notice("database_not_migrated", logging.ERROR, missing, error)
        return DatabaseNotMigrated()

    def close(self) -> None:
        """Close the database connections and end the threads; waits :data:`CLOSE_SECONDS` for a running call."""
        for lane in (self._lane, self._slow_lane):
            if (thread := lane.retire_thread()) is not None and not thread.join(CLOSE_SECONDS):
                logger.warning("A database call did not end within %.0f s", CLOSE_SECONDS)


def _return_to_pools() -> None:
    """Give the database connections of this thread back where Django has a pool, which may be as small as one."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict.get("OPTIONS", {}).get("pool"):
            # Drivers may raise when they close a broken connection; Django has dropped it even so.
            with suppress(Exception):
                connection.close()


def _name(function: Callable[..., Any]) -> str:
    """``rows.create``: the name of a function with its module's, for failpoints."""
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def _code(error: Exception) -> object:
    """PostgreSQL's code of an error, by psycopg 3 or 2, or MariaDB's number."""
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code or (cause.args[0] if cause is not None and cause.args else None)


def says_no_tables(error: Exception) -> bool:
    """Whether the error is that a table or a column is missing."""
    text = str(error)
    return _code(error) in _NO_TABLES or "no such table" in text or "no such column" in text
