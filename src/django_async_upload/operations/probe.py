"""Connections of the doctor, which speak the protocol and report how they ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from crc32c import crc32c
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from ..protocol import messages as m
from ..protocol.client import ClientProtocol
from ..protocol.frames import SUBPROTOCOL

TIMEOUT: Final = 10.0
"""Seconds to wait for a handshake, and for an answer."""
SAMPLE: Final = 1024 * 1024
"""Bytes of the sample, an upload that is created and cancelled."""
CHUNK: Final = 64 * 1024
PINGS: Final = 5


@dataclass(frozen=True, slots=True)
class Target:
    """The server to examine, and the credentials."""

    url: str
    ticket: str | None = None
    cookie: str | None = None
    """A Cookie header, ``sessionid=...``."""
    origin: str | None = None
    """The origin of the pages that upload; None: the server's own."""

    @property
    def pages(self) -> str:
        """The origin that connections send."""
        parts = urlsplit(self.url)
        return self.origin or f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"


class ProbeConnection:
    """A connection that speaks the protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.protocol = ClientProtocol(crc32c)
        response = connection.response
        name = response.headers.get("Server", "") if response else ""
        self.server = name.partition("/")[0].partition("-")[0].lower()
        """The first word of the Server header: ``uvicorn``, ``nginx``, ... or nothing."""

    @property
    def peer(self) -> str:
        """The peer's address: the server's, or its proxy's."""
        return str(self.connection.remote_address[0])

    @property
    def compresses(self) -> bool:
        return bool(self.connection.protocol.extensions)

    async def send(self, frame: bytes) -> None:
        await self.connection.send(frame)

    async def receive(self, *kinds: type[m.Message]) -> m.Message:
        """Wait for the next message of one of ``kinds``, or an ERROR, and skip others.

        Raises ConnectionClosed, TimeoutError and :class:`ProtocolViolation`.
        """
        async with asyncio.timeout(TIMEOUT):
            while True:
                event = self.protocol.receive(await self.connection.recv(decode=False))
                for reply in self.protocol.replies():
                    await self.send(reply)
                if event is not None and isinstance(event.message, (*kinds, m.Error)):
                    return event.message

    async def refusal(self) -> str:
        """Wait for an ERROR or the end of the connection; returns the error's code, else the close code."""
        try:
            last = await self.receive()
        except ConnectionClosed as closed:
            return f"close code {closed.rcvd.code if closed.rcvd else 1006}"
        assert isinstance(last, m.Error)
        return last.code


@asynccontextmanager
async def open_connection(
    target: Target,
    *,
    origin: str | None = "",
    cookie: bool = False,
    subprotocol: str | None = SUBPROTOCOL,
) -> AsyncIterator[ProbeConnection]:
    """Connect, and offer permessage-deflate as browsers do. ``origin`` None sends none."""
    async with connect(
        target.url,
        origin=None if origin is None else Origin(origin or target.pages),
        subprotocols=[Subprotocol(subprotocol)] if subprotocol else None,
        additional_headers={"Cookie": target.cookie} if cookie and target.cookie else None,
        open_timeout=TIMEOUT,
        close_timeout=1,
    ) as connection:
        yield ProbeConnection(connection)


async def round_trip(connection: ProbeConnection) -> float:
    """Measure a round trip: the median of several, seconds."""
    times = []
    for nonce in range(PINGS):
        started = time.monotonic()
        await connection.send(connection.protocol.send_ping(nonce))
        await connection.receive(m.Pong)
        times.append(time.monotonic() - started)
    return statistics.median(times)


async def send_sample(
    connection: ProbeConnection, look: Callable[[str], Awaitable[None]] | None = None
) -> m.Error | None:
    """Send the sample, wait until it is durable, and cancel it; returns the ERROR if the server sends one.

    ``look`` is called with the upload's id while it is durable.
    """
    protocol, sample = connection.protocol, os.urandom(SAMPLE)
    create = m.Create(key=secrets.token_hex(16), name="upload-doctor.bin", size=SAMPLE)
    stream_id, frame = protocol.send_create(create)
    await connection.send(frame)
    stream = protocol.streams[stream_id]
    upload = ""
    while stream.durable < SAMPLE:
        while size := min(CHUNK, protocol.credit(stream_id), SAMPLE - stream.sent):
            payload = sample[stream.sent : stream.sent + size]
            await connection.send(protocol.send_data(stream_id, payload) + payload)
        answer = await connection.receive(m.Created, m.Ack, m.Rewind, m.Limit)
        if isinstance(answer, m.Error):
            return answer
        if isinstance(answer, m.Created):
            upload = answer.upload
    if look is not None:
        await look(upload)
    await connection.send(protocol.send_cancel(stream_id))
    answer = await connection.receive(m.Cancelled)
    return answer if isinstance(answer, m.Error) else None
