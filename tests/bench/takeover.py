"""How long an upload takes from one process to another, from ATTACH to READY: ``python -m tests.bench.takeover``.

Two uvicorn processes share a database and a folder. An upload of 10 GiB, whose file has holes for all but its last
bytes, is attached at one and the other in turn while the older connection still holds it. The client knows the CRCs
that it has to prove. With ``redis`` and ``notify`` the processes have messages, with ``rows`` only their looks at rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from crc32c import crc32c

from django_async_upload.protocol import messages
from tests.e2e.hosts import Host, hosting, migrated, prepare
from tests.e2e.postgres import Postgres
from tests.e2e.raw import RawConnection
from tests.e2e.redis import running_redis

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SIZE = 10 * GIB
START = SIZE - 8 * MIB
"""Bytes of zeros that the file has before the first takeover."""
STEP = 16 * KIB
"""Bytes that each holder receives."""
TAKEOVERS_OF_ONE = 40
"""Of one upload; a process refuses more than 30 at once."""
LONGEST = 0.25
"""Seconds, of 99 in a hundred takeovers over a bus."""

BUSES = ("redis", "notify", "rows")

LENGTHEN = """
from django_async_upload.models import UploadSession
changed = UploadSession.objects.filter(pk="{pk}").update(size={size}, durable={start}, crc={crc})
assert changed == 1
"""


class LongUpload:
    """A client's upload of zeros."""

    def __init__(self, host: Host, ticket: str) -> None:
        """Create it and let it go; then make its file and its row as long as if it had been sent up to START."""
        earlier = set(host.parts())
        with host.connect(ticket) as connection:
            stream, created = connection.create("long.bin", MIB)
            connection.send_data(stream, 0, bytes(STEP))
            connection.send(messages.Release(), stream)
            connection.expect(messages.Released, stream=stream)
        (self.part,) = set(host.parts()) - earlier or earlier
        os.truncate(self.part, START)
        self.pk = created.upload
        self.offset = START
        self._crc = 0
        block = bytes(64 * MIB)
        for at in range(0, START, len(block)):
            self._crc = crc32c(block[: min(len(block), START - at)], self._crc)
        host.manage(
            "shell",
            "--command",
            LENGTHEN.format(pk=self.pk, size=SIZE, start=START, crc=self._crc),
        )

    def crc(self, offset: int) -> str:
        assert offset >= START
        return f"{crc32c(bytes(offset - START), self._crc):08x}"

    def take_over(self, connection: RawConnection) -> tuple[float, int]:
        """Attach it at this connection; returns the seconds until READY, and the stream."""
        stream = connection.next_stream()
        begun = time.monotonic()
        connection.send(messages.Attach(self.pk), stream)
        attached = connection.expect(messages.Attached, stream=stream)
        proof = messages.Proof(self.crc(attached.durable), self.crc(attached.received))
        connection.send(proof, stream)
        ready = connection.expect(messages.Ready, stream=stream)
        seconds = time.monotonic() - begun
        assert ready.offset == self.offset, (ready.offset, self.offset)
        return seconds, stream

    def send(self, connection: RawConnection, stream: int, size: int) -> None:
        stop = self.offset + size
        while connection.received[stream] < stop:
            room = min(
                *(connection.limits[stream], stop, self.offset + 256 * KIB),
                self.offset + connection.connection_limit - connection.spent,
            )
            if room > self.offset:
                connection.send_data(stream, self.offset, bytes(room - self.offset))
                self.offset = room
            else:
                connection.receive()

    def finish(self, connection: RawConnection, stream: int) -> messages.Completed:
        self.send(connection, stream, SIZE - self.offset)
        connection.send(messages.Finish(SIZE, self.crc(SIZE), {}), stream)
        return connection.expect(messages.Completed, stream=stream)


def measure(host: Host, another: Host, times: int) -> list[float]:
    """Seconds of so many takeovers. Checks that nothing was copied, and little read again."""
    seconds: list[float] = []
    ticket = host.ticket()
    while len(seconds) < times:
        upload = LongUpload(host, ticket)
        with host.connect(ticket) as here, another.connect(ticket) as there:
            before = upload.part.stat()
            read = bytes_read(host) + bytes_read(another)
            upload.send(here, upload.take_over(here)[1], STEP)  # nobody held it
            for number in range(min(times - len(seconds), TAKEOVERS_OF_ONE)):
                holder = here if number % 2 else there
                took, stream = upload.take_over(holder)
                seconds.append(took)
                upload.send(holder, stream, STEP)
            read = bytes_read(host) + bytes_read(another) - read
            assert read < 64 * MIB, read
            completed = upload.finish(holder, stream)
            after = host.path(completed.stored_as).stat()
            assert (after.st_ino, after.st_size) == (before.st_ino, SIZE)
            host.path(completed.stored_as).unlink()
    return seconds


def bytes_read(host: Host) -> int:
    """Bytes that the server has read from files and sockets."""
    return sum(each.io_counters().read_chars for each in host.server.processes())


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def report(name: str, seconds: list[float]) -> str:
    figures = [percentile(seconds, percent) for percent in (50, 90, 99, 100)]
    shown = "  ".join(f"{1000 * each:6.0f} ms" for each in figures)
    return f"{name:24}{len(seconds):5}  {shown}"


HEADING = f"{'':24}{'n':>5}  {'median':>9}  {'90th':>9}  {'99th':>9}  {'longest':>9}"


@contextlib.contextmanager
def two_workers(root: Path, database: str, bus: str) -> Iterator[tuple[Host, Host]]:
    """Two server processes whose messages go this way."""
    with contextlib.ExitStack() as stack:
        extra: dict[str, str] = {}
        if database == "postgresql":  # prepared with it
            extra |= migrated(stack.enter_context(Postgres()).setting)
        if bus == "redis":
            folder = root / "redis"
            folder.mkdir(parents=True)
            extra["E2E_LAYERS"] = json.dumps(stack.enter_context(running_redis(folder)).layers())
        root.mkdir(parents=True, exist_ok=True)
        if database == "sqlite":
            prepare(root)
        uploads = {"DURABILITY": "fsync", "MAX_SIZE": 2 * SIZE, "USER_MAX_BYTES": 100 * SIZE}
        host = stack.enter_context(hosting("uvicorn", root, root / "host", uploads, **extra))
        yield host, stack.enter_context(host.another_server())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.takeover", description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--buses", default=",".join(BUSES))
    parser.add_argument("--directory", default="/var/tmp")
    options = parser.parse_args(arguments)
    slow = False
    print(HEADING)
    root = Path(tempfile.mkdtemp(prefix="takeover-", dir=options.directory))
    try:
        for database in options.databases.split(","):
            for bus in options.buses.split(","):
                if (database, bus) == ("sqlite", "notify"):
                    continue
                with two_workers(root / f"{database}-{bus}", database, bus) as (host, another):
                    times = options.times if bus != "rows" else options.times // 10
                    seconds = measure(host, another, times)
                print(report(f"{database}, {bus}", seconds), flush=True)
                slow |= bus != "rows" and percentile(seconds, 99) >= LONGEST
    finally:
        shutil.rmtree(root)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
