"""The client's own framing against an independent implementation of RFC 6455."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from django_async_upload.client.transport import Target, WebSocketWire, connect, origin_of
from django_async_upload.exceptions import (
    ConnectionLost,
    ConnectionRefused,
    MalformedFrame,
    SubprotocolRequired,
    UploadError,
)

HEADER = bytes(range(16))


class RecordingListener:
    """Records the calls of a wire."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.lost: asyncio.Future[tuple[int, UploadError | None]] = (
            asyncio.get_running_loop().create_future()
        )
        self.writable = asyncio.Event()

    def message_received(self, message: bytes) -> None:
        self.messages.append(message)

    def wire_writable(self) -> None:
        self.writable.set()

    def wire_lost(self, code: int, error: UploadError | None) -> None:
        self.lost.set_result((code, error))


@contextlib.asynccontextmanager
async def serving(handler: Callable[[ServerConnection], Any], **options: Any) -> AsyncIterator[int]:
    options = {"subprotocols": ["async-upload.v1"], **options}
    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield next(iter(server.sockets)).getsockname()[1]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@pytest.mark.parametrize("size", [0, 1, 109, 110, 65_519, 65_520, 1_044_480])
async def test_messages_of_every_length_arrive_whole(size: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    async with serving(echo) as port:
        listener = RecordingListener()
        wire = await connect(Target(f"ws://127.0.0.1:{port}/"), listener)
        wire.write(wire.encode(HEADER, memoryview(payload)))
        wire.write(wire.encode(HEADER, b"end"))
        async with asyncio.timeout(10):
            while len(listener.messages) < 2:
                await asyncio.sleep(0.01)
        wire.close(1000)
        assert await listener.lost == (1000, None)
    assert listener.messages == [HEADER + payload, HEADER + b"end"]


async def test_the_handshake_says_who_asks_and_offers_no_compression() -> None:
    seen: list[Any] = []

    async def look(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers)
        seen.append(connection.subprotocol)

    async with serving(look) as port:
        url = f"ws://127.0.0.1:{port}/ws/"
        listener = RecordingListener()
        await connect(Target(url, {"Cookie": "sessionid=abc"}), listener)
        await listener.lost
    headers, subprotocol = seen
    assert subprotocol == "async-upload.v1"
    assert headers["Cookie"] == "sessionid=abc"
    assert headers["Origin"] == f"http://127.0.0.1:{port}"
    assert headers["Host"] == f"127.0.0.1:{port}"
    assert "Sec-WebSocket-Extensions" not in headers


async def test_every_message_has_a_mask_of_its_own() -> None:
    async with serving(echo) as port:
        wire = await connect(Target(f"ws://127.0.0.1:{port}/"), RecordingListener())
        keys = {wire.encode(HEADER, b"")[0][2:6] for _ in range(100)}
        wire.abort()
    assert len(keys) > 95


async def test_fragments_are_put_together() -> None:
    async def send(connection: ServerConnection) -> None:
        await connection.send([b"ab", b"", b"cd"])
        await connection.send(b"ef")

    async with serving(send) as port:
        listener = RecordingListener()
        await connect(Target(f"ws://127.0.0.1:{port}/"), listener)
        await listener.lost
    assert listener.messages == [b"abcd", b"ef"]


async def test_a_text_message_is_a_violation() -> None:
    async def send(connection: ServerConnection) -> None:
        await connection.send("text")
        await connection.wait_closed()

    async with serving(send) as port:
        listener = RecordingListener()
        await connect(Target(f"ws://127.0.0.1:{port}/"), listener)
        _, error = await listener.lost
    assert isinstance(error, MalformedFrame)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (HTTPStatus.FORBIDDEN, ConnectionRefused),
        (HTTPStatus.NOT_FOUND, ConnectionRefused),
        (HTTPStatus.BAD_GATEWAY, ConnectionLost),
        (HTTPStatus.SERVICE_UNAVAILABLE, ConnectionLost),
    ],
)
async def test_a_refused_handshake_says_whether_to_come_back(
    status: HTTPStatus, error: type[UploadError]
) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(status, "no")

    async with serving(echo, process_request=refuse) as port:
        with pytest.raises(error, match=str(status.value)) as caught:
            await connect(Target(f"ws://127.0.0.1:{port}/"), RecordingListener())
    assert caught.value.facts["status"] == status


async def test_a_server_without_the_subprotocol_is_none_of_ours() -> None:
    async with serving(echo, subprotocols=None) as port:
        with pytest.raises(SubprotocolRequired):
            await connect(Target(f"ws://127.0.0.1:{port}/"), RecordingListener())


async def test_where_no_server_listens_one_may_come_back() -> None:
    async with serving(echo) as port:
        pass
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        await connect(Target(f"ws://127.0.0.1:{port}/"), RecordingListener())


async def test_a_server_that_accepts_and_says_nothing_is_left_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionLost, match="no answer"):
            await connect(Target(f"ws://127.0.0.1:{port}/", timeout=0.2), RecordingListener())


@pytest.mark.parametrize("url", ["http://host/", "host", "ws://", ""])
async def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a ws:// or wss:// URL"):
        await connect(Target(url), RecordingListener())


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("ws://host/ws/", "http://host"),
        ("ws://host:80/", "http://host"),
        ("ws://host:8000/", "http://host:8000"),
        ("wss://host/", "https://host"),
        ("wss://host:80/", "https://host:80"),
        ("ws://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_the_origin_is_the_servers_own(url: str, origin: str) -> None:
    from websockets.uri import parse_uri

    assert origin_of(parse_uri(url)) == origin


async def test_a_slow_network_is_noticed_and_waited_for() -> None:
    go = asyncio.Event()

    async def slow(connection: ServerConnection) -> None:
        await go.wait()
        async for _ in connection:
            pass

    async with serving(slow, max_queue=1) as port:
        listener = RecordingListener()
        wire = await connect(Target(f"ws://127.0.0.1:{port}/"), listener)
        for _ in range(64):
            wire.write(wire.encode(HEADER, bytes(1_000_000)))
        await asyncio.sleep(0.05)
        assert wire.congested
        go.set()
        async with asyncio.timeout(10):
            await listener.writable.wait()
        assert not wire.congested
        assert isinstance(wire, WebSocketWire)
        wire.close(1000)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_tls_is_spoken_with_those_who_are_trusted(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with serving(echo, ssl=context) as port:
        url = f"wss://localhost:{port}/"
        listener = RecordingListener()
        trusting = ssl.create_default_context(cafile=certificate)
        wire = await connect(Target(url, ssl=trusting), listener)
        wire.write(wire.encode(HEADER, bytes(300_000)))
        async with asyncio.timeout(10):
            while not listener.messages:
                await asyncio.sleep(0.01)
        wire.close(1000)
        await listener.lost
        assert listener.messages == [HEADER + bytes(300_000)]
        with pytest.raises(ConnectionRefused, match="not trusted"):
            await connect(Target(url), RecordingListener())
