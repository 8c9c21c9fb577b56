"""What clients were told: the part of the story that no crash of a server can change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from crc32c import crc32c

from django_async_upload.client import transport
from django_async_upload.client.transport import Target, Wire, WireListener
from django_async_upload.exceptions import UploadError
from django_async_upload.protocol import frames, messages


@dataclass
class Told:
    """What clients were told of one upload."""

    name: str
    durable: int = 0
    """The most bytes that were acknowledged as durable."""
    completed: messages.Completed | None = None
    is_cancelled: bool = False


class Witness:
    """Listens to every connection of the package's client: pass :meth:`connect` to it."""

    def __init__(self, find_port: Callable[[], Awaitable[int]]) -> None:
        """``find_port`` returns the port of a server that runs, whatever the client's URL says."""
        self.find_port = find_port
        self.told: dict[str, Told] = {}
        """By the upload's id."""
        self.contradictions: list[str] = []
        """What a server said although an earlier message had said otherwise."""

    async def connect(self, target: Target, listener: WireListener) -> Wire:
        port = await self.find_port()
        url = f"ws://127.0.0.1:{port}{urlsplit(target.url).path}"
        return await transport.connect(replace(target, url=url), _Ear(self, listener))

    def begun(self, upload: str, name: str) -> Told:
        return self.told.setdefault(upload, Told(name))

    def kept(self, upload: str, durable: int, *, at_least: bool = False) -> None:
        """A message said how many bytes are durable; with ``at_least`` it must not be less than an earlier one."""
        told = self.told[upload]
        if at_least and durable < told.durable:
            self.contradictions.append(
                f"{told.name}: durable fell from {told.durable} to {durable}"
            )
        told.durable = max(told.durable, durable)

    def ended(self, answer: messages.Completed) -> None:
        told = self.begun(answer.upload, answer.name)
        first = told.completed = told.completed or answer
        same = (first.stored_as, first.crc32c, first.size)
        if (answer.stored_as, answer.crc32c, answer.size) != same:
            self.contradictions.append(f"{told.name}: completed as {first} and as {answer}")


@dataclass
class _Ear:
    """A listener of one wire that passes everything on."""

    witness: Witness
    listener: WireListener
    _uploads: dict[int, str] = field(default_factory=dict)
    """Stream -> upload."""

    def message_received(self, message: bytes) -> None:
        header = frames.parse_header(message)
        parsed = messages.parse_message(header.type, frames.parse_fields(message, crc32c))
        self._hear(header.stream, parsed)
        self.listener.message_received(message)

    def wire_writable(self) -> None:
        self.listener.wire_writable()

    def wire_lost(self, code: int, error: UploadError | None) -> None:
        self.listener.wire_lost(code, error)

    def _hear(self, stream: int, message: messages.Message) -> None:
        witness, upload = self.witness, self._uploads.get(stream)
        match message:
            case messages.Created():
                self._uploads[stream] = message.upload
                witness.begun(message.upload, message.name)
            case messages.Attached():
                self._uploads[stream] = message.upload
                witness.begun(message.upload, message.name)
                witness.kept(message.upload, message.durable, at_least=True)
            case messages.Released() if upload is None:
                pass  # the end of a WATCH
            case messages.Ack() | messages.Ready() | messages.Rewind() | messages.Released():
                assert upload is not None
                witness.kept(upload, message.durable, at_least=True)
            case messages.Completed():
                witness.ended(message)
            case messages.Cancelled():
                if message.upload in witness.told:
                    witness.told[message.upload].is_cancelled = True
            case messages.Error(code=code) if upload is not None and code == "data_lost":
                witness.contradictions.append(f"{witness.told[upload].name}: data_lost")
