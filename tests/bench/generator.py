"""The load, a process of its own: reads one job as JSON, prints the result as JSON.

All that can be made ready is made ready before the clock starts: files are mapped and in memory, frames and
requests are built, connections are open.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from crc32c import crc32c

from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import FrameType

from . import requests
from .threads import account, spent
from .uploads import (
    STREAM,
    Connection,
    SmallFiles,
    Trickle,
    Upload,
    build_frames,
    crc_of,
    map_file,
)
from .websocket import TEXT, WebSocket, message

SLOW_RATE = 64 * 1024.0
"""Bytes a second of a slow upload of a crowd."""
SLOW_CHUNK_SECONDS = 2.0
"""Seconds that a chunk of a herd's upload takes: over so many their beginnings are spread."""
SLOW_SIZE = 512 * 1024
FAST_SIZE = 8 * 1024 * 1024

REHEARSALS = 4
"""At most."""
WARM = 0.9
"""Memory is warm when a run takes more than this part of the fastest one before."""

Job = dict[str, Any]


def frames(job: Job) -> Job:
    build_frames(job["source"], job["frames"])
    return {}


def upload(job: Job) -> Job:
    source = map_file(job["source"])
    digests = {"sha-256": job["sha256"]} if "sha256" in job else {}
    load = Upload(
        Connection(job["port"], job["path"], job["ticket"]),
        source,
        "large.bin",
        crc_of(source),
        map_file(job["frames"]) if "frames" in job else None,
        digests,
    )
    load.run(job["timeout"])
    return load.outcome()


def uploads(job: Job) -> Job:
    """So many uploads side by side, each of its part of the source, on a connection of its own.

    An upload of the whole source has its frames ready; of those of a part, most are shorter than the prebuilt ones.
    """
    source = map_file(job["source"])
    size = -(-len(source) // job["uploads"])
    parts = [source[start : start + size] for start in range(0, len(source), size)]
    frames = map_file(job["frames"]) if job["uploads"] == 1 else None
    loads = [
        Upload(
            Connection(job["port"], job["path"], job["ticket"]),
            part,
            f"{number}.bin",
            crc_of(part),
            frames,
        )
        for number, part in enumerate(parts)
    ]
    started = time.perf_counter()
    _run_all(loads, job["timeout"])
    seconds = time.perf_counter() - started
    for each in loads:
        each.connection.websocket.close()
    return {"seconds": seconds, "stored_as": [each.outcome()["stored_as"] for each in loads]}


def drop(job: Job) -> Job:
    """The same frames to a consumer that keeps nothing, without a protocol: what the server itself can take."""
    frames = map_file(job["frames"])
    websocket = WebSocket(job["port"], "/empty/", "empty")
    started = time.perf_counter()
    websocket.socket.sendall(frames)
    websocket.socket.sendall(message(b"how much", TEXT))
    (count,) = websocket.wait()
    seconds = time.perf_counter() - started
    websocket.close()
    if not 0 < len(frames) - int(count) < len(frames) / 1000:  # but for the WebSocket's own headers
        raise RuntimeError(f"{count!r} bytes came through")
    return {"seconds": seconds}


def client(job: Job) -> Job:
    """The app's own Python client, from the file's name to the answer."""
    from django_async_upload.client import UploadClient

    crc = crc_of(map_file(job["source"]))

    async def put() -> Job:
        url = f"ws://{job.get('host', '127.0.0.1')}:{job['port']}{job['path']}"
        started = time.perf_counter()
        async with asyncio.timeout(job["timeout"]), UploadClient(url, ticket=job["ticket"]) as to:
            if "host" not in job:
                started = time.perf_counter()
            result = await to.upload(job["source"])
            seconds = time.perf_counter() - started
            if result.crc32c != crc:
                raise RuntimeError(f"{result} is not what was sent")
            return {"seconds": seconds, "stored_as": result.stored_as}

    return asyncio.run(put())


def small_files(job: Job) -> Job:
    connection = Connection(job["port"], job["path"], job["ticket"])
    load = SmallFiles(connection, map_file(job["source"]), job["size"])
    seconds = load.run(job["timeout"])
    return {"seconds": seconds, "stored_as": load.stored()}


def crowd(job: Job) -> Job:
    """Many uploads at once, every other one slow. Says when all sockets idle, and waits for a line."""
    source = map_file(job["source"])
    uploads = []
    for number in range(job["sockets"]):
        slow = number % 2 == 1
        size = min(SLOW_SIZE if slow else FAST_SIZE, len(source))
        start = number * 4096 % (len(source) - size + 1)
        piece = source[start : start + size]
        connection = Connection(job["port"], job["path"], job["ticket"])
        pace = SLOW_RATE if slow else None
        uploads.append(Upload(connection, piece, f"{number}.bin", crc_of(piece), pace=pace))
    print("idle", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    _run_all(uploads, job["timeout"])
    seconds = time.perf_counter() - started
    for each in uploads:
        each.connection.websocket.close()
    stored_as = {each.outcome()["stored_as"]: each.crc for each in uploads}
    return {"seconds": seconds, "stored_as": stored_as}


def herd(job: Job) -> Job:
    """Slow uploads, of a user each, until the input ends.

    Each line of input is answered with a line: what the server received since the one before.
    """
    source = map_file(job["source"])
    herd: list[Trickle] = []
    for number, ticket in enumerate(job["tickets"], 1):
        connection = Connection(job["port"], job["path"], ticket)
        herd.append(Trickle(connection, source, f"{number}.bin", ""))
        if number % 100 == 0:  # their pings are answered while the others connect
            for each in herd:
                each.read()
                each.write_all()
    print("idle", flush=True)
    sys.stdin.readline()
    poll = select.epoll()
    by_socket = {}
    for each in herd:
        by_socket[socket := each.connection.websocket.socket.fileno()] = each
        poll.register(socket, select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    began, received = time.perf_counter(), 0
    starts = [began + SLOW_CHUNK_SECONDS * number / len(herd) for number in range(len(herd))]
    started = 0
    while True:
        while started < len(herd) and starts[started] <= time.perf_counter():
            herd[started].start()
            herd[started].write_all()
            started += 1
        waiting = started < len(herd)
        seconds = max(0.0, starts[started] - time.perf_counter()) if waiting else None
        for socket, _events in poll.poll(seconds):
            if socket:
                each = by_socket[socket]
                each.read()
                each.write_all()
                continue
            now, total = time.perf_counter(), sum(each.received for each in herd)
            waits = [seconds for each in herd for seconds in each.waits]
            rate = (total - received) / (now - began)
            if not sys.stdin.readline():
                return {}
            print(json.dumps({"waits": waits, "rate": rate}), flush=True)
            began, received = now, total
            for each in herd:
                each.waits.clear()


def race(job: Job) -> Job:
    """Uploads side by side, each of the whole source, on a connection and by a user of its own.

    ``endless``: what was received in ``timeout`` seconds counts, and nothing is completed.
    """
    source = map_file(job["source"])
    crc = crc_of(source)
    loads = [
        Upload(
            Connection(job["port"], job["path"], ticket), source, "fast.bin", crc, pace=job["pace"]
        )
        for ticket in job["tickets"]
    ]
    started = time.perf_counter()
    try:
        _run_all(loads, job["timeout"])
    except TimeoutError:
        if not job.get("endless"):
            raise
    seconds = time.perf_counter() - started
    for each in loads:
        each.connection.websocket.close()
    if job.get("endless"):
        return {"rate": sum(each.received for each in loads) / seconds}
    return {
        "seconds": seconds,
        "stored_as": [each.outcome()["stored_as"] for each in loads],
        "waits": [wait for each in loads for wait in each.waits],
    }


def watchers(job: Job) -> Job:
    """Connections that watch all uploads of their user, until the input ends. Says when each got its first answer.

    The outcome has how many messages they got after that.
    """
    poll = select.epoll()
    by_socket = {}
    for ticket in job["tickets"]:
        connection = Connection(job["port"], job["path"], ticket)
        websocket = connection.websocket
        websocket.socket.setblocking(True)
        websocket.socket.sendall(message(m.Watch("own").to_frame(STREAM, crc32c)))
        while not any(frame[0] == FrameType.CHANGED for frame in websocket.wait()):
            pass
        websocket.socket.setblocking(False)
        by_socket[websocket.socket.fileno()] = websocket
        poll.register(websocket.socket, select.EPOLLIN)
    print("watching", flush=True)
    poll.register(0, select.EPOLLIN)
    told = 0
    while True:
        for socket, _events in poll.poll():
            if not socket:
                return {"told": told}
            websocket = by_socket[socket]
            websocket.read()
            told += sum(frame[0] == FrameType.CHANGED for frame in websocket.messages())
            while websocket.pongs:
                websocket.socket.sendall(websocket.pongs.pop())


def _run_all(uploads: list[Upload], timeout: float) -> None:
    poll = select.poll()
    running = {}
    for each in uploads:
        running[each.connection.websocket.socket.fileno()] = each
        each.start()
    deadline = time.perf_counter() + timeout
    while running:
        for number, each in running.items():
            writing = each.due() == 0 and each.wants_to_write
            poll.register(number, select.POLLIN | (select.POLLOUT if writing else 0))
        for number, events in poll.poll(10):
            each = running[number]
            if events & ~select.POLLOUT:
                each.read()
            if events & select.POLLOUT:
                each.write()
            if each.completed is not None:
                poll.unregister(number)
                del running[number]
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{len(running)} uploads were not completed after {timeout} s")


def post(job: Job) -> Job:
    seconds, name = requests.post_file(job["port"], map_file(job["source"]))
    return {"seconds": seconds, "stored_as": name}


def small_posts(job: Job) -> Job:
    source = map_file(job["source"])
    seconds, names = requests.post_small_files(job["port"], source, job["size"])
    return {"seconds": seconds, "stored_as": names}


def patches(job: Job) -> Job:
    source = map_file(job["source"])
    step = job["step"] or len(source)
    path, ticket = job.get("path", "/files"), job.get("ticket")
    seconds, name = requests.patch_file(job["port"], path, source, step, ticket)
    return {"seconds": seconds, "stored_as": name}


def put(job: Job) -> Job:
    path, ticket = job.get("path", "/"), job.get("ticket")
    seconds, name = requests.put_file(job["port"], path, map_file(job["source"]), ticket)
    return {"seconds": seconds, "stored_as": name}


def sink(job: Job) -> Job:
    seconds, name = requests.pour(job["port"], map_file(job["source"]), job.get("host"))
    return {"seconds": seconds, "stored_as": name}


JOBS: dict[str, Callable[[Job], Job]] = {
    each.__name__: each
    for each in (
        frames,
        upload,
        uploads,
        drop,
        client,
        small_files,
        crowd,
        herd,
        race,
        watchers,
        post,
        small_posts,
        patches,
        put,
        sink,
    )
}


def _rehearse(work: Callable[[Job], Job], job: Job) -> None:
    """Repeat until it gets no faster: then memory is warm.

    A virtual machine gives free memory back to its host within seconds, and the next program that writes a file pays
    for getting it again (seen: 2.8 s for a gigabyte, 0.3 s for the next one).
    """
    fastest = float("inf")
    for _ in range(REHEARSALS):
        outcome = work(job)
        stored_as = outcome["stored_as"]
        for name in [stored_as] if isinstance(stored_as, str) else stored_as:
            path = os.path.join(job["rehearsal"], name)
            # Frees its memory now, even if a server has the file open for a moment longer.
            os.truncate(path, 0)
            os.unlink(path)
        if outcome["seconds"] > WARM * fastest:
            return
        fastest = outcome["seconds"]


def run(job: Job) -> Job:
    """The job's outcome. Where a ``rehearsal`` names the folder of what is stored, it is rehearsed there first.

    ``watch``: the processes of which ``threads`` of the outcome say what they did; see ``tests.bench.threads``.
    """
    work = JOBS[job["kind"]]
    if "rehearsal" in job:
        _rehearse(work, job)
    if "watch" not in job:
        return work(job)
    before = account(job["watch"])
    outcome = work(job)
    return outcome | {"threads": spent(before, account(job["watch"]))}


if __name__ == "__main__":
    job = json.loads(sys.stdin.readline())
    print(json.dumps(run(job)), flush=True)
    # Taking a gigabyte of maps down properly costs time that is not measured.
    os._exit(0)
