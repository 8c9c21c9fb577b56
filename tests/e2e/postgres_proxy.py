"""A proxy for PostgreSQL that delays, and that cuts a connection before the answer to its COMMIT.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from .forwarder import Forwarder

COMMITTED = b"COMMIT\0"
"""The tag in the CommandComplete that answers a COMMIT."""


class PostgresProxy(Forwarder):
    """Connect without TLS."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.delay = 0.0
        """Seconds from a request to its answer, in addition."""
        self.cut_every = 0
        """Cut every so many answers to a COMMIT; 0: none."""
        self.commits = 0
        self.cuts = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await self._connect(writer)
        if upstream is not None:
            up_reader, up_writer = upstream
            self._track(self._ask(reader, up_writer))
            self._track(self._answer(up_reader, up_writer, writer))

    async def _ask(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                server.write(data)
                await server.drain()
        server.close()

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        async for message in _messages(reader):
            if message[:1] == b"C" and message[5:] == COMMITTED and self._is_to_be_cut():
                server.transport.abort()
                client.transport.abort()
                return
            client.write(message)
        client.close()

    def _is_to_be_cut(self) -> bool:
        self.commits += 1
        if not self.cut_every or self.commits % self.cut_every:
            return False
        self.cuts += 1
        return True


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The server's messages: a type, the length of the rest, the rest."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            head = await reader.readexactly(5)
            yield head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
