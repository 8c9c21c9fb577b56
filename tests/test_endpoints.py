"""What a host decides for each upload: its storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from channels.auth import AuthMiddlewareStack

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, row

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


class ByName(UploadConsumer):
    asked: list[str] = []

    def get_storage(self, session: UploadSession) -> str:
        self.asked.append(session.name)
        return "second" if session.name.startswith("second") else super().get_storage(session)


async def test_each_upload_goes_into_the_storage_that_the_endpoint_names(
    connect: Connect, uploads: UploadService, settings: Any, media: Path, tmp_path: Path
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "second": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": str(tmp_path / "second")},
        },
    }
    ByName.asked.clear()
    async with connect(AuthMiddlewareStack(ByName.as_asgi())) as client:
        for size in (5, 100 * KIB):
            first = await client.upload("first.bin", bytes(size))
            second = await client.upload("second.bin", bytes(size))
            assert (media / first.stored_as).stat().st_size == size
            assert (tmp_path / "second" / second.stored_as).stat().st_size == size
            assert not (media / second.stored_as).exists()
            assert (await row(second.upload)).storage == "second"
    assert ByName.asked == ["first.bin", "second.bin"] * 2, "once for each upload"
