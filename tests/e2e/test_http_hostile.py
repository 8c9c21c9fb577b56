"""What a client may not do over HTTP. Each thing ends by itself, changes nothing and disturbs no other upload."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from .hosts import Host

HEAD = "{} {} HTTP/1.1\r\nHost: {}:{}\r\nAuthorization: Bearer {}\r\n{}\r\n"
PATH = "/ws/uploads/"
IDLE_SECONDS = 2.0
PATIENCE = 20.0
DATA = bytes(range(256)) * 4096


class Wire:
    """One TCP connection on which a test sends what it likes."""

    def __init__(self, host: Host, ticket: str) -> None:
        self._host = host
        self._ticket = ticket
        self.socket = socket.create_connection((host.server.address, host.port), PATIENCE)
        self._buffer = b""

    def head(self, method: str, path: str, *headers: str) -> None:
        lines = "".join(f"{header}\r\n" for header in headers)
        server = self._host.server.address, self._host.port
        self.send(HEAD.format(method, path, *server, self._ticket, lines).encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer; status 0 where the server closes the connection without one."""
        while b"\r\n\r\n" not in self._buffer:
            with contextlib.suppress(ConnectionResetError):
                if data := self.socket.recv(65536):
                    self._buffer += data
                    continue
            return 0, b""
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        status = int(status_line.split()[1])
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(self.headers.get("content-length", 0))
        while len(self._buffer) < length and (data := self.socket.recv(65536)):
            self._buffer += data
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return status, body

    def close(self) -> None:
        self.socket.close()


Open = Callable[[], Wire]


@pytest.fixture
def host(hosts: Callable[..., Host], streams: None) -> Host:
    return hosts(IDLE_TIMEOUT=IDLE_SECONDS, MIN_RATE=1000)


@pytest.fixture
def wire(host: Host) -> Iterator[Open]:
    ticket = host.ticket()
    with contextlib.ExitStack() as stack:

        def opened() -> Wire:
            wire = Wire(host, ticket)
            stack.callback(wire.close)
            return wire

        yield opened


def upload(wire: Wire) -> None:
    """An upload that nobody disturbs."""
    wire.head("PUT", f"{PATH}steady.bin", f"Content-Length: {len(DATA)}")
    wire.send(DATA)
    status, body = wire.answer()
    assert status == 201, body


def begun(wire: Wire) -> str:
    """The path of a new upload of the size of DATA, which a tus client creates."""
    headers = "Tus-Resumable: 1.0.0", f"Upload-Length: {len(DATA)}", "Content-Length: 0"
    wire.head("POST", PATH, *headers)
    wire.answer()
    return urlsplit(wire.headers["location"]).path


def offset(wire: Wire, path: str) -> int:
    wire.head("GET", path)
    status, body = wire.answer()
    assert status == 200
    return int(json.loads(body)["offset"])


def test_a_body_that_never_comes_is_not_waited_for(wire: Open) -> None:
    silent = wire()
    silent.head("PUT", f"{PATH}a.bin", f"Content-Length: {len(DATA)}")
    began = time.monotonic()
    upload(wire())
    status, body = silent.answer()
    assert (status, json.loads(body)["code"]) == (408, "idle_timeout")
    assert time.monotonic() - began < IDLE_SECONDS + 8


def test_one_byte_a_second_is_too_slow(wire: Open) -> None:
    path = begun(wire())
    slow = wire()
    slow.head(
        "PATCH",
        path,
        "Tus-Resumable: 1.0.0",
        "Upload-Offset: 0",
        "Content-Type: application/offset+octet-stream",
        f"Content-Length: {len(DATA)}",
    )
    deadline = time.monotonic() + PATIENCE
    while not select.select([slow.socket], [], [], 1.0)[0] and time.monotonic() < deadline:
        slow.send(b"x")
    status, body = slow.answer()
    assert (status, json.loads(body)["code"]) == (500, "too_slow")  # as tusd's ERR_READ_TIMEOUT
    upload(wire())


def test_a_body_that_is_longer_than_the_file_adds_nothing(wire: Open) -> None:
    path = begun(wire())
    long = wire()
    long.head(
        "PATCH",
        path,
        "Tus-Resumable: 1.0.0",
        "Upload-Offset: 0",
        "Content-Type: application/offset+octet-stream",
        f"Content-Length: {len(DATA) + 1}",
    )
    with contextlib.suppress(ConnectionError):
        long.send(DATA + b"x")
    status, body = long.answer()
    assert status == 413
    assert b"size_exceeded" in body
    assert offset(wire(), path) == 0


def test_chunks_and_a_length_at_once_are_no_request(wire: Open) -> None:
    """RFC 9112, section 6.1: it may be an attempt to smuggle a request. Servers refuse it, or ignore the length."""
    both = wire()
    both.head("PUT", f"{PATH}a.bin", "Content-Length: 3", "Transfer-Encoding: chunked")
    with contextlib.suppress(ConnectionError):
        both.send(b"5\r\nhello\r\n0\r\n\r\n")
    status, body = both.answer()
    assert status in (0, 400) or (status == 201 and json.loads(body)["size"] == 5)
    upload(wire())


def test_hundreds_of_idle_requests_keep_nobody_out(host: Host, wire: Open) -> None:
    idle = [wire() for _ in range(200)]
    for each in idle:
        each.head("PUT", f"{PATH}a.bin", f"Content-Length: {len(DATA)}")
    other = Wire(host, host.ticket("other"))
    upload(other)
    other.close()
    answers = [each.answer()[0] for each in idle]
    # Those of one owner that are too many are refused at once; the others have nothing to say.
    assert set(answers) <= {408, 429, 503}
    assert 429 in answers
    upload(wire())


def test_an_answer_that_nobody_reads_holds_nothing(host: Host, wire: Open) -> None:
    path = begun(wire())
    deaf = wire()
    deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    deaf.socket.settimeout(2.0)
    with contextlib.suppress(OSError):
        for _ in range(2000):  # pipelined: the server may answer them or close
            deaf.head("GET", path)
    upload(wire())
    assert offset(wire(), path) == 0
