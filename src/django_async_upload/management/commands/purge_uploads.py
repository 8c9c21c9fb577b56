"""``manage.py purge_uploads``: run it from cron, as often as you like."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from django_async_upload.models import Taker
from django_async_upload.operations.cleanup import OVER_AFTER, purge


class Command(BaseCommand):
    help = (
        "Expires uploads that nothing came for since EXPIRE_AFTER, and deletes files that no session "
        "knows and rows of uploads that have been over for long. Safe beside live uploads."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="Say what would be done; change nothing."
        )

        parser.add_argument(
            "--over-after",
            type=float,
            metavar="DAYS",
            default=OVER_AFTER / timedelta(days=1),
            help="Delete rows of uploads that were cancelled, expired or failed so long ago (default: %(default)g).",
        )
        parser.add_argument(
            "--unbound-after",
            type=float,
            metavar="DAYS",
            help="Delete uploads, too, that completed so long ago and that no form and no API has taken.",
        )
        parser.add_argument(
            "--taker",
            action="append",
            choices=Taker.values,
            help="Of --unbound-after: those that were made for this one only. Can be given more than "
            "once; the default is form and api. With receiver, what your own code keeps unbound is deleted, too.",
        )

    def handle(
        self,
        *args: Any,
        dry_run: bool,
        over_after: float,
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
            over_after=timedelta(days=over_after),
            unbound_after=age,
            log=log,
            **chosen,
        )
        verb = "Would expire" if dry_run else "Expired"
        self.stdout.write(
            f"{verb} {done.sessions} uploads; {done.parts} files, {done.bytes} bytes; {done.rows} old rows."
        )
