"""Two of the peers: a socket-to-file sink, and tuspyserver. (The others: ``site`` and ``tus_server.mjs``.)

``BENCH_SYNC`` is the number of bytes after which a peer makes what it wrote durable; 0 is never. ``BENCH_HOST`` is the
address at which the sink listens.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from django_async_upload.stores.disk import reserve

if TYPE_CHECKING:
    from fastapi import FastAPI

SYNC = int(os.environ.get("BENCH_SYNC", "0"))


def sink(port: int, directory: str, *, reserves: bool) -> None:
    """What plain Python can do: ``recv_into`` and ``os.write``, no framing, no check.

    ``reserves``: it asks the disk for the file's room first, as the app's store does.
    """
    server = socket.create_server((os.environ.get("BENCH_HOST", "127.0.0.1"), port))
    buffer = memoryview(bytearray(1 << 20))
    number = 0
    while True:
        connection, _ = server.accept()
        with connection:
            head = connection.recv(8, socket.MSG_WAITALL)
            if len(head) < 8:
                continue
            number += 1
            name = f"{number}.bin"
            size = struct.unpack("!Q", head)[0]
            _receive(connection, size, buffer, f"{directory}/{name}", reserves=reserves)
            connection.sendall(name.encode())


def _receive(
    connection: socket.socket, size: int, buffer: memoryview, path: str, *, reserves: bool
) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if reserves:
            reserve(file, size)
        unsynced = 0
        while size:
            got = connection.recv_into(buffer)
            if not got:
                return
            written = 0
            while written < got:
                written += os.write(file, buffer[written:got])
            size -= got
            unsynced += got
            if SYNC and (unsynced >= SYNC or not size):
                os.fdatasync(file)
                unsynced = 0
    finally:
        os.close(file)


def tus() -> FastAPI:
    """The ASGI application of tuspyserver, its files in ``BENCH_DIRECTORY``."""
    from fastapi import FastAPI
    from tuspyserver import create_tus_router

    directory = os.environ["BENCH_DIRECTORY"]
    app = FastAPI()
    app.include_router(create_tus_router(prefix="files", files_dir=directory))
    if SYNC:
        app.add_middleware(SyncedPatches, directory=directory)
    return app


class SyncedPatches:
    """Answers a PATCH when what it wrote is durable: the library's own file store never syncs."""

    def __init__(self, app: Any, directory: str) -> None:
        self.app = app
        self.directory = directory

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import anyio

        async def send_synced(event: Any) -> None:
            if event["type"] == "http.response.start":
                name = os.path.basename(scope["path"])
                await anyio.to_thread.run_sync(_sync, f"{self.directory}/{name}")
            await send(event)

        patch = scope["type"] == "http" and scope["method"] == "PATCH"
        await self.app(scope, receive, send_synced if patch else send)


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(file)
    finally:
        os.close(file)


if __name__ == "__main__":
    sink(int(sys.argv[1]), sys.argv[2], reserves="reserve" in sys.argv[3:])
