"""The static files of the element: one script and one style, or with ``JAVASCRIPT_SOURCES`` the sources."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from django.forms import Media, Script

from . import conf

_FOLDER = "django_async_upload"
PROGRESS_SCRIPT: Final = f"{_FOLDER}/async-upload-progress.min.js"
"""The JavaScript module of ``<async-upload-progress>``."""


class Assets(NamedTuple):
    """Names of static files."""

    script: str
    """A JavaScript module."""
    styles: tuple[str, ...]

    @property
    def media(self) -> Media:
        scripts: list[Any] = [Script(self.script, type="module")]
        return Media(css={"all": list(self.styles)}, js=scripts)


def page_assets(*, admin: bool = False) -> Assets:
    """The static files for a page, by the settings. ``admin``: with the colors of Django's admin."""
    if conf.uploads().javascript_sources:
        names = ("widget.css", "admin.css") if admin else ("widget.css",)
        return Assets(f"{_FOLDER}/widget.js", tuple(f"{_FOLDER}/{each}" for each in names))
    style = "async-upload-admin.min.css" if admin else "async-upload.min.css"
    return Assets(f"{_FOLDER}/async-upload.min.js", (f"{_FOLDER}/{style}",))
