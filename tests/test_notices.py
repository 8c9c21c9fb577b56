"""The log records of an upload's errors say which upload it was, and whose."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack

from django_async_upload import signals
from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.owners import Owner
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import new_key

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]


def attributes(record: logging.LogRecord) -> dict[str, Any]:
    names = ("code", "owner", "endpoint", "upload", "address")
    return {each: getattr(record, each) for each in names if hasattr(record, each)}


async def test_a_receiver_that_fails_is_logged_with_the_upload(
    uploads: UploadService, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**kwargs: Any) -> None:
        raise ZeroDivisionError

    session = UploadSession(name="a.bin", owner_key=owner.key, endpoint="films")
    signals.upload_resumed.connect(fail)
    try:
        await signals.send(signals.upload_resumed, session, offset=0)
    finally:
        signals.upload_resumed.disconnect(fail)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert attributes(record) == {
        "owner": owner.key,
        "endpoint": "films",
        "upload": str(session.pk),
    }


async def test_a_bug_of_a_hook_is_logged_with_whose_upload_it_was(
    connect: Connect, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(UploadConsumer):
        async def check(self, session: UploadSession) -> None:
            raise ZeroDivisionError

    async with connect(AuthMiddlewareStack(Broken.as_asgi())) as client:
        await client.send(m.Create(new_key(), "a.bin", 4), 1)
        await client.wait_for(m.Error, 1)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert attributes(record) == {
        "code": "internal_error",
        "owner": owner.key,
        "endpoint": "default",
        "upload": None,
    }
