"""Prometheus gets every figure, and the example's dashboard asks for every name."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from django_async_upload.engine import gauges
from django_async_upload.engine.service import UploadService
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, forget_service, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]
PAGE = Path(__file__).parents[1] / "docs/reference/telemetry.md"
EXAMPLE = Path(__file__).parents[1] / "example_project"


async def test_prometheus_gets_every_figure(
    connect: Connect, settings: Any, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.05)

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"async_upload_{name}", labels) or 0.0

    for times in (1, 2):  # a second service of the process shares the metrics
        await forget_service()
        settings.ASYNC_UPLOAD = {
            "TELEMETRY": "django_async_upload.engine.prometheus.PrometheusTelemetry"
        }
        received = value("bytes_received_total")
        async with connect() as client:
            await client.upload("c.bin", bytes(40 * KIB))
            await client.send(m.Query(str(uuid.uuid4())), 3)
            await client.wait_for(m.Error, 3)
            await asyncio.sleep(0.3)
            assert value("connections_open") == 1
        await settled()
        assert value("uploads_completed_total") == times
        assert value("bytes_received_total") - received == 40 * KIB
        assert value("requests_failed_total", code="not_found") == times
        assert value("completion_seconds_count") == times
        assert value("completion_seconds_bucket", le="1800.0") == times


def test_the_dashboard_of_the_example_shows_every_name_and_no_other() -> None:
    table = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(table) > 15
    endings = {"count": "_total", "time": "_bucket", "gauge": ""}
    exported = {f"async_upload_{name.replace('.', '_')}{endings[kind]}" for name, kind in table}
    dashboard = json.loads((EXAMPLE / "monitoring/grafana-dashboard.json").read_text())
    queries = [each["expr"] for panel in dashboard["panels"] for each in panel.get("targets", ())]
    assert set(re.findall(r"async_upload_\w+", " ".join(queries))) == exported
    assert all(query.count("(") == query.count(")") for query in queries)
