"""The client over HTTP against a scripted server: slices, limits, errors, and when it takes this way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.client import Progress, UploadClient
from django_async_upload.client import draft as draft_module
from django_async_upload.exceptions import (
    AuthenticationRequired,
    ConnectionLost,
    ConnectionRefused,
    FileChanged,
    FileTooLarge,
    TicketExpired,
    UploadError,
    UploadOver,
)
from tests.client.scripted_http import Asked, Drop, Reply, ScriptedHttpServer, problem

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
async def server() -> AsyncIterator[ScriptedHttpServer]:
    async with ScriptedHttpServer().running() as server:
        yield server


def client_of(server: ScriptedHttpServer, tmp_path: Path, **options: Any) -> UploadClient:
    options = {"http": True, "ticket": "mine", "patience": 5.0, **options}
    return UploadClient(server.url, state=tmp_path / "state.json", **options)


def write(path: Path, size: int) -> bytes:
    data = os.urandom(size)
    path.write_bytes(data)
    return data


async def test_a_small_file_takes_one_request(server: ScriptedHttpServer, tmp_path: Path) -> None:
    data = write(tmp_path / "ä.txt", 1000)
    async with client_of(server, tmp_path) as client:
        result = await client.upload(
            tmp_path / "ä.txt", content_type="text/plain", metadata={"n": 1}, taker="api"
        )
    (asked,) = server.asked
    assert asked.headers["content-type"] == "text/plain"
    assert asked.has_ticket == "mine"
    assert server.upload.metadata == {"n": 1, "taker": "api"}
    assert server.upload.content == data
    assert (result.name, result.stored_as) == ("%C3%A4.txt", "stored/%C3%A4.txt")
    assert (result.receipt, result.resumed, result.bytes_sent) == ("signed", False, 1000)
    assert result.id == server.upload.id


async def test_a_large_file_is_sent_in_slices(
    server: ScriptedHttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_module, "SLICE", 3 * MIB)
    data = write(tmp_path / "film.mov", 10 * MIB + 5)
    seen: list[Progress] = []
    async with client_of(server, tmp_path) as client:
        result = await client.upload(tmp_path / "film.mov", on_progress=seen.append)
    assert server.upload.content == data
    lengths = [each.length for each in server.requests("PATCH")]
    assert lengths == [3 * MIB, 3 * MIB, 3 * MIB, MIB + 5, 0]
    assert result.bytes_sent == len(data)
    assert server.connections == 1
    assert sorted(each.sent for each in seen) == [each.sent for each in seen]
    assert {each.phase for each in seen} == {"uploading", "verifying", "completed"}
    assert seen[-1] == Progress("completed", *[len(data)] * 4)


async def test_the_servers_limit_is_kept(server: ScriptedHttpServer, tmp_path: Path) -> None:
    server.limits = "max-append-size=1000000, min-size=0"
    write(tmp_path / "film.mov", 2_500_000)
    async with client_of(server, tmp_path) as client:
        await client.upload(tmp_path / "film.mov")
    assert [each.length for each in server.requests("PATCH")] == [1_000_000, 1_000_000, 500_000, 0]


@pytest.mark.parametrize("limits", ["", "max-append-size=0", "max-append-size=?1", "]"])
async def test_a_limit_that_is_none_is_ignored(
    server: ScriptedHttpServer, tmp_path: Path, limits: str
) -> None:
    server.limits = limits
    write(tmp_path / "film.mov", 2_500_000)
    async with client_of(server, tmp_path) as client:
        await client.upload(tmp_path / "film.mov")
    assert [each.length for each in server.requests("PATCH")] == [2_500_000, 0]


async def test_a_proxys_limit_is_found(server: ScriptedHttpServer, tmp_path: Path) -> None:
    def at_most(asked: Asked) -> Reply | None:
        return Reply(413, content=b"<html>", early=True) if asked.length > MIB else None

    server.before = at_most
    data = write(tmp_path / "film.mov", 5 * MIB)
    async with client_of(server, tmp_path) as client:
        result = await client.upload(tmp_path / "film.mov")
        assert server.upload.content == data
        # It was not sent as a whole only to be refused.
        assert result.bytes_sent < 14 * MIB
        refused = len([each for each in server.requests("PATCH") if each.length > MIB])
        assert refused <= 3
        server.uploads.clear()
        await client.upload(tmp_path / "film.mov")
    assert len([each for each in server.requests("PATCH") if each.length > MIB]) == refused


@pytest.mark.parametrize("size", [1000, MIB])
async def test_a_limit_below_all_use_is_an_error(
    server: ScriptedHttpServer, tmp_path: Path, size: int
) -> None:
    server.before = lambda asked: Reply(413) if asked.length else None
    write(tmp_path / "film.mov", size)
    async with client_of(server, tmp_path) as client:
        with pytest.raises(ConnectionRefused) as caught:
            await client.upload(tmp_path / "film.mov")
    assert caught.value.facts["status"] == 413


async def test_a_file_that_is_too_large_is_not_a_body_that_is(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    server.before = lambda asked: problem(413, "file_too_large", size=MIB, max_size=5)
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path) as client:
        with pytest.raises(FileTooLarge) as caught:
            await client.upload(tmp_path / "film.mov")
    assert caught.value.facts == {"size": MIB, "max_size": 5}
    assert len(server.asked) == 1


async def test_a_request_that_is_cut_off_is_continued(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    data = write(tmp_path / "film.mov", 5 * MIB)
    server.drop_at = 2 * MIB
    async with client_of(server, tmp_path) as client:
        result = await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data
    assert result.resumed
    assert [each.method for each in server.asked] == ["POST", "PATCH", "HEAD", "PATCH", "PATCH"]
    assert len(server.requests("POST")) == 1


async def test_after_a_loss_of_everything_slices_become_shorter(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    def drop(asked: Asked) -> Reply | None:
        if asked.length > 8 * MIB:
            raise Drop
        return None

    server.before = drop
    data = write(tmp_path / "film.mov", 10 * MIB)
    async with client_of(server, tmp_path) as client:
        await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data
    assert [each.length for each in server.requests("PATCH")][-1] == 0
    assert max(each.length for each in server.requests("PATCH")[-3:]) <= 8 * MIB


async def test_a_lost_last_answer_is_asked_for_again(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    lost: list[Asked] = []

    def lose(asked: Asked) -> Reply | None:
        if asked.headers.get("upload-complete") == "?1" and not lost:
            lost.append(asked)
            server.upload.is_complete = True
            raise Drop
        return None

    server.before = lose
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path) as client:
        result = await client.upload(tmp_path / "film.mov")
    assert result.stored_as == "stored/film.mov"
    assert [each.method for each in server.asked] == ["POST", "PATCH", "PATCH", "HEAD", "GET"]


@pytest.mark.parametrize("size", [1000, MIB])
async def test_a_later_program_finds_the_upload_by_its_key(
    server: ScriptedHttpServer, tmp_path: Path, size: int
) -> None:
    data = write(tmp_path / "film.mov", size)
    server.before = lambda asked: problem(503, "busy", retryable=True)
    async with client_of(server, tmp_path, patience=0.1) as client:
        with pytest.raises(UploadError):
            await client.upload(tmp_path / "film.mov")
    server.before = lambda asked: None
    key = server.asked[0].headers["idempotency-key"]
    async with client_of(server, tmp_path) as client:
        await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data
    assert {each.headers["idempotency-key"] for each in server.requests("POST")} == {key}


async def test_an_upload_that_has_more_than_the_file_stays(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    write(tmp_path / "film.mov", MIB)

    def grow(asked: Asked) -> Reply | None:
        if asked.method == "PATCH":
            server.upload.content.extend(bytes(2 * MIB))
            raise Drop
        return None

    server.before = grow
    async with client_of(server, tmp_path) as client:
        with pytest.raises(FileChanged):
            await client.upload(tmp_path / "film.mov")
    assert server.uploads
    assert not server.requests("DELETE")


async def test_another_file_is_found_out_at_the_end(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    write(tmp_path / "film.mov", MIB)

    def damage(asked: Asked) -> Reply | None:
        if asked.headers.get("upload-complete") == "?1":
            server.upload.content[5] ^= 1
        return None

    server.before = damage
    async with client_of(server, tmp_path) as client:
        with pytest.raises(UploadError) as caught:
            await client.upload(tmp_path / "film.mov")
    assert caught.value.code == "digest_mismatch"


async def test_a_busy_server_is_waited_for(server: ScriptedHttpServer, tmp_path: Path) -> None:
    replies = [
        Reply(503, {"Retry-After": "0"}),
        Reply(502),
        problem(503, "busy", retryable=True, retry_after=0.1),
    ]
    server.before = lambda asked: replies.pop() if replies else None
    data = write(tmp_path / "film.mov", 1000)
    async with client_of(server, tmp_path) as client:
        await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data
    assert len(server.requests("POST")) == 4


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(404, content=b"<html>"), ConnectionRefused),
        (Reply(302, {"Location": "/login/"}), ConnectionRefused),
        (Reply(401), AuthenticationRequired),
        (Reply(201, {"Upload-Offset": "0"}), ConnectionRefused),
        (Reply(201, {"Location": "/x"}), ConnectionRefused),
        (problem(403, "permission_denied"), UploadError),
    ],
)
async def test_an_answer_that_no_retry_can_help_ends_the_upload(
    server: ScriptedHttpServer, tmp_path: Path, reply: Reply, error: type[UploadError]
) -> None:
    server.before = lambda asked: reply
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path) as client:
        with pytest.raises(error):
            await client.upload(tmp_path / "film.mov")
    assert len(server.asked) == 1


async def test_an_expired_ticket_is_renewed(server: ScriptedHttpServer, tmp_path: Path) -> None:
    tickets = iter(["old", "new"])

    def check(asked: Asked) -> Reply | None:
        if asked.has_ticket == "old" and asked.method == "PATCH":
            return problem(401, "ticket_expired", retryable=True)
        return None

    server.before = check
    data = write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, ticket=lambda: next(tickets)) as client:
        await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data
    assert server.asked[-1].has_ticket == "new"


async def test_a_ticket_that_is_refused_again_ends_the_upload(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    server.before = lambda asked: problem(401, "ticket_expired", retryable=True)
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, ticket=lambda: "same") as client:
        with pytest.raises(TicketExpired):
            await client.upload(tmp_path / "film.mov")
    assert len(server.asked) == 1


async def test_a_cookie_comes_with_the_origin(server: ScriptedHttpServer, tmp_path: Path) -> None:
    write(tmp_path / "film.mov", 5)
    async with client_of(server, tmp_path, ticket=None, cookie="sessionid=1") as client:
        await client.upload(tmp_path / "film.mov")
    (asked,) = server.asked
    assert asked.headers["cookie"] == "sessionid=1"
    assert asked.headers["origin"] == f"http://127.0.0.1:{server.port}"
    assert "authorization" not in asked.headers


async def test_a_server_that_does_not_answer_is_given_up(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    def hang(asked: Asked) -> Reply | None:
        asked.headers["content-length"] = "10000000"  # the server waits for more
        return None

    server.before = hang
    write(tmp_path / "film.mov", 5)
    async with client_of(server, tmp_path, patience=0.5) as client:
        with pytest.raises(ConnectionLost, match="did not answer"):
            await client.upload(tmp_path / "film.mov")


async def test_an_upload_is_paused_and_resumed(server: ScriptedHttpServer, tmp_path: Path) -> None:
    data = write(tmp_path / "film.mov", 5 * MIB)
    gate = asyncio.Event()
    async with client_of(server, tmp_path) as client:
        upload = client.start(tmp_path / "film.mov")

        def pause(asked: Asked) -> Reply | None:
            if asked.method == "PATCH" and not gate.is_set():
                gate.set()
                upload.pause()
            return None

        server.before = pause
        await gate.wait()
        await asyncio.sleep(0.3)
        asked = len(server.asked)
        await asyncio.sleep(0.3)
        assert len(server.asked) == asked
        assert not upload.task.done()
        upload.resume()
        await upload
    assert server.upload.content == data


async def test_an_upload_is_cancelled_in_the_middle(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    write(tmp_path / "film.mov", 5 * MIB)
    started = asyncio.Event()

    def start(asked: Asked) -> Reply | None:
        if asked.method == "PATCH":
            started.set()
            asked.headers["content-length"] = "100000000"  # waits for ever
        return None

    server.before = start
    async with client_of(server, tmp_path) as client:
        upload = client.start(tmp_path / "film.mov")
        await started.wait()
        assert await upload.cancel()
        with pytest.raises(UploadOver):
            await upload
    assert not server.uploads


@pytest.mark.parametrize("state", [True, False])
async def test_a_program_that_stops_leaves_what_can_be_resumed(
    server: ScriptedHttpServer, tmp_path: Path, state: bool
) -> None:
    write(tmp_path / "film.mov", 5 * MIB)
    started = asyncio.Event()

    def start(asked: Asked) -> Reply | None:
        if asked.method == "PATCH":
            started.set()
            asked.headers["content-length"] = "100000000"
        return None

    server.before = start
    client = UploadClient(
        server.url, ticket="mine", http=True, state=tmp_path / "state.json" if state else False
    )
    async with client:
        client.start(tmp_path / "film.mov")
        await started.wait()
    assert bool(server.uploads) is state


async def test_an_upload_is_looked_at_and_cancelled_by_its_id(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    write(tmp_path / "film.mov", 5)
    async with client_of(server, tmp_path) as client:
        result = await client.upload(tmp_path / "film.mov")
        status = await client.status(result.id)
        assert (status.state, status.durable, status.stored_as) == (
            "completed",
            5,
            "stored/film.mov",
        )
        with pytest.raises(UploadOver):
            await client.cancel(result.id)
        assert server.uploads
        await client.cancel(result.id, finished=True)
        assert not server.uploads
        with pytest.raises(UploadError) as caught:
            await client.status(result.id)
    assert caught.value.code == "not_found"


async def test_uploads_cannot_be_watched(server: ScriptedHttpServer, tmp_path: Path) -> None:
    async with client_of(server, tmp_path) as client:
        with pytest.raises(ConnectionRefused, match="WebSocket"):
            async for _ in client.watch():
                pass


# When it takes this way ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 403, 404, 426, 501, 502])
async def test_where_a_websocket_is_refused_uploads_go_over_http(
    server: ScriptedHttpServer, tmp_path: Path, status: int
) -> None:
    server.before = lambda asked: Reply(status) if "upgrade" in asked.headers else None
    data = write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, http=None) as client:
        await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data
    assert len([each for each in server.asked if "upgrade" in each.headers]) == 1


async def test_where_a_websocket_is_cut_off_uploads_go_over_http(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    def cut(asked: Asked) -> Reply | None:
        if "upgrade" in asked.headers:
            raise Drop
        return None

    server.before = cut
    data = write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, http=None) as client:
        await client.upload(tmp_path / "film.mov")
    assert server.upload.content == data


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_server_is_no_reason(
    server: ScriptedHttpServer, tmp_path: Path, status: int
) -> None:
    server.before = lambda asked: Reply(status)
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, http=None, patience=0.5) as client:
        with pytest.raises(ConnectionLost):
            await client.upload(tmp_path / "film.mov")
    assert all("upgrade" in each.headers for each in server.asked)


async def test_a_site_without_uploads_is_no_reason(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    server.before = lambda asked: Reply(404 if "upgrade" in asked.headers else 200)
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, http=None) as client:
        with pytest.raises(ConnectionRefused):
            await client.upload(tmp_path / "film.mov")
    assert [each.method for each in server.asked] == ["GET", "OPTIONS"]


async def test_the_way_can_be_forbidden(server: ScriptedHttpServer, tmp_path: Path) -> None:
    write(tmp_path / "film.mov", MIB)
    async with client_of(server, tmp_path, http=False) as client:
        with pytest.raises(ConnectionRefused):
            await client.upload(tmp_path / "film.mov")
    assert [each.method for each in server.asked] == ["GET"]


async def test_an_http_address_is_taken_as_it_is(
    server: ScriptedHttpServer, tmp_path: Path
) -> None:
    data = write(tmp_path / "film.mov", 5)
    url = server.url.replace("ws://", "http://")
    async with UploadClient(url, ticket="mine", state=tmp_path / "state.json") as client:
        await client.upload(tmp_path / "film.mov")
        # The state file knows it as the WebSocket does.
        assert client.url == server.url
    assert server.upload.content == data


@pytest.mark.parametrize("url", ["ftp://host/ws/uploads/", "ws:///ws/uploads/", "nonsense"])
async def test_an_address_that_is_none_is_an_error(tmp_path: Path, url: str) -> None:
    write(tmp_path / "film.mov", 5)
    async with UploadClient(url, ticket="mine", state=False, http=True) as client:
        with pytest.raises(ValueError):
            await client.upload(tmp_path / "film.mov")
