"""The IETF's resumable uploads at the door: requests one after the other, and the same upload at the WebSocket."""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from crc32c import crc32c

from django_async_upload.engine.service import UploadService
from django_async_upload.models import UploadSession
from django_async_upload.routing import upload_application
from django_async_upload.tickets import issue_ticket
from tests.http_door.calls import Answer, Call, call
from tests.http_door.test_exchange import rest_of_the_site

pytest_plugins = ["tests.fixtures"]

CONTENT = bytes(range(256)) * 400
"""102,400 bytes."""
VERSIONS = (3, 5, 6, 8, 10)


class Client:
    """A client of one interop version, that has signed in."""

    def __init__(self, ticket: str, version: int) -> None:
        self._site = upload_application(rest_of_the_site)
        self._version = version
        self.headers = {
            "authorization": f"Bearer {ticket}",
            "upload-draft-interop-version": str(version),
        }

    def state(self, complete: bool, **headers: object) -> dict[str, str]:
        if self._version == 3:
            named = {"upload-incomplete": "?0" if complete else "?1"}
        else:
            named = {"upload-complete": "?1" if complete else "?0"}
        return named | {name.replace("_", "-"): str(value) for name, value in headers.items()}

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        if method == "PATCH" and self._version >= 6:
            headers = {"content-type": "application/partial-upload"} | (headers or {})
        return await call(self._site, method, path, body, **self.headers, **(headers or {}))

    async def create(
        self, body: bytes = b"", *, complete: bool = False, **headers: object
    ) -> Answer:
        return await self.ask("POST", "/ws/uploads/film.mov", body, self.state(complete, **headers))

    async def append(
        self, path: str, offset: int, body: bytes, *, complete: bool = False, **headers: object
    ) -> Answer:
        sent = self.state(complete, upload_offset=offset, **headers)
        return await self.ask("PATCH", path, body, sent)

    def interrupted(self, path: str, offset: int) -> Call:
        headers = self.headers | self.state(False, upload_offset=offset)
        headers["content-type"] = "application/partial-upload"
        return Call(self._site, "PATCH", path, headers)


@pytest.fixture
def client(alice: Any) -> Client:
    return Client(issue_ticket(alice), 10)


async def stored(upload: str) -> bytes:
    session = await UploadSession.objects.aget(pk=upload)

    def read() -> bytes:
        with session.get_storage().open(session.stored_as) as file:
            return file.read()  # type: ignore[no-any-return]

    return await sync_to_async(read)()


def crc_field(content: bytes) -> str:
    return f"crc32c=:{base64.b64encode(crc32c(content).to_bytes(4, 'big')).decode()}:"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_file_is_sent_in_parts(uploads: UploadService, alice: Any, version: int) -> None:
    client = Client(issue_ticket(alice), version)
    created = await client.create(CONTENT[:1000], upload_length=len(CONTENT))
    assert created.status == 201
    path = created.headers["location"]
    assert created.headers["upload-offset"] == "1000"
    part = await client.append(path, 1000, CONTENT[1000:70_000])
    assert part.status == (201 if version <= 6 else 204)
    assert part.headers["upload-offset"] == "70000"
    asked = await client.ask("HEAD", path)
    assert (asked.status, asked.headers["upload-offset"]) == (204, "70000")
    assert asked.headers["upload-length"] == str(len(CONTENT))
    end = await client.append(path, 70_000, CONTENT[70_000:], complete=True)
    assert end.status == 201
    state = "upload-incomplete" if version == 3 else "upload-complete"
    assert end.headers[state] == ("?0" if version == 3 else "?1")
    assert end.json["state"] == "completed"
    assert end.json["crc32c"] == f"{crc32c(CONTENT):08x}"
    assert await stored(end.json["upload"]) == CONTENT


@pytest.mark.parametrize("size", [0, 5, 102_400])
async def test_a_whole_file_is_sent_by_one_request(
    uploads: UploadService, client: Client, size: int
) -> None:
    answer = await client.create(
        CONTENT[:size], complete=True, repr_digest=crc_field(CONTENT[:size])
    )
    assert answer.status == 201
    assert answer.headers["upload-complete"] == "?1"
    assert await stored(answer.json["upload"]) == CONTENT[:size]


async def test_the_same_key_finds_the_same_upload(uploads: UploadService, client: Client) -> None:
    key = secrets.token_hex(16)
    first = await client.create(upload_length=len(CONTENT), idempotency_key=f'"{key}"')
    await client.append(first.headers["location"], 0, CONTENT[:50_000])
    again = await client.create(upload_length=len(CONTENT), idempotency_key=f'"{key}"')
    assert again.status == 201
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["upload-offset"] == "50000"
    other = await client.create(upload_length=7, idempotency_key=f'"{key}"')
    assert (other.status, other.json["code"]) == (409, "key_reused")
    await client.append(first.headers["location"], 50_000, CONTENT[50_000:], complete=True)
    ended = await client.create(upload_length=len(CONTENT), idempotency_key=f'"{key}"')
    assert (ended.status, ended.headers["upload-complete"]) == (201, "?1")
    assert ended.json["state"] == "completed"


async def test_a_request_that_is_cut_off_keeps_what_came(
    uploads: UploadService, client: Client
) -> None:
    path = (await client.create(upload_length=len(CONTENT))).headers["location"]
    request = client.interrupted(path, 0)
    await request.send(CONTENT[:30_000])
    await request.cut()
    asked = await client.ask("HEAD", path)
    assert asked.headers["upload-offset"] == "30000"
    end = await client.append(path, 30_000, CONTENT[30_000:], complete=True)
    assert end.status == 201
    assert await stored(end.json["upload"]) == CONTENT


async def test_the_last_answer_is_given_again(uploads: UploadService, client: Client) -> None:
    path = (await client.create(CONTENT[:10], upload_length=20)).headers["location"]
    end = await client.append(path, 10, CONTENT[10:20], complete=True)
    asked = await client.ask("HEAD", path)
    assert (asked.headers["upload-complete"], asked.headers["upload-offset"]) == ("?1", "20")
    again = await client.append(path, 20, b"", complete=True)
    assert (again.status, again.json["stored_as"]) == (201, end.json["stored_as"])
    wrong = await client.append(path, 10, CONTENT[10:20], complete=True)
    assert (wrong.status, wrong.json["code"]) == (410, "upload_over")
    assert wrong.headers["upload-complete"] == "?0"


async def test_a_wrong_offset_and_a_wrong_length_are_refused(
    uploads: UploadService, client: Client
) -> None:
    path = (await client.create(CONTENT[:10], upload_length=20)).headers["location"]
    conflict = await client.append(path, 5, CONTENT[5:20], complete=True)
    assert conflict.status == 409
    assert conflict.headers["upload-offset"] == "10"
    assert (conflict.json["expected-offset"], conflict.json["provided-offset"]) == (10, 5)
    for headers, body in (({"upload_length": 21}, b"x"), ({}, CONTENT[10:19])):
        wrong = await client.append(path, 10, body, complete=not headers, **headers)
        assert wrong.status == 400
        assert wrong.json["type"].endswith("#inconsistent-upload-length")
    end = await client.append(path, 10, CONTENT[10:20], complete=True)
    assert end.status == 201


async def test_a_body_with_another_digest_is_not_written(
    uploads: UploadService, client: Client
) -> None:
    path = (await client.create(upload_length=20)).headers["location"]
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    wrong = await client.append(path, 0, CONTENT[:10], content_digest=f"sha-256=:{digest}:")
    assert wrong.json["code"] == "content_mismatch"
    assert wrong.headers["upload-offset"] == "0"
    assert (await client.append(path, 0, CONTENT[:10])).headers["upload-offset"] == "10"


async def test_a_file_with_another_digest_is_not_published(
    uploads: UploadService, client: Client
) -> None:
    path = (await client.create(CONTENT[:10], upload_length=20)).headers["location"]
    wrong = await client.append(
        path, 10, CONTENT[10:20], complete=True, repr_digest=crc_field(b"other")
    )
    assert (wrong.status, wrong.json["code"]) == (422, "digest_mismatch")
    # The file was received as a whole: to resume cannot help.
    assert wrong.headers["upload-complete"] == "?1"
    assert (await client.ask("HEAD", path)).status == 422


@pytest.mark.parametrize("right", [True, False])
async def test_digests_of_a_creation_are_compared_at_the_end(
    uploads: UploadService, client: Client, right: bool
) -> None:
    sha = base64.b64encode(hashlib.sha256(CONTENT if right else b"other").digest()).decode()
    digests = f"{crc_field(CONTENT)}, sha-256=:{sha}:"
    created = await client.create(repr_digest=digests, upload_length=len(CONTENT))
    path = created.headers["location"]
    await client.append(path, 0, CONTENT[:1000])
    end = await client.append(path, 1000, CONTENT[1000:], complete=True)
    if right:
        assert end.status == 201
        assert end.json["digests"] == {"sha-256": hashlib.sha256(CONTENT).hexdigest()}
    else:
        assert (end.status, end.json["code"], end.json["algorithm"]) == (
            422,
            "digest_mismatch",
            "sha-256",
        )


async def test_the_crc_of_a_creation_is_compared_at_the_end(
    uploads: UploadService, client: Client
) -> None:
    created = await client.create(repr_digest=crc_field(b"other"), upload_length=10)
    end = await client.append(created.headers["location"], 0, CONTENT[:10], complete=True)
    assert (end.status, end.json["algorithm"]) == (422, "crc32c")


async def test_a_promised_sha_256_is_compared(uploads: UploadService, client: Client) -> None:
    sha = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    created = await client.create(want_repr_digest="sha-256=10", upload_length=len(CONTENT))
    end = await client.append(
        created.headers["location"],
        0,
        CONTENT,
        complete=True,
        repr_digest=f"sha-256=:{sha}:",
        want_repr_digest="sha-256=10",
    )
    assert end.status == 201
    assert f"sha-256=:{sha}:" in end.headers["repr-digest"]


async def test_an_upload_is_cancelled(uploads: UploadService, client: Client) -> None:
    path = (await client.create(CONTENT[:10], upload_length=20)).headers["location"]
    assert (await client.ask("DELETE", path)).status == 204
    assert (await client.ask("HEAD", path)).status == 410


async def test_nobody_else_learns_of_an_upload(
    uploads: UploadService, client: Client, bob: Any
) -> None:
    path = (await client.create(CONTENT[:10], upload_length=20)).headers["location"]
    other = Client(issue_ticket(bob), 10)
    for answer in (
        await other.ask("HEAD", path),
        await other.append(path, 10, CONTENT[10:20], complete=True),
        await other.ask("DELETE", path),
    ):
        assert answer.status == 404
        assert "upload-offset" not in answer.headers


async def test_options_tell_the_limits_to_anybody(uploads: UploadService, settings: Any) -> None:
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "MAX_SIZE": 5_000_000}
    answer = await call(upload_application(rest_of_the_site), "OPTIONS")
    assert answer.status == 204
    assert "max-size=5000000" in answer.headers["upload-limit"]
    assert "PATCH" in answer.headers["allow"]
