"""A test client for hosts: an ASGI connection that sends and receives messages of the protocol.

::

    async with UploadCommunicator(application, ticket=issue_ticket(user)) as uploads:
        completed = await uploads.upload("notes.txt", b"hello")

It needs no socket and no server process: the application runs in the event loop of the test.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from http.cookies import SimpleCookie
from typing import Any, NamedTuple, Self, TypeVar

from asgiref.testing import ApplicationCommunicator
from crc32c import crc32c

from ..exceptions import ConnectionLost
from ..protocol import messages as m
from ..protocol.client import SENDS, ClientProtocol, Event
from ..protocol.frames import SUBPROTOCOL, FrameType, build_data, parse_fields, parse_header

M = TypeVar("M", bound=m.Message)


class ServerMessage(NamedTuple):
    """A message from the server and its stream; 0 is the connection itself."""

    stream: int
    message: m.Message


class UploadCommunicator:
    """A connection to a consumer. ``application`` is the host's own, or ``UploadConsumer.as_asgi()``.

    A ``ticket`` is sent as soon as the connection is open. ``cookies`` are those of Django's test client after
    ``client.force_login(user)``; with them the handshake has an ``Origin``, as a browser's.
    Waiting longer than ``timeout`` seconds for a message raises :class:`TimeoutError`.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        path: str = "/ws/uploads/",
        *,
        ticket: str | None = None,
        cookies: SimpleCookie | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
        subprotocols: Iterable[str] = (SUBPROTOCOL,),
        address: str = "127.0.0.1",
        timeout: float = 10.0,
    ) -> None:
        sent = [(b"host", b"testserver"), *headers]
        if cookies is not None:
            cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())
            sent += [(b"cookie", cookie.encode()), (b"origin", b"http://testserver")]
        scope = {
            "type": "websocket",
            "path": path,
            "query_string": b"",
            "headers": sent,
            "subprotocols": list(subprotocols),
            "client": [address, 0],
        }
        # Not Channels' communicator, whose import requires Daphne.
        self.socket: Any = ApplicationCommunicator(application, scope)  # type: ignore[no-untyped-call]
        self.timeout = timeout
        self.hello: m.Hello
        self.close_code: int | None = None
        """The server's close code, once it has closed the connection."""
        self._ticket = ticket
        self._highest = 0

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except BaseException:
            await self.disconnect()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.disconnect()

    async def connect(self) -> m.Hello:
        """Open the connection, wait for HELLO and send the ticket.

        Raises :class:`ConnectionLost` where the handshake is refused, and the error that the server sent instead of
        HELLO.
        """
        await self.socket.send_input({"type": "websocket.connect"})
        answer = await self.socket.receive_output(self.timeout)
        if answer["type"] != "websocket.accept":
            raise ConnectionLost("The handshake was refused.")
        self.hello = await self.wait_for(m.Hello)
        if self._ticket is not None:
            await self.send(m.Auth(self._ticket))
            await self.wait_for(m.Authenticated)
        return self.hello

    async def disconnect(self, code: int = 1000) -> None:
        """Disconnect and wait for the consumer to end; raises what it raised."""
        await self.socket.send_input({"type": "websocket.disconnect", "code": code})
        await self.socket.wait(self.timeout)

    def new_stream(self) -> int:
        """A stream id that was not used on this connection."""
        self._highest += 1
        return self._highest

    async def send(self, message: m.Message, stream: int = 0) -> None:
        self._highest = max(self._highest, stream)
        await self.send_frame(message.to_frame(stream, crc32c))

    async def send_data(
        self, stream: int, offset: int, payload: bytes, *, restart: bool = False
    ) -> None:
        await self.send_frame(build_data(stream, offset, payload, crc32c, restart=restart))

    async def send_frame(self, frame: bytes) -> None:
        """Send one binary message unchanged, even an invalid one."""
        await self.socket.send_input({"type": "websocket.receive", "bytes": frame})

    async def receive(self) -> ServerMessage:
        """Wait for the next message. Raises :class:`ConnectionLost` when the server closes: see :attr:`close_code`."""
        frame = await self._receive_frame()
        header = parse_header(frame)
        return ServerMessage(
            header.stream, m.parse_message(header.type, parse_fields(frame, crc32c))
        )

    async def _receive_frame(self) -> bytes:
        output = await self.socket.receive_output(self.timeout)
        if output["type"] == "websocket.close":
            self.close_code = output.get("code", 1000)
            raise ConnectionLost(f"The server closed with {self.close_code}.")
        frame: bytes = output["bytes"]
        return frame

    async def wait_for(self, kind: type[M], stream: int = 0) -> M:
        """Wait for the next message of a type on a stream, and skip others.

        Raises the error that ends the stream or the connection.
        """
        while True:
            number, message = await self.receive()
            if number == stream and isinstance(message, kind):
                return message
            if number in (0, stream) and isinstance(message, m.Error):
                raise message.to_exception()

    async def receives_nothing(self, seconds: float = 0.1) -> bool:
        """Whether the server sends nothing for that long."""
        return bool(await self.socket.receive_nothing(seconds))

    async def upload(
        self,
        name: str,
        data: bytes,
        *,
        content_type: str = "",
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> m.Completed:
        """Create, send and finish a file. Raises the error that ends the upload.

        With the ``key`` of an earlier upload this resumes it. Run one upload at a time: messages on other
        streams are skipped.
        """
        protocol = ClientProtocol(crc32c, last_stream=self._highest)
        protocol.receive(self.hello.to_frame(0, crc32c))
        create = m.Create(
            key or secrets.token_hex(16),
            name,
            len(data),
            content_type,
            metadata=dict(metadata or {}),
        )
        stream, frame = protocol.send_create(create)
        self._highest = stream
        await self.send_frame(frame)
        while True:
            await self._send_what_may_be_sent(protocol, stream, data)
            event = protocol.receive(await self._receive_frame())
            for reply in protocol.replies():
                await self.send_frame(reply)
            match event:
                case Event(message=m.Completed() as completed):
                    return completed
                case Event(message=m.Error() as error):
                    raise error.to_exception()
                case Event(message=m.Attached() as attached):
                    durable = crc32c(data[: attached.durable])
                    received = crc32c(data[: attached.received])
                    proof = protocol.send_proof(stream, f"{durable:08x}", f"{received:08x}")
                    await self.send_frame(proof)

    async def _send_what_may_be_sent(
        self, protocol: ClientProtocol, number: int, data: bytes
    ) -> None:
        """Send as much as the credit allows, and FINISH behind the last byte."""
        stream = protocol.streams[number]
        while size := min(protocol.credit(number), stream.chunk, len(data) - stream.sent):
            payload = data[stream.sent : stream.sent + size]
            await self.send_frame(protocol.send_data(number, payload) + payload)
        if stream.sent == len(data) and FrameType.FINISH in SENDS[stream.state]:
            finish = m.Finish(len(data), f"{crc32c(data):08x}")
            await self.send_frame(protocol.send_finish(number, finish))
