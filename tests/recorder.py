"""A telemetry class that remembers what it was told, and the service that uses it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from django_async_upload.engine.service import UploadService

from .fixtures import forget_service


class Recorder:
    heard: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, by: int = 1, **labels: str) -> None:
        self.heard.append((name, by, labels))

    time = gauge = count  # type: ignore[assignment]

    @classmethod
    def named(cls, name: str) -> list[float]:
        return [value for heard, value, _labels in cls.heard if heard == name]


@pytest.fixture
async def recorded(settings: Any, uploads: UploadService) -> Any:
    await forget_service()
    settings.ASYNC_UPLOAD = {"TELEMETRY": f"{__name__}.Recorder"}
    Recorder.heard.clear()
    return Recorder.heard


async def measured(name: str) -> float:
    """The next figure of a name."""
    before = len(Recorder.named(name))
    async with asyncio.timeout(10):
        while len(Recorder.named(name)) == before:
            await asyncio.sleep(0.01)
    return Recorder.named(name)[-1]
