"""``manage.py deliver_upload_signals``: deliver due completions, as a running server does, or failed ones again."""

from typing import Any

from django.core.management.base import CommandParser

from django_async_upload.engine import outbox
from django_async_upload.management.database import DatabaseCommand
from django_async_upload.models import CompletionEvent


class Command(DatabaseCommand):
    help = "Sends upload_completed for every completion that is neither delivered nor claimed by a running process."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--given-up",
            action="store_true",
            help="Also send those again whose delivery was given up because receivers failed too often.",
        )

    def handle(self, *args: Any, given_up: bool, **options: Any) -> None:
        delivered = outbox.deliver_due(given_up=given_up)
        self.stdout.write(f"Delivered {delivered} completions.")
        waiting = CompletionEvent.objects.filter(delivered_at=None)
        failed = waiting.filter(given_up_at=None).exclude(error="").count()
        if failed:
            self.stderr.write(f"{failed} failed and will be retried: see the log.")
        if count := waiting.given_up().count():
            self.stderr.write(f"{count} are given up: --given-up sends them again.")
