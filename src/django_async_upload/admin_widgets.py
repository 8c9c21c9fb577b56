"""The upload widget for the file fields of the admin. Importing this registers nothing on any admin site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from django.contrib.admin.options import FORMFIELD_FOR_DBFIELD_DEFAULTS
from django.contrib.admin.sites import all_sites
from django.contrib.admin.widgets import AdminFileWidget

from .widgets import AsyncClearableFileInput


class AsyncUploadAdminMixin:
    """For a ``ModelAdmin`` or an inline: its file fields upload in the background. Put it first among the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        put_widget(self.formfield_overrides)  # type: ignore[attr-defined]  # of the class beside it


class AsyncAdminFileInput(AsyncClearableFileInput, AdminFileWidget):
    """The widget around the admin's own input, in the admin's colors."""

    input_template_name = AdminFileWidget.template_name
    is_for_admin = True


def put_widget(formfield_overrides: Mapping[Any, Mapping[str, Any]]) -> None:
    """Replace the admin's own file widget by the upload widget; a widget that the host chose stays."""
    for options in formfield_overrides.values():
        if options.get("widget") is AdminFileWidget:
            cast("dict[str, Any]", options)["widget"] = AsyncAdminFileInput


def put_widget_everywhere() -> None:
    """Apply the setting ``ADMIN_WIDGET``: as if every ``ModelAdmin`` and inline had the mixin.

    A project cannot give the mixin to the admin classes of other packages. Inlines are made for each request, and
    some admins are registered later: what all of them copy is Django's defaults, and no hook comes between.
    """
    put_widget(FORMFIELD_FOR_DBFIELD_DEFAULTS)
    for site in all_sites:  # each has copied the defaults already
        for model_admin in site._registry.values():
            put_widget(model_admin.formfield_overrides)
