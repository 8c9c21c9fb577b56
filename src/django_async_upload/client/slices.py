"""One upload over HTTP, from its creation to the answer that has the file: slices, one request each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ..exceptions import (
    ConnectionLost,
    ConnectionRefused,
    DataLost,
    FileChanged,
    UploadError,
    UploadOver,
)
from ..protocol import messages
from .conversation import ConversationListener, Progress
from .draft import SMALLEST_SLICE, Draft, Standing
from .http1 import Content
from .source import Source
from .worker import Worker

_BLOCK: Final = 1024 * 1024
_GATHERED: Final = 4 * 1024 * 1024
"""Bytes of a stream for which a slice waits, but not longer than :data:`_GATHER_SECONDS`."""
_GATHER_SECONDS: Final = 0.5
_LEAVE_SECONDS: Final = 3.0
_SMALLEST_AFTER_LOSS: Final = 1024 * 1024


class _Read(NamedTuple):
    position: int
    size: int
    block: asyncio.Future[bytes]


class HttpConversation:
    """One attempt to send an upload; call :meth:`run` once.

    ``fresh``: the server cannot have the upload yet, so that a small file is created, sent and finished by one request.
    ``path`` is the upload's on the server, from an earlier attempt. ``patience``: seconds for which the server may
    check the file without an answer.
    """

    def __init__(
        self,
        draft: Draft,
        upload: ConversationListener,
        source: Source,
        create: messages.Create,
        worker: Worker,
        *,
        fresh: bool,
        path: str | None,
        patience: float,
    ) -> None:
        self._draft = draft
        self._upload = upload
        self._source = source
        self._create = create
        self._worker = worker
        self._fresh = fresh
        self._patience = max(patience, draft.stall)
        self._changed = asyncio.Event()
        self._read: _Read | None = None
        self.path = path
        self.bytes_sent = 0

    async def run(self) -> messages.Completed:
        """Send the upload and wait for its completion. Raises the :class:`UploadError` that prevents it, and errors of
        reading the source."""
        try:
            standing = await self._begin()
            try:
                return await self._send(standing)
            except (FileChanged, DataLost):
                await self._leave()
                self._upload.abandoned()
                raise
        except UploadError:
            raise
        except BaseException:
            if not self._upload.resumable:
                await self._leave()
            self._source.interrupt()
            raise
        finally:
            if self._read is not None:
                await asyncio.wait({self._read.block})
                self._read.block.exception()  # retrieved, so that asyncio does not log it

    def wake(self) -> None:
        self._changed.set()

    async def _send(self, standing: Standing) -> messages.Completed:
        while standing.completed is None:
            if self._upload.cancelled:
                return await self._cancel(standing.path)
            self._source.forget(standing.offset)
            self._report(standing.offset, standing.offset)
            if self._upload.paused or not await self._has_data(standing.offset):
                await self._next_change()
            elif standing.offset == self._source.size:
                standing = await self._finish(standing)
            else:
                standing = await self._append(standing)
        size = standing.completed.size
        self._upload.identified(standing.completed.upload, all_sent=True)
        self._upload.report(Progress("completed", size, size, size, size))
        return standing.completed

    async def _begin(self) -> Standing:
        if self.path is not None:
            standing = await self._draft.offset(self.path)
        elif self._fresh and self._source.in_memory and self._source.size is not None:
            size = self._source.size
            content = Content(size, self._blocks(0, size))
            standing = await self._draft.create(self._create, content, self._digests(size))
        else:
            standing = await self._draft.create(self._create)
        if not self._fresh and (self.path or standing.offset or standing.completed):
            self._upload.found_again()
        self.path = standing.path
        if standing.completed is None:
            self._upload.identified(standing.path.rpartition("/")[2], all_sent=False)
            if standing.offset > self._source.end:
                raise FileChanged(offset=standing.offset)
            # What an earlier program sent is read again now: a request must not wait for it.
            await asyncio.to_thread(self._source.crc_at, standing.offset)
        if standing.offset <= self._draft.lost.pop(self._create.key, -1):
            # Nothing of the request that was lost has arrived: a proxy that collects bodies has thrown it away.
            self._draft.slice = max(_SMALLEST_AFTER_LOSS, self._draft.slice // 2)
        return standing

    async def _has_data(self, offset: int) -> bool:
        """Wait for a stream to have enough for a request; whether it has anything."""
        source = self._source
        if source.size is None and source.end - offset < _GATHERED:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_SECONDS):
                    while source.size is None and source.end - offset < _GATHERED:
                        await self._next_change()
        return source.end > offset or source.size is not None

    async def _append(self, standing: Standing) -> Standing:
        offset = standing.offset
        length = min(self._draft.slice, self._source.end - offset)
        content = Content(length, self._blocks(offset, length))
        try:
            return await self._interruptible(
                self._draft.append(standing.path, offset, content), standing.path
            )
        except ConnectionRefused as error:
            if error.facts.get("status") != 413 or length <= SMALLEST_SLICE:
                raise
            self._draft.slice = max(SMALLEST_SLICE, min(self._draft.slice, length) // 2)
            return await self._draft.offset(standing.path)
        except ConnectionLost:
            self._draft.lost[self._create.key] = offset
            raise

    async def _finish(self, standing: Standing) -> Standing:
        size = standing.offset
        self._source.check_unchanged()
        digests = await asyncio.to_thread(self._digests, size)
        self._upload.report(Progress("verifying", 0, size, size, size))
        return await self._interruptible(
            self._draft.finish(standing.path, size, digests, self._patience), standing.path
        )

    async def _interruptible(self, request: Coroutine[Any, Any, Standing], path: str) -> Standing:
        """Wait for a request, which a pause or a cancellation ends; then ask what has arrived."""
        task = asyncio.create_task(request)
        try:
            while not task.done() and not self._upload.paused and not self._upload.cancelled:
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait({task, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
            if task.done():
                return task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
        if self._upload.cancelled:
            return Standing(path, 0)
        return await self._draft.offset(path)

    async def _cancel(self, path: str) -> messages.Completed:
        try:
            await self._draft.cancel(path)
        except UploadError as error:
            if error.retryable:
                raise
            standing = await self._draft.offset(path)  # raises the error of one that is over
            if standing.completed is None:
                raise
            return standing.completed
        raise UploadOver(state="cancelled")

    async def _leave(self) -> None:
        """Cancel the upload, which no one will continue, where the server can be reached."""
        if self.path is not None:
            with suppress(UploadError, TimeoutError):
                async with asyncio.timeout(_LEAVE_SECONDS):
                    await self._draft.cancel(self.path)

    # ----------------------------------------------------------------------------------------------

    async def _blocks(self, start: int, length: int) -> AsyncIterator[bytes]:
        """Read one block ahead."""
        position, end = start, start + length
        while position < end:
            block = await self._block(position, end)
            following = position + len(block)
            if following < end and not self._source.in_memory:
                self._read_from(following, end)
            yield block
            position = following
            self.bytes_sent += len(block)
            self._report(start, position)

    async def _block(self, position: int, end: int) -> bytes:
        if self._source.in_memory:
            return self._source.block(position, end - position)
        size = min(_BLOCK, end - position)
        if self._read is not None and (self._read.position, self._read.size) != (position, size):
            await asyncio.wait({self._read.block})  # read ahead by a request that was given up
            self._read = None
        if self._read is None:
            self._read_from(position, end)
        assert self._read is not None
        block = await asyncio.shield(self._read.block)
        self._read = None
        return block

    def _read_from(self, position: int, end: int) -> None:
        size = min(_BLOCK, end - position)
        block = self._worker.run(self._source.block, position, size)
        self._read = _Read(position, size, block)

    def _digests(self, size: int) -> dict[str, str]:
        crc = self._source.crc_at(size)
        return {"crc32c": f"{crc:08x}", **self._source.digests}

    def _report(self, received: int, sent: int) -> None:
        self._upload.report(Progress("uploading", received, self._source.size, sent, received))

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
