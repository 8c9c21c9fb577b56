"""What the commands have in common that use the database."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, OperationalError

from ..engine.database import says_no_tables
from ..exceptions import UploadError


class DatabaseCommand(BaseCommand):
    """A command that says in a line why the database or the store cannot be used."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Raises :class:`CommandError` where one of them cannot be used; other errors as they are."""
        try:
            return super().execute(*args, **options)
        except (DatabaseError, InterfaceError, UploadError) as error:
            if (reason := explain(error)) is None:
                raise
            raise CommandError(reason) from error


def explain(error: Exception) -> str | None:
    """Why the database or the store cannot be used, in a line; None where the error is another one, as of a bug."""
    if isinstance(error, UploadError):
        return error.message
    if says_no_tables(error):
        return "The database has no tables of uploads, or those of another version: run migrate."
    if isinstance(error, OperationalError | InterfaceError):
        return f"The database cannot be used: {' '.join(str(error).split())}"
    return None
