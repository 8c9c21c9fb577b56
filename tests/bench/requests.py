"""The load on the peers: a bare socket, and HTTP/1.1 requests whose bodies were in memory before the clock started."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

BOUNDARY = "bench-5f0e4d8c1b7a"
TIMEOUT = 60.0


class Connection:
    """One keep-alive connection; requests go out by ``sendall``, one after the other."""

    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def head(self, method: str, path: str, length: int, headers: Mapping[str, str]) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join((*lines, "", "")).encode()

    def exchange(self, *parts: bytes | memoryview) -> tuple[int, dict[str, str], bytes]:
        """Send the parts of one request; return the status, the headers in lower case, and the body."""
        for part in parts:
            self.socket.sendall(part)
        head = self._read_until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.split("\r\n")
        status = int(status_line.split(" ", 2)[1])
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }
        if headers.get("transfer-encoding") == "chunked":
            body = bytearray()
            while size := int(self._read_until(b"\r\n"), 16):
                body += self._read(size)
                self._read(2)
            self._read(2)
            return status, headers, bytes(body)
        return status, headers, self._read(int(headers.get("content-length", 0)))

    def _read_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            self._receive()
        return self._read(end + len(mark))[: -len(mark)]

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server hung up")
        self._buffer += data


def _expect(status: int, wanted: int, body: bytes) -> None:
    if status != wanted:
        raise RuntimeError(f"status {status} instead of {wanted}: {body[:500]!r}")


def multipart(name: str) -> tuple[bytes, bytes]:
    """What comes before and after the file's bytes in a form with the one field ``file``."""
    before = (
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return before.encode(), f"\r\n--{BOUNDARY}--\r\n".encode()


_FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def post_file(port: int, source: memoryview) -> tuple[float, str]:
    """One multipart POST. Returns the seconds to the answer and the stored name."""
    connection = Connection(port)
    before, after = multipart("large.bin")
    length = len(before) + len(source) + len(after)
    head = connection.head("POST", "/files/", length, _FORM) + before
    started = time.perf_counter()
    status, _, body = connection.exchange(head, source, after)
    seconds = time.perf_counter() - started
    _expect(status, 201, body)
    return seconds, body.decode()


def post_small_files(port: int, source: memoryview, size: int) -> tuple[float, list[str]]:
    """One multipart POST per ``size`` bytes, all on one connection."""
    connection = Connection(port)
    requests = []
    for number, start in enumerate(range(0, len(source), size), 1):
        before, after = multipart(f"{number}.bin")
        body = before + source[start : start + size] + after
        requests.append(connection.head("POST", "/files/", len(body), _FORM) + body)
    started = time.perf_counter()
    answers = [connection.exchange(request) for request in requests]
    seconds = time.perf_counter() - started
    for status, _, body in answers:
        _expect(status, 201, body)
    return seconds, [body.decode() for _, _, body in answers]


def _bearer(ticket: str | None) -> dict[str, str]:
    return {} if ticket is None else {"Authorization": f"Bearer {ticket}"}


def put_file(
    port: int, path: str, source: memoryview, ticket: str | None = None
) -> tuple[float, str]:
    """One PUT. Returns seconds and the stored name."""
    connection = Connection(port)
    head = connection.head("PUT", f"{path}large.bin", len(source), _bearer(ticket))
    started = time.perf_counter()
    status, _, body = connection.exchange(head, source)
    seconds = time.perf_counter() - started
    _expect(status, 201, body)
    return seconds, json.loads(body)["stored_as"] if body.startswith(b"{") else "large.bin"


def patch_file(
    port: int, path: str, source: memoryview, step: int, ticket: str | None = None
) -> tuple[float, str]:
    """A tus upload: creation, then one PATCH per ``step`` bytes. Returns seconds and the stored name, by a peer the
    upload's id."""
    connection = Connection(port)
    tus = {"Tus-Resumable": "1.0.0", **_bearer(ticket)}
    create = connection.head(
        "POST",
        path,
        0,
        # filename large.bin, filetype application/octet-stream: tuspyserver insists on both.
        tus
        | {
            "Upload-Length": str(len(source)),
            "Upload-Metadata": "filename bGFyZ2UuYmlu,filetype YXBwbGljYXRpb24vb2N0ZXQtc3RyZWFt",
        },
    )
    patch = tus | {"Content-Type": "application/offset+octet-stream"}
    started = time.perf_counter()
    status, headers, body = connection.exchange(create)
    _expect(status, 201, body)
    location = urlsplit(headers["location"]).path
    for offset in range(0, len(source), step):
        piece = source[offset : offset + step]
        head = connection.head(
            "PATCH", location, len(piece), patch | {"Upload-Offset": str(offset)}
        )
        status, headers, body = connection.exchange(head, piece)
        _expect(status, 204, body)
    seconds = time.perf_counter() - started
    if int(headers["upload-offset"]) != len(source):
        raise RuntimeError(f"the upload ended at {headers['upload-offset']}")
    return seconds, unquote(headers.get("upload-stored-as", location.rpartition("/")[2]))


def pour(port: int, source: memoryview, host: str | None = None) -> tuple[float, str]:
    """The sink: a length, the bytes, and the file's name as the answer.

    The clock starts before the connection is made where a ``host`` is named: that takes time there.
    """
    started = time.perf_counter()
    sink = socket.create_connection((host or "127.0.0.1", port), TIMEOUT)
    head = struct.pack("!Q", len(source))
    if host is None:
        started = time.perf_counter()
    sink.sendall(head)
    sink.sendall(source)
    name = sink.recv(1024)
    seconds = time.perf_counter() - started
    sink.close()
    return seconds, name.decode()
