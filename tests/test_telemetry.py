"""Events are counted under stable names, and a telemetry class that fails harms no upload."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks

from django_async_upload.engine.service import UploadService
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, crc, forget_service, new_key, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]
SOURCE = Path(__file__).parents[1] / "src/django_async_upload"
PAGE = Path(__file__).parents[1] / "docs/reference/telemetry.md"


class Recorder:
    heard: list[tuple[str, str, dict[str, str]]] = []

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        self.heard.append(("count", name, labels))

    def time(self, name: str, seconds: float, **labels: str) -> None:
        assert seconds >= 0
        self.heard.append(("time", name, labels))


class Failing(Recorder):
    def count(self, name: str, by: int = 1, **labels: str) -> None:
        raise RuntimeError("no connection")

    time = count  # type: ignore[assignment]


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
    assert [(name, labels) for _kind, name, labels in recorded] == [
        ("uploads.completed", {}),
        ("uploads.created", {}),
        ("uploads.resumed", {}),
        ("uploads.ended", {"state": "cancelled"}),
        ("uploads.created", {}),
        ("publication.seconds", {}),
        ("uploads.completed", {}),
    ]


def test_the_names_are_those_of_the_documentation() -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    names = set(re.findall(r"telemetry\.(?:count|time)\(\s*\"([a-z.]+)\"", source))
    documented = re.findall(r"^\| `([a-z]+\.[a-z]+)` \|", PAGE.read_text(), re.MULTILINE)
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


@pytest.mark.parametrize("name", ["nowhere.Telemetry", f"{__name__}.WithoutTime", "re.Pattern"])
def test_a_class_that_cannot_serve_is_found_by_the_checks(settings: Any, name: str) -> None:
    settings.ASYNC_UPLOAD = {"TELEMETRY": name}
    assert "async_upload.E026" in {each.id for each in run_checks()}
