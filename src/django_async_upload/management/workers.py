"""What the commands that ask workers have in common."""

from __future__ import annotations

from collections.abc import Sequence

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ..engine.worker import WorkerStatus
from ..operations.workers import Answers, Question, Workers

UNREACHED = (
    "Workers of other machines were not reached: neither a channel layer that other processes share nor PostgreSQL "
    "carries messages to them, or it does not answer."
)


class WorkersCommand(BaseCommand):
    """A command that tells the workers of this machine, or of all machines, to do something."""

    requires_system_checks = ()  # nothing may delay it

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--all",
            action="store_true",
            help="The workers of all machines, through the channel layer or PostgreSQL.",
        )
        which.add_argument(
            "--pid",
            type=int,
            help="Only this process of this machine and the workers that it started.",
        )

    def tell(
        self, question: Question, *, everywhere: bool, pid: int | None, wait: bool = False
    ) -> list[WorkerStatus]:
        """Tell the workers; returns those that took note. Raises :class:`CommandError` for those that did not."""
        return async_to_sync(self._tell)(question, Workers(everywhere=everywhere, pid=pid), wait)

    async def _tell(self, question: Question, workers: Workers, wait: bool) -> list[WorkerStatus]:
        async with workers:
            answers = await workers.ask(question)
            late = await workers.wait_until_drained() if wait else []
            problems = _problems(answers, late)
            if workers.everywhere and not workers.is_whole_site:
                problems.append(UNREACHED)
        if problems:
            raise CommandError(" ".join(problems))
        return answers.workers


def _problems(answers: Answers, late: Sequence[WorkerStatus]) -> list[str]:
    found = []
    if not answers.workers:
        found.append("No worker of this site answered.")
    if answers.silent:
        found.append(f"Processes that did not answer: {', '.join(map(str, answers.silent))}.")
    if late:
        found.append(f"Not drained yet: {', '.join(f'{each.host} {each.pid}' for each in late)}.")
    return found
