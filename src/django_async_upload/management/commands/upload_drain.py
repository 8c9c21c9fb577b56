"""``manage.py upload_drain``: have workers send their clients elsewhere, before they are stopped."""

from typing import Any

from django.core.management.base import CommandParser

from django_async_upload.management.workers import WorkersCommand


class Command(WorkersCommand):
    help = (
        "Has the workers of this machine save their uploads, ask their clients to reconnect, and refuse new ones "
        "until upload_undrain or a restart."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--retry-after",
            type=float,
            default=1.0,
            metavar="S",
            help="Seconds after which the clients reconnect (default: %(default)g).",
        )
        parser.add_argument(
            "--wait",
            action="store_true",
            help="Return when all connections are closed and the workers may be stopped, within 20 seconds.",
        )

    def handle(
        self,
        *args: Any,
        all: bool,  # noqa: A002
        pid: int | None,
        retry_after: float,
        wait: bool,
        **options: Any,
    ) -> None:
        question = {"do": "drain", "retry_after": retry_after}
        told = self.tell(question, everywhere=all, pid=pid, wait=wait)
        self.stdout.write(f"{len(told)} workers {'are drained' if wait else 'drain'}.")
