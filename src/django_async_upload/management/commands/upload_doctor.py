"""``manage.py upload_doctor URL``: is this server set up well?"""

import sys
import textwrap
from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError, CommandParser

try:
    from django_async_upload.doctor import Verdict, examine
    from django_async_upload.probe import Patient
except ModuleNotFoundError as error:
    if error.name != "websockets":
        raise
    raise CommandError("Needs websockets: pip install django-async-upload[client]") from None

STYLES = {"ok": "SUCCESS", "bad": "ERROR", "warning": "WARNING", "unknown": "NOTICE"}


class Command(BaseCommand):
    help = (
        "Opens sockets to an upload endpoint and reports what the server does. Exit status 1 where "
        "something is bad."
    )
    requires_system_checks = ()  # the server is another process, perhaps on another machine

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("url", metavar="URL", help="ws:// or wss://")
        parser.add_argument("--origin", help="Of the pages that upload; default: the server's own.")
        who = parser.add_mutually_exclusive_group()
        who.add_argument("--ticket", help="As upload_ticket prints it: an upload is tried.")
        who.add_argument("--cookie", help="sessionid=...: an upload is tried.")

    def handle(
        self,
        *args: Any,
        url: str,
        ticket: str | None,
        cookie: str | None,
        origin: str | None,
        **options: Any,
    ) -> None:
        if not async_to_sync(self._report)(Patient(url, ticket, cookie, origin)):
            sys.exit(1)

    async def _report(self, patient: Patient) -> bool:
        """Print the findings as they come; False where one is bad."""
        healthy = True
        async for finding in examine(patient):
            healthy &= finding.verdict is not Verdict.BAD
            style = getattr(self.style, STYLES[finding.verdict])
            self.stdout.write(
                f"{style(f'{finding.verdict:8}')} {finding.subject:16} {finding.text}"
            )
            if finding.advice:
                self.stdout.write(textwrap.indent(finding.advice, " " * 26))
            self.stdout.flush()
        return healthy
