"""Following uploads on a connection: WATCH, and again after each loss of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

from ..exceptions import Draining, NotFound
from ..protocol import messages
from ..protocol.client import SENDS, ClientProtocol
from ..protocol.frames import FrameType
from ..protocol.messages import Message, Status
from .connection import ClientConnection
from .source import Cut

ENDED: Final = frozenset({"completed", "bound", "failed", "cancelled", "expired"})
"""States from which an upload does not go on."""


class Watcher:
    """What the server has told of uploads, and the program has not taken: the newest of each.

    :meth:`run` watches on one connection; after it was lost, run it on the next one.
    """

    def __init__(self, scope: str, uploads: Sequence[str]) -> None:
        self._scope = scope
        self._under_way = dict.fromkeys(uploads)
        """Those named that are not over, and of a wider scope those that were told of."""
        self._news: dict[str, Status] = {}
        self._changed = asyncio.Event()
        self._error: messages.Error | None = None
        self._stream: int | None = None
        self.was_heard = False
        """Whether the server has told something; the program sets it back."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can come any more: each upload that was named has ended."""
        is_told = not self._news and self._error is None
        return self._scope == "uploads" and not self._under_way and is_told

    def take(self) -> Status | None:
        """The standing that waits longest; None where there is none."""
        upload = next(iter(self._news), None)
        return None if upload is None else self._news.pop(upload)

    async def run(self, connection: ClientConnection) -> None:
        """Watch until there is something to :meth:`take`, or all is over; returns then, and can be called again.

        Raises the error that ended the stream or the connection, and :class:`NotFound` for an upload that was named.
        """
        while not self._news and not self.is_over:
            if self._error is not None:
                error, self._error = self._error.to_exception(), None
                raise error
            if connection.error is not None:
                raise connection.error
            self._changed.clear()
            if self._stream is None:
                if not connection.usable:
                    raise Draining
                self._stream = connection.open_stream(
                    self, partial(self._send, connection.protocol)
                )
            await self._changed.wait()

    def _send(self, protocol: ClientProtocol) -> tuple[int, bytes]:
        return protocol.send_watch(self._scope, list(self._under_way)[: messages.MAX_WATCHED])

    def leave(self, connection: ClientConnection) -> None:
        """Stop watching on this connection."""
        stream = connection.protocol.streams.get(self._stream or 0)
        if stream is not None and connection.error is None:
            if FrameType.RELEASE in SENDS[stream.state]:
                connection.send(connection.protocol.send_release(stream.id))
            connection.remove_listener(stream.id)
        self._stream = None

    # For the connection ---------------------------------------------------------------------------

    def message_received(self, message: Message) -> None:
        match message:
            case messages.Error():
                self._error = message
            case messages.Changed():
                self.was_heard = True
                self._hear(message)
        self.wake()

    def _hear(self, changed: messages.Changed) -> None:
        for fields in changed.standings:
            status = Status.from_fields(fields)
            if status.state in ENDED:
                self._under_way.pop(status.upload, None)
            elif self._scope != "uploads":
                self._under_way[status.upload] = None
            self._news[status.upload] = status
        for upload in changed.missing:
            if upload in self._under_way and self._scope == "uploads":
                missing = NotFound()
                self._error = messages.Error(missing.code, missing.message, missing.retryable)
            self._under_way.pop(upload, None)

    def cut_sent(self, cut: Cut) -> None:
        raise AssertionError("a watcher has no data")

    def wake(self) -> None:
        self._changed.set()
