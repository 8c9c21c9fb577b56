"""The checks of ``manage.py upload_doctor`` on a server, over real sockets. Needs ``websockets``.

Each check opens a connection of its own and takes up to some seconds. It sends only what a client may send, except
one message of 2 MiB, which a well-configured server refuses. With credentials, one upload of 1 MiB is created and
cancelled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from enum import StrEnum
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from crc32c import crc32c
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from ..exceptions import ProtocolViolation
from ..protocol import frames
from ..protocol import messages as m
from ..protocol.frames import MAX_FRAME, SUBPROTOCOL, FrameType
from .probe import SAMPLE, TIMEOUT, Target, open_connection, round_trip, send_sample
from .versions import old_servers

FOREIGN_ORIGIN: Final = "https://upload-doctor.invalid"
LARGE_BODY: Final = 1024**3
"""Bytes of a request's body, of which none is sent."""
BODY_SECONDS: Final = 3.0
MAX_HEAD: Final = 64 * 1024
PROXY_READ_TIMEOUT: Final = 60.0
"""Seconds of silence after which nginx closes a connection by default."""

NO_DEFLATE: Final = {
    "uvicorn": "uvicorn: --ws-per-message-deflate false",
    "hypercorn": "Hypercorn has no option for it",
    "nginx": 'nginx in front: proxy_set_header Sec-WebSocket-Extensions ""',
}
SMALL_MESSAGES: Final = {
    "uvicorn": "uvicorn: --ws-max-size 1048576",
    "daphne": "Daphne: --websocket-max-message-size 1048576 --websocket-max-frame-size 1048576",
    "hypercorn": "Hypercorn: websocket_max_message_size = 1048576 in its configuration file",
    "granian": "Granian has no option for it: bound the number of connections in front of it",
}
STOPS_READING: Final = {
    "uvicorn": "uvicorn stops reading",
    "hypercorn": "Hypercorn stops reading",
    "daphne": "Daphne does not stop: credit bounds the memory",
}
"""Measured for the project; docs/deployment.md has the table."""


class Verdict(StrEnum):
    OK = "ok"
    BAD = "bad"
    WARNING = "warning"
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    subject: str
    verdict: Verdict
    text: str
    advice: str = ""


def find_spans(application: Any) -> Finding | None:
    """Check that OpenTelemetry makes no span of each WebSocket message of this project's ASGI application.

    Returns None where opentelemetry-instrumentation-asgi is not installed.
    """
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    except ImportError:
        return None
    advice = (
        "Pass it exclude_spans=['receive', 'send'], or the address of the uploads as excluded_urls."
    )
    found = [each for each in _layers(application) if isinstance(each, OpenTelemetryMiddleware)]
    if not found:
        return Finding(
            "tracing",
            Verdict.UNKNOWN,
            "opentelemetry-instrumentation-asgi is installed. It is not around this project's ASGI_APPLICATION.",
            f"If it is put around it elsewhere: {advice}",
        )
    if all(each.exclude_receive_span and each.exclude_send_span for each in found):
        return Finding("tracing", Verdict.OK, "OpenTelemetry makes no span of a message.")
    return Finding(
        "tracing",
        Verdict.WARNING,
        "OpenTelemetry makes a span of every WebSocket message: that costs more than writing its bytes.",
        advice,
    )


def find_old_servers() -> list[Finding]:
    """A bad finding for each ASGI server that is installed here and too old."""
    return [
        Finding(
            "version",
            Verdict.BAD,
            f"{old.name} {old.version} is installed: {old.reason}.",
            f"Install {old.name} {old.oldest} or newer.",
        )
        for old in old_servers()
    ]


def _layers(application: Any) -> Iterator[Any]:
    """An ASGI application and those inside it, as far as middlewares and Channels' routers name them."""
    waiting, seen = [application], set[int]()
    while waiting:
        layer = waiting.pop()
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        waiting += [getattr(layer, name, None) for name in ("app", "application", "inner")]
        routes = getattr(layer, "application_mapping", None)
        waiting += routes.values() if isinstance(routes, dict) else []


async def examine(target: Target) -> AsyncIterator[Finding]:
    """Examine a server; yields the findings one after the other."""
    try:
        async with open_connection(target) as connection:
            hello = await connection.receive(m.Hello)
            server, compresses = connection.server, connection.compresses
            peer = connection.peer
    except (OSError, TimeoutError, InvalidURI, InvalidHandshake, ConnectionClosed) as error:
        yield Finding("connection", Verdict.BAD, f"{target.url}: {error}", _handshake_advice(error))
        return
    except ProtocolViolation as error:
        yield Finding("connection", Verdict.BAD, f"{target.url} is not an upload endpoint: {error}")
        return
    if not isinstance(hello, m.Hello):
        yield Finding(
            "connection", Verdict.BAD, f"The server did not send HELLO: {_describe(hello)}"
        )
        return
    yield _encryption(target, server)
    yield _proxy(target, server)
    yield _address(target, hello, peer)
    yield _deflate(server, compresses=compresses)
    checks: list[Callable[[], Awaitable[Finding]]] = [
        lambda: _subprotocol(target),
        lambda: _largest_message(target),
        lambda: _too_large_message(target, server),
        lambda: _foreign_origin(target),
        lambda: _authentication(target),
        lambda: _silence(target, hello),
        lambda: _upload(target),
        lambda: _request_body(target),
    ]
    for check in checks:
        try:
            yield await check()
        except (
            EOFError,
            OSError,
            TimeoutError,
            InvalidHandshake,
            ConnectionClosed,
            ProtocolViolation,
        ) as e:
            yield Finding("connection", Verdict.BAD, f"The check failed: {type(e).__name__}: {e}")
    yield _backpressure(server)
    yield _heartbeat(hello)
    yield Finding(
        "limits",
        Verdict.OK,
        f"protocol {hello.version}, {hello.server or 'unknown software'}; {hello.max_streams} uploads at "
        f"once, window {_size(hello.window)}, chunks up to {_size(hello.max_chunk)}, "
        f"{_size(hello.connection_limit)} in flight on a connection.",
    )


def _handshake_advice(error: Exception) -> str:
    if not isinstance(error, InvalidStatus):
        return "Is the server running, and the URL right?"
    match error.response.status_code:
        case 404 if error.response.body:
            return (
                "A page of the site answers, not the upload process. Where the site is on WSGI, the proxy has to pass "
                "this path to the process that runs django_async_upload.asgi:application (docs/how-to/wsgi-site.md); "
                "elsewhere, mount the consumer in asgi.py."
            )
        case 502 | 503 | 504:
            return "The proxy does not reach the process that serves uploads: does it run, and on that port?"
        case 403:
            return (
                "The Origin must equal the Host that Django sees, or be in CSRF_TRUSTED_ORIGINS. Behind "
                "nginx: proxy_set_header Host $http_host; with TLS, SECURE_PROXY_SSL_HEADER. The server's log says "
                "which origin it expected. If there is no such line, no route of asgi.py has this path."
            )
        case 404:
            return "No route of asgi.py has this path, or the consumer is not mounted there."
        case 200 | 301 | 302 | 400 | 426:
            return (
                "The server answered with HTTP. Mount the consumer in asgi.py; behind nginx: proxy_http_version 1.1 "
                "and the headers Upgrade and Connection."
            )
    return "The server's log may say more."


def _describe(message: m.Message) -> str:
    if isinstance(message, m.Error):
        return f"{message.code}, {message.message}"
    return f"{message!r}."


def _encryption(target: Target, server: str) -> Finding:
    parts = urlsplit(target.url)
    what = f"{target.url} answers" + (f", as {server}." if server else ".")
    if parts.scheme == "wss" or _is_loopback(parts.hostname or ""):
        return Finding("connection", Verdict.OK, what)
    return Finding(
        "connection",
        Verdict.WARNING,
        f"{what} It is not encrypted: others on the network can read tickets, cookies and files.",
        "Put TLS in front, and use wss://.",
    )


def _proxy(target: Target, server: str) -> Finding:
    """Check for a proxy, which limits what ASGI servers do not, by the Server header."""
    if _is_loopback(urlsplit(target.url).hostname or ""):
        return Finding("proxy", Verdict.UNKNOWN, "Not checked on this machine itself.")
    if server in SMALL_MESSAGES:
        return Finding(
            "proxy",
            Verdict.WARNING,
            f"{server} answers without a proxy: it has no option that limits the sockets and memory taken by slow "
            "handshakes, and by pings whose answers are never read.",
            "Put a proxy with time limits in front, as docs/deployment.md shows for nginx.",
        )
    return Finding("proxy", Verdict.OK, f"{server or 'A server without a Server header'} answers.")


def _address(target: Target, hello: m.Hello, peer: str) -> Finding:
    """Check the address by which the server counts this machine, as far as the client can know it."""
    advice = (
        "Set NUM_PROXIES to the number of proxies that write X-Forwarded-For (docs/deployment.md)."
    )
    if hello.address is None:
        return Finding(
            "address",
            Verdict.WARNING,
            "The server knows no address of this machine: nothing is counted by address.",
            advice,
        )
    text = f"The server sees this machine as {hello.address}."
    host = urlsplit(target.url).hostname or ""
    if _is_loopback(host):
        return Finding("address", Verdict.OK, f"{text} Check again from another machine.")
    if _is_loopback(hello.address) or hello.address == peer:
        return Finding(
            "address",
            Verdict.BAD,
            f"{text} That is a proxy's address: all clients share its quotas.",
            advice,
        )
    return Finding("address", Verdict.OK, f"{text} Check that this is its address.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _deflate(server: str, *, compresses: bool) -> Finding:
    if not compresses:
        return Finding("deflate", Verdict.OK, "The server did not accept permessage-deflate.")
    text = "The server accepts permessage-deflate: browsers compress every upload, at a thirtieth of the speed."
    if server == "hypercorn":
        text += " And Hypercorn decompresses without a limit: 63 KiB become 199 MiB."
    return Finding(
        "deflate",
        Verdict.BAD,
        text,
        f"Switch it off. {_options(NO_DEFLATE, server)}",
    )


def _options(known: dict[str, str], server: str) -> str:
    """The options of this server; of each known one where the server is unknown."""
    ways = [known[server]] if server in known else list(known.values())
    if known is NO_DEFLATE and server == "hypercorn":
        ways.append(known["nginx"])
    return "; ".join(ways) + "."


async def _subprotocol(target: Target) -> Finding:
    async with open_connection(target) as connection:
        chosen = connection.connection.subprotocol
    async with open_connection(target, subprotocol=None) as connection:
        refusal = await connection.refusal()
    if chosen == SUBPROTOCOL and refusal == "subprotocol_required":
        return Finding("subprotocol", Verdict.OK, f"{chosen}; without it: {refusal}.")
    return Finding(
        "subprotocol",
        Verdict.BAD,
        f"{SUBPROTOCOL} was offered, {chosen} was chosen; without an offer: {refusal}.",
        "Something between here and the app drops or changes Sec-WebSocket-Protocol.",
    )


async def _largest_message(target: Target) -> Finding:
    """Check that a frame of the largest size reaches the app, which answers with an error."""
    payload = bytes(MAX_FRAME - frames.HEADER_SIZE)
    frame = frames.build_header(FrameType.DATA, 1, payload, crc32c) + payload
    async with open_connection(target) as connection:
        await connection.receive(m.Hello)
        await connection.connection.send(frame)
        refusal = await connection.refusal()
    if refusal in ("malformed_frame", "authentication_required"):
        return Finding("largest message", Verdict.OK, "1 MiB reaches the app.")
    return Finding(
        "largest message",
        Verdict.BAD,
        f"A message of 1 MiB does not reach the app: {refusal}.",
        f"Allow exactly 1 MiB. {_options(SMALL_MESSAGES, '')}",
    )


async def _too_large_message(target: Target, server: str) -> Finding:
    try:
        async with open_connection(target) as connection:
            await connection.receive(m.Hello)
            await connection.connection.send(bytes(2 * MAX_FRAME))
            refusal = await connection.refusal()
    except (ConnectionClosed, ConnectionError):
        refusal = "close code 1006"
    if refusal.startswith("close code"):
        return Finding("larger message", Verdict.OK, f"2 MiB is refused by the server: {refusal}.")
    # Granian, which has no option for it, is the server without a Server header.
    return Finding(
        "larger message",
        Verdict.BAD if server else Verdict.WARNING,
        "A message of 2 MiB reaches the app: the server buffers it in memory before the app can count it.",
        f"Allow 1 MiB. {_options(SMALL_MESSAGES, server)}",
    )


async def _foreign_origin(target: Target) -> Finding:
    try:
        async with open_connection(target, origin=FOREIGN_ORIGIN, cookie=True) as connection:
            hello = await connection.receive(m.Hello)
    except InvalidStatus as error:
        status = error.response.status_code
        return Finding("origin", Verdict.OK, f"Pages of {FOREIGN_ORIGIN} get HTTP {status}.")
    except ConnectionClosed as error:
        return Finding(
            "origin", Verdict.OK, f"Pages of {FOREIGN_ORIGIN} are disconnected: {error}."
        )
    login = isinstance(hello, m.Hello) and hello.authenticated
    return Finding(
        "origin",
        Verdict.BAD,
        f"Pages of {FOREIGN_ORIGIN} can connect{', with the login of their visitor' if login else ''}.",
        "Check CSRF_TRUSTED_ORIGINS, and proxies that rewrite Origin or Host.",
    )


async def _authentication(target: Target) -> Finding:
    async with open_connection(target) as connection:
        hello = await connection.receive(m.Hello)
        if isinstance(hello, m.Hello) and hello.authenticated:
            return Finding(
                "authentication",
                Verdict.WARNING,
                "Clients without a login or a ticket are authenticated.",
                "Correct only if anonymous uploads are intended (ALLOW_ANONYMOUS).",
            )
        await connection.send(connection.protocol.send_ping())
        without = await connection.refusal()
    async with open_connection(target) as connection:
        await connection.receive(m.Hello)
        await connection.send(connection.protocol.send_auth("not a ticket"))
        invented = await connection.refusal()
    good = without == "authentication_required" and invented == "ticket_invalid"
    return Finding(
        "authentication",
        Verdict.OK if good else Verdict.BAD,
        f"Without a ticket: {without}. With an invalid one: {invented}.",
        "" if good else "authentication_required and ticket_invalid were expected.",
    )


async def _silence(target: Target, hello: m.Hello) -> Finding:
    if hello.authenticated:
        return Finding("silence", Verdict.UNKNOWN, "Clients need not authenticate.")
    started = time.monotonic()
    async with open_connection(target) as connection:
        await connection.receive(m.Hello)
        refusal = await connection.refusal()
    seconds = time.monotonic() - started
    return Finding(
        "silence",
        Verdict.OK if refusal == "authentication_timeout" else Verdict.BAD,
        f"A silent client is disconnected after {seconds:.1f} s: {refusal}.",
    )


async def _upload(target: Target) -> Finding:
    """Authenticate, ping, send a sample and cancel it."""
    if target.ticket is None and target.cookie is None:
        return Finding("upload", Verdict.UNKNOWN, "Not checked: pass --ticket or --cookie.")
    origin = "" if target.cookie or target.origin else None
    async with open_connection(target, origin=origin, cookie=True) as connection:
        hello = await connection.receive(m.Hello)
        if target.ticket is not None:
            await connection.send(connection.protocol.send_auth(target.ticket))
            who = await connection.receive(m.Authenticated)
            if isinstance(who, m.Error):
                return Finding("upload", Verdict.BAD, f"The ticket is refused: {_describe(who)}")
        elif isinstance(hello, m.Hello) and not hello.authenticated:
            return Finding("upload", Verdict.BAD, "The cookie has no login.")
        seconds_there_and_back = await round_trip(connection)
        assert isinstance(hello, m.Hello)
        started = time.monotonic()
        refusal = await send_sample(connection)
        seconds = time.monotonic() - started
    if refusal is not None:
        return Finding("upload", Verdict.BAD, f"The sample is refused: {_describe(refusal)}")
    return Finding(
        "upload",
        Verdict.OK,
        f"{_size(SAMPLE)} sent, durable and cancelled in {seconds:.2f} s; a round trip takes "
        f"{1000 * seconds_there_and_back:.1f} ms.",
    )


async def _request_body(target: Target) -> Finding:
    """Check that a request is passed on before its body has come, and whatever its length.

    A proxy that buffers says nothing before it has the whole body; one that caps answers 413 by itself.
    """
    parts = urlsplit(target.url)
    is_tls = parts.scheme == "wss"
    host = parts.hostname or ""
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(
            host, parts.port or (443 if is_tls else 80), ssl=is_tls, limit=MAX_HEAD
        ),
        TIMEOUT,
    )
    try:
        writer.write(
            f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nOrigin: {target.pages}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {LARGE_BODY}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BODY_SECONDS)
        except TimeoutError:
            return Finding(
                "request body",
                Verdict.WARNING,
                "A request over HTTP is not answered before its body has come: something in front keeps whole files "
                "before the app sees a byte, and a connection that breaks loses all of them.",
                "nginx: proxy_request_buffering off.",
            )
    finally:
        writer.close()
    status = head.split(b" ", 2)[1].decode()
    if status == "413" and b"application/problem+json" not in head.lower():  # which is the app's
        return Finding(
            "request body",
            Verdict.WARNING,
            f"A request of {_size(LARGE_BODY)} gets HTTP 413 from a proxy: uploads over HTTP have to be split.",
            "nginx: client_max_body_size 0.",
        )
    return Finding(
        "request body",
        Verdict.OK,
        f"A request of {_size(LARGE_BODY)} is answered before its body: HTTP {status}.",
    )


def _backpressure(server: str) -> Finding:
    known = STOPS_READING.get(server, "uvicorn, Hypercorn and Granian stop, Daphne does not")
    return Finding(
        "backpressure",
        Verdict.UNKNOWN,
        "A client cannot see whether the server stops reading when the app is slow: within its "
        f"credit it never makes the app slow. From measurements: {known}.",
    )


def _heartbeat(hello: m.Hello) -> Finding:
    text = f"Clients send a message every {hello.heartbeat:g} s."
    if hello.heartbeat < PROXY_READ_TIMEOUT:
        return Finding("heartbeat", Verdict.OK, text)
    return Finding(
        "heartbeat",
        Verdict.WARNING,
        f"{text} Proxies close a connection after {PROXY_READ_TIMEOUT:g} s of silence by default.",
        "Lower IDLE_TIMEOUT, or raise proxy_read_timeout.",
    )


def _size(size: int) -> str:
    mebibytes, rest = divmod(size, 1024 * 1024)
    return f"{size / 1024:,g} KiB" if rest else f"{mebibytes} MiB"
