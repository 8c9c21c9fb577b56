"""The body of a request, as it comes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from ..exceptions import ContentMismatch, IdleTimeout, MalformedRequest, UploadError
from .checksums import ALGORITHMS
from .requests import Checksum

MAX_CHECKED: Final = 64 * 1024 * 1024
"""The longest body that may have a checksum of its own, bytes: it is written only once it has proved right."""
IN_MEMORY: Final = 256 * 1024
"""Bytes of it that are kept in memory; more are in a temporary file."""
SLICE: Final = 256 * 1024

Receive = Callable[[], Awaitable[dict[str, Any]]]


class CutOff(Exception):
    """The client has gone before the end of its body."""


class Body:
    """Reads a body. Nothing is read while no one asks, so the client feels how fast its bytes are written."""

    def __init__(self, receive: Receive, length: int | None, idle_seconds: float) -> None:
        """``length`` is what the request declares, bytes; None where it is sent in chunks."""
        self.length = length
        self.received = 0
        """Bytes so far."""
        self.has_ended = False
        """Whether the last byte was received, or the client has gone."""
        self._receive = receive
        self._idle_seconds = idle_seconds
        self._timeout: asyncio.Timeout | None = None
        self._error: UploadError | None = None

    def stop(self, error: UploadError) -> None:
        """Have :meth:`pieces` raise ``error``, even while it waits for the client."""
        self._error = error
        if self._timeout is not None:
            self._timeout.reschedule(0)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body, in the pieces that the server makes of it. Raises :class:`CutOff`, :class:`IdleTimeout`."""
        while True:
            message = await self._next()
            if message["type"] == "http.disconnect":
                self.has_ended = True
                raise CutOff
            self.has_ended = not message.get("more_body")
            if data := message.get("body"):
                self.received += len(data)
                yield data
            if self.has_ended:
                return

    async def discard(self, seconds: float) -> None:
        """Read the rest for ``seconds`` seconds at most, and discard it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.has_ended:
                    message = await self._receive()
                    self.has_ended = not message.get("more_body")

    async def _next(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(self._idle_seconds) as self._timeout:
                return await self._receive()
        except TimeoutError:
            raise self._error or IdleTimeout(seconds=self._idle_seconds) from None
        finally:
            self._timeout = None

    async def checked(self, checksum: Checksum) -> AsyncGenerator[bytes]:
        """The body, once it was received as a whole and has this checksum. Raises :class:`ContentMismatch`."""
        if self.length is not None and self.length > MAX_CHECKED:
            self._refuse_long()
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
            running = ALGORITHMS[checksum.algorithm]()
            async for data in self.pieces():
                if self.received > MAX_CHECKED:
                    self._refuse_long()
                if self.received <= IN_MEMORY:
                    file.write(data)
                else:
                    await asyncio.to_thread(file.write, data)
                running.update(data)
            if running.digest() != checksum.digest:
                raise ContentMismatch(algorithm=checksum.algorithm)
            file.seek(0)
            while data := await asyncio.to_thread(file.read, SLICE):
                yield data

    def _refuse_long(self) -> None:
        raise MalformedRequest(reason=f"a body with a checksum has at most {MAX_CHECKED} bytes")
