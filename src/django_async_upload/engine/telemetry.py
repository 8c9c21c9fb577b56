"""Measurements for whoever operates the server: counts and durations under stable names."""

from __future__ import annotations

import logging
from typing import Protocol

from django.utils.module_loading import import_string

from .. import conf

logger = logging.getLogger("django_async_upload.telemetry")


class Telemetry(Protocol):
    """Where measurements go. Called on the event loop: must not block. An exception is logged and swallowed.

    Names and labels are listed in docs/reference/telemetry.md; labels have few values each.
    """

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        """Something happened ``by`` times."""

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Something took so long."""


class NoTelemetry:
    """Measures nothing: the default."""

    def count(self, name: str, by: int = 1, **labels: str) -> None: ...

    def time(self, name: str, seconds: float, **labels: str) -> None: ...


class LoggingTelemetry:
    """Writes each measurement to the log ``django_async_upload.telemetry``, at level INFO."""

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        logger.info("%s %+d%s", name, by, _shown(labels))

    def time(self, name: str, seconds: float, **labels: str) -> None:
        logger.info("%s %.6f s%s", name, seconds, _shown(labels))


def _shown(labels: dict[str, str]) -> str:
    return "".join(f" {label}={value}" for label, value in labels.items())


def configured_telemetry() -> Telemetry:
    """An instance of the class that the setting ``TELEMETRY`` names."""
    telemetry: Telemetry = import_string(conf.uploads().telemetry)()
    return telemetry
