"""Many clients at once, each with a connection and a file of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from django_async_upload.client import UploadClient, UploadResult
from django_async_upload.client.connection import ClientConnection
from django_async_upload.client.conversation import Progress


class Uploader:
    """One client with one upload, and how long it could not send."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: UploadResult | None = None
        self.has_begun = False
        """Whether the server has received bytes of it."""
        self.longest_wait = 0.0
        """Seconds from the end of a connection until it might send on another one, the longest."""
        self._waits_since: float | None = None

    @property
    def resent(self) -> int:
        """Bytes that were sent more than once."""
        assert self.result is not None
        return self.result.bytes_sent - self.result.size

    async def run(self, url: str, ticket: str) -> None:
        async with _Client(self, url, ticket=ticket, state=False) as client:
            self.result = await client.upload(self.path, on_progress=self._observe)

    def lost(self) -> None:
        """Its connection has ended."""
        self._waits_since = self._waits_since or time.monotonic()

    def _observe(self, progress: Progress) -> None:
        self.has_begun |= progress.done > 0
        if self._waits_since is not None and progress.phase != "waiting":
            self.longest_wait = max(self.longest_wait, time.monotonic() - self._waits_since)
            self._waits_since = None


class _Client(UploadClient):
    def __init__(self, uploader: Uploader, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._uploader = uploader

    async def connected(self) -> ClientConnection:
        """An upload calls this before its first conversation, and when one has ended with its connection."""
        if self._uploader.has_begun:
            self._uploader.lost()
        return await super().connected()


class Uploaders:
    """A context manager that runs so many uploads of random files in a thread."""

    def __init__(self, folder: Path, url: str, ticket: str, *, count: int, size: int) -> None:
        self._url, self._ticket = url, ticket
        self.all = []
        for number in range(count):
            path = folder / f"upload-{number}.bin"
            path.write_bytes(os.urandom(size))
            self.all.append(Uploader(path))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._errors: list[BaseException] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.wait()

    @property
    def have_begun(self) -> bool:
        assert not self._errors, self._errors
        return all(each.has_begun for each in self.all)

    @property
    def are_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float = 240) -> None:
        """Wait until all have completed; fails with the errors of those that have not."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{sum(not each.result for each in self.all)} run"
        assert not self._errors, self._errors

    def _run(self) -> None:
        asyncio.run(self._upload_all())

    async def _upload_all(self) -> None:
        running = [each.run(self._url, self._ticket) for each in self.all]
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        self._errors = [each for each in outcomes if isinstance(each, BaseException)]
