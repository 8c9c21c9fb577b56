"""A TCP balancer: each new connection goes to the next server whose health view answers 200.

Servers see each connection come from another address, as those of people do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import urllib.request
from collections.abc import Sequence
from typing import Self

from .servers import Server, free_port

PROBE_SECONDS = 0.25
READ = 16 * 1024


class Balancer:
    """A context manager that runs it in a thread. ``rate`` limits each connection, bytes per second."""

    def __init__(self, servers: Sequence[Server], *, rate: float) -> None:
        self.port = free_port()
        self._rate = rate
        self._ready = {server.port: False for server in servers}
        self._turns = itertools.cycle(self._ready)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._over = threading.Event()
        self._addresses = itertools.cycle(
            f"127.1.{net}.{host}" for net in range(4) for host in range(1, 251)
        )
        self._probes = [
            threading.Thread(target=self._probe, args=(each,), daemon=True) for each in self._ready
        ]

    def __enter__(self) -> Self:
        self._main = self._loop.create_task(self._serve())
        for thread in (self._thread, *self._probes):
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._loop.call_soon_threadsafe(self._main.cancel)
        for thread in (self._thread, *self._probes):
            thread.join(15)

    def is_ready(self, server: Server) -> bool:
        return self._ready[server.port]

    def _probe(self, port: int) -> None:
        while not self._over.wait(PROBE_SECONDS):
            ready = False
            url = f"http://127.0.0.1:{port}/healthz/"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                ready = answer.status == 200
            self._ready[port] = ready

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._join, "127.0.0.1", self.port, limit=READ)
        async with server:
            await server.serve_forever()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = itertools.islice(self._turns, len(self._ready))
        for port in [port for port in ports if self._ready[port]]:
            with contextlib.suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(next(self._addresses), 0)
                )
                await asyncio.gather(
                    self._pump(reader, server_writer, self._rate),
                    self._pump(server_reader, writer, None),
                )
                return
        writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ):
                writer.write(data)
                await writer.drain()
                if rate:
                    await asyncio.sleep(len(data) / rate)
        writer.close()
