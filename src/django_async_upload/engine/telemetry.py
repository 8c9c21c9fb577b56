"""Measurements for operators: counts, durations and gauges under stable names."""

from __future__ import annotations

import logging
from typing import Protocol

from django.utils.module_loading import import_string

from .. import conf

logger = logging.getLogger("django_async_upload.telemetry")


class Telemetry(Protocol):
    """Receives measurements. Called on the event loop: must not block. Exceptions are logged.

    Names and labels are listed in docs/reference/telemetry.md; labels have few values each.
    """

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        """Count ``by`` events."""

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Record a duration."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Record how much there is now."""


class NoTelemetry:
    """Measures nothing: the default."""

    def count(self, name: str, by: int = 1, **labels: str) -> None: ...

    def time(self, name: str, seconds: float, **labels: str) -> None: ...

    def gauge(self, name: str, value: float, **labels: str) -> None: ...


class LoggingTelemetry:
    """Writes each measurement to the log ``django_async_upload.telemetry``, at level INFO."""

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        logger.info("%s %+d%s", name, by, _shown(labels))

    def time(self, name: str, seconds: float, **labels: str) -> None:
        logger.info("%s %.6f s%s", name, seconds, _shown(labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        logger.info("%s %g%s", name, value, _shown(labels))


def _shown(labels: dict[str, str]) -> str:
    return "".join(f" {label}={value}" for label, value in labels.items())


class SafeTelemetry:
    """Passes measurements on and logs exceptions, so that no upload fails because of them."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        try:
            self._telemetry.count(name, by, **labels)
        except Exception:  # of the host's class
            logger.exception("%s could not be counted", name)

    def time(self, name: str, seconds: float, **labels: str) -> None:
        try:
            self._telemetry.time(name, seconds, **labels)
        except Exception:  # of the host's class
            logger.exception("%s could not be timed", name)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        try:
            self._telemetry.gauge(name, value, **labels)
        except Exception:  # of the host's class
            logger.exception("%s could not be measured", name)


def configured_telemetry() -> Telemetry:
    """Create an instance of the class in the setting ``TELEMETRY``."""
    telemetry = import_string(conf.uploads().telemetry)()
    return telemetry if isinstance(telemetry, NoTelemetry) else SafeTelemetry(telemetry)
