"""Telemetry for Prometheus, by prometheus-client (the extra ``prometheus``)."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, Final, TypeVar

from prometheus_client import Counter, Gauge, Histogram

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Upper bounds of the durations that are counted together, seconds: a copy to another storage may take minutes."""

_metrics: dict[str, Any] = {}
_lock = Lock()


class PrometheusTelemetry:
    """Registers a metric at the first figure of each name, in prometheus-client's default registry.

    ``uploads.ended`` becomes ``async_upload_uploads_ended_total``. All instances of a process share the metrics.
    """

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        _metric(Counter, name, labels).inc(by)

    def time(self, name: str, seconds: float, **labels: str) -> None:
        _metric(Histogram, name, labels, buckets=BUCKETS).observe(seconds)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        # Where several processes are read as one: what is counted in the database is the same for each of them.
        mode = "livemax" if name.startswith(("outbox.", "loop.", "uploads.active")) else "livesum"
        _metric(Gauge, name, labels, multiprocess_mode=mode).set(value)


def _metric(
    kind: Callable[..., Metric], name: str, labels: dict[str, str], **options: Any
) -> Metric:
    """The metric of a name with these labels; it is registered at its first use."""
    with _lock:
        metric = _metrics.get(name)
        if metric is None:
            exported = f"async_upload_{name.replace('.', '_')}"
            metric = kind(exported, f"django_async_upload: {name}", sorted(labels), **options)
            _metrics[name] = metric
    return metric.labels(**labels) if labels else metric
