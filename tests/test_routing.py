"""What a host's ``asgi.py`` uses: paths, the whole application, and the lifespan of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.contrib.sessions.models import Session
from django.core.asgi import get_asgi_application
from django.test import Client

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import NotFound
from django_async_upload.models import CompletionEvent
from django_async_upload.protocol import messages as m
from django_async_upload.routing import (
    lifespan,
    upload_application,
    upload_path,
    websocket_urlpatterns,
)
from django_async_upload.sessions.owners import Owner
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import issue_ticket

from .fixtures import Heard, publish, run

pytest_plugins = ["tests.fixtures"]


class Films(UploadConsumer):
    endpoint = "films"


def test_the_paths_have_routes_and_names() -> None:
    (pattern,) = websocket_urlpatterns
    assert str(pattern.pattern) == "ws/uploads/<async_upload_segment:segment>"
    films = upload_path("ws/films/", Films, name="films")
    assert (str(films.pattern), films.name) == ("ws/films/<async_upload_segment:segment>", "films")


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
    watching = uploads._recovery._watching
    assert watching is not None
    assert watching.done()


async def test_a_connection_starts_the_service_where_there_is_no_lifespan(
    connect: Any, uploads: UploadService
) -> None:
    assert uploads._recovery._watching is None
    async with connect():
        assert uploads._recovery._watching is not None


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
async def test_a_path_without_a_consumer_is_refused_without_a_traceback(
    extensions: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    scope = {
        "type": "websocket",
        "path": "/ws/nothing/",
        "headers": [],
        "subprotocols": [],
        "extensions": extensions,
    }
    server = ApplicationCommunicator(upload_application(get_asgi_application()), scope)
    await server.send_input({"type": "websocket.connect"})
    answer = await server.receive_output()
    if extensions:
        assert (answer["type"], answer["status"]) == ("websocket.http.response.start", 404)
        await server.receive_output()
    else:
        assert answer["type"] == "websocket.close"
    await server.wait()
    assert not caplog.records


async def test_a_new_secret_key_signs_no_user_out(
    uploads: UploadService, login: Client, settings: Any, alice: Any
) -> None:
    """The page that is open reconnects first, and gets no cookie."""
    ticket = issue_ticket(alice)
    session = login.cookies["sessionid"].value
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another one, which is just as long as the one before"
    application = upload_application(get_asgi_application())
    async with UploadCommunicator(application, cookies=login.cookies) as client:
        assert client.hello.authenticated
        assert (await client.upload("a.bin", b"data")).size == 4
    async with UploadCommunicator(application, ticket=ticket) as client:
        assert (await client.upload("a.bin", b"data")).size == 4
    assert await run(Session.objects.filter(session_key=session).exists)
    settings.SECRET_KEY_FALLBACKS = []
    async with UploadCommunicator(application, cookies=login.cookies) as client:
        assert not client.hello.authenticated
    assert await run(Session.objects.filter(session_key=session).exists)  # its data was only read


@pytest.mark.parametrize("key", ["a\0b", "\0" * 32, "", "x" * 200, "'; --"])
async def test_a_session_cookie_may_hold_anything(
    uploads: UploadService, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    application = upload_application(get_asgi_application())
    headers = [(b"cookie", f"sessionid={key}".encode()), (b"origin", b"http://testserver")]
    async with UploadCommunicator(application, headers=headers) as client:
        assert not client.hello.authenticated
    assert not caplog.records
