"""``manage.py upload_doctor URL``: check how a server is configured."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from django_async_upload.operations.doctor import Finding

STYLES = {"ok": "SUCCESS", "bad": "ERROR", "warning": "WARNING", "unknown": "NOTICE"}


class Command(BaseCommand):
    help = (
        "Connects to an upload endpoint and reports how the server behaves. Exits with status 1 if "
        "a finding is bad."
    )
    requires_system_checks = ()  # the server is another process, perhaps on another machine

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("url", metavar="URL", help="ws:// or wss://")
        parser.add_argument(
            "--origin", help="Origin of the pages that upload; default: the server's own."
        )
        who = parser.add_mutually_exclusive_group()
        who.add_argument(
            "--ticket", help="A ticket, as printed by upload_ticket; then a sample is uploaded."
        )
        who.add_argument("--cookie", help="sessionid=...; then a sample is uploaded.")
        who.add_argument(
            "--user",
            help="On the site's own machine: signs this user in, uploads a sample, and checks that the upload process "
            "has the site's sessions, database and files.",
        )

    def handle(
        self,
        *args: Any,
        url: str,
        ticket: str | None,
        cookie: str | None,
        origin: str | None,
        user: str | None,
        **options: Any,
    ) -> None:
        try:
            from django_async_upload.operations.doctor import (
                examine,
                find_old_servers,
                find_spans,
            )
            from django_async_upload.operations.probe import Target
            from django_async_upload.operations.shared import examine_shared, signed_in
        except ModuleNotFoundError as error:
            if error.name != "websockets":
                raise
            raise CommandError(
                "websockets is missing: pip install 'django-resumable-upload[client]'"
            ) from error
        with ExitStack() as stack:
            if user is not None:
                cookie = stack.enter_context(signed_in(_find(user)))
            target = Target(url, ticket, cookie, origin)
            found = async_to_sync(self._report)(examine(target))
            if user is not None and cookie is not None and found[0].verdict != "bad":
                found += async_to_sync(self._report)(examine_shared(target, cookie))
        for finding in (find_spans(_application()), *find_old_servers()):
            if finding is not None:
                self._print(finding)
                found.append(finding)
        if any(each.verdict == "bad" for each in found):
            sys.exit(1)

    async def _report(self, findings: AsyncIterator[Finding]) -> list[Finding]:
        """Print the findings as they are made; return them all."""
        found = []
        async for finding in findings:
            self._print(finding)
            found.append(finding)
        return found

    def _print(self, finding: Finding) -> None:
        style = getattr(self.style, STYLES[finding.verdict])
        verdict = style(f"{finding.verdict:8}")
        self.stdout.write(f"{verdict} {finding.subject:16} {finding.text}")
        if finding.advice:
            self.stdout.write(textwrap.indent(finding.advice, " " * 26))
        self.stdout.flush()


def _find(name: str) -> Any:
    users = get_user_model()
    try:
        return users._default_manager.get_by_natural_key(name)
    except users.DoesNotExist:
        raise CommandError(f"There is no user {name!r}.") from None


def _application() -> Any:
    """This project's ASGI application; None where none is set, or it cannot be imported here."""
    with suppress(ImportError):
        return import_string(getattr(settings, "ASGI_APPLICATION", None) or "")
    return None
