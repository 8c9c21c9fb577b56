"""Telemetry for OpenTelemetry, by opentelemetry-api (the extra ``opentelemetry``)."""

from __future__ import annotations

from functools import cache
from typing import Final

from opentelemetry import metrics

from .. import __version__

PREFIX: Final = "async_upload."


class OpenTelemetry:
    """Passes figures to the meter ``django_async_upload`` of the host's MeterProvider.

    ``uploads.ended`` becomes ``async_upload.uploads.ended``. Without a MeterProvider nothing is measured.
    """

    def __init__(self) -> None:
        meter = metrics.get_meter("django_async_upload", __version__)
        self._counter = cache(lambda name: meter.create_counter(PREFIX + name))
        self._histogram = cache(lambda name: meter.create_histogram(PREFIX + name, unit="s"))
        self._gauge = cache(lambda name: meter.create_gauge(PREFIX + name))

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        self._counter(name).add(by, labels)

    def time(self, name: str, seconds: float, **labels: str) -> None:
        self._histogram(name).record(seconds, labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._gauge(name).set(value, labels)
