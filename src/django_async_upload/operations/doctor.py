"""What ``manage.py upload_doctor`` finds out about a server, over real sockets. Needs ``websockets``.

Every examination opens a connection of its own and takes seconds. It sends no more than a client may send, but
for one message of 2 MiB that a good server refuses. With credentials, one upload of 1 MiB is made and cancelled.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from crc32c import crc32c
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from ..exceptions import ProtocolViolation
from ..protocol import frames
from ..protocol import messages as m
from ..protocol.frames import MAX_FRAME, SUBPROTOCOL, FrameType
from .probe import SAMPLE, Patient, round_trip, send_sample, talk

STRANGER: Final = "https://upload-doctor.invalid"
PROXY_PATIENCE: Final = 60.0
"""Seconds of silence after which nginx, as it is shipped, cuts a connection."""

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
    "uvicorn": "uvicorn does stop reading",
    "hypercorn": "Hypercorn does stop reading",
    "daphne": "Daphne does not: credit bounds what it costs",
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


async def examine(patient: Patient) -> AsyncIterator[Finding]:
    """Everything there is to say about a server, one finding after the other."""
    try:
        async with talk(patient) as connection:
            hello = await connection.receive(m.Hello)
            server, compresses = connection.server, connection.compresses
            peer = connection.peer
    except (OSError, TimeoutError, InvalidURI, InvalidHandshake, ConnectionClosed) as error:
        yield Finding(
            "connection", Verdict.BAD, f"{patient.url}: {error}", _why_no_handshake(error)
        )
        return
    except ProtocolViolation as error:
        yield Finding("connection", Verdict.BAD, f"{patient.url} is no upload endpoint: {error}")
        return
    if not isinstance(hello, m.Hello):
        yield Finding("connection", Verdict.BAD, f"HELLO did not come: {_told(hello)}")
        return
    yield _encryption(patient, server)
    yield _proxy(patient, server)
    yield _address(patient, hello, peer)
    yield _deflate(server, compresses=compresses)
    examinations: list[Callable[[], Awaitable[Finding]]] = [
        lambda: _subprotocol(patient),
        lambda: _largest_message(patient),
        lambda: _too_large_message(patient, server),
        lambda: _foreign_origin(patient),
        lambda: _authentication(patient),
        lambda: _silence(patient, hello),
        lambda: _upload(patient),
    ]
    for examination in examinations:
        try:
            yield await examination()
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed, ProtocolViolation) as e:
            yield Finding("connection", Verdict.BAD, f"It broke: {type(e).__name__}: {e}")
    yield _backpressure(server)
    yield _heartbeat(hello)
    yield Finding(
        "limits",
        Verdict.OK,
        f"protocol {hello.version}, {hello.server or 'unknown software'}; {hello.max_streams} uploads at "
        f"once, window {_size(hello.window)}, chunks up to {_size(hello.max_chunk)}, "
        f"{_size(hello.connection_limit)} under way on a connection.",
    )


def _why_no_handshake(error: Exception) -> str:
    if not isinstance(error, InvalidStatus):
        return "Is the server running, and the URL right?"
    match error.response.status_code:
        case 403:
            return (
                "The Origin must equal the Host that Django sees, or stand in CSRF_TRUSTED_ORIGINS. Behind "
                "nginx: proxy_set_header Host $http_host; with TLS, SECURE_PROXY_SSL_HEADER. The server's log says "
                "which origin it expected. Where it says nothing, no route of asgi.py has this path."
            )
        case 404:
            return "No route of asgi.py has this path, or the consumer is not mounted there."
        case 200 | 301 | 302 | 400 | 426:
            return (
                "This was answered as HTTP. Mount the consumer in asgi.py; behind nginx: proxy_http_version 1.1 "
                "and the headers Upgrade and Connection."
            )
    return "The server's log may say more."


def _told(message: m.Message) -> str:
    if isinstance(message, m.Error):
        return f"{message.code}, {message.message}"
    return f"{message!r}."


def _encryption(patient: Patient, server: str) -> Finding:
    parts = urlsplit(patient.url)
    what = f"{patient.url} answers" + (f", as {server}." if server else ".")
    if parts.scheme == "wss" or _is_loopback(parts.hostname or ""):
        return Finding("connection", Verdict.OK, what)
    return Finding(
        "connection",
        Verdict.WARNING,
        f"{what} It is not encrypted: tickets, cookies and files can be read on the way.",
        "Put TLS in front, and use wss://.",
    )


def _proxy(patient: Patient, server: str) -> Finding:
    """Whether a proxy bounds what no ASGI server does, as far as the Server header tells."""
    if _is_loopback(urlsplit(patient.url).hostname or ""):
        return Finding("proxy", Verdict.UNKNOWN, "Not looked for on this machine itself.")
    if server in SMALL_MESSAGES:
        return Finding(
            "proxy",
            Verdict.WARNING,
            f"{server} answers without a proxy in front of it: slow handshakes, and pings whose answers are never "
            "read, take sockets and memory that no option of it bounds.",
            "Put a proxy with time limits in front, as docs/deployment.md shows for nginx.",
        )
    return Finding(
        "proxy", Verdict.OK, f"{server or 'Something that does not say its name'} answers."
    )


def _address(patient: Patient, hello: m.Hello, peer: str) -> Finding:
    """What the server counts by, as far as one can see from here whether that is right."""
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
    host = urlsplit(patient.url).hostname or ""
    if _is_loopback(host):
        return Finding("address", Verdict.OK, f"{text} Look again from another machine.")
    if _is_loopback(hello.address) or hello.address == peer:
        return Finding(
            "address",
            Verdict.BAD,
            f"{text} That is a proxy's: everybody shares its quotas.",
            advice,
        )
    return Finding("address", Verdict.OK, f"{text} Is that right?")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _deflate(server: str, *, compresses: bool) -> Finding:
    if not compresses:
        return Finding("deflate", Verdict.OK, "permessage-deflate was offered and not taken.")
    text = "permessage-deflate was taken: browsers will compress every upload, at a thirtieth of the speed."
    if server == "hypercorn":
        text += " And Hypercorn unpacks whatever comes, without a limit: 63 KiB become 199 MiB."
    return Finding(
        "deflate",
        Verdict.BAD,
        text,
        f"Switch it off. {_options(NO_DEFLATE, server)}",
    )


def _options(known: dict[str, str], server: str) -> str:
    """How this server does it; behind a proxy, how each does."""
    ways = [known[server]] if server in known else list(known.values())
    if known is NO_DEFLATE and server == "hypercorn":
        ways.append(known["nginx"])
    return "; ".join(ways) + "."


async def _subprotocol(patient: Patient) -> Finding:
    async with talk(patient) as connection:
        chosen = connection.connection.subprotocol
    async with talk(patient, subprotocol=None) as connection:
        refusal = await connection.refusal()
    if chosen == SUBPROTOCOL and refusal == "subprotocol_required":
        return Finding("subprotocol", Verdict.OK, f"{chosen}; without it: {refusal}.")
    return Finding(
        "subprotocol",
        Verdict.BAD,
        f"{SUBPROTOCOL} was offered, {chosen} was chosen; without an offer: {refusal}.",
        "Something between here and the app drops or changes Sec-WebSocket-Protocol.",
    )


async def _largest_message(patient: Patient) -> Finding:
    """A frame of the largest size, which has no stream: if it comes through, the app says so."""
    payload = bytes(MAX_FRAME - frames.HEADER_SIZE)
    frame = frames.build_header(FrameType.DATA, 1, payload, crc32c) + payload
    async with talk(patient) as connection:
        await connection.receive(m.Hello)
        await connection.connection.send(frame)
        refusal = await connection.refusal()
    if refusal in ("malformed_frame", "authentication_required"):
        return Finding("largest message", Verdict.OK, "1 MiB comes through.")
    return Finding(
        "largest message",
        Verdict.BAD,
        f"A message of 1 MiB does not come through: {refusal}.",
        f"Allow exactly 1 MiB. {_options(SMALL_MESSAGES, '')}",
    )


async def _too_large_message(patient: Patient, server: str) -> Finding:
    try:
        async with talk(patient) as connection:
            await connection.receive(m.Hello)
            await connection.connection.send(bytes(2 * MAX_FRAME))
            refusal = await connection.refusal()
    except (ConnectionClosed, ConnectionError):
        refusal = "close code 1006"
    if refusal.startswith("close code"):
        return Finding("larger message", Verdict.OK, f"2 MiB is refused by the server: {refusal}.")
    # Granian, which has no option for it, is the server that does not say its name.
    return Finding(
        "larger message",
        Verdict.BAD if server else Verdict.WARNING,
        "A message of 2 MiB comes through: the server holds it in memory before the app can count it.",
        f"Allow 1 MiB. {_options(SMALL_MESSAGES, server)}",
    )


async def _foreign_origin(patient: Patient) -> Finding:
    try:
        async with talk(patient, origin=STRANGER, cookie=True) as connection:
            hello = await connection.receive(m.Hello)
    except InvalidStatus as error:
        status = error.response.status_code
        return Finding("origin", Verdict.OK, f"Pages of {STRANGER} get HTTP {status}.")
    except ConnectionClosed as error:
        return Finding("origin", Verdict.OK, f"Pages of {STRANGER} are cut off: {error}.")
    login = isinstance(hello, m.Hello) and hello.authenticated
    return Finding(
        "origin",
        Verdict.BAD,
        f"Pages of {STRANGER} are let in{', with the login of their visitor' if login else ''}.",
        "Look at CSRF_TRUSTED_ORIGINS, and at proxies that rewrite Origin or Host.",
    )


async def _authentication(patient: Patient) -> Finding:
    async with talk(patient) as connection:
        hello = await connection.receive(m.Hello)
        if isinstance(hello, m.Hello) and hello.authenticated:
            return Finding(
                "authentication",
                Verdict.WARNING,
                "Without a login and a ticket one is let in.",
                "Right only where anonymous uploads are wanted (ALLOW_ANONYMOUS).",
            )
        await connection.send(0, m.Ping())
        without = await connection.refusal()
    async with talk(patient) as connection:
        await connection.receive(m.Hello)
        await connection.send(0, m.Auth(ticket="not a ticket"))
        invented = await connection.refusal()
    good = without == "authentication_required" and invented == "ticket_invalid"
    return Finding(
        "authentication",
        Verdict.OK if good else Verdict.BAD,
        f"Without a ticket: {without}. With an invented one: {invented}.",
        "" if good else "authentication_required and ticket_invalid were expected.",
    )


async def _silence(patient: Patient, hello: m.Hello) -> Finding:
    if hello.authenticated:
        return Finding("silence", Verdict.UNKNOWN, "Nobody has to say who they are.")
    started = time.monotonic()
    async with talk(patient) as connection:
        await connection.receive(m.Hello)
        refusal = await connection.refusal()
    seconds = time.monotonic() - started
    return Finding(
        "silence",
        Verdict.OK if refusal == "authentication_timeout" else Verdict.BAD,
        f"Who says nothing is cut off after {seconds:.1f} s: {refusal}.",
    )


async def _upload(patient: Patient) -> Finding:
    """Sign in, ping, send a sample, and throw it away."""
    if patient.ticket is None and patient.cookie is None:
        return Finding(
            "upload", Verdict.UNKNOWN, "Not tried: give --ticket or --cookie to have one tried."
        )
    origin = "" if patient.cookie or patient.origin else None
    async with talk(patient, origin=origin, cookie=True) as connection:
        hello = await connection.receive(m.Hello)
        if patient.ticket is not None:
            await connection.send(0, m.Auth(ticket=patient.ticket))
            who = await connection.receive(m.Authenticated)
            if isinstance(who, m.Error):
                return Finding("upload", Verdict.BAD, f"The ticket is refused: {_told(who)}")
        elif isinstance(hello, m.Hello) and not hello.authenticated:
            return Finding("upload", Verdict.BAD, "The cookie is nobody's login.")
        seconds_there_and_back = await round_trip(connection)
        assert isinstance(hello, m.Hello)
        started = time.monotonic()
        refusal = await send_sample(connection, hello)
        seconds = time.monotonic() - started
    if refusal is not None:
        return Finding("upload", Verdict.BAD, f"The sample is refused: {_told(refusal)}")
    return Finding(
        "upload",
        Verdict.OK,
        f"{_size(SAMPLE)} sent, made durable and thrown away in {seconds:.2f} s; a round trip takes "
        f"{1000 * seconds_there_and_back:.1f} ms.",
    )


def _backpressure(server: str) -> Finding:
    known = STOPS_READING.get(server, "uvicorn, Hypercorn and Granian stop, Daphne does not")
    return Finding(
        "backpressure",
        Verdict.UNKNOWN,
        "Whether the server stops reading for a slow app cannot be seen from here: whoever keeps to the "
        f"credit never makes it slow. From measurements: {known}.",
    )


def _heartbeat(hello: m.Hello) -> Finding:
    text = f"Clients say something every {hello.heartbeat:g} s."
    if hello.heartbeat < PROXY_PATIENCE:
        return Finding("heartbeat", Verdict.OK, text)
    return Finding(
        "heartbeat",
        Verdict.WARNING,
        f"{text} A proxy as it is shipped cuts a connection after {PROXY_PATIENCE:g} s of silence.",
        "Lower IDLE_TIMEOUT, or raise proxy_read_timeout.",
    )


def _size(size: int) -> str:
    mebibytes, rest = divmod(size, 1024 * 1024)
    return f"{size / 1024:,g} KiB" if rest else f"{mebibytes} MiB"
