"""The IETF's resumable uploads against real servers: every interop version, and connections that break."""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from crc32c import crc32c

from .hosts import PATH, Host
from .servers import wait_for

MIB = 1024 * 1024
VERSIONS = (3, 4, 5, 6, 7, 8, 9, 10)


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def offset(self) -> int:
        return int(self.headers["Upload-Offset"])


class Requests:
    """A client that keeps to the text of one interop version, on one connection."""

    def __init__(self, host: Host, version: int = 10, *, port: int | None = None) -> None:
        self.version = version
        self._connection = http.client.HTTPConnection("127.0.0.1", port or host.port, timeout=60)
        self._headers = {
            "Authorization": f"Bearer {host.ticket()}",
            "Upload-Draft-Interop-Version": str(version),
        }

    def head_of(self, complete: bool, offset: int | None = None) -> dict[str, str]:
        headers = dict(self._headers)
        if self.version == 3:
            headers["Upload-Incomplete"] = "?0" if complete else "?1"
        else:
            headers["Upload-Complete"] = "?1" if complete else "?0"
        if offset is not None:
            headers["Upload-Offset"] = str(offset)
            if self.version >= 6:
                headers["Content-Type"] = "application/partial-upload"
        return headers

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, content: Any = None
    ) -> Reply:
        self._connection.request(method, path, content, headers or self._headers)
        response = self._connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def create(self, content: Any = b"", *, complete: bool = False, **more: str) -> Reply:
        headers = self.head_of(complete)
        headers["Content-Disposition"] = 'inline; filename="film.mov"'
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        return self.ask("POST", PATH, headers, content)

    def look(self, path: str) -> Any:
        """The JSON of the upload, for which nothing is settled."""
        authorization = {"Authorization": self._headers["Authorization"]}
        return self.ask("GET", path, authorization).json

    def append(self, path: str, offset: int, content: Any, *, complete: bool = False) -> Reply:
        return self.ask("PATCH", path, self.head_of(complete, offset), content)


def is_complete(reply: Reply, version: int) -> bool:
    if version == 3:
        return bool(reply.headers["Upload-Incomplete"] == "?0")
    return bool(reply.headers["Upload-Complete"] == "?1")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_sends_a_file_in_parts(host: Host, version: int) -> None:
    data = os.urandom(3 * MIB + 5)
    client = Requests(host, version)
    created = client.create(data[:MIB])
    assert created.status == 201
    path = created.headers["Location"]
    assert not is_complete(created, version)
    part = client.append(path, MIB, data[MIB : 2 * MIB])
    assert (part.status, part.offset) == (201 if version <= 6 else 204, 2 * MIB)
    asked = client.ask("HEAD", path)
    assert (asked.status, asked.offset) == (204, 2 * MIB)
    assert not is_complete(asked, version)
    end = client.append(path, 2 * MIB, data[2 * MIB :], complete=True)
    assert end.status == 201
    assert is_complete(end, version)
    assert end.json["crc32c"] == f"{crc32c(data):08x}"
    assert host.path(end.json["stored_as"]).read_bytes() == data
    host.wait_for_signals("upload_completed", end.json["upload"])


@pytest.mark.parametrize("size", [0, 1000, 5 * MIB])
def test_a_whole_file_arrives_by_one_request(host: Host, size: int) -> None:
    data = os.urandom(size)
    digest = base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()
    end = Requests(host).create(data, complete=True, Repr_Digest=f"crc32c=:{digest}:")
    assert end.status == 201
    assert host.path(end.json["stored_as"]).read_bytes() == data


def test_a_body_of_unknown_length_arrives(host: Host) -> None:
    pieces = [os.urandom(100_000) for _ in range(20)]

    def body() -> Iterator[bytes]:
        yield from pieces

    end = Requests(host).create(body(), complete=True)
    assert end.status == 201
    assert host.path(end.json["stored_as"]).read_bytes() == b"".join(pieces)


@pytest.mark.usefixtures("streams")
def test_a_connection_that_breaks_costs_what_was_under_way(host: Host) -> None:
    data = os.urandom(8 * MIB)
    path = Requests(host).create().headers["Location"]
    with host.proxy() as proxy:
        broken = Requests(host, port=proxy.port)
        proxy.cut_after(5 * MIB)
        with pytest.raises(OSError):
            broken.append(path, 0, data, complete=True)
    client = Requests(host)
    offset = client.ask("HEAD", path).offset
    assert 2 * MIB < offset < 8 * MIB
    end = client.append(path, offset, data[offset:], complete=True)
    assert end.status == 201
    assert host.path(end.json["stored_as"]).read_bytes() == data


@pytest.mark.usefixtures("streams")
def test_a_request_that_hangs_locks_nobody_out(host: Host) -> None:
    data = os.urandom(2 * MIB)
    client = Requests(host)
    path = client.create().headers["Location"]
    head = "".join(f"{name}: {value}\r\n" for name, value in client.head_of(True, 0).items())
    with socket.create_connection(("127.0.0.1", host.port)) as hanging:
        lines = f"PATCH {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(data)}\r\n\r\n"
        hanging.sendall(lines.encode() + data[:MIB])
        wait_for(lambda: client.look(path)["offset"] == MIB, what="the first half")
        started = time.monotonic()
        offset = client.ask("HEAD", path).offset
        assert offset == MIB
        assert time.monotonic() - started < 2
        # It may not write any more.
        hanging.sendall(data[MIB : MIB + 1000])
        end = client.append(path, offset, data[offset:], complete=True)
    assert end.status == 201
    assert host.path(end.json["stored_as"]).read_bytes() == data


def test_the_offset_survives_the_server(hosts: Any) -> None:
    host = hosts()
    data = os.urandom(2 * MIB)
    created = Requests(host).create(data[:MIB], Idempotency_Key=f'"{secrets.token_hex(16)}"')
    path = created.headers["Location"]
    host.server.kill()
    host.server.start()
    client = Requests(host)
    assert client.ask("HEAD", path).offset == MIB
    end = client.append(path, MIB, data[MIB:], complete=True)
    assert host.path(end.json["stored_as"]).read_bytes() == data


def test_options_tell_the_limits(host: Host) -> None:
    reply = Requests(host).ask("OPTIONS", PATH, {"Accept": "*/*"})
    assert reply.status == 204
    assert "max-size=" in reply.headers["Upload-Limit"]
