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
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.client import UploadClient
from django_async_upload.client.conversation import Progress
from django_async_upload.client.upload import Upload
from django_async_upload.exceptions import UploadError

from .crashsite import PURGE, USER_MAX_BYTES, CrashSite
from .hosts import environment, manage, migrated, prepare
from .invariants import ACTIVE, broken_at_rest
from .postgres import Postgres

MIB = 1024 * 1024
UNSENT = 24 * MIB
"""Bytes of a file that a client has not sent when it pauses at 5 MiB: what it may have in flight is 8 MiB, and acks may
come together."""
PATIENCE = 600
"""Seconds for which a client tries again, and that a site may take to come to rest. On a busy machine a worker that is
killed again and again may get nothing done for minutes."""
TICKETS = (
    "from django.contrib.auth.models import User; from django_async_upload.tickets import issue_ticket; "
    "print('\\n'.join(issue_ticket(User.objects.get(username='demo'), endpoint=each, max_age=86400) "
    "for each in ('default', 'checking', 'inspecting')))"
)
PATHS = {
    "default": "/ws/uploads/",
    "checking": "/ws/checking/",
    "inspecting": "/ws/inspecting/",
}


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
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
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
            patience=PATIENCE,
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

    async def get(
        self, path: str, *, posted: Mapping[str, str] | None = None, **query: object
    ) -> Any:
        """What a page of the site answers, asked again while workers die. ``posted`` is a form."""
        data = None if posted is None else urllib.parse.urlencode(posted).encode()
        while True:
            port = await self.site.find_port()
            url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
            with contextlib.suppress(OSError):
                return await asyncio.to_thread(self._get, url, data)
            await asyncio.sleep(0.05)

    def _get(self, url: str, data: bytes | None) -> Any:
        with self._opener.open(url, data, timeout=30) as answer:
            return json.load(answer)

    async def command(self, code: str) -> None:
        """Run Python code with Django, and once more after it died at the failpoint."""
        done = await self.site.run(code, self.point)
        if self.point:
            assert done.was_killed, "the failpoint was not reached"
            self.site.crashes += 1
            self.site.records.let_time_pass()
            done = await self.site.run(code)
        assert done.status == 0, self.site.log.read_text()[-3000:]

    async def lose_client(self, client: UploadClient) -> None:
        """The network to the client fails silently: the server still believes that the connection is open."""
        (await client.connected()).wire_lost(1006, None)

    async def settle(self) -> None:
        """Wait until the workers have done all that they will do by themselves, and purge."""
        deadline = time.monotonic() + PATIENCE
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
    path = stage.file("cancelled.bin", UNSENT, "cancelled")
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        await upload.cancel()


async def ended_by_host(stage: Stage) -> None:
    """The host cancels an upload whose client is connected."""
    path = stage.file("ended.bin", UNSENT, "cancelled")
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


async def discarded_copy(stage: Stage) -> None:
    """The same, where the file was copied into a storage that nothing can be moved out of."""
    path = stage.file("discarded-copy.bin", 100_000, "cancelled")
    async with stage.client("checking") as client:
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
    """The purge expires an upload that nobody comes back for, and deletes one that nobody took, one that ended long
    ago, a lost part and a lost link."""
    path = stage.file("expired.bin", UNSENT, "expired")
    unbound = stage.file("unbound.bin", 1000, "nowhere")
    ended = stage.file("ended.bin", UNSENT, "nowhere")
    async with stage.client() as client:
        await client.upload(unbound, taker="form")
        await (await stage.part_of(client, ended, 1)).cancel()
        await stage.part_of(client, path, 5 * MIB)
        (await client.connected()).abort()
    stage.site.evidence.witness.told.clear()  # the purge deletes rows that clients know
    while "interrupted" not in {row["state"] for row in stage.site.records.uploads().values()}:
        await asyncio.sleep(0.02)
    stage.site.records.expire("expired.bin")
    stage.site.records.age("ended.bin")
    for name in ("0" * 32, f"{'0' * 32}.link"):
        (stage.site.evidence.staging / name).write_bytes(b"what a crash left")
    await asyncio.sleep(0.3)  # the completion is delivered
    await stage.command(PURGE.format(unbound="timedelta(0)"))


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


async def posted(stage: Stage) -> None:
    """A user posts a form with a finished upload: with a mistake at first, then without."""
    path = stage.file("posted.bin", 100_000, "bound")
    await stage.get("/login/", user="demo")
    token = (await stage.get("/form/", name=path.name))["token"]
    async with stage.client() as client:
        result = await client.upload(path, metadata={"field": token})
    form = {
        "async_upload_field.attachment": token,
        "async_upload.attachment": str(result.receipt),
    }
    assert "name" in (await stage.get("/form/", posted=form))["errors"]
    errors = (await stage.get("/form/", posted={**form, "name": path.name}))["errors"]
    saved = (await stage.get("/form/", name=path.name))["saved"]
    if not saved:  # it died before the commit, and was asked again while the upload was held
        stage.site.records.let_time_pass()
        errors = (await stage.get("/form/", posted={**form, "name": path.name}))["errors"]
        saved = (await stage.get("/form/", name=path.name))["saved"]
    assert saved, errors


async def unwritable(stage: Stage) -> None:
    """The staging folder cannot be written to at first."""
    staging = stage.site.evidence.staging
    staging.write_bytes(b"no folder")
    path = stage.file("unwritable.bin", 2 * MIB)
    async with stage.client() as client:
        upload = client.start(path)
        await stage.site.die()
        staging.unlink()
        await upload


async def slow(stage: Stage) -> None:
    """Files that take long to inspect, and a receiver that takes long: what a process has, it renews meanwhile."""
    async with stage.client("inspecting") as client:
        for number in range(6):
            name = "once-slow.bin" if number == 0 else f"slow-{number}.bin"
            await client.upload(stage.file(name, 50_000))


async def stopped(stage: Stage) -> None:
    """A worker is stopped while receivers hang, and others wait for their turn."""
    async with stage.client() as client:
        paths = [stage.file(f"once-{number}.bin", 1000) for number in range(12)]
        await asyncio.gather(*(client.upload(path) for path in paths))
    stage.site.workers[0].terminate()
    await stage.site.die()


async def drained(stage: Stage, options: str = "") -> None:
    """Its worker sends the client away, which comes back to another one, or when the drain is over."""
    path = stage.file("drained.bin", UNSENT)
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        upload.resume()
        for command in ("upload_drain", "upload_undrain"):
            code = f"from django.core.management import call_command; call_command('{command}'{options})"
            await stage.site.run(code)
        await upload


async def drained_everywhere(stage: Stage) -> None:
    """The same, by a message to the workers of all machines."""
    await asyncio.sleep(1)  # until the workers hear each other
    await drained(stage, ", '--all'")


async def yielded(stage: Stage) -> None:
    """The client goes on at another worker, while the first one runs and still holds the upload."""
    path = stage.file("yielded.bin", 12 * MIB)
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        await asyncio.sleep(1)  # until the workers hear each other
        stage.site.first = 1
        await stage.lose_client(client)
        upload.resume()
        await upload


async def cancelled_elsewhere(stage: Stage) -> None:
    """The client cancels its upload at another worker than the one that holds it."""
    path = stage.file("cancelled-elsewhere.bin", UNSENT, "cancelled")
    async with stage.client() as client:
        upload = await stage.part_of(client, path, 5 * MIB)
        await asyncio.sleep(1)  # until the workers hear each other
        stage.site.first = 1
        async with stage.client() as another:
            await another.cancel(str(upload.id))


async def watched(stage: Stage) -> None:
    """A program follows an upload of another one."""
    path = stage.file("watched.bin", UNSENT)
    async with stage.client() as client, stage.client() as another:
        upload = await stage.part_of(client, path, 1 * MIB)
        watching = asyncio.create_task(_watch(another, str(upload.id)))
        await asyncio.sleep(0.5)
        upload.resume()
        await upload
        assert await asyncio.wait_for(watching, 60) == "completed"


async def _watch(client: UploadClient, upload: str) -> str:
    state = ""
    async for standing in client.watch(upload):
        state = standing.state
    return state


async def sent_again(stage: Stage) -> None:
    """A command delivers a completion that was given up, and the host has one delivered again."""
    path = stage.file("again.bin", 1000)
    async with stage.client() as client:
        await client.upload(path)
    await stage.settle()
    stage.site.records.give_up()
    await stage.command(
        "from django_async_upload.engine import outbox; from django_async_upload.models import UploadSession; "
        "outbox.deliver_due(given_up=True); "
        "assert outbox.send_again([each.pk for each in UploadSession.objects.all()])"
    )
