"""Events are counted under stable names, and a telemetry class that fails harms no upload."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.utils import timezone
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY

from django_async_upload.engine import gauges
from django_async_upload.engine.outbox import Backlog, backlogs
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.exceptions import DatabaseUnavailable
from django_async_upload.models import CompletionEvent
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import ACTIVE
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, crc, forget_service, new_key, publish, run, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]
SOURCE = Path(__file__).parents[1] / "src/django_async_upload"
PAGE = Path(__file__).parents[1] / "docs/reference/telemetry.md"
EXAMPLE = Path(__file__).parents[1] / "example_project"


class Recorder:
    heard: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        self.heard.append((name, by, labels))

    time = gauge = count  # type: ignore[assignment]

    @classmethod
    def named(cls, name: str) -> list[float]:
        return [value for heard, value, _labels in cls.heard if heard == name]


class Failing(Recorder):
    def count(self, name: str, by: int = 1, **labels: str) -> None:
        raise RuntimeError("no connection")

    time = gauge = count  # type: ignore[assignment]


class WithoutTime:
    def count(self) -> None: ...


@pytest.fixture
async def recorded(settings: Any, uploads: UploadService) -> Any:
    await forget_service()
    settings.ASYNC_UPLOAD = {"TELEMETRY": f"{__name__}.Recorder"}
    Recorder.heard.clear()
    return Recorder.heard


async def test_the_life_of_uploads_is_counted(connect: Connect, recorded: Any) -> None:
    data = bytes(40 * KIB)
    async with connect() as client:
        await client.upload("a.bin", b"small")
        await client.send(m.Create(new_key(), "b.bin", len(data)), 7)
        created = await client.wait_for(m.Created, 7)
        await client.send_data(7, 0, data[:1000])
        await client.send(m.Release(), 7)
        await client.wait_for(m.Released, 7)
        await client.send(m.Attach(created.upload), 9)
        await client.wait_for(m.Attached, 9)
        await client.send(m.Proof(crc(data[:1000]), crc(data[:1000])), 9)
        await client.wait_for(m.Ready, 9)
        await client.send(m.Cancel(), 9)
        await client.wait_for(m.Cancelled, 9)
        await client.upload("c.bin", data)
    await settled()
    events = [
        each
        for each in recorded
        if each[0].startswith(("uploads", "publication", "completion"))
        and each[0] != "uploads.active"
    ]
    assert [(name, labels) for name, _value, labels in events] == [
        ("uploads.completed", {}),
        ("uploads.created", {}),
        ("uploads.resumed", {}),
        ("uploads.ended", {"state": "cancelled"}),
        ("uploads.created", {}),
        ("publication.seconds", {}),
        ("uploads.completed", {}),
        ("completion.seconds", {}),
    ]
    assert sum(Recorder.named("bytes.received")) == len(b"small") + 1000 + len(data)
    assert 0 < Recorder.named("publication.seconds")[0] < Recorder.named("completion.seconds")[0]


async def test_each_ack_that_is_sent_is_counted(connect: Connect, recorded: Any) -> None:
    data = bytes(40 * KIB)
    acks = 0
    async with connect() as client:
        await client.send(m.Create(new_key(), "b.bin", len(data)), 1)
        await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[:1000])
        await client.send(m.Release(), 1)
        while not isinstance(message := (await client.receive()).message, m.Released):
            acks += isinstance(message, m.Ack)
    assert sum(Recorder.named("acks.sent")) == acks > 0


async def test_failed_requests_and_closed_connections_are_counted_by_code(
    connect: Connect, recorded: Any
) -> None:
    data = bytes(40 * KIB)
    async with connect() as client, connect() as newer:
        await client.send(m.Query(str(uuid.uuid4())), 1)
        await client.wait_for(m.Error, 1)
        await client.send(m.Create(new_key(), "a.bin", 1, metadata={"a": "\0"}), 3)
        await client.wait_for(m.Error, 3)
        await client.send(m.Create(new_key(), "b.bin", len(data)), 5)
        created = await client.wait_for(m.Created, 5)
        await newer.send(m.Attach(created.upload), 1)
        await newer.wait_for(m.Attached, 1)
        await client.wait_for(m.Error, 5)
        await client.send_frame(b"junk")
        await client.wait_for(m.Error)
    await settled()
    assert [each for each in recorded if "code" in each[2]] == [
        ("requests.failed", 1, {"code": "not_found"}),
        ("requests.failed", 1, {"code": "metadata_invalid"}),
        ("requests.failed", 1, {"code": "taken_over"}),
        ("connections.closed", 1, {"code": "malformed_frame"}),
    ]


# Gauges -------------------------------------------------------------------------------------------


def completion(owner: Owner, **fields: Any) -> None:
    """An event of the outbox."""
    CompletionEvent.objects.create(session=publish(owner, name=new_key()), **fields)


async def measured(name: str) -> float:
    """The next figure of a name."""
    before = len(Recorder.named(name))
    async with asyncio.timeout(10):
        while len(Recorder.named(name)) == before:
            await asyncio.sleep(0.01)
    return Recorder.named(name)[-1]


async def test_what_there_is_now_is_measured(
    connect: Connect, recorded: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.1)
    monkeypatch.setattr(gauges, "TICK_SECONDS", 0.01)
    now, later = timezone.now(), timezone.now() + timedelta(hours=1)
    old = now - timedelta(minutes=5)
    await run(completion, owner, due_at=later, created_at=old, attempts=3)
    await run(completion, owner, due_at=later, attempts=1)
    await run(completion, owner, given_up_at=now, created_at=old - timedelta(days=1), attempts=20)
    await run(completion, owner, delivered_at=now, created_at=old - timedelta(days=1), attempts=7)
    async with connect() as client:
        await client.send(m.Create(new_key(), "b.bin", 40 * KIB), 1)
        await client.wait_for(m.Created, 1)
        assert await measured("uploads.open") == 1
        assert await measured("connections.open") == 1
        assert await measured("watchers.open") == 0
        await client.send(m.Watch("own"), 3)
        await client.wait_for(m.Changed, 3)
        assert await measured("watchers.open") == 1
        assert await measured("credit.used") == get_service().budget.promised > 0
        assert await measured("loop.lag") < 0.2
        time.sleep(0.5)
        assert await measured("loop.lag") > 0.4
    await settled()
    assert await measured("outbox.waiting") == 2
    assert await measured("outbox.age") == pytest.approx(300, abs=60)
    assert await measured("outbox.attempts") == 3
    assert await measured("outbox.dead") == 1
    states = {
        labels["state"]: value for name, value, labels in recorded if name == "uploads.active"
    }
    assert states == {**dict.fromkeys(map(str, ACTIVE), 0), "interrupted": 1}
    assert await measured("uploads.open") == await measured("credit.used") == 0


async def test_an_empty_outbox_has_no_age(uploads: UploadService) -> None:
    assert await uploads.database.call(backlogs, None) == Backlog(0, 0.0, 0, 0)


async def test_a_database_that_fails_stops_no_gauge(
    connect: Connect, recorded: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(gauges, "SECONDS", 0.05)
    errors: list[Exception] = [DatabaseUnavailable(retry_after=1.0), ZeroDivisionError()]

    def failing(items: Any) -> Any:
        raise errors.pop() if errors else ZeroDivisionError

    monkeypatch.setattr(gauges, "backlogs", failing)
    async with connect():
        while errors:
            await asyncio.sleep(0.01)
        await measured("uploads.open")
    assert "The rows could not be measured" in caplog.text


async def test_nothing_is_measured_for_nobody(connect: Connect, uploads: UploadService) -> None:
    async with connect():
        assert not uploads._gauges._tasks


def test_the_names_are_those_of_the_documentation() -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    names = set(re.findall(r"telemetry\.(?:count|time|gauge)\(\s*\"([a-z.]+)\"", source))
    documented = re.findall(r"^\| `([a-z]+\.[a-z]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(documented) == len(names)
    assert set(documented) == names


def test_the_dashboard_of_the_example_shows_every_name_and_no_other() -> None:
    table = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(table) > 15
    endings = {"count": "_total", "time": "_bucket", "gauge": ""}
    exported = {f"async_upload_{name.replace('.', '_')}{endings[kind]}" for name, kind in table}
    dashboard = json.loads((EXAMPLE / "monitoring/grafana-dashboard.json").read_text())
    queries = [each["expr"] for panel in dashboard["panels"] for each in panel.get("targets", ())]
    assert set(re.findall(r"async_upload_\w+", " ".join(queries))) == exported
    assert all(query.count("(") == query.count(")") for query in queries)


async def test_a_class_that_fails_harms_no_upload(
    connect: Connect, settings: Any, uploads: UploadService, caplog: pytest.LogCaptureFixture
) -> None:
    await forget_service()
    settings.ASYNC_UPLOAD = {"TELEMETRY": f"{__name__}.Failing"}
    async with connect() as client:
        await client.upload("c.bin", bytes(40 * KIB))
    await settled()
    assert "uploads.completed could not be counted" in caplog.text
    assert "publication.seconds could not be timed" in caplog.text


async def test_the_log_has_a_line_for_each(
    connect: Connect, settings: Any, uploads: UploadService, caplog: pytest.LogCaptureFixture
) -> None:
    await forget_service()
    settings.ASYNC_UPLOAD = {"TELEMETRY": "django_async_upload.engine.telemetry.LoggingTelemetry"}
    caplog.set_level("INFO", "django_async_upload.telemetry")
    async with connect() as client:
        await client.send(m.Create(new_key(), "b.bin", 40 * KIB), 1)
        await client.wait_for(m.Created, 1)
        await client.send(m.Cancel(), 1)
        await client.wait_for(m.Cancelled, 1)
    await settled()
    lines = [each.message for each in caplog.records if each.name.endswith("telemetry")]
    assert "uploads.created +1" in lines
    assert "uploads.ended +1 state=cancelled" in lines


# Prometheus and OpenTelemetry ---------------------------------------------------------------------


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


@pytest.mark.django_db  # Django's own checks may ask the database what it supports
@pytest.mark.parametrize("name", ["nowhere.Telemetry", f"{__name__}.WithoutTime", "re.Pattern"])
def test_a_class_that_cannot_serve_is_found_by_the_checks(settings: Any, name: str) -> None:
    settings.ASYNC_UPLOAD = {"TELEMETRY": name}
    assert "async_upload.E026" in {each.id for each in run_checks()}
