"""OpenTelemetry gets every figure."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from django_async_upload.engine import gauges
from django_async_upload.engine.service import UploadService
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, forget_service

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


async def test_opentelemetry_gets_every_figure(
    connect: Connect, settings: Any, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.05)
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    await forget_service()
    settings.ASYNC_UPLOAD = {"TELEMETRY": "django_async_upload.engine.opentelemetry.OpenTelemetry"}
    async with connect() as client:
        await client.upload("c.bin", bytes(40 * KIB))
        await client.send(m.Query(str(uuid.uuid4())), 3)
        await client.wait_for(m.Error, 3)
        await asyncio.sleep(0.3)
        data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "django_async_upload"
    points: dict[str, Any] = {each.name: each.data.data_points[0] for each in scope.metrics}
    assert points["async_upload.bytes.received"].value == 40 * KIB
    assert points["async_upload.requests.failed"].attributes == {"code": "not_found"}
    assert points["async_upload.completion.seconds"].count == 1
    assert points["async_upload.connections.open"].value == 1
