"""A proxy for PostgreSQL that delays, and that cuts a connection before the answer to its COMMIT.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Self

COMMITTED = b"COMMIT\0"
"""The tag in the CommandComplete that answers a COMMIT."""


class PostgresProxy:
    """Connect to :attr:`port`, without TLS; it forwards to ``upstream``. Use as a context manager."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.delay = 0.0
        """Seconds from a request to its answer, in addition."""
        self.cut_every = 0
        """Cut every so many answers to a COMMIT; 0: none."""
        self.commits = 0
        self.cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        for work in (self._ask(reader, up_writer), self._answer(up_reader, up_writer, writer)):
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

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
