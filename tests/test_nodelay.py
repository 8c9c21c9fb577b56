"""Each ACK leaves at once, whatever socket the server listens on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from django_async_upload.consumers import UploadConsumer
from django_async_upload.nodelay import set_nodelay
from django_async_upload.protocol.frames import SUBPROTOCOL
from django_async_upload.websocket.connection import Connection

pytest_plugins = ["tests.fixtures"]


class Watched:
    """An application that notes what a consumer makes of the socket."""

    def __init__(self) -> None:
        self.nodelay: list[bool] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        sock = receive.__self__.transport.get_extra_info("socket")
        self.nodelay.append(_is_set(sock))
        serving = asyncio.create_task(Connection(UploadConsumer())(scope, receive, send))
        await asyncio.sleep(0)  # the task has begun
        await asyncio.sleep(0)
        self.nodelay.append(_is_set(sock))
        await serving


def _is_set(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@contextlib.asynccontextmanager
async def serving(app: Any, ws: Any, family: socket.AddressFamily) -> AsyncIterator[str]:
    """uvicorn on a socket as ``--workers`` makes it, of protocol 0, or as ``--fd`` does, which calls any AF_UNIX."""
    with (
        socket.socket() as bound,
        socket.fromfd(bound.fileno(), family, socket.SOCK_STREAM) as listening,
    ):
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        port = bound.getsockname()[1]
        config = uvicorn.Config(app, ws=ws, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([listening]))
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield f"ws://127.0.0.1:{port}/"
        finally:
            server.should_exit = True
            await running


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto", "websockets"])
@pytest.mark.filterwarnings("ignore:The `websockets` implementation", "ignore::DeprecationWarning")
async def test_uvicorn_with_a_socket_of_its_parent_sends_at_once(
    ws: str, family: socket.AddressFamily, uploads: Any
) -> None:
    app = Watched()
    async with (
        serving(app, ws, family) as url,
        connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)]),
    ):
        pass
    assert app.nodelay == [False, True]


async def test_what_gives_no_transport_is_left_alone() -> None:
    class Stranger:
        transport = "a tunnel"

        async def receive(self) -> None: ...

    class Unix(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return one

    class Local(asyncio.Protocol):
        transport = Unix()

        async def receive(self) -> None: ...

    one, other = socket.socketpair()
    with one, other:
        for receive in (asyncio.Queue().get, Stranger().receive, Local().receive, lambda: None):
            set_nodelay(receive)


async def test_a_client_that_has_gone_is_no_error() -> None:
    class Closed(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return sock

    class Protocol(asyncio.Protocol):
        transport = Closed()

        async def receive(self) -> None: ...

    sock = socket.socket()
    sock.close()
    set_nodelay(Protocol().receive)
