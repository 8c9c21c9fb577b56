"""What was uploaded does no harm when it is served: no declared type, no sniffing, no script, no surprise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.files.base import ContentFile
from django.core.files.storage import InMemoryStorage
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponseBase
from django.middleware.gzip import GZipMiddleware
from django.test import RequestFactory
from django.urls import path

from django_async_upload import responses
from django_async_upload.exceptions import AlreadyBound, NotCompleted
from django_async_upload.models import UploadSession
from django_async_upload.responses import PIECE, picture_type, safe_headers, upload_response
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State

from .fixtures import publish, run
from .models import Document

pytest_plugins = ["tests.fixtures"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("media")]

PNG = b"\x89PNG\r\n\x1a\n" + b"not much of a picture"
HTML = b"<script>alert(document.domain)</script>"
PICTURES = {
    PNG: "image/png",
    b"\xff\xd8\xff\xe0\0\x10JFIF": "image/jpeg",
    b"GIF89a\1\0\1\0": "image/gif",
    b"GIF87a\1\0\1\0": "image/gif",
    b"RIFF\x24\0\0\0WEBPVP8 ": "image/webp",
    b"\0\0\0\x1cftypavif\0\0\0\0": "image/avif",
    b"\0\0\0\x1cftypavis\0\0\0\0": "image/avif",
}
OTHERS = [
    HTML,
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    b"<?xml version='1.0'?><svg/>",
    b"%PDF-1.7",
    b"RIFF\x24\0\0\0WAVEfmt ",
    b"\0\0\0\x1cftypmp42\0\0\0\0",
    b"GIF8",
    b" " + PNG,
    b"",
]


def body(response: Any) -> bytes:
    return b"".join(response)


def asking(**headers: str) -> HttpRequest:
    return RequestFactory().get("/", headers={k.replace("_", "-"): v for k, v in headers.items()})


# Headers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [HTML, PNG])
def test_an_upload_is_a_download_of_no_type_whatever_its_sender_declared(
    owner: Owner, content: bytes
) -> None:
    session = publish(owner, content, "a.html", content_type="text/html")
    response = upload_response(session)
    assert body(response) == content
    assert response["Content-Type"] == "application/octet-stream"
    assert response["Content-Disposition"] == 'attachment; filename="a.html"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert response["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response["Cache-Control"] == "private"
    assert response["Content-Length"] == str(len(content))


@pytest.mark.parametrize(("start", "expected"), PICTURES.items())
def test_a_picture_may_be_shown_by_the_type_that_its_bytes_have(
    owner: Owner, start: bytes, expected: str
) -> None:
    session = publish(owner, start + b"...", "a.html", content_type="text/html")
    response = upload_response(session, inline=True)
    assert body(response) == start + b"..."
    assert response["Content-Type"] == expected
    assert response["Content-Disposition"] == 'inline; filename="a.html"'
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response["Content-Security-Policy"]


@pytest.mark.parametrize("content", OTHERS)
def test_what_is_no_picture_is_never_shown(owner: Owner, content: bytes) -> None:
    session = publish(owner, content, "a.png", content_type="image/png")
    response = upload_response(session, inline=True)
    assert body(response) == content
    assert response["Content-Type"] == "application/octet-stream"
    assert response["Content-Disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b.txt", 'attachment; filename="a b.txt"'),
        ('a"b.txt', r'attachment; filename="a\"b.txt"'),
        ("Übersicht 概要.pdf", "attachment; filename*=utf-8''%C3%9Cbersicht%20%E6"),
        ("a\r\nSet-Cookie: b=c", 'attachment; filename="download"'),
        ("gpj.\u202eexe", 'attachment; filename="download"'),
        ("../a.txt", 'attachment; filename="download"'),
        ("a\udc80", 'attachment; filename="download"'),
        ("", 'attachment; filename="download"'),
    ],
)
def test_the_name_can_neither_break_the_header_nor_deceive(name: str, expected: str) -> None:
    assert safe_headers(name)["Content-Disposition"].startswith(expected)


def test_no_more_bytes_than_said_are_needed_to_know_a_picture() -> None:
    assert all(picture_type(start[: responses.START]) for start in PICTURES)


# What can be sent ---------------------------------------------------------------------------------


def test_a_file_of_the_hosts_is_sent_under_its_own_name_or_another(owner: Owner) -> None:
    document = Document.objects.create(attachment=ContentFile(PNG, "a.png"))
    response = upload_response(document.attachment, inline=True)
    assert response["Content-Type"] == "image/png"
    assert response["Content-Disposition"] == 'inline; filename="a.png"'
    assert body(response) == PNG
    again = upload_response(document.attachment, name="b.png")
    assert again["Content-Disposition"] == 'attachment; filename="b.png"'
    assert body(again) == PNG


def test_a_file_in_any_storage_is_sent() -> None:
    storage = InMemoryStorage()
    name = storage.save("a.bin", ContentFile(b"hello"))
    assert body(upload_response(storage.open(name))) == b"hello"


def test_an_upload_that_is_not_completed_or_is_the_hosts_is_not_sent(owner: Owner) -> None:
    session = publish(owner)
    UploadSession.objects.filter(pk=session.pk).update(state=State.BOUND)
    session.refresh_from_db()
    with pytest.raises(AlreadyBound):
        upload_response(session)
    session.state = State.FAILED
    with pytest.raises(NotCompleted):
        upload_response(session)


def test_the_file_is_closed_with_the_response(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    storage = publish(owner).get_storage()
    original = type(storage).open

    def open_and_note(self: Any, *args: Any) -> Any:
        opened.append(original(self, *args))
        return opened[-1]

    monkeypatch.setattr(type(storage), "open", open_and_note)
    response = upload_response(UploadSession.objects.get())
    assert not opened[0].closed
    response.close()
    assert opened[0].closed


# Ranges -------------------------------------------------------------------------------------------

HELLO = b"0123456789"


@pytest.mark.parametrize(
    ("asked", "status", "content", "shown"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, HELLO, "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=5-4", 200, HELLO, None),
        ("bytes=0-1,4-5", 200, HELLO, None),
        ("bytes=-", 200, HELLO, None),
        ("bytes=a-b", 200, HELLO, None),
        ("lines=0-1", 200, HELLO, None),
        ("bytes=" + "9" * 5000 + "-", 200, HELLO, None),
    ],
)
def test_a_range_is_answered(
    owner: Owner, asked: str, status: int, content: bytes, shown: str | None
) -> None:
    response = upload_response(publish(owner, HELLO), request=asking(range=asked))
    assert response.status_code == status
    assert response.get("Content-Range") == shown
    assert response["Content-Length"] == str(len(content))
    assert body(response) == content


def test_an_interrupted_download_goes_on_only_in_the_same_file(owner: Owner) -> None:
    session = publish(owner, HELLO)
    etag = upload_response(session)["ETag"]
    same = upload_response(session, request=asking(range="bytes=5-", if_range=etag))
    assert (same.status_code, body(same)) == (206, b"56789")
    other = upload_response(session, request=asking(range="bytes=5-", if_range='"another"'))
    assert (other.status_code, body(other)) == (200, HELLO)
    assert upload_response(publish(owner, HELLO))["ETag"] != etag


def test_a_file_without_a_tag_never_goes_on_conditionally() -> None:
    file = ContentFile(HELLO, "a.bin")
    known = upload_response(file, request=asking(range="bytes=5-", if_range='"etag"'))
    assert (known.status_code, body(known)) == (200, HELLO)
    plain = upload_response(ContentFile(HELLO, "a.bin"), request=asking(range="bytes=5-"))
    assert (plain.status_code, body(plain)) == (206, b"56789")


def test_an_empty_file_has_no_range(owner: Owner) -> None:
    response = upload_response(publish(owner, b""), request=asking(range="bytes=0-"))
    assert (response.status_code, response["Content-Range"]) == (416, "bytes */0")


# Under ASGI ---------------------------------------------------------------------------------------


async def a_view(request: HttpRequest) -> HttpResponseBase:
    session = await UploadSession.objects.aget()
    return await sync_to_async(upload_response)(session, request=request)


urlpatterns = [path("file", a_view)]


async def test_under_asgi_no_more_than_a_piece_is_in_memory(
    owner: Owner, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ROOT_URLCONF = __name__
    content = os.urandom(3 * PIECE + 1)
    await run(publish, owner, content)
    monkeypatch.setattr(StreamingWatch, "read", 0)
    monkeypatch.setattr(responses, "_pieces", StreamingWatch.pieces(responses._pieces))
    requests: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[dict[str, Any]] = []
    ahead = []

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await asyncio.sleep(60)  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        ahead.append(StreamingWatch.read - sum(len(each.get("body", b"")) for each in sent))

    scope = {"type": "http", "method": "GET", "path": "/file", "headers": [], "query_string": b""}
    await ASGIHandler()(scope, receive, send)
    assert b"".join(each.get("body", b"") for each in sent) == content
    assert max(ahead) <= PIECE, "no more than one piece is in memory"


class StreamingWatch:
    """Counts what was read of a file."""

    read = 0

    @classmethod
    def pieces(cls, original: Any) -> Any:
        def pieces(*args: Any) -> Any:
            for piece in original(*args):
                cls.read += len(piece)
                yield piece

        return pieces


async def test_a_middleware_may_wrap_what_is_sent(owner: Owner) -> None:
    await run(publish, owner, b"a" * 10_000)
    request = asking(accept_encoding="gzip")
    response = await a_view(request)
    zipped = GZipMiddleware(lambda request: response)(request)
    assert zipped["Content-Encoding"] == "gzip"
    assert 0 < len(b"".join([piece async for piece in zipped])) < 1000

    async def one_piece() -> AsyncIterator[bytes]:
        yield b"A"

    again = await a_view(asking())
    again.streaming_content = one_piece()
    assert [piece async for piece in again] == [b"A"]
