"""What the tests of the server share: a service with folders of its own, users, and connections."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from crc32c import crc32c
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection, connections
from django.test import Client

from django_async_upload import admission, notices, signals
from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import drain, service
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.receipts import field_token, receipt_of
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.sessions.values import Facts
from django_async_upload.testing.communicator import UploadCommunicator

KIB, MIB = 1024, 1024 * 1024
PATIENCE = 30.0
"""Seconds after which the end of a test is no longer waited for: a failure shall be seen, not hang."""


def crc(data: bytes) -> str:
    return f"{crc32c(data):08x}"


def finish(data: bytes, **digests: str) -> m.Finish:
    return m.Finish(len(data), crc(data), digests)


def facts(data: bytes, **digests: str) -> Facts:
    return Facts(len(data), crc(data), digests)


def new_key() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def media(settings: Any, tmp_path: Path) -> Path:
    """The default storage's folder, empty; the staging folder is beside it."""
    settings.MEDIA_ROOT = str(tmp_path / "media")
    return tmp_path / "media"


@pytest.fixture
def staging(media: Path) -> Path:
    return media.with_name("media-staging")


@pytest.fixture
def journal(db: None, media: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The changes to files and to rows of uploads, in order: ``fsync``, ``link``, ``rename``, ``remove`` or ``unlink``
    with the path, relative to the parent of :func:`media`, and ``UPDATE``."""
    journal: list[str] = []

    def note(what: str, path: str) -> None:
        if os.path.basename(path).endswith(".link"):  # a random name
            path = os.path.join(os.path.dirname(path), "*.link")
        journal.append(f"{what} {os.path.relpath(path, media.parent)}")

    def noting(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def change(path: Any, *arguments: Any, **options: Any) -> None:
            call(path, *arguments, **options)
            note(name, os.fspath(path))

        return change

    fsync = os.fsync

    def sync(fd: int) -> None:
        fsync(fd)
        note("fsync", os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fsync", sync)
    for name in ("link", "rename", "remove", "unlink"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))

    def execute(execute: Any, sql: str, *arguments: Any) -> Any:
        if sql.startswith("UPDATE") and UploadSession._meta.db_table in sql:
            journal.append("UPDATE")
        return execute(sql, *arguments)

    with connection.execute_wrapper(execute):
        yield journal


@pytest.fixture
def alice(db: None) -> Any:
    return get_user_model().objects.create_user("alice", password="secret")


@pytest.fixture
def bob(db: None) -> Any:
    return get_user_model().objects.create_user("bob", password="secret")


@pytest.fixture
def owner(alice: Any) -> Owner:
    return Owner(f"user:{alice.pk}", alice)


@pytest.fixture
def login(alice: Any) -> Client:
    """Django's test client, signed in as alice."""
    client = Client()
    client.force_login(alice)
    return client


async def forget_service() -> None:
    """Close the running loop's service; the next use makes a new one."""
    running = service._services.pop(asyncio.get_running_loop(), None)
    if running is not None:
        await running.close()


async def settled() -> None:
    """Wait for work that outlives its connection; a test that left something hanging fails."""
    try:
        async with asyncio.timeout(PATIENCE):
            while drain.tasks:
                await asyncio.wait(list(drain.tasks))
    except TimeoutError:
        for task in list(drain.tasks):  # the next test has another loop
            task.cancel()
        raise


@pytest.fixture
async def uploads(transactional_db: None, media: Path) -> AsyncIterator[UploadService]:
    """The service of the test's event loop. Afterwards no credit is out, and nothing is held."""
    notices.forget()
    running = get_service()
    yield running
    drain.undrain()
    try:
        await settled()
    finally:
        last = get_service()
        async with asyncio.timeout(PATIENCE):
            await forget_service()
        await sync_to_async(connections.close_all)()
    assert last.budget.promised == 0
    assert not last.budget.accounts
    assert not last.active
    assert not last.slots.held
    assert not admission.slots_taken()


@pytest.fixture
async def application(uploads: UploadService) -> Any:
    return AuthMiddlewareStack(UploadConsumer.as_asgi())


@pytest.fixture
def connect(application: Any, login: Client) -> Callable[..., UploadCommunicator]:
    """A connection as alice, by her session's cookie."""

    def connect(app: Any = application, **options: Any) -> UploadCommunicator:
        if "ticket" not in options:
            options.setdefault("cookies", login.cookies)
        return UploadCommunicator(app, **options)

    return connect


class Heard(list[tuple[str, dict[str, Any]]]):
    """The signals that were sent: (name, arguments)."""

    def named(self, name: str) -> list[dict[str, Any]]:
        return [arguments for heard, arguments in self if heard == name]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Every signal but ``chunk_received``, recorded by an async receiver."""
    heard = Heard()
    connected = []
    for name in ("started", "resumed", "completed", "failed", "cancelled", "expired"):

        async def receiver(*, name: str = name, **arguments: Any) -> None:
            heard.append((name, arguments))

        getattr(signals, f"upload_{name}").connect(receiver, weak=False)
        connected.append((getattr(signals, f"upload_{name}"), receiver))
    yield heard
    for signal, receiver in connected:
        signal.disconnect(receiver)


def posted(*pairs: tuple[str, UploadSession], place: str = "") -> dict[str, Any]:
    """What a page posts for uploads in its fields: pairs of a field's HTML name and an upload."""
    fields: dict[str, Any] = {}
    for name, session in pairs:
        fields[f"async_upload_field.{name}"] = field_token(name, place=place)
        fields.setdefault(f"async_upload.{name}", []).append(receipt_of(session))
    return fields


async def row(pk: Any) -> UploadSession:
    return await UploadSession.objects.aget(pk=pk)


async def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A synchronous piece of a test, where the ORM may be used."""
    return await sync_to_async(function)(*args, **kwargs)


def publish(owner: Owner, data: bytes = b"hello", name: str = "a.bin", **fields: Any) -> Any:
    """A completed upload of a form's field, its file in the storage. Synchronous."""
    stored_as = default_storage.save(f"uploads/{name}", ContentFile(data))
    return UploadSession.objects.create(
        **{
            "key": new_key(),
            "endpoint": "default",
            "owner_id": owner.user_id,
            "owner_key": owner.key,
            "name": name,
            "size": len(data),
            "durable": len(data),
            "crc": crc32c(data),
            "state": State.COMPLETED,
            "stored_as": stored_as,
            "taker": "form",
            **fields,
        }
    )
