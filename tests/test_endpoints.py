"""What a host decides for each upload: its storage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import InternalError
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


class Hanging(UploadConsumer):
    hangs: str

    async def _hang(self, hook: str) -> None:
        if hook == self.hangs:
            await asyncio.Event().wait()

    async def may_upload(self, user: Any) -> bool:
        await self._hang("may_upload")
        return True

    async def get_max_size(self, user: Any) -> int | None:
        await self._hang("get_max_size")
        return None

    async def check(self, session: UploadSession) -> None:
        await self._hang("check")

    async def get_name(self, session: UploadSession) -> str:
        await self._hang("get_name")
        return "a.bin"


@pytest.mark.parametrize("hook", ["may_upload", "get_max_size", "check", "get_name"])
async def test_a_hook_that_hangs_is_given_up(
    connect: Connect,
    uploads: UploadService,
    settings: Any,
    hook: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Hanging, "hangs", hook, raising=False)
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "RECEIVER_TIMEOUT": 0.2}
    async with connect(AuthMiddlewareStack(Hanging.as_asgi())) as client:
        with pytest.raises(InternalError):
            await client.upload("a.bin", b"data")
    assert f"{hook}() of endpoint default did not return within 0.2 s" in caplog.text
