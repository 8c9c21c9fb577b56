"""Uploads that come and go: ``python -m tests.bench.churn PORT TICKETS SECONDS``, tickets with commas.

Each of :data:`PEOPLE` people does one thing after the other with random files, on a connection of its own each time.
Prints how often each thing was done, and what went wrong, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from django_async_upload.protocol import messages as m
from tests.e2e.raw import RawConnection

from .attackers import KIB, MIB, connect

PEOPLE = 24


def complete(port: int, ticket: str) -> None:
    data = os.urandom(random.randrange(1, MIB))
    connection = connect(port, ticket)
    stream, _created = connection.create("complete.bin", len(data))
    connection.upload(stream, data)
    connection.finish(stream, data)
    connection.close()


def small_files(port: int, ticket: str) -> None:
    connection = connect(port, ticket)
    for _ in range(8):
        data, stream = os.urandom(random.randrange(1, 16 * KIB)), connection.next_stream()
        connection.send(m.Create(os.urandom(16).hex(), "small.bin", len(data)), stream)
        connection.send_data(stream, 0, data)
        connection.finish(stream, data)
    connection.close()


def drop_and_resume(port: int, ticket: str) -> None:
    """The connection is lost in the middle of a chunk."""
    data = os.urandom(random.randrange(100 * KIB, MIB))
    connection = connect(port, ticket)
    stream, created = connection.create("resumed.bin", len(data))
    connection.upload(stream, data, stop=len(data) // 2)
    connection.send_bytes(b"\x82\xfe\x40\x00")
    connection.socket.close()
    connection = connect(port, ticket)
    stream, ready = connection.attach(created.upload, data)
    connection.upload(stream, data, offset=ready.offset)
    connection.finish(stream, data)
    connection.close()


def take_over(port: int, ticket: str) -> None:
    """A second connection takes the upload from the first one."""
    data = os.urandom(200 * KIB)
    first = connect(port, ticket)
    stream, created = first.create("taken.bin", len(data))
    first.upload(stream, data, stop=100 * KIB)
    second = connect(port, ticket)
    stream, ready = second.attach(created.upload, data)
    second.upload(stream, data, offset=ready.offset)
    second.finish(stream, data)
    second.close()
    first.close()


def cancel(port: int, ticket: str) -> None:
    connection = connect(port, ticket)
    stream, _created = connection.create("cancelled.bin", MIB)
    connection.upload(stream, bytes(200 * KIB), stop=200 * KIB)
    connection.send(m.Cancel(), stream)
    connection.expect(m.Cancelled, stream=stream)
    connection.close()


def damage(port: int, ticket: str) -> None:
    """The connection breaks the protocol, and is closed."""
    connection = connect(port, ticket)
    connection.create("damaged.bin", MIB)
    connection.send_message(os.urandom(100))
    connection.close_code()


def stay_away(port: int, ticket: str) -> None:
    """Nobody authenticates; the connection is lost."""
    connection = RawConnection(port)
    connection.socket.close()


LIVES: dict[str, Callable[[int, str], None]] = {
    each.__name__: each
    for each in (complete, small_files, drop_and_resume, take_over, cancel, damage, stay_away)
}


def live(port: int, ticket: str, end: float, done: Counter[str], wrong: Counter[str]) -> None:
    while time.monotonic() < end:
        name = random.choice(list(LIVES))
        try:
            LIVES[name](port, ticket)
        except Exception as error:
            wrong[f"{name}: {type(error).__name__}: {error}"[:200]] += 1
        else:
            done[name] += 1


def main(port: int, tickets: list[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    done: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    people = [
        threading.Thread(target=live, args=(port, tickets[n % len(tickets)], end, done, wrong))
        for n in range(PEOPLE)
    ]
    for each in people:
        each.start()
    for each in people:
        each.join()
    print(json.dumps({"done": done, "wrong": wrong}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3]))
