"""Events are counted under stable names, and a telemetry class that fails harms no upload."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks

from django_async_upload.engine.service import UploadService
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, crc, forget_service, new_key, settled
from .recorder import Recorder, recorded

__all__ = ["recorded"]
pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]
SOURCE = Path(__file__).parents[1] / "src/django_async_upload"
PAGE = Path(__file__).parents[1] / "docs/reference/telemetry.md"


class Failing(Recorder):
    def count(self, name: str, by: int = 1, **labels: str) -> None:
        raise RuntimeError("no connection")

    time = gauge = count  # type: ignore[assignment]


class WithoutTime:
    def count(self) -> None: ...


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


def test_the_names_are_those_of_the_documentation() -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    names = set(re.findall(r"telemetry\.(?:count|time|gauge)\(\s*\"([a-z.]+)\"", source))
    documented = re.findall(r"^\| `([a-z]+\.[a-z]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(documented) == len(names)
    assert set(documented) == names


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


@pytest.mark.django_db  # Django's own checks may ask the database what it supports
@pytest.mark.parametrize("name", ["nowhere.Telemetry", f"{__name__}.WithoutTime", "re.Pattern"])
def test_a_class_that_cannot_serve_is_found_by_the_checks(settings: Any, name: str) -> None:
    settings.ASYNC_UPLOAD = {"TELEMETRY": name}
    assert "async_upload.E026" in {each.id for each in run_checks()}
