"""The Django application."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class AsyncUploadConfig(AppConfig):
    name = "django_async_upload"
    label = "async_upload"
    verbose_name = _("Uploads")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, cleanup  # noqa: F401  (they register themselves)
