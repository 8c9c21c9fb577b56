"""What a host's ``asgi.py`` uses: paths, the whole application, and the lifespan of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.test import Client

from django_async_upload.consumers import UploadConsumer
from django_async_upload.exceptions import NotFound
from django_async_upload.models import CompletionEvent
from django_async_upload.owners import Owner
from django_async_upload.protocol import messages as m
from django_async_upload.routing import (
    lifespan,
    upload_application,
    upload_path,
    websocket_urlpatterns,
)
from django_async_upload.service import UploadService, get_service
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import Heard, publish, run

pytest_plugins = ["tests.fixtures"]


class Films(UploadConsumer):
    endpoint = "films"


def test_the_paths_have_routes_and_names() -> None:
    (pattern,) = websocket_urlpatterns
    assert str(pattern.pattern) == "ws/uploads/"
    films = upload_path("ws/films/", Films, name="films")
    assert (str(films.pattern), films.name) == ("ws/films/", "films")


async def test_the_application_uploads_and_serves(uploads: UploadService, login: Client) -> None:
    application = upload_application(get_asgi_application())
    async with UploadCommunicator(application, cookies=login.cookies) as client:
        assert client.hello.authenticated
        assert (await client.upload("a.bin", b"data")).size == 4
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/nowhere",
        "query_string": b"",
        "headers": [],
    }
    http = ApplicationCommunicator(application, scope)
    await http.send_input({"type": "http.request", "body": b""})
    assert (await http.receive_output())["status"] == 404
    await http.receive_output()
    await http.wait()


async def test_an_upload_belongs_to_the_endpoint_that_made_it(
    uploads: UploadService, login: Client
) -> None:
    application = upload_application(
        get_asgi_application(), [upload_path(), upload_path("ws/films/", Films)]
    )
    async with (
        UploadCommunicator(application, cookies=login.cookies) as client,
        UploadCommunicator(application, "/ws/films/", cookies=login.cookies) as films,
    ):
        mine = await client.upload("a.bin", b"data")
        await films.send(m.Query(mine.upload), 1)
        with pytest.raises(NotFound):
            await films.wait_for(m.Status, 1)
        film = await films.upload("a.bin", b"data")
        await client.send(m.Query(film.upload), 9)
        with pytest.raises(NotFound):
            await client.wait_for(m.Status, 9)


async def test_a_server_that_starts_delivers_what_was_left_and_lets_go_when_it_stops(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    session = await run(publish, owner)
    event = await CompletionEvent.objects.acreate(session=session)
    server = ApplicationCommunicator(lifespan, {"type": "lifespan"})
    await server.send_input({"type": "lifespan.startup"})
    assert (await server.receive_output())["type"] == "lifespan.startup.complete"
    for _ in range(200):
        if heard:
            break
        await asyncio.sleep(0.01)
    assert heard.named("completed")[0]["event_id"] == event.pk
    while (await CompletionEvent.objects.aget()).delivered_at is None:
        await asyncio.sleep(0.01)
    await server.send_input({"type": "lifespan.shutdown"})
    assert (await server.receive_output())["type"] == "lifespan.shutdown.complete"
    await server.wait()
    assert get_service()._watch is None or get_service()._watch.done()


async def test_a_connection_starts_the_service_where_there_is_no_lifespan(
    connect: Any, uploads: UploadService
) -> None:
    assert uploads._watch is None
    async with connect():
        assert uploads._watch is not None
