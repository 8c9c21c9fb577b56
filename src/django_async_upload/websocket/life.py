"""The life of a connection: it opens once and ends once, and the first reason for its end is the one that counts."""

from __future__ import annotations

import asyncio
from typing import Any

from ..exceptions import UploadError


class Life:
    """Not open yet, open, or over. Belongs to the running event loop."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_over = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: UploadError | None = None
        """What the client is to be told of the end; None where it has gone by itself."""

    def begin(self) -> None:
        self.is_open = not self.is_over

    def end(self, error: UploadError | None = None) -> bool:
        """Returns whether the connection was open until now."""
        was_open = self.is_open
        self.is_open = False
        if not self.is_over:
            self.is_over = True
            self.error = error
            self._end.set_result(None)
        return was_open

    async def last(self, task: asyncio.Task[Any]) -> None:
        """Wait until it is over, or the task has ended by itself."""
        await asyncio.wait({task, self._end}, return_when=asyncio.FIRST_COMPLETED)
