"""``manage.py upload_ticket USER``: print a ticket for the command-line client."""

from argparse import ArgumentTypeError
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError, CommandParser

from django_async_upload.management.database import DatabaseCommand
from django_async_upload.tickets import issue_ticket


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ArgumentTypeError(f"{value} is not above 0")
    return value


class Command(DatabaseCommand):
    help = "Prints a short-lived ticket with which a program can upload as USER."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", metavar="USER", help="The user's name.")
        parser.add_argument("--endpoint", default="default", help="The consumer's endpoint name.")
        parser.add_argument("--max-size", type=_positive, help="Largest file, bytes.")
        parser.add_argument("--max-age", type=_positive, help="Seconds; default TICKET_MAX_AGE.")

    def handle(
        self,
        *args: Any,
        user: str,
        endpoint: str,
        max_size: int | None,
        max_age: int | None,
        **options: Any,
    ) -> None:
        users = get_user_model()
        try:
            found = users._default_manager.get_by_natural_key(user)
        except users.DoesNotExist:
            raise CommandError(f"There is no user {user!r}.") from None
        if not found.is_active:
            raise CommandError(f"{user!r} is not active: the server would refuse the ticket.")
        self.stdout.write(
            issue_ticket(found, endpoint=endpoint, max_size=max_size, max_age=max_age)
        )
