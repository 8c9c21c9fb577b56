"""The HTTP door: who may ask, and what becomes of the body."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async

from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.routing import upload_application
from django_async_upload.tickets import issue_ticket
from tests.http_door.calls import call

pytest_plugins = ["tests.fixtures"]

ORIGIN = "http://testserver"


async def django(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"the site"})


@pytest.fixture
def site() -> Any:
    return upload_application(django)


@pytest.fixture
def bearer(alice: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {issue_ticket(alice)}"}


@pytest.mark.parametrize("size", [0, 5, 20_000, 3_000_000])
async def test_a_put_is_published(
    uploads: UploadService, site: Any, bearer: dict[str, str], size: int
) -> None:
    content = b"x" * size
    answer = await call(site, "PUT", "/ws/uploads/film.mov", content, **bearer)
    assert answer.status == 201
    assert answer.json["size"] == size
    assert answer.json["state"] == "completed"
    session = await UploadSession.objects.aget(pk=answer.json["upload"])
    assert session.name == "film.mov"
    file = await sync_to_async(lambda: session.get_storage().open(session.stored_as).read())()
    assert file == content


async def test_other_paths_are_the_sites(uploads: UploadService, site: Any) -> None:
    assert (await call(site, "GET", "/")).status == 299
    assert (await call(site, "GET", "/ws/uploads/a/b")).status == 299
