"""``manage.py purge_uploads``: expire inactive uploads and delete orphaned files. Run it from cron."""

from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser

from django_async_upload.management.database import DatabaseCommand
from django_async_upload.models import Taker
from django_async_upload.operations.cleanup import ENDED_AFTER, purge


class Command(DatabaseCommand):
    help = (
        "Expires uploads that were inactive for EXPIRE_AFTER, and deletes files that no session "
        "names and rows of uploads that ended long ago. Safe while uploads run."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Print what would be done; change nothing."
        )

        parser.add_argument(
            "--ended-after",
            type=float,
            metavar="DAYS",
            default=ENDED_AFTER / timedelta(days=1),
            help="Delete rows of uploads that were cancelled, expired or failed DAYS ago (default: %(default)g).",
        )
        parser.add_argument(
            "--unbound-after",
            type=float,
            metavar="DAYS",
            help="Also delete uploads that completed more than DAYS ago and that no form and no API has taken.",
        )
        parser.add_argument(
            "--taker",
            action="append",
            choices=Taker.values,
            help="With --unbound-after: only uploads created for this taker. Can be given more than "
            "once; the default is form and api. With receiver, uploads that your code left unbound are deleted, too.",
        )

    def handle(
        self,
        *args: Any,
        dry_run: bool,
        ended_after: float,
        unbound_after: float | None,
        taker: list[str] | None,
        verbosity: int,
        **options: Any,
    ) -> None:
        log = self.stdout.write if verbosity > 1 or dry_run else lambda line: None
        age = None if unbound_after is None else timedelta(days=unbound_after)
        chosen = {} if taker is None else {"takers": taker}
        done = purge(
            dry_run=dry_run,
            ended_after=timedelta(days=ended_after),
            unbound_after=age,
            log=log,
            **chosen,
        )
        verb = "Would expire" if dry_run else "Expired"
        self.stdout.write(
            f"{verb} {done.sessions} uploads; {done.parts} files, {done.bytes} bytes; {done.rows} old rows."
        )
