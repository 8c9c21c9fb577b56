"""``manage.py upload_status``: what is going on now, on all workers."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandParser
from django.db.models import Count

from django_async_upload.engine.outbox import Backlog, backlogs
from django_async_upload.engine.worker import WorkerStatus
from django_async_upload.models import UploadSession
from django_async_upload.operations.workers import Answers, Workers
from django_async_upload.sessions.state import State

MIB = 1024 * 1024
COLUMNS = "{:24} {:>8} {:19} {:>11} {:>7} {:>10}  {}"


class Command(BaseCommand):
    help = "Prints what each worker does now, the uploads by state, and the signals that wait for delivery."
    requires_system_checks = ()  # it is asked when something is wrong

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")

    def handle(self, *args: Any, json: bool, **options: Any) -> None:
        answers, is_whole_site = async_to_sync(_ask)()
        states = _states()
        (backlog,) = backlogs([None])
        if json:
            self._print_json(answers, is_whole_site, states, backlog)
        else:
            self._print(answers, is_whole_site, states, backlog)

    def _print_json(
        self, answers: Answers, is_whole_site: bool, states: dict[str, int], backlog: Backlog
    ) -> None:
        status = {
            "scope": "site" if is_whole_site else "machine",
            **asdict(answers),
            "uploads": states,
            "outbox": asdict(backlog),
        }
        self.stdout.write(json.dumps(status))

    def _print(
        self, answers: Answers, is_whole_site: bool, states: dict[str, int], backlog: Backlog
    ) -> None:
        where = "of all machines" if is_whole_site else "of this machine; others are not reached"
        self.stdout.write(f"Workers {where}:")
        titles = ("host", "pid", "since", "connections", "uploads", "credit MiB", "state")
        self.stdout.write(COLUMNS.format(*titles))
        for worker in answers.workers:
            self.stdout.write(_line(worker))
        for pid in answers.silent:
            self.stdout.write(self.style.ERROR(f"Process {pid} does not answer."))
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
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


def _states() -> dict[str, int]:
    """The number of uploads in each state that occurs, in the order of an upload's life."""
    rows = UploadSession.objects.order_by().values_list("state").annotate(Count("pk"))
    counts = dict(rows)
    return {state: counts[state] for state in State if state in counts}
