"""TCP_NODELAY of a connection, without which each ACK waits until the client's TCP has acknowledged the last one."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any


def set_nodelay(receive: Any) -> None:
    """Set TCP_NODELAY on the socket of a connection, where the server's transport can be reached.

    asyncio sets it, but not on connections to a listening socket whose protocol is 0, as ``uvicorn --workers`` and
    ``--fd`` have (https://github.com/Kludex/uvicorn/issues/3149). ASGI gives an application no transport; uvicorn's
    ``receive`` is a method of the asyncio protocol that has it. Elsewhere, and behind a middleware that replaces
    ``receive``, this does nothing.
    """
    protocol = getattr(receive, "__self__", None)
    transport = getattr(protocol, "transport", None)
    if not (isinstance(protocol, asyncio.Protocol) and isinstance(transport, asyncio.Transport)):
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):  # a Unix socket, or the client has gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
