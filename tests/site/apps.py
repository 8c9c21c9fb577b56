import os

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "tests.site"
    label = "site_under_test"

    def ready(self) -> None:
        from django_async_upload.engine import completion

        from . import receivers  # noqa: F401  (they subscribe)

        if seconds := os.environ.get("E2E_SILENT"):
            completion.SILENT_SECONDS = completion.TOUCHED_SECONDS = float(seconds)
