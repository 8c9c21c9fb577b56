"""The HTTP door: who may ask, and what becomes of the bodies."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import drain
from django_async_upload.engine.service import UploadService
from django_async_upload.http import exchange, holder
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.routing import upload_application, upload_path
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import issue_ticket
from tests.fixtures import crc
from tests.http_door.calls import Answer, Call, call
from tests.http_door.spoken import Spoken

pytest_plugins = ["tests.fixtures"]

ORIGIN = "http://testserver"
CONTENT = bytes(range(256)) * 2000


async def rest_of_the_site(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"the site"})


@pytest.fixture(autouse=True)
def language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "Tus", lambda size: Spoken())  # the first that is asked


@pytest.fixture
def site(uploads: UploadService) -> Any:
    return upload_application(rest_of_the_site)


@pytest.fixture
def bearer(alice: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {issue_ticket(alice)}"}


@pytest.fixture
def cookie(login: Client) -> dict[str, str]:
    return {"cookie": f"sessionid={login.cookies['sessionid'].value}"}


async def stored(answer: Answer) -> bytes:
    session = await UploadSession.objects.aget(pk=answer.json["upload"])
    return await sync_to_async(
        lambda: session.get_storage().open(session.stored_as).read()  # type: ignore[no-any-return]
    )()


async def create(site: Any, bearer: dict[str, str], body: bytes = b"", **headers: str) -> Answer:
    headers = {"x-size": str(len(CONTENT)), **headers}
    answer = await call(site, "POST", body=body, x_ask="create", **headers, **bearer)
    assert answer.status == 200, answer.json
    return answer


async def append(
    site: Any, bearer: dict[str, str], upload: str, offset: int, body: bytes, **headers: str
) -> Answer:
    path = f"/ws/uploads/{upload}"
    return await call(
        site, "PATCH", path, body, x_ask="append", x_offset=str(offset), **headers, **bearer
    )


async def offset_of(site: Any, bearer: dict[str, str], upload: str) -> int:
    answer = await call(site, "HEAD", f"/ws/uploads/{upload}", x_ask="offset", **bearer)
    assert answer.status == 200
    # A HEAD has no body: look at the same standing.
    answer = await call(site, "GET", f"/ws/uploads/{upload}", x_ask="look", **bearer)
    return int(answer.json["offset"])


def begun(site: Any, bearer: dict[str, str], upload: str, offset: int) -> Call:
    headers = {"x-ask": "append", "x-offset": str(offset), "transfer-encoding": "chunked", **bearer}
    return Call(site, "PATCH", f"/ws/uploads/{upload}", headers)


async def until_received(uploads: UploadService, size: int) -> None:
    async with asyncio.timeout(5):
        while not any(each.flow.received >= size for each in uploads.active.values()):
            await asyncio.sleep(0.01)


# Bodies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 20_000, 3_000_000])
async def test_a_put_is_published(site: Any, bearer: dict[str, str], size: int) -> None:
    content = b"x" * size
    answer = await call(site, "PUT", "/ws/uploads/film.mov", content, **bearer)
    assert answer.status == 201
    assert answer.json["size"] == size
    assert answer.json["state"] == "completed"
    assert (await UploadSession.objects.aget()).name == "film.mov"
    assert await stored(answer) == content


async def test_a_body_of_unknown_length_is_published(site: Any, bearer: dict[str, str]) -> None:
    pieces = [b"a" * 70_000, b"b" * 10, b"c" * 100_000]
    answer = await call(site, "PUT", "/ws/uploads/a.bin", pieces, **bearer)
    assert answer.status == 201
    assert await stored(answer) == b"".join(pieces)


async def test_other_paths_are_the_sites(site: Any) -> None:
    assert (await call(site, "GET", "/")).status == 299
    assert (await call(site, "GET", "/ws/uploads/a/b")).status == 299


async def test_an_upload_goes_on_where_the_last_request_ended(
    site: Any, bearer: dict[str, str], uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = (await create(site, bearer, CONTENT[:100_000])).json["upload"]
    calls = []
    ask = uploads.database.call

    async def counting(function: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        return await ask(function, *arguments, **options)

    monkeypatch.setattr(uploads.database, "call", counting)
    answer = await append(site, bearer, upload, 100_000, CONTENT[100_000:200_000])
    assert answer.json["offset"] == 200_000
    assert set(calls) <= {"look_up", "change"}  # the ticket, and the checkpoint that fsync asks for
    answer = await append(site, bearer, upload, 200_000, CONTENT[200_000:])
    assert answer.json["state"] == "completed"
    assert answer.json["receipt"]
    assert await stored(answer) == CONTENT


async def test_a_request_that_is_cut_off_keeps_every_byte(
    site: Any, bearer: dict[str, str], uploads: UploadService
) -> None:
    upload = (await create(site, bearer)).json["upload"]
    request = begun(site, bearer, upload, 0)
    await request.send(CONTENT[:123_457])
    await request.cut()
    assert await offset_of(site, bearer, upload) == 123_457
    answer = await append(site, bearer, upload, 123_457, CONTENT[123_457:])
    assert await stored(answer) == CONTENT


@pytest.mark.parametrize("asks", ["offset", "append"])
async def test_a_newer_request_ends_an_older_one_whose_client_is_gone(
    site: Any, bearer: dict[str, str], uploads: UploadService, asks: str
) -> None:
    upload = (await create(site, bearer)).json["upload"]
    older = begun(site, bearer, upload, 0)
    await older.send(CONTENT[:50_000])
    await until_received(uploads, 50_000)
    if asks == "offset":
        assert await offset_of(site, bearer, upload) == 50_000
    answer = await append(site, bearer, upload, 50_000, CONTENT[50_000:])
    assert await stored(answer) == CONTENT
    refused = await older.answer()
    assert (refused.status, refused.json["code"]) == (409, "taken_over")


async def test_a_wrong_offset_is_told_the_right_one(site: Any, bearer: dict[str, str]) -> None:
    upload = (await create(site, bearer, CONTENT[:1000])).json["upload"]
    for offset in (0, 999, 1001):
        answer = await append(site, bearer, upload, offset, CONTENT[offset:])
        assert (answer.status, answer.json["code"]) == (409, "wrong_offset")
        assert answer.json["expected"] == answer.json["at"] == 1000
    assert (await append(site, bearer, upload, 1000, CONTENT[1000:])).json["state"] == "completed"


async def test_an_upload_that_is_not_held_any_more_is_attached(
    site: Any, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "LINGER_SECONDS", 0.01)
    upload = (await create(site, bearer, CONTENT[:70_000])).json["upload"]
    async with asyncio.timeout(5):
        while (await UploadSession.objects.aget()).state != "interrupted":
            await asyncio.sleep(0.01)
    assert await offset_of(site, bearer, upload) == 70_000
    answer = await append(site, bearer, upload, 70_000, CONTENT[70_000:])
    assert await stored(answer) == CONTENT


async def test_what_a_websocket_began_is_finished_over_http(
    site: Any, bearer: dict[str, str], login: Client
) -> None:
    async with UploadCommunicator(site, cookies=login.cookies) as client:
        stream = client.new_stream()
        await client.send(m.Create("a" * 32, "a.bin", len(CONTENT)), stream)
        upload = (await client.wait_for(m.Created, stream)).upload
        await client.send_data(stream, 0, CONTENT[:10_000])
        await client.wait_for(m.Ack, stream)
        assert await offset_of(site, bearer, upload) == 10_000
        assert (await client.wait_for(m.Error, stream)).code == "taken_over"
        answer = await append(site, bearer, upload, 10_000, CONTENT[10_000:])
    assert await stored(answer) == CONTENT


async def test_what_http_began_is_finished_at_a_websocket(
    site: Any, bearer: dict[str, str], login: Client
) -> None:
    upload = (await create(site, bearer, CONTENT[:60_000])).json["upload"]
    async with UploadCommunicator(site, cookies=login.cookies) as client:
        stream = client.new_stream()
        await client.send(m.Attach(upload), stream)
        attached = await client.wait_for(m.Attached, stream)
        assert attached.received == 60_000
        proof = m.Proof(crc(CONTENT[: attached.durable]), crc(CONTENT[:60_000]))
        await client.send(proof, stream)
        await client.wait_for(m.Ready, stream)
        await client.send(m.Cancel(), stream)
        assert (await client.wait_for(m.Cancelled, stream)).upload == upload


async def test_a_body_with_a_wrong_checksum_is_discarded(site: Any, bearer: dict[str, str]) -> None:
    upload = (await create(site, bearer, CONTENT[:10])).json["upload"]
    body = CONTENT[10:400_000]
    right = hashlib.sha1(body).hexdigest()
    wrong = await append(site, bearer, upload, 10, body[:-1] + b"?", x_checksum=f"sha1 {right}")
    assert (wrong.status, wrong.json["code"], wrong.json["at"]) == (460, "content_mismatch", 10)
    answer = await append(site, bearer, upload, 10, body, x_checksum=f"sha1 {right}")
    assert answer.json["offset"] == 400_000
    answer = await append(site, bearer, upload, 400_000, CONTENT[400_000:])
    assert await stored(answer) == CONTENT


async def test_a_file_with_a_wrong_checksum_is_not_published(
    site: Any, bearer: dict[str, str]
) -> None:
    upload = (await create(site, bearer, CONTENT[:-1])).json["upload"]
    answer = await append(
        site, bearer, upload, len(CONTENT) - 1, b"?", x_crc32c=crc(CONTENT), x_completes="yes"
    )
    assert (answer.status, answer.json["code"]) == (422, "digest_mismatch")
    assert (await UploadSession.objects.aget()).state == "failed"


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_more_than_the_declared_size_is_refused(
    site: Any, bearer: dict[str, str], is_chunked: bool
) -> None:
    upload = (await create(site, bearer, CONTENT[:10])).json["upload"]
    body = CONTENT[10:] + b"?"
    if is_chunked:
        request = begun(site, bearer, upload, 10)
        await request.send(body[:100_000])
        await request.send(body[100_000:], more=False)
        answer = await request.answer()
    else:
        answer = await append(site, bearer, upload, 10, body)
    assert (answer.status, answer.json["code"]) == (413, "size_exceeded")
    offset = await offset_of(site, bearer, upload)
    assert offset == (100_010 if is_chunked else 10)
    answer = await append(site, bearer, upload, offset, CONTENT[offset:])
    assert await stored(answer) == CONTENT


async def test_a_client_that_falls_silent_is_not_waited_for(
    site: Any, bearer: dict[str, str], settings: Any
) -> None:
    upload = (await create(site, bearer)).json["upload"]
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "IDLE_TIMEOUT": 0.2}
    request = begun(site, bearer, upload, 0)
    await request.send(b"x" * 10)
    answer = await request.answer()
    assert (answer.status, answer.json["code"]) == (408, "idle_timeout")
    assert await offset_of(site, bearer, upload) == 10


async def test_an_upload_that_nobody_can_find_is_cancelled_when_it_is_cut_off(
    site: Any, bearer: dict[str, str], uploads: UploadService
) -> None:
    headers = {"content-length": "100000", **bearer}
    request = Call(site, "PUT", "/ws/uploads/a.bin", headers)
    await request.send(b"x" * 50_000)
    await until_received(uploads, 50_000)
    await request.cut()
    async with asyncio.timeout(5):
        while (await UploadSession.objects.aget()).state != "cancelled":
            await asyncio.sleep(0.01)


async def test_a_creation_that_got_no_answer_is_found_by_its_key(
    site: Any, bearer: dict[str, str], uploads: UploadService
) -> None:
    headers = {"x-ask": "create", "x-key": "a" * 32, "x-size": str(len(CONTENT)), **bearer}
    request = Call(site, "POST", "/ws/uploads/", headers)
    await request.send(CONTENT[:50_000])
    await until_received(uploads, 50_000)
    await request.cut()
    again = await create(site, bearer, x_key="a" * 32)
    assert again.json["offset"] == 50_000
    answer = await append(site, bearer, again.json["upload"], 50_000, CONTENT[50_000:])
    assert await stored(answer) == CONTENT
    assert (await create(site, bearer, x_key="a" * 32)).json["state"] == "completed"


async def test_a_request_is_answered_while_its_client_still_sends(
    site: Any, bearer: dict[str, str], settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "MAX_SIZE": 1000}
    request = Call(site, "PUT", "/ws/uploads/a.bin", {"content-length": "100000", **bearer})
    start = await request.communicator.receive_output(5)
    assert start["status"] == 413
    part = await request.communicator.receive_output(5)
    assert part["body"]
    await request.send(b"x" * 100_000, more=False)
    assert not (await request.communicator.receive_output(5)).get("more_body")


async def test_a_cancelled_upload_is_gone(site: Any, bearer: dict[str, str]) -> None:
    upload = (await create(site, bearer, CONTENT[:10])).json["upload"]
    path = f"/ws/uploads/{upload}"
    assert (await call(site, "DELETE", path, x_ask="cancel", **bearer)).status == 204
    assert (await call(site, "HEAD", path, x_ask="offset", **bearer)).status == 410
    assert (await append(site, bearer, upload, 10, b"x")).status == 410


async def test_a_completed_upload_that_is_not_taken_is_deleted(
    site: Any, bearer: dict[str, str]
) -> None:
    answer = await call(site, "PUT", "/ws/uploads/a.bin", b"data", **bearer)
    path = f"/ws/uploads/{answer.json['upload']}"
    assert (await call(site, "GET", path, **bearer)).json["receipt"] == answer.json["receipt"]
    assert (await append(site, bearer, answer.json["upload"], 4, b"x")).status == 410
    assert (await call(site, "DELETE", path, **bearer)).status == 204
    session = await UploadSession.objects.aget()
    assert session.state == "cancelled"
    assert not await sync_to_async(session.get_storage().exists)(answer.json["stored_as"])


async def test_while_the_server_drains_clients_come_back_later(
    site: Any, bearer: dict[str, str], uploads: UploadService
) -> None:
    upload = (await create(site, bearer)).json["upload"]
    request = begun(site, bearer, upload, 0)
    await request.send(CONTENT[:50_000])
    await until_received(uploads, 50_000)
    await drain.drain(retry_after=3.0)
    answer = await request.answer()
    assert (answer.status, answer.json["code"]) == (503, "draining")
    assert answer.headers["retry-after"] == "3"
    assert (await append(site, bearer, upload, 50_000, b"x")).status == 503
    drain.undrain()
    answer = await append(site, bearer, upload, 50_000, CONTENT[50_000:])
    assert await stored(answer) == CONTENT


# Who asks -----------------------------------------------------------------------------------------


async def test_nobody_uploads_without_a_credential(site: Any) -> None:
    answer = await call(site, "PUT", "/ws/uploads/a.bin", b"data")
    assert (answer.status, answer.json["code"]) == (401, "authentication_required")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_forged_ticket_is_refused(site: Any) -> None:
    answer = await call(site, "PUT", "/ws/uploads/a.bin", b"data", authorization="Bearer x")
    assert (answer.status, answer.json["code"]) == (401, "ticket_invalid")


async def test_a_cookie_counts_with_the_sites_own_origin_only(
    site: Any, cookie: dict[str, str]
) -> None:
    put = "/ws/uploads/a.bin"
    assert (await call(site, "PUT", put, b"data", **cookie)).status == 401
    assert (await call(site, "PUT", put, b"data", origin=ORIGIN, **cookie)).status == 201
    foreign = await call(site, "PUT", put, b"data", origin="http://evil.example", **cookie)
    assert (foreign.status, foreign.json["code"]) == (403, "origin_refused")
    assert "access-control-allow-origin" not in foreign.headers
    assert await UploadSession.objects.acount() == 1


@pytest.mark.parametrize(("site_of_page", "status"), [("same-origin", 200), ("cross-site", 401)])
async def test_a_look_without_an_origin_is_the_sites_own(
    site: Any, cookie: dict[str, str], site_of_page: str, status: int
) -> None:
    answer = await call(site, "PUT", "/ws/uploads/a.bin", b"data", origin=ORIGIN, **cookie)
    path = f"/ws/uploads/{answer.json['upload']}"
    look = await call(site, "GET", path, sec_fetch_site=site_of_page, **cookie)
    assert look.status == status


async def test_pages_of_trusted_origins_may_upload_and_read_the_answer(
    site: Any, cookie: dict[str, str], settings: Any
) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://app.example"]
    origin = "https://app.example"
    preflight = await call(
        site,
        "OPTIONS",
        origin=origin,
        access_control_request_method="PATCH",
        access_control_request_headers="upload-offset, tus-resumable",
    )
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "upload-offset, tus-resumable"
    answer = await call(site, "PUT", "/ws/uploads/a.bin", b"data", origin=origin, **cookie)
    assert answer.status == 201
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["vary"] == "Origin"


async def test_options_tell_anybody_what_the_server_can_do(
    uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the languages of the door
    site = upload_application(rest_of_the_site)
    answer = await call(site, "OPTIONS", tus_resumable="9.9.9")
    assert answer.status == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert "max-size=" in answer.headers["upload-limit"]
    assert "PATCH" in answer.headers["allow"]


async def test_a_drain_does_not_wait_for_a_publication_that_hangs(
    uploads: UploadService, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()

    class Inspecting(UploadConsumer):
        async def inspect(self, session: Any, file: Any) -> None:
            await released.wait()

    monkeypatch.setattr(drain, "CLOSING_SECONDS", 0.1)
    site = upload_application(rest_of_the_site, [upload_path(consumer=Inspecting)])
    headers = {"content-length": "20000", **bearer}
    request = Call(site, "PUT", "/ws/uploads/a.bin", headers)
    await request.send(b"x" * 20_000, more=False)
    async with asyncio.timeout(5):
        while (session := await UploadSession.objects.afirst()) is None or (
            session.state != "verifying"
        ):
            await asyncio.sleep(0.01)
        await drain.drain()
    drain.undrain()
    released.set()
    assert (await request.answer()).json["state"] == "completed"


async def test_another_owners_upload_does_not_exist(
    site: Any, bearer: dict[str, str], bob: Any
) -> None:
    upload = (await create(site, bearer, CONTENT[:10])).json["upload"]
    other = {"authorization": f"Bearer {await sync_to_async(issue_ticket)(bob)}"}
    path = f"/ws/uploads/{upload}"
    for asks in ("offset", "look", "cancel"):
        answer = await call(site, "GET", path, x_ask=asks, **other)
        assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert (await append(site, other, upload, 10, CONTENT[10:])).status == 404
    assert (await append(site, bearer, upload, 10, CONTENT[10:])).status == 200


class ByKey(UploadConsumer):
    async def authenticate(self, scope: Any) -> Any:
        from django.contrib.auth import get_user_model

        key = dict(scope["headers"]).get(b"x-api-key")
        return await get_user_model().objects.aget(username=key.decode()) if key else None


async def test_a_host_authenticates_in_its_own_way(
    uploads: UploadService, bearer: dict[str, str], bob: Any
) -> None:
    site = upload_application(rest_of_the_site, [upload_path(consumer=ByKey)])
    answer = await call(site, "PUT", "/ws/uploads/a.bin", b"data", x_api_key="bob")
    assert answer.status == 201
    assert (await UploadSession.objects.aget()).owner_id == bob.pk
    assert (await call(site, "PUT", "/ws/uploads/a.bin", b"data", **bearer)).status == 201
    assert (await call(site, "PUT", "/ws/uploads/a.bin", b"data")).status == 401
