"""Uploads in the language of tus, through the door."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.receipts import receipt_of
from django_async_upload.routing import upload_application, upload_path
from django_async_upload.sessions.state import State
from django_async_upload.tickets import issue_ticket
from tests.fixtures import row
from tests.http_door.calls import Answer, Call, call

pytest_plugins = ["tests.fixtures"]

MEDIA_TYPE = "application/offset+octet-stream"
HERE = "/ws/uploads/"
DATA = os.urandom(200_003)


class Answering(UploadConsumer):
    endpoint = "answering"
    max_size = 1_000_000
    allowed_extensions = ("mov",)

    async def respond(self, session: UploadSession) -> dict[str, Any]:
        return {"name": session.name}


@pytest.fixture
def tus(uploads: UploadService, alice: Any) -> Tus:
    return Tus(alice)


class Tus:
    """A client of tus, signed in by a ticket."""

    def __init__(self, user: Any, endpoint: str = "default") -> None:
        patterns = [upload_path(), upload_path("ws/answering/", Answering)]
        self.application = upload_application(None, patterns)
        self.ticket = issue_ticket(user, endpoint=endpoint)

    def headers(self, headers: dict[str, Any]) -> dict[str, str]:
        known = {"tus_resumable": "1.0.0", "authorization": f"Bearer {self.ticket}"}
        return {name: str(value) for name, value in {**known, **headers}.items()}

    async def __call__(
        self, method: str, path: str = HERE, body: bytes = b"", **headers: Any
    ) -> Answer:
        return await call(self.application, method, path, body, **self.headers(headers))

    async def post(self, body: bytes = b"", path: str = HERE, **headers: Any) -> str:
        """Create an upload; returns its path."""
        answer = await self("POST", path, body, **headers)
        assert answer.status == 201, answer.body
        location = answer.headers["location"]
        assert location.startswith("http://testserver/")
        return location.removeprefix("http://testserver")

    async def patch(self, path: str, offset: int, body: bytes, **headers: Any) -> Answer:
        headers = {"content_type": MEDIA_TYPE, "upload_offset": offset, **headers}
        return await self("PATCH", path, body, **headers)

    async def offset(self, path: str) -> int:
        answer = await self("HEAD", path)
        assert answer.status == 200
        return int(answer.headers["upload-offset"])

    async def part(self, data: bytes) -> str:
        path = await self.post(upload_length=len(data), upload_concat="partial")
        if data:
            assert (await self.patch(path, 0, data)).status == 204
        return path


def named(name: str) -> str:
    return f"filename {b64encode(name.encode()).decode()}"


def id_of(path: str) -> uuid.UUID:
    return uuid.UUID(path.rpartition("/")[2])


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["code"]


async def stored(path: str, media: Path) -> bytes:
    return (media / (await row(id_of(path))).stored_as).read_bytes()


async def test_a_file_is_created_and_appended(tus: Tus, media: Path) -> None:
    path = await tus.post(upload_length=len(DATA), upload_metadata=named("film.mov"))
    first = await tus.patch(path, 0, DATA[:150_000])
    assert (first.status, first.headers["upload-offset"]) == (204, "150000")
    assert "upload-expires" in first.headers
    assert await tus.offset(path) == 150_000
    last = await tus.patch(path, 150_000, DATA[150_000:])
    assert (last.status, last.headers["upload-offset"]) == (204, str(len(DATA)))
    assert await stored(path, media) == DATA
    session = await row(id_of(path))
    assert unquote(last.headers["upload-stored-as"]) == session.stored_as
    assert (session.name, session.metadata) == ("film.mov", {"filename": "film.mov"})
    head = await tus("HEAD", path)
    assert head.headers["upload-length"] == head.headers["upload-offset"] == str(len(DATA))
    assert head.headers["upload-metadata"] == named("film.mov")
    assert (await tus("GET", path)).json["state"] == "completed"
    assert (await tus.patch(path, len(DATA), b"")).status == 204


@pytest.mark.parametrize("size", [0, 5, 16 * 1024, len(DATA)])
async def test_a_creation_may_bring_the_file(tus: Tus, media: Path, size: int) -> None:
    path = await tus.post(DATA[:size], upload_length=size, content_type=MEDIA_TYPE)
    assert await stored(path, media) == DATA[:size]
    assert (await row(id_of(path))).name == "file"


async def test_a_creation_may_bring_the_beginning(tus: Tus, media: Path) -> None:
    path = await tus.post(DATA[:5], upload_length=9, content_type=MEDIA_TYPE)
    assert await tus.offset(path) == 5
    await tus.patch(path, 5, DATA[5:9])
    assert await stored(path, media) == DATA[:9]


async def test_the_length_may_be_declared_later(tus: Tus, media: Path) -> None:
    path = await tus.post(upload_defer_length=1)
    await tus.patch(path, 0, DATA[:9])
    assert (await tus("HEAD", path)).headers["upload-defer-length"] == "1"
    answer = await tus.patch(path, 9, DATA[9:20], upload_length=30)
    assert (answer.status, (await row(id_of(path))).size) == (204, 30)
    head = await tus("HEAD", path)
    assert (head.headers["upload-length"], "upload-defer-length" in head.headers) == ("30", False)
    assert code(await tus.patch(path, 20, b"", upload_length=31)) == (409, "size_mismatch")
    assert (await tus.patch(path, 20, DATA[20:30], upload_length=30)).status == 204
    assert await stored(path, media) == DATA[:30]


async def test_a_length_below_what_came_is_refused(tus: Tus, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "USER_MAX_BYTES": 1000}
    path = await tus.post(upload_defer_length=1)
    await tus.patch(path, 0, DATA[:9])
    answer = await tus.patch(path, 9, b"", upload_length=8)
    assert code(answer) == (409, "size_mismatch")
    assert not answer.json["retryable"]
    assert code(await tus.patch(path, 9, b"", upload_length=1001)) == (429, "byte_quota")
    assert (await tus.patch(path, 9, b"", upload_length=9)).status == 204
    assert (await row(id_of(path))).state == State.COMPLETED


async def test_the_length_that_is_declared_later_is_limited(uploads: Any, alice: Any) -> None:
    tus = Tus(alice, "answering")
    path = await tus.post(
        path="/ws/answering/", upload_defer_length=1, upload_metadata=named("a.mov")
    )
    answer = await tus.patch(path, 0, b"12345", upload_length=1_000_001)
    assert code(answer) == (413, "file_too_large")


async def test_another_offset_is_a_conflict_and_changes_nothing(tus: Tus) -> None:
    path = await tus.post(upload_length=10)
    await tus.patch(path, 0, b"12345")
    for offset in (0, 4, 6, 10):
        answer = await tus.patch(path, offset, b"x")
        assert code(answer) == (409, "wrong_offset")
        assert answer.json["tusd"] == "ERR_MISMATCHED_OFFSET"
    assert await tus.offset(path) == 5


async def test_a_body_beyond_the_length_is_refused(tus: Tus) -> None:
    path = await tus.post(upload_length=5)
    answer = await tus.patch(path, 0, b"123456")
    assert code(answer) == (413, "size_exceeded")
    assert await tus.offset(path) == 0


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
async def test_a_body_with_another_checksum_is_discarded(tus: Tus, algorithm: str) -> None:
    path = await tus.post(upload_length=10)
    digest = b64encode(hashlib.new(algorithm, b"12345").digest()).decode()
    checksum = f"{algorithm} {digest}"
    answer = await tus.patch(path, 0, b"12346", upload_checksum=checksum)
    assert code(answer) == (460, "content_mismatch")
    assert await tus.offset(path) == 0
    assert (await tus.patch(path, 0, b"12345", upload_checksum=checksum)).status == 204
    assert await tus.offset(path) == 5
    unknown = await tus.patch(path, 5, b"12345", upload_checksum="crc64 AAAA")
    assert code(unknown) == (400, "malformed_request")
    assert await tus.offset(path) == 5


async def test_a_request_that_is_cut_off_keeps_what_came(tus: Tus, media: Path) -> None:
    path = await tus.post(upload_length=len(DATA))
    headers = {"content_type": MEDIA_TYPE, "upload_offset": 0, "content_length": len(DATA)}
    named_as = {name.replace("_", "-"): value for name, value in tus.headers(headers).items()}
    request = Call(tus.application, "PATCH", path, named_as)
    await request.send(DATA[:150_000])
    await request.cut()
    assert await tus.offset(path) == 150_000
    assert (await tus.patch(path, 150_000, DATA[150_000:])).status == 204
    assert await stored(path, media) == DATA


async def test_the_newest_request_wins(tus: Tus) -> None:
    path = await tus.post(upload_length=len(DATA))
    headers = {"content_type": MEDIA_TYPE, "upload_offset": 0, "content_length": len(DATA)}
    named_as = {name.replace("_", "-"): value for name, value in tus.headers(headers).items()}
    older = Call(tus.application, "PATCH", path, named_as)
    await older.send(DATA[:150_000])
    while (await tus("GET", path)).json["offset"] < 150_000:
        await asyncio.sleep(0.01)
    assert await tus.offset(path) == 150_000
    await older.send(b"", more=False)
    answer = await older.answer()
    assert code(answer) == (400, "taken_over")
    assert answer.json["tusd"] == "ERR_UPLOAD_INTERRUPTED"
    assert (await tus.patch(path, 150_000, DATA[150_000:])).status == 204


async def test_a_terminated_upload_is_gone(tus: Tus, staging: Path) -> None:
    path = await tus.post(upload_length=10)
    await tus.patch(path, 0, b"12345")
    assert (await tus("DELETE", path)).status == 204
    assert (await tus("HEAD", path)).status == 410
    assert code(await tus.patch(path, 5, b"12345")) == (410, "upload_over")
    assert [each for each in staging.rglob("*") if each.is_file()] == []


async def test_a_completed_upload_can_be_terminated(tus: Tus, media: Path) -> None:
    path = await tus.post(b"12345", upload_length=5, content_type=MEDIA_TYPE)
    assert (await tus("DELETE", path)).status == 204
    assert (await tus("HEAD", path)).status == 410
    assert [each for each in media.rglob("*") if each.is_file()] == []


async def test_what_is_no_upload_is_not_found(tus: Tus, bob: Any) -> None:
    path = await tus.post(upload_length=5)
    for method in ("HEAD", "GET", "DELETE"):
        assert (await tus(method, f"{HERE}{uuid.uuid4()}")).status == 404
        assert (await Tus(bob)(method, path)).status == 404
    assert code(await Tus(bob).patch(path, 0, b"12345")) == (404, "not_found")


async def test_options_tell_what_the_endpoint_can_do(tus: Tus) -> None:
    answer = await call(tus.application, "OPTIONS", HERE)
    assert (answer.status, answer.headers["tus-version"]) == (204, "1.0.0")
    assert "concatenation" in answer.headers["tus-extension"]
    assert "PATCH" in answer.headers["allow"]
    assert int(answer.headers["tus-max-size"]) > 0
    limited = await call(tus.application, "OPTIONS", "/ws/answering/")
    assert limited.headers["tus-max-size"] == "1000000"


async def test_a_post_may_stand_for_a_patch(tus: Tus) -> None:
    path = await tus.post(upload_length=10)
    headers = {"content_type": MEDIA_TYPE, "upload_offset": 0}
    answer = await tus("POST", path, b"12345", x_http_method_override="PATCH", **headers)
    assert (answer.status, answer.headers["upload-offset"]) == (204, "5")


async def test_a_page_gets_a_path_and_may_read_the_headers(tus: Tus) -> None:
    headers = tus.headers({"upload_length": 5, "origin": "http://testserver"})
    answer = await call(tus.application, "POST", HERE, b"", **headers)
    assert answer.headers["location"].startswith(HERE)
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"Location", "Upload-Offset", "Tus-Resumable"} <= set(exposed)


async def test_the_last_answer_has_a_receipt_and_the_apps_own_answer(
    uploads: Any, alice: Any
) -> None:
    tus = Tus(alice, "answering")
    path = await tus.post(path="/ws/answering/", upload_length=5, upload_metadata=named("ä.mov"))
    answer = await tus.patch(path, 0, b"12345")
    assert json.loads(answer.headers["upload-response"]) == {"name": "ä.mov"}
    session = await row(id_of(path))
    assert answer.headers["upload-receipt"].split(":")[0] == receipt_of(session).split(":")[0]


# Concatenation --------------------------------------------------------------------------------------


async def test_parts_become_one_file(tus: Tus, media: Path) -> None:
    parts = [await tus.part(DATA[:90_000]), await tus.part(b""), await tus.part(DATA[90_000:])]
    for part in parts:
        head = await tus("HEAD", part)
        assert head.headers["upload-concat"] == "partial"
        assert head.headers["upload-offset"] == head.headers["upload-length"]
    concat = f"final;{' '.join(parts)}"
    answer = await tus("POST", upload_concat=concat, upload_metadata=named("film.mov"))
    assert answer.status == 201
    assert "upload-receipt" in answer.headers
    path = answer.headers["location"].removeprefix("http://testserver")
    assert await stored(path, media) == DATA
    head = await tus("HEAD", path)
    assert head.headers["upload-offset"] == head.headers["upload-length"] == str(len(DATA))
    assert head.headers["upload-concat"].replace("http://testserver", "") == concat
    assert code(await tus.patch(path, len(DATA), b"")) == (403, "permission_denied")
    # The answer was lost: the same parts, which are gone, are complete, and the same request finds its file.
    assert await tus.offset(parts[0]) == 90_000
    again = await tus("POST", upload_concat=concat, upload_metadata=named("film.mov"))
    assert (again.status, again.headers["location"]) == (201, answer.headers["location"])
    assert len([each for each in media.rglob("*") if each.is_file()]) == 1


async def test_a_part_that_comes_with_its_creation_is_complete(tus: Tus, media: Path) -> None:
    headers = {"upload_concat": "partial", "content_type": MEDIA_TYPE}
    parts = [
        await tus.post(DATA[:9], upload_length=9, **headers),
        await tus.post(DATA[9:50_000], upload_length=49_991, **headers),
    ]
    assert [await tus.offset(part) for part in parts] == [9, 49_991]
    path = await tus.post(upload_concat=f"final;{' '.join(parts)}")
    assert await stored(path, media) == DATA[:50_000]


async def test_parts_that_lack_bytes_are_not_concatenated(tus: Tus) -> None:
    part = await tus.post(upload_length=10, upload_concat="partial")
    await tus.patch(part, 0, b"12345")
    answer = await tus("POST", upload_concat=f"final;{part}")
    assert code(answer) == (400, "parts_refused")
    assert answer.json["tusd"] == "ERR_UPLOAD_NOT_FINISHED"
    assert await UploadSession.objects.acount() == 1


async def test_the_rules_of_the_endpoint_are_those_of_the_whole_file(
    uploads: Any, alice: Any
) -> None:
    tus = Tus(alice, "answering")
    there = "/ws/answering/"
    part = await tus.post(
        b"1" * 600_000,
        there,
        upload_length=600_000,
        upload_concat="partial",
        content_type=MEDIA_TYPE,
    )
    refused = await tus(
        "POST", there, upload_concat=f"final;{part}", upload_metadata=named("a.exe")
    )
    assert code(refused) == (415, "type_refused")
    long = await tus(
        "POST", there, upload_concat=f"final;{part} {part}", upload_metadata=named("a.mov")
    )
    assert code(long) == (413, "file_too_large")
    path = await tus.post(path=there, upload_concat=f"final;{part}", upload_metadata=named("a.mov"))
    assert (await row(id_of(path))).response == {"name": "a.mov"}
