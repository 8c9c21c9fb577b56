"""``manage.py upload_undrain``: have workers that drain take clients again."""

from typing import Any

from django_async_upload.management.workers import WorkersCommand


class Command(WorkersCommand):
    help = "Has the workers of this machine take clients again after upload_drain."

    def handle(
        self,
        *args: Any,
        all: bool,  # noqa: A002
        pid: int | None,
        **options: Any,
    ) -> None:
        told = self.tell({"do": "undrain"}, everywhere=all, pid=pid)
        self.stdout.write(f"{len(told)} workers take clients.")
