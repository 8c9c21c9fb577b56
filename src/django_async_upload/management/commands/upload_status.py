"""``manage.py upload_status``: what is going on now, on all workers."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connections
from django.db.models import Count

from django_async_upload.concurrency.threads import DaemonExecutor
from django_async_upload.engine.outbox import Backlog, backlogs
from django_async_upload.engine.worker import WorkerStatus
from django_async_upload.management.database import explain
from django_async_upload.models import UploadSession
from django_async_upload.operations.workers import Answers, Workers
from django_async_upload.sessions.state import State

MIB = 1024 * 1024
DATABASE_SECONDS: Final = 5.0
"""Seconds that the database may take, beyond the time that the workers take."""
COLUMNS = "{:24} {:>8} {:19} {:>11} {:>7} {:>10}  {}"


@dataclass(frozen=True)
class Rows:
    """What the database says."""

    states: dict[str, int]
    """The number of uploads in each state that occurs, in the order of an upload's life."""
    backlog: Backlog


class Command(BaseCommand):
    help = "Prints what each worker does now, the uploads by state, and the signals that wait for delivery."
    requires_system_checks = ()  # it is asked when something is wrong

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def handle(self, *args: Any, json: bool, **options: Any) -> None:
        reading = DaemonExecutor(1, "upload-status").submit(_read)  # the database may hang
        answers, is_whole_site = async_to_sync(_ask)()
        found: Rows | None = None
        problem: str | None = None
        try:
            found = reading.result(DATABASE_SECONDS)
        except TimeoutError:
            problem = "The database does not answer."
        except (DatabaseError, InterfaceError) as error:
            problem = explain(error)
            if problem is None:
                raise
        if json:
            self._print_json(answers, is_whole_site, found)
        else:
            self._print(answers, is_whole_site, found)
        if problem is not None:
            raise CommandError(problem)

    def _print_json(self, answers: Answers, is_whole_site: bool, found: Rows | None) -> None:
        status = {
            "scope": "site" if is_whole_site else "machine",
            **asdict(answers),
            "uploads": None if found is None else found.states,
            "outbox": None if found is None else asdict(found.backlog),
        }
        self.stdout.write(json.dumps(status))

    def _print(self, answers: Answers, is_whole_site: bool, found: Rows | None) -> None:
        where = "of all machines" if is_whole_site else "of this machine; others are not reached"
        self.stdout.write(f"Workers {where}:")
        titles = ("host", "pid", "since", "connections", "uploads", "credit MiB", "state")
        self.stdout.write(COLUMNS.format(*titles))
        for worker in answers.workers:
            self.stdout.write(_line(worker))
        for pid in answers.silent:
            self.stdout.write(self.style.ERROR(f"Process {pid} does not answer."))
        if found is None:
            return
        counts = ", ".join(f"{count} {state}" for state, count in found.states.items())
        backlog = found.backlog
        self.stdout.write(f"Uploads of the site: {counts or 'none'}.")
        self.stdout.write(
            f"Completions to deliver: {backlog.waiting}, the oldest for {backlog.age:.0f} s, "
            f"tried {backlog.attempts} times at most; given up: {backlog.dead}."
        )


def _line(worker: WorkerStatus) -> str:
    state = "drained" if worker.drained else "draining" if worker.draining else "serving"
    since = datetime.fromtimestamp(worker.since).isoformat(" ", "seconds")
    return COLUMNS.format(
        worker.host,
        worker.pid,
        since,
        worker.connections,
        worker.uploads,
        f"{worker.credit / MIB:.1f}",
        state,
    )


async def _ask() -> tuple[Answers, bool]:
    async with Workers(everywhere=True) as workers:
        return await workers.ask({"do": "status"}), workers.is_whole_site


def _read() -> Rows:
    rows = UploadSession.objects.order_by().values_list("state").annotate(Count("pk"))
    try:
        counts = dict(rows)
        (backlog,) = backlogs([None])
    finally:
        connections.close_all()  # those of this thread
    return Rows({state: counts[state] for state in State if state in counts}, backlog)
