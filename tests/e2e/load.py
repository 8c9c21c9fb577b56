"""Clients under way while a service fails: large files that are sent slowly, and small ones one after the other."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import BinaryIO, Self

from django_async_upload.client import UploadClient
from django_async_upload.client.conversation import Progress
from django_async_upload.client.upload import UploadResult
from django_async_upload.protocol.messages import Completed

from .hosts import PATH, Host
from .proxy import ChaosProxy
from .servers import wait_for

KIB = 1024
SLOW = 256 * KIB
"""Bytes a second of each connection, until :meth:`Load.finish`."""
PATIENCE = 120.0
"""Seconds for which a client tries without any progress: longer than any failure lasts."""
SMALL_PAUSE = 0.15


class Load:
    """``large`` clients with a file each, and ``small`` clients that send small files until :meth:`finish`.

    Each has a connection of its own, through :attr:`proxy`. Use as a context manager around the failure, and call
    :meth:`finish` when it is over.
    """

    def __init__(
        self,
        host: Host,
        *,
        large: int = 8,
        small: int = 4,
        size: int = 6 * KIB * KIB,
        path: str = PATH,
        ticket: Callable[[], str] | None = None,
    ) -> None:
        self.host = host
        self.proxy = ChaosProxy(host.port)
        self.proxy.rate = SLOW
        self.contents = {f"large-{number:02}.bin": os.urandom(size) for number in range(large)}
        self.results: dict[str, UploadResult | Completed] = {}
        """Of each file that was uploaded, by the name that its client sent."""
        self.errors: list[str] = []
        self._small = small
        self._path = path
        always = host.ticket(max_age=24 * 3600)
        self.ticket = ticket or (lambda: always)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        self._thread.start()
        wait_for(lambda: self.errors or self.small_done >= 2 * self._small, what="the first files")
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._over.set()
        self.proxy.rate = None
        self._thread.join(0 if kind else PATIENCE)
        self.proxy.__exit__()

    @property
    def small_done(self) -> int:
        """Small files that were uploaded."""
        return sum(name.startswith("small") for name in list(self.results))

    def measure(self, seconds: float) -> tuple[float, float]:
        """Bytes a second that clients send in the next ``seconds``, and small files a second that they complete."""
        size, files = self.proxy.bytes_up, self.small_done
        time.sleep(seconds)
        return (self.proxy.bytes_up - size) / seconds, (self.small_done - files) / seconds

    def finish(self, seconds: float, *, orphans: bool = False) -> float:
        """Send the rest as fast as it goes, and check everything; returns how long it took, at most ``seconds``.

        Parts may stay that no row names, and the purge deletes, where ``orphans`` says so.
        """
        began = time.monotonic()
        self.hurry()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"after {seconds} s clients still wait: {self.late()}"
        self._check()
        if not orphans:
            wait_for(lambda: not self.host.parts(), what="the end of the parts")
        return time.monotonic() - began

    def hurry(self) -> None:
        """Send the rest as fast as it goes, and begin no more files."""
        self._over.set()
        self.proxy.rate = None

    def late(self) -> list[str]:
        """The files that are not uploaded."""
        return sorted(self.contents.keys() - self.results.keys())

    def _check(self) -> None:
        """Every file is there, whole and once, in the storage, the rows, and what the host was told."""
        assert not self.errors, self.errors
        assert not self.late()
        host = self.host
        uploads = host.uploads()
        rows = {row["name"]: row for row in uploads}
        assert len(rows) == len(uploads), "a file has two rows"
        assert rows.keys() == self.contents.keys()
        for name, content in self.contents.items():
            row, result = rows[name], self.results[name]
            assert (row["state"], row["size"]) == ("completed", len(content))
            assert row["stored_as"] == result.stored_as
            assert host.path(result.stored_as).read_bytes() == content, name
        assert len(host.files()) == len(self.contents), "a file was published twice"
        self._check_signals()

    def _check_signals(self) -> None:
        wanted = {str(row["id"]) for row in self.host.uploads()}

        def delivered() -> bool:
            return wanted <= {each["upload"] for each in self.host.signals()}

        wait_for(delivered, seconds=60, what="upload_completed of every upload")
        events = {(each["upload"], each["event"]) for each in self.host.signals()}
        assert len(events) == len(wanted), "an upload has two events"

    # The clients ----------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._upload_all())

    async def _upload_all(self) -> None:
        async with AsyncExitStack() as stack:
            work = [self._keep(await self._client(stack), name) for name in list(self.contents)]
            work += [
                self._keep_sending(await self._client(stack), number)
                for number in range(self._small)
            ]
            await asyncio.gather(*work)

    async def _client(self, stack: AsyncExitStack) -> UploadClient:
        client = UploadClient(
            self.host.url(self.proxy.port, self._path),
            ticket=self.ticket,
            state=False,
            patience=PATIENCE,
        )
        return await stack.enter_async_context(client)

    async def _keep_sending(self, client: UploadClient, number: int) -> None:
        count = 0
        while not self._over.is_set():
            name = f"small-{number:02}-{count:04}.bin"
            self.contents[name] = random.randbytes(random.randint(1, 4000))
            await self._keep(client, name)
            await asyncio.sleep(SMALL_PAUSE)
            count += 1

    async def _keep(self, client: UploadClient, name: str) -> None:
        """Upload one file; its client must get no error, and what it was told is durable must stay so."""
        durable = 0

        def look(progress: Progress) -> None:
            nonlocal durable
            if progress.phase == "uploading":
                if progress.durable < durable:
                    self.errors.append(f"{name}: durable fell from {durable} to {progress.durable}")
                durable = progress.durable

        source: BinaryIO = io.BytesIO(self.contents[name])
        try:
            self.results[name] = await client.upload(source, name=name, on_progress=look)
        except Exception as error:
            self.errors.append(f"{name}: {error!r}")


def log_records(log: str) -> Counter[str]:
    """How often this app logged each message, numbers left out."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        name, _, message = line.partition(": ")
        if name == "django_async_upload":
            found["".join("#" if each.isdigit() else each for each in message)[:100]] += 1
    return found
