"""The seam between the client and the network: a wire, which carries whole binary messages.

:func:`connect` opens a WebSocket. The ``websockets`` library's sans-I/O protocol handles the handshake and received
data; this module frames and masks outgoing messages in worker threads, since masking is most of the cost of sending.
"""

from __future__ import annotations

import abc
import asyncio
import os
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from websockets.client import ClientProtocol as WebSocketProtocol
from websockets.exceptions import InvalidMessage, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.typing import Origin, Subprotocol
from websockets.uri import WebSocketURI, parse_uri

from ..exceptions import (
    ConnectionLost,
    ConnectionRefused,
    MalformedFrame,
    SubprotocolRequired,
    UploadError,
)
from ..protocol.frames import MAX_FRAME, SUBPROTOCOL

try:
    from websockets.speedups import apply_mask
except ImportError:  # no C extension for this platform
    from websockets.utils import apply_mask

Buffer = bytes | bytearray | memoryview

ABNORMAL: Final = 1006
"""The close code of a connection that ended without a Close frame (RFC 6455, section 7.1.5)."""

_HIGH_WATER: Final = 512 * 1024
_JOINED: Final = 64 * 1024
"""Bytes up to which buffers are joined into one write; larger ones are not copied again."""
_CLOSE_TIMEOUT: Final = 2.0
TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Target:
    """The URL to connect to, and the credentials."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    ssl: ssl.SSLContext | None = None
    timeout: float = 10.0
    """Seconds for TCP, TLS and the WebSocket handshake together."""


class WireListener(Protocol):
    """Callbacks for the user of a wire. The event loop calls them."""

    def message_received(self, message: bytes) -> None: ...

    def wire_writable(self) -> None:
        """The wire is no longer congested."""

    def wire_lost(self, code: int, error: UploadError | None) -> None:
        """The connection ended; called once, last. ``error`` is set where the server's bytes were invalid."""


class Wire(abc.ABC):
    """An open connection for binary messages."""

    congested: bool = False
    """Whether more is queued than the network accepts: write no DATA until :meth:`WireListener.wire_writable`."""

    @abc.abstractmethod
    def encode(self, header: bytes, payload: Buffer) -> list[bytes]:
        """Encode one message for :meth:`write`; ``payload`` may be reused afterwards. Thread-safe."""

    @abc.abstractmethod
    def write(self, pieces: Sequence[bytes]) -> None:
        """Queue encoded messages; never blocks. Does nothing when the wire is lost."""

    @abc.abstractmethod
    def close(self, code: int) -> None:
        """Send queued messages and start the closing handshake. :meth:`WireListener.wire_lost` follows."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Drop the connection at once; :meth:`WireListener.wire_lost` follows."""


Connect = Callable[[Target, WireListener], Awaitable[Wire]]
"""Opens a wire. Raises :class:`ConnectionLost` where a retry may succeed, else another error."""


async def connect(target: Target, listener: WireListener) -> Wire:
    """Open a WebSocket, ``ws://`` or ``wss://``. No extension is offered, since compression costs most of
    the speed. The Origin is the server's own, which passes every origin check.

    Raises :class:`ConnectionLost`, :class:`ConnectionRefused`, :class:`SubprotocolRequired`, and
    :class:`ValueError` for an invalid URL.
    """
    try:
        uri = parse_uri(target.url)
    except Exception as error:
        raise ValueError(f"{target.url} is not a ws:// or wss:// URL: {error}") from error
    context = (target.ssl or ssl.create_default_context()) if uri.secure else None
    loop = asyncio.get_running_loop()
    wire = WebSocketWire(uri, target.headers, listener, loop)
    try:
        async with asyncio.timeout(target.timeout):
            await loop.create_connection(
                lambda: wire, uri.host, uri.port, ssl=context, happy_eyeballs_delay=0.25
            )
            await wire.opened
    except ssl.SSLCertVerificationError as error:
        raise ConnectionRefused(f"{uri.host} is not trusted: {error.verify_message}") from error
    except (OSError, TimeoutError) as error:
        wire.abort()
        reason = str(error) or f"no answer within {target.timeout:g} s"
        raise ConnectionLost(f"{uri.host}:{uri.port} cannot be reached: {reason}") from error
    except BaseException:
        wire.abort()
        raise
    return wire


def origin_of(uri: WebSocketURI) -> str:
    """The origin of the server's own pages (RFC 6454, section 6.2)."""
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    scheme, port = ("https", 443) if uri.secure else ("http", 80)
    return f"{scheme}://{host}" if uri.port == port else f"{scheme}://{host}:{uri.port}"


class WebSocketWire(Wire, asyncio.Protocol):
    """RFC 6455 over an asyncio transport. Created by :func:`connect`."""

    def __init__(
        self,
        uri: WebSocketURI,
        headers: Mapping[str, str],
        listener: WireListener,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.opened: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._listener = listener
        self._headers = headers
        self._origin = origin_of(uri)
        self._websocket = WebSocketProtocol(
            uri,
            origin=Origin(self._origin),
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            max_size=MAX_FRAME,
        )
        self._transport: asyncio.Transport | None = None
        self._fragments: list[bytes] = []
        self._queue: list[bytes] = []
        self._error: UploadError | None = None

    # Wire -----------------------------------------------------------------------------------------

    def encode(self, header: bytes, payload: Buffer) -> list[bytes]:
        # The key is new for each message and unpredictable: RFC 6455, section 5.3. The header's length is a
        # multiple of four, so the payload starts with the first byte of the key again.
        key = os.urandom(4)
        size = len(header) + len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x82, 0x80 | size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x82, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x82, 0x80 | 127, size)
        head += key + apply_mask(header, key)
        return [head, apply_mask(payload, key)] if payload else [head]

    def write(self, pieces: Sequence[bytes]) -> None:
        if not self._queue:
            self._loop.call_soon(self._flush)
        self._queue += pieces

    def close(self, code: int) -> None:
        self._flush()
        if self._websocket.state is OPEN:
            self._websocket.send_close(code)
            self._write_protocol()
            self._loop.call_later(_CLOSE_TIMEOUT, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        pieces, self._queue = self._queue, []
        if self._transport is None or self._transport.is_closing():
            return
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) < _JOINED:
                small.append(piece)
                continue
            if small:
                self._transport.write(b"".join(small))
                small.clear()
            self._transport.write(piece)
        if small:
            self._transport.write(b"".join(small))

    # asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        request = self._websocket.connect()
        request.headers.update(self._headers)
        self._websocket.send_request(request)
        self._write_protocol()

    def data_received(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        self._take_events()
        self._write_protocol()
        if self._websocket.close_expected():
            self._loop.call_later(_CLOSE_TIMEOUT, self.abort)

    def eof_received(self) -> None:
        self._websocket.receive_eof()
        self._write_protocol()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        self._listener.wire_writable()

    def connection_lost(self, error: Exception | None) -> None:
        self._websocket.receive_eof()
        self._transport = None
        if not self.opened.done():
            self.opened.set_exception(self._handshake_error(self._websocket.handshake_exc))
            self.opened.exception()  # connect() may have timed out before
            return
        code = self._websocket.close_code
        self._listener.wire_lost(ABNORMAL if code is None else code, self._error)

    def _take_events(self) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Response):
                if self._websocket.handshake_exc is None:
                    self._take_handshake()
            elif isinstance(event, Frame):
                self._take_frame(event)

    def _take_handshake(self) -> None:
        if self.opened.done():  # connect() timed out
            self.abort()
        elif self._websocket.subprotocol != SUBPROTOCOL:
            self.opened.set_exception(SubprotocolRequired(subprotocol=SUBPROTOCOL))
        else:
            self.opened.set_result(None)

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT:
            self._error = MalformedFrame(reason="a text message")
            self.close(4400)
        elif frame.opcode in (Opcode.BINARY, Opcode.CONT) and self._error is None:
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                message = b"".join(self._fragments)
                self._fragments.clear()
                self._listener.message_received(message)

    def _write_protocol(self) -> None:
        for piece in self._websocket.data_to_send():
            if self._transport is None or self._transport.is_closing():
                return
            if piece:
                self._transport.write(piece)
            else:
                self._transport.close()

    def _handshake_error(self, error: Exception | None) -> UploadError:
        match error:
            case InvalidStatus(response=response):
                status = response.status_code
                if status in TRY_AGAIN:
                    return ConnectionLost(f"The server answered HTTP {status}.", status=status)
                if status == 403:
                    return ConnectionRefused(
                        f"The server refused the handshake (HTTP 403): it does not trust the origin "
                        f"{self._origin}, or there is no upload target at this URL.",
                        status=status,
                    )
                return ConnectionRefused(f"The server answered HTTP {status}.", status=status)
            case InvalidMessage(__cause__=EOFError()) | None:
                return ConnectionLost("The connection was lost during the handshake.")
        return ConnectionRefused(f"This is not an upload server: {error}.")
