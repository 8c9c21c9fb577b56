"""What one signed-in user with default settings can do to the others, each a script on blocking sockets.

``python -m tests.bench.attackers NAME PORT TICKET`` runs one until it is stopped, says ``ready`` when it is in place,
and never longer than :data:`LONGEST` seconds.
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable

from crc32c import crc32c

from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import build_data
from tests.e2e.raw import Closed, Failed, RawConnection, frame_head

KIB, MIB, GIB = 1024, 1024**2, 1024**3
LONGEST = 120
CONNECTIONS = 31
"""One less than an owner may have by default."""


def connect(port: int, ticket: str) -> RawConnection:
    connection = RawConnection(port)
    connection.greet(ticket)
    return connection


def ready() -> None:
    print("ready", flush=True)


def read(connections: Iterable[RawConnection], seconds: float) -> None:
    """Discard what the server sends for so many seconds."""
    deadline = time.monotonic() + seconds
    sockets = [each.socket for each in connections if each.socket.fileno() >= 0]
    while (left := deadline - time.monotonic()) > 0:
        for found in select.select(sockets, [], [], left)[0]:
            with contextlib.suppress(OSError):
                if not found.recv(1 << 20):
                    sockets.remove(found)


def idle(connections: list[RawConnection]) -> None:
    while True:
        read(connections, 2.0)
        for each in connections:
            with contextlib.suppress(Closed, OSError):
                each.send(m.Ping(1))


def creates(connection: RawConnection, count: int, size: int) -> list[int]:
    """Create uploads, all at once; returns the streams that are open."""
    streams = [connection.next_stream() for _ in range(count)]
    for stream in streams:
        connection.send(m.Create(uuid.uuid4().hex, f"{stream}.bin", size), stream)
    opened, answered = [], 0
    while answered < count:
        stream, message = connection.receive()
        if isinstance(message, m.Created):
            opened.append(stream)
        if isinstance(message, m.Created | m.Error) and stream:
            answered += 1
    return opened


def reserve_the_disk(port: int, ticket: str) -> None:
    """X3: CREATE of 10 GiB, half of it where the disk is too full, until nothing is left."""
    connection = connect(port, ticket)
    size = 10 * GIB
    for _ in range(200):
        try:
            connection.create("large.bin", size)
        except Failed as failed:
            if failed.error.code != "storage_full":
                break
            size //= 2
        if size < KIB:
            break
    ready()
    idle([connection])


def keep_earned_credit(port: int, ticket: str) -> None:
    """X4: earn credit on streams one after the other, stop, and never answer PAUSE."""
    connection = connect(port, ticket)
    data = bytes(12 * MIB)
    for _ in range(24):
        try:
            stream, _created = connection.create("earned.bin", 1 * GIB)
            connection.upload(stream, data)
        except (Failed, TimeoutError):
            break
    ready()
    idle([connection])


def open_idle_streams(port: int, ticket: str) -> None:
    """X5: as many uploads as there is room for, no byte in any."""
    connections = [connect(port, ticket) for _ in range(8)]
    for each in connections:
        creates(each, 250, 17 * KIB)
    ready()
    idle(connections)


def ask(port: int, ticket: str) -> None:
    """X11: 250 QUERYs outstanding on each of 31 connections."""
    connections = [connect(port, ticket) for _ in range(CONNECTIONS)]
    missing = "00000000-0000-0000-0000-000000000000"

    def query(connection: RawConnection, count: int) -> None:
        frames = []
        for _ in range(count):
            frame = m.Query(missing).to_frame(connection.next_stream(), crc32c)
            frames.append(frame_head(len(frame)) + frame)
        connection.send_bytes(b"".join(frames))

    for each in connections:
        query(each, 250)
    ready()
    by_socket = {each.socket: each for each in connections}
    while True:
        for found in select.select(list(by_socket), [], [], 1.0)[0]:
            connection = by_socket[found]
            with contextlib.suppress(Closed, TimeoutError):
                stream, _message = connection.receive()
                if stream:
                    query(connection, 1)


def trickle(port: int, ticket: str) -> None:
    """X12: one byte a second on each of 1,000 streams."""
    connections = [connect(port, ticket) for _ in range(4)]
    streams = {each: creates(each, 250, 17 * KIB) for each in connections}
    ready()
    for offset in range(17 * KIB):
        began = time.monotonic()
        for connection, opened in streams.items():
            for stream in opened:
                with contextlib.suppress(Closed, OSError):
                    connection.send_data(stream, offset, b"x")
        read(connections, max(0.0, began + 1.0 - time.monotonic()))


def flood(port: int, ticket: str) -> None:
    """X22: frames of one byte to a stream that the server has closed, as many as it reads."""
    connections = [connect(port, ticket) for _ in range(CONNECTIONS)]
    for each in connections:
        each.send(m.Create(uuid.uuid4().hex, "a/b", 1), each.next_stream())
        each.error()
        each.socket.setblocking(False)
    frame = build_data(1, 0, b"x", crc32c)
    flood = (frame_head(len(frame)) + frame) * 1000
    left = {each.socket: flood for each in connections}
    ready()
    while True:
        sockets = list(left)
        readable, writable, _ = select.select(sockets, sockets, [], 1.0)
        for each in readable:
            with contextlib.suppress(OSError):
                each.recv(1 << 16)
        for each in writable:
            try:
                rest = left[each][each.send(left[each]) :]
                left[each] = rest or flood
            except BlockingIOError:
                continue
            except OSError:
                del left[each]


def create_and_cancel(port: int, ticket: str) -> None:
    """X24: CREATE and CANCEL without end, by a user who has nearly as many uploads open as the limit allows."""
    connections = [connect(port, ticket) for _ in range(4)]
    ready()
    while True:
        for connection in connections:
            with contextlib.suppress(Failed):
                stream, _created = connection.create("a.bin", 20 * KIB)
                connection.send(m.Cancel(), stream)
                connection.expect(m.Cancelled, stream=stream)


ATTACKS: dict[str, Callable[[int, str], None]] = {
    "X3": reserve_the_disk,
    "X4": keep_earned_credit,
    "X5": open_idle_streams,
    "X11": ask,
    "X12": trickle,
    "X22": flood,
    "X24": create_and_cancel,
}

if __name__ == "__main__":
    signal.alarm(LONGEST)
    ATTACKS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
