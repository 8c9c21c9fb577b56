"""File names, content types and metadata that an attacker would try."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from django_async_upload.protocol import frames, messages
from django_async_upload.protocol.frames import FrameType

from .hosts import Host, migrated
from .postgres import Postgres
from .raw import Closed, RawConnection, SteadyUpload, finish

pytestmark = pytest.mark.one_server

VECTORS = Path(__file__).parents[1] / "vectors" / "evil_names.json"
NAMES: dict[str, list[str]] = json.loads(VECTORS.read_text("utf-8"))
DATA = b"what was sent"

FORBIDDEN = set('/\\:*?"<>|') | {chr(code) for code in (*range(32), 0x7F, 0x2028, 0x2029)}


def create_frame(stream: int, fields: dict[str, object]) -> bytes:
    """As from a client that escapes every character: lone surrogates can be sent, too."""
    payload = json.dumps({"key": uuid.uuid4().hex, "size": len(DATA), **fields}).encode()
    return frames.build_header(FrameType.CREATE, stream, payload, crc32c) + payload


def send_whole(
    connection: RawConnection, fields: dict[str, object]
) -> messages.Completed | messages.Error:
    stream = connection.next_stream()
    connection.send_message(create_frame(stream, fields))
    connection.send_data(stream, 0, DATA)
    connection.send(finish(DATA), stream)
    while True:
        found, message = connection.receive()
        if found in (0, stream) and isinstance(message, messages.Completed | messages.Error):
            return message


def test_an_evil_name_is_refused_or_stored_under_a_safe_one(host: Host) -> None:
    send_evil_names(host)


def test_an_evil_name_is_nothing_special_to_postgresql(hosts: Callable[..., Host]) -> None:
    with Postgres() as postgres:
        host = hosts(extra=migrated(postgres.setting))
        send_evil_names(host)
        with host.connect() as connection:
            for fields in (
                {"content_type": "\0"},
                {"metadata": {"a": "\0"}},
                {"metadata": {"\udfff": 1}},
                {"metadata": {"a": 10**30}},
            ):
                answer = send_whole(connection, {"name": "a.txt", **fields})
                if isinstance(answer, messages.Error):
                    assert answer.code in ("type_refused", "metadata_invalid", "malformed_frame")
        host.server.kill()


def send_evil_names(host: Host) -> None:
    media = (host.root / "staging-uploads").resolve()
    with SteadyUpload(host.port, host.ticket()), host.connect() as connection:
        for name in NAMES["refused"]:
            answer = send_whole(connection, {"name": name})
            assert isinstance(answer, messages.Error), ascii(name)
            assert (answer.code, answer.retryable) == ("name_refused", False), ascii(name)
        for name in NAMES["taken"]:
            answer = send_whole(connection, {"name": name})
            assert isinstance(answer, messages.Completed), ascii(name)
            assert answer.name == name
            path = (media / answer.stored_as).resolve()
            assert path.is_relative_to(media), ascii(name)
            assert path.read_bytes() == DATA
            assert not path.stat().st_mode & 0o111, "it can be executed"
            assert not FORBIDDEN & set(path.name), ascii(name)
            assert len(path.name.encode()) <= 255
    assert len(NAMES["refused"]) + len(NAMES["taken"]) > 200


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a" * 1025},
        {"name": None},
        {"name": ["a"]},
        {"name": "a.txt", "content_type": "a" * 256},
        {"name": "a.txt", "metadata": []},
        {"name": "a.txt", "key": "../../etc/passwd"},
        {"name": "a.txt", "size": 2**48},
        {"name": "a.txt", "size": True},
        {"name": "a.txt", "digest": "md5"},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
def test_a_create_that_the_protocol_does_not_allow_is_malformed(
    host: Host, fields: dict[str, object]
) -> None:
    with host.connect() as connection:
        connection.send_message(create_frame(connection.next_stream(), fields))
        assert connection.error().code == "malformed_frame"
        assert connection.close_code() == 4400


@pytest.mark.parametrize(
    "raw",
    [
        '{"a": "\\u0000"}',
        '{"\\u0000": 1}',
        '{"a": "\\ud800"}',
        '{"\\udfff": {"b": ["\\ud83d"]}}',
        '{"a": 1e999}',
        '{"a": -1e999}',
        '{"a": 123456789012345678901234567890}',
        '{"a": %s}' % ("[" * 500 + "]" * 500),
        '{"a": "%s"}' % ("x" * 17_000),
        '{"__proto__": {"a": 1}, "a__b": 1, "": ""}',
        '{"a": "<script>alert(1)</script>"}',
    ],
    ids=lambda raw: raw[:24],
)
def test_metadata_that_a_database_may_not_hold_is_refused_or_kept(host: Host, raw: str) -> None:
    with SteadyUpload(host.port, host.ticket()), host.connect() as connection:
        stream = connection.next_stream()
        payload = (
            f'{{"key":"{uuid.uuid4().hex}","name":"a.txt","size":{len(DATA)},"metadata":{raw}}}'
        ).encode()
        connection.send_message(
            frames.build_header(FrameType.CREATE, stream, payload, crc32c) + payload
        )
        with contextlib.suppress(Closed):  # at once, where the frame is malformed
            connection.send_data(stream, 0, DATA)
            connection.send(finish(DATA), stream)
        while True:
            found, message = connection.receive()
            if isinstance(message, messages.Error):
                assert message.code in ("metadata_invalid", "malformed_frame")
                break
            if found == stream and isinstance(message, messages.Completed):
                break


@pytest.mark.parametrize(
    "declared", ["\0", "text/html\r\nX: y", "\ud800", "a/b; c=" + "\u202e", "<b>", "x" * 255]
)
def test_a_content_type_is_kept_or_refused_but_breaks_nothing(host: Host, declared: str) -> None:
    with SteadyUpload(host.port, host.ticket()), host.connect() as connection:
        answer = send_whole(connection, {"name": "a.txt", "content_type": declared})
        if isinstance(answer, messages.Error):
            assert answer.code in ("type_refused", "malformed_frame")


@pytest.mark.parametrize(
    "ticket", ["", ":", "a:b:c", "\0", "\ud800:a:b", "\xfc:\xfc:\xfc", "x" * 8192]
)
def test_a_ticket_that_is_junk_is_invalid(host: Host, ticket: str) -> None:
    with RawConnection(host.port) as connection:
        connection.greet()
        payload = json.dumps({"ticket": ticket}).encode()
        connection.send_message(frames.build_header(FrameType.AUTH, 0, payload, crc32c) + payload)
        assert connection.error().code == "ticket_invalid"
        assert connection.close_code() == 4401


def test_a_hundred_uploads_of_one_name_all_survive(host: Host) -> None:
    contents = [f"number {number}".encode() for number in range(100)]
    with host.connect() as connection:
        streams = {}
        for content in contents:
            stream = connection.next_stream()
            streams[stream] = content
            create = messages.Create(key=uuid.uuid4().hex, name="one name.txt", size=len(content))
            connection.send(create, stream)
            connection.send_data(stream, 0, content)
            connection.send(finish(content), stream)
        stored = {}
        while len(stored) < len(contents):
            stream, message = connection.receive()
            assert not isinstance(message, messages.Error), message
            if isinstance(message, messages.Completed):
                stored[stream] = message.stored_as
    assert len(set(stored.values())) == 100
    for stream, name in stored.items():
        assert host.path(name).read_bytes() == streams[stream]
