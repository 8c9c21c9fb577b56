"""What clients do while servers die: the scenarios of the crash matrix, and the stage that they are played on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.client import UploadClient
from django_async_upload.client.conversation import Progress
from django_async_upload.client.upload import Upload
from django_async_upload.exceptions import UploadError

from .crashsite import USER_MAX_BYTES, CrashSite
from .hosts import environment, manage, migrated, prepare
from .invariants import ACTIVE, broken_at_rest
from .postgres import Postgres

MIB = 1024 * 1024
TICKETS = (
    "from django.contrib.auth.models import User; from django_async_upload.tickets import issue_ticket; "
    "print('\\n'.join(issue_ticket(User.objects.get(username='demo'), endpoint=each, max_age=86400) "
    "for each in ('default', 'checking')))"
)
PATHS = {"default": "/ws/uploads/", "checking": "/ws/checking/"}


@contextlib.contextmanager
def make_template(root: Path) -> Iterator[Path]:
    """What sites begin with: databases with users, SQLite's and PostgreSQL's, and a file of tickets."""
    prepare(root)
    write_tickets(root / "tickets-sqlite", environment(root, {}))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(pytest.skip.Exception):  # a site that needs it skips its test
            postgres = stack.enter_context(Postgres())
            env = environment(root, {}, **migrated(postgres.setting))
            write_tickets(root / "tickets-postgresql", env)
            (root / "postgresql").write_text(postgres.name)
        yield root


def write_tickets(path: Path, env: dict[str, str]) -> None:
    path.write_text(manage(env, "shell", "-v", "0", "-c", TICKETS))


class Stage:
    """What a scenario acts on: a site, and clients whose files it knows."""

    def __init__(self, site: CrashSite, chance: random.Random) -> None:
        self.site, self.chance = site, chance
        self._tickets = dict(zip(PATHS, site.tickets.split(), strict=True))
        self.sources = site.evidence.sources
        self.expected: dict[str, set[str]] = {}
        self.point = ""
        """The failpoint of a command that the scenario runs."""
        self.prefix = ""
        """Of the names of new files: a scenario may be played several times."""
        (site.root / "files").mkdir()
        own = site.evidence.disk / "media" / "documents" / "the host's own.bin"
        own.parent.mkdir(parents=True)
        own.write_bytes(b"the host's own")
        site.evidence.untouched[own] = (own.stat().st_ino, own.stat().st_mtime_ns)

    @contextlib.asynccontextmanager
    async def client(self, endpoint: str = "default") -> AsyncIterator[UploadClient]:
        async with UploadClient(
            f"ws://site{PATHS[endpoint]}",
            ticket=self._tickets[endpoint],
            state=False,
            patience=90,
            connect=self.site.evidence.witness.connect,
        ) as client:
            yield client

    def file(self, name: str, size: int, *expected: str) -> Path:
        """A new file for a client, whose upload shall end in one of the ``expected`` states: completed, by default."""
        name = self.prefix + name
        path = self.site.root / "files" / name
        path.write_bytes(data := self.chance.randbytes(size))
        self.sources[name] = data
        self.expected[name] = set(expected or {"completed"})
        return path

    async def part_of(self, client: UploadClient, path: Path, size: int) -> Upload:
        """Send at least ``size`` bytes of a file, and pause."""

        reached = asyncio.Event()

        def watch(progress: Progress) -> None:
            if progress.done >= size and not reached.is_set():
                upload.pause()
                reached.set()

        upload = client.start(path, on_progress=watch)
        while not reached.is_set() and not upload.task.done():
            await asyncio.sleep(0.005)
        return upload

    async def get(self, path: str, **query: object) -> Any:
        """What a page of the site answers, asked again while workers die."""
        while True:
            port = await self.site.find_port()
            url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
            with contextlib.suppress(OSError):
                return await asyncio.to_thread(_get, url)
            await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Wait until the workers have done all that they will do by themselves, and purge."""
        deadline = time.monotonic() + 60
        records, may_rest = self.site.records, {"interrupted", "uploading", "created"}
        while True:
            await self.site.find_port()
            waiting = records.query(
                "SELECT session_id AS id FROM async_upload_completionevent WHERE delivered_at IS NULL"
            )
            busy = [
                row["name"]
                for row in records.uploads().values()
                if row["state"] in ACTIVE
                and not (
                    row["state"] in may_rest and self.expected.get(row["name"], set()) & ACTIVE
                )
            ]
            if not waiting and not busy:
                break
            assert time.monotonic() < deadline, f"never at rest: {busy}, {len(waiting)} events"
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)  # what follows the last commit
        records.let_time_pass()
        done = await self.site.purge()
        assert done.status == 0, self.site.log.read_text()[-3000:]

    async def end(self) -> None:
        """When all clients have ended: look for broken promises."""
        await self.settle()
        broken = [*self.site.losses, *broken_at_rest(self.site.evidence, self.expected)]
        assert not broken, "\n".join(broken)
        await self.has_whole_quota()

    async def has_whole_quota(self) -> None:
        """As nothing of the owner's is unfinished, one upload may take all that the quota allows."""
        path = self.file("quota.bin", 64 * 1024, "cancelled")
        with path.open("r+b") as file:
            file.truncate(USER_MAX_BYTES)
        async with self.client() as client:
            upload = await self.part_of(client, path, 1)
            assert not upload.task.done(), (
                f"after all uploads have ended: {upload.task.exception()}"
            )
            await upload.cancel()


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


# Scenarios -------------------------------------------------------------------------------------------


async def large(stage: Stage) -> None:
    """One file with several checkpoints."""
    async with stage.client() as client:
        await client.upload(stage.file("large.bin", 18 * MIB + 7))


async def group(stage: Stage) -> None:
    """Small files, received as a whole, and one that has another's name in the storage."""
    async with stage.client() as client:
        paths = [stage.file(f"small-{number}.bin", 700 * number) for number in range(12)]
        await asyncio.gather(*(client.upload(path) for path in paths))


async def checking(stage: Stage) -> None:
    """A file with a digest, which the host inspects, has copied into another storage, and answers."""
    async with stage.client("checking") as client:
        path = stage.file("checked.bin", 5 * MIB + 1)
        result = await client.upload(path, sha256=True)
        assert result.response == {"name": path.name}


class Unsized(io.FileIO):
    """A file that says as little of its size as a pipe."""

    def seekable(self) -> bool:
        return False


async def streamed(stage: Stage) -> None:
    """A file whose size nobody knows before its end."""
    path = stage.file("streamed.bin", 9 * MIB)
    async with stage.client() as client:
        with io.BufferedReader(Unsized(path)) as stream:
            await client.upload(stream, name=path.name)


async def resumed(stage: Stage) -> None:
    """The client loses its connection in the middle, and comes back."""
    path = stage.file("resumed.bin", 12 * MIB)
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        (await client.connected()).abort()
        upload.resume()
        await upload


async def stolen(stage: Stage) -> None:
    """The worker that holds the upload is stopped, and the client goes on at another one."""
    path = stage.file("stolen.bin", 12 * MIB)
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        stage.site.workers[0].stop()
        (await client.connected()).abort()
        upload.resume()
        await upload
        stage.site.workers[0].kill()


async def cancelled(stage: Stage) -> None:
    """Its client cancels an upload that it is sending."""
    path = stage.file("cancelled.bin", 12 * MIB, "cancelled")
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        await upload.cancel()


async def ended_by_host(stage: Stage) -> None:
    """The host cancels an upload whose client is connected."""
    path = stage.file("ended.bin", 24 * MIB, "cancelled")
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        await stage.get("/cancel/", upload=upload.id)
        with contextlib.suppress(UploadError):
            upload.resume()
            await upload


async def discarded(stage: Stage) -> None:
    """Its client cancels an upload that is completed."""
    path = stage.file("discarded.bin", 100_000, "cancelled")
    async with stage.client() as client:
        result = await client.upload(path)
        with contextlib.suppress(UploadError):
            await client.cancel(result.id, finished=True)


async def bound(stage: Stage) -> None:
    """The host binds a finished file to its own object."""
    path = stage.file("bound.bin", 100_000, "bound")
    async with stage.client() as client:
        result = await client.upload(path)
        await stage.get("/bind/", upload=result.id)


async def purged(stage: Stage) -> None:
    """The purge expires an upload that nobody comes back for, and deletes one that nobody took, and a lost part."""
    path = stage.file("expired.bin", 12 * MIB, "expired")
    unbound = stage.file("unbound.bin", 1000, "nowhere")
    async with stage.client() as client:
        await client.upload(unbound, taker="form")
        await stage.part_of(client, path, 5 * MIB)
        (await client.connected()).abort()
    stage.site.evidence.witness.told.clear()  # the purge deletes rows that clients know
    while "interrupted" not in {row["state"] for row in stage.site.records.uploads().values()}:
        await asyncio.sleep(0.02)
    stage.site.records.expire("expired.bin")
    (stage.site.evidence.staging / ("0" * 32)).write_bytes(b"what a crash left")
    await asyncio.sleep(0.3)  # the completion is delivered
    done = await stage.site.purge(stage.point, unbound="timedelta(0)")
    if stage.point:
        assert done.was_killed, "the failpoint was not reached"
        stage.site.crashes += 1
        await stage.site.purge(unbound="timedelta(0)")


async def left(stage: Stage) -> None:
    """Its client is gone for good when the process dies in the publication: another process finds it."""
    path = stage.file("left.bin", 5 * MIB)
    async with stage.client() as client:
        upload = client.start(path)
        await stage.site.die()
        upload.task.cancel()


async def left_to_copy(stage: Stage) -> None:
    """The same, where the file is copied."""
    path = stage.file("left-copy.bin", 5 * MIB)
    async with stage.client("checking") as client:
        upload = client.start(path)
        await stage.site.die()
        upload.task.cancel()
