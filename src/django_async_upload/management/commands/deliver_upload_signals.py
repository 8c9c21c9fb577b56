"""``manage.py deliver_upload_signals``: for hosts whose receivers do not run in the ASGI server."""

from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand
from django.db import router

from django_async_upload.database import Database
from django_async_upload.models import UploadSession
from django_async_upload.outbox import Outbox


class Command(BaseCommand):
    help = "Sends upload_completed for every completion that was not delivered yet."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"Delivered {async_to_sync(self._deliver)()} completions.")

    async def _deliver(self) -> int:
        database = Database(router.db_for_write(UploadSession))
        try:
            return await Outbox(database).deliver_due()
        finally:
            database.close()
