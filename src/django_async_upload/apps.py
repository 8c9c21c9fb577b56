"""The Django application."""

from contextlib import suppress

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.utils.translation import gettext_lazy as _


class AsyncUploadConfig(AppConfig):
    name = "django_async_upload"
    label = "async_upload"
    verbose_name = _("Uploads")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks, conf  # noqa: F401  (registers the checks)
        from .binding import linked  # noqa: F401  (connects signal receivers)
        from .operations import cleanup  # noqa: F401  (connects signal receivers)

        with suppress(ImproperlyConfigured):  # the system checks report it
            if conf.uploads().admin_widget and apps.is_installed("django.contrib.admin"):
                from .admin_widgets import put_widget_everywhere

                put_widget_everywhere()
