"""Requests over HTTP/1.1: a few connections to one server, which are used again.

``h11`` reads and writes the protocol. The answer is read while the body is sent, so that a server that refuses a body
need not receive it.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import h11

from ..exceptions import ConnectionLost, ConnectionRefused
from .transport import Target

_CONNECTIONS: Final = 6
"""As many as browsers open to a server."""
_IDLE_SECONDS: Final = 3.0
"""Seconds after which an idle connection is not used again: servers close theirs after 5 s or more."""
_MAX_ANSWER: Final = 4 * 1024 * 1024
_READ: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A final response."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case."""
    content: bytes
    is_early: bool
    """Whether it came before the body was sent as a whole."""


@dataclass(frozen=True, slots=True)
class Content:
    """The body of a request."""

    length: int
    blocks: AsyncIterator[bytes]
    """``length`` bytes in all."""


class HttpServer:
    """The server of an ``http://`` or ``https://`` URL; :class:`ValueError` for others. Six requests run at a time."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{target.url} is not an http:// or https:// URL")
        self.path = parts.path or "/"
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._target = target
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._idle: list[tuple[float, _Connection]] = []

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: Content | None = None,
        *,
        stall: float,
    ) -> Answer:
        """Send a request and return its answer. If this is cancelled, the connection is dropped.

        ``stall`` is the number of seconds after which the request fails if nothing is sent or received.
        Raises :class:`ConnectionLost`, :class:`ConnectionRefused`, and what reading ``content`` raises.
        """
        async with self._slots:
            connection = self._take_idle() or await self._connect()
            lines = [("Host", self._authority), *self._target.headers.items(), *headers.items()]
            if content is not None:
                lines.append(("Content-Length", str(content.length)))
            try:
                answer = await connection.exchange(method, path, lines, content, stall)
            except BaseException:
                connection.abort()
                raise
            if connection.is_reusable:
                self._idle.append((asyncio.get_running_loop().time(), connection))
            else:
                connection.abort()
            return answer

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop()[1].abort()

    def _take_idle(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            since, connection = self._idle.pop()
            if now - since < _IDLE_SECONDS and connection.is_open:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        context = (self._target.ssl or tls.create_default_context()) if self._secure else None
        try:
            async with asyncio.timeout(self._target.timeout):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=context, happy_eyeballs_delay=0.25
                )
        except tls.SSLCertVerificationError as error:
            raise ConnectionRefused(
                f"{self._host} is not trusted: {error.verify_message}"
            ) from error
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"no answer within {self._target.timeout:g} s"
            raise ConnectionLost(
                f"{self._host}:{self._port} cannot be reached: {reason}"
            ) from error
        return _Connection(reader, writer)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.CLIENT)
        self._moved = asyncio.get_running_loop().time()
        """When something was last sent or received."""

    @property
    def is_open(self) -> bool:
        return not self._reader.at_eof() and not self._writer.is_closing()

    @property
    def is_reusable(self) -> bool:
        return self._h11.our_state is h11.IDLE and self.is_open

    def abort(self) -> None:
        self._writer.transport.abort()

    async def exchange(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        content: Content | None,
        stall: float,
    ) -> Answer:
        self._moved = asyncio.get_running_loop().time()
        reading = asyncio.create_task(self._read())
        sending = asyncio.create_task(self._send(method, path, headers, content))
        try:
            while not reading.done():
                left = self._moved + stall - asyncio.get_running_loop().time()
                if left <= 0:
                    raise ConnectionLost(f"The server did not answer for {stall:.0f} s.")
                waiting = {reading} if sending.done() else {reading, sending}
                await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and (error := sending.exception()) is not None:
                    if not isinstance(error, OSError):
                        raise error
                    # The server closed the connection: it may have said why.
                    await asyncio.wait({reading}, timeout=1.0)
                    if not reading.done() or reading.exception() is not None:
                        raise ConnectionLost(f"The connection was lost: {error}") from error
            response, data = reading.result()
            names = {name.decode(): value.decode("latin-1") for name, value in response.headers}
            is_early = not sending.done() or sending.exception() is not None
            if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
                self._h11.start_next_cycle()
            return Answer(response.status_code, names, data, is_early)
        finally:
            for task in (reading, sending):
                task.cancel()
            await asyncio.wait({reading, sending})
            for task in (reading, sending):
                if not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not log it

    async def _send(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        content: Content | None,
    ) -> None:
        await self._write(h11.Request(method=method, target=path, headers=list(headers)))
        if content is not None:
            async for block in content.blocks:
                await self._write(h11.Data(data=block))
        await self._write(h11.EndOfMessage())

    async def _write(self, event: h11.Event) -> None:
        for piece in self._h11.send_with_data_passthrough(event) or ():
            self._writer.write(piece)
        await self._writer.drain()
        self._moved = asyncio.get_running_loop().time()

    async def _read(self) -> tuple[h11.Response, bytes]:
        response: h11.Response | None = None
        data = bytearray()
        try:
            while True:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    received = await self._reader.read(_READ)
                    self._moved = asyncio.get_running_loop().time()
                    if not received and self._h11.their_state is h11.SEND_RESPONSE:
                        raise ConnectionLost
                    self._h11.receive_data(received)
                elif isinstance(event, h11.Response):
                    response = event
                elif isinstance(event, h11.Data):
                    data += event.data
                    if len(data) > _MAX_ANSWER:
                        raise ConnectionRefused("The server's answer is too long.")
                elif isinstance(event, h11.EndOfMessage):
                    assert response is not None
                    return response, bytes(data)
        except h11.RemoteProtocolError as error:
            raise ConnectionLost(f"The server's answer is not valid: {error}.") from error
        except OSError as error:
            raise ConnectionLost(f"The connection was lost: {error}") from error
