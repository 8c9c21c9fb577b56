"""Services fail while clients upload: they wait and go on, every file arrives once, and nothing acknowledged is lost.

Each test runs for some ten seconds; with ``E2E_LONG=1`` each failure lasts for a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from django_async_upload.protocol import messages

from .clock import Clock
from .disks import small_disk
from .hosts import Host, prepare
from .load import KIB, SLOW, Load, log_records
from .postgres import PostgresServer
from .postgres_proxy import PostgresProxy
from .raw import finish
from .redis import Redis, running_redis
from .servers import ROOT, wait_for

pytestmark = pytest.mark.one_server

MIB = KIB * KIB
IS_LONG = os.environ.get("E2E_LONG") == "1"
FAILS_FOR = 60.0 if IS_LONG else 3.0
"""Seconds that a service is away."""
HELD = 13.0
"""Seconds for which pages keep database connections: longer than a call waits for one."""
REST = 60.0
"""Seconds after which every upload is complete, once the service is back: clients wait for at most 30 between tries."""
MOST_RECORDS = 10
"""What the app may log about one failure."""


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """PostgreSQL, with a migrated database ``e2e_1`` to copy."""
    server = PostgresServer()
    try:
        server.start()
        prepare(ROOT, E2E_POSTGRES=json.dumps(server.setting(server.make_database())))
        yield server
    finally:
        server.remove()


@pytest.fixture
def database(server: PostgresServer) -> str:
    """The name of a migrated database."""
    return server.make_database("e2e_1")


def on(setting: Mapping[str, object]) -> dict[str, str]:
    """The environment of a host with this database."""
    return {"E2E_POSTGRES": json.dumps(setting)}


@contextlib.contextmanager
def failing(load: Load, host: Host) -> Iterator[None]:
    """For :data:`FAILS_FOR` seconds; prints how many small files arrived meanwhile."""
    began, done = time.monotonic(), load.small_done
    host.tracebacks_expected = False
    yield
    time.sleep(max(0.0, began + FAILS_FOR - time.monotonic()))
    print(f"{load.small_done - done} small files in {time.monotonic() - began:.1f} s of failure")


def assert_not_flooded(host: Host) -> None:
    records = log_records(host.server.log())
    print(*(f"{count} x {message}" for message, count in records.most_common()), sep="\n")
    assert records.total() <= MOST_RECORDS


def test_redis_is_killed_and_comes_back(hosts: Callable[..., Host], tmp_path: Path) -> None:
    """Takeovers go by the rows while it is away, and by messages afterwards."""
    with running_redis(tmp_path) as redis:
        host = hosts(extra={"E2E_LAYER": json.dumps(redis.layers()["default"])})
        with host.another_server() as another, Load(host) as load:
            assert yields_by_message(host, another, redis, load)
            with failing(load, host):
                redis.kill()
                seconds = take_over(host, another, load, "while redis is away.bin")
            print(f"taken over in {seconds:.2f} s without Redis")
            redis.start()
            wait_for(
                lambda: yields_by_message(host, another, redis, load),
                seconds=REST,
                what="messages over Redis",
            )
            load.finish(REST)
    assert_not_flooded(host)


def take_over(host: Host, another: Host, load: Load, name: str) -> float:
    """Begin a file at one worker and go on at the other; returns the seconds from ATTACH to READY."""
    load.contents[name] = data = os.urandom(MIB)
    with host.connect(load.ticket()) as old, another.connect(load.ticket()) as new:
        stream, created = old.create(name, len(data))
        old.upload(stream, data, stop=len(data) // 2)
        began = time.monotonic()
        stream, ready = new.attach(created.upload, data)
        seconds = time.monotonic() - began
        new.upload(stream, data, offset=ready.offset)
        load.results[name] = new.finish(stream, data)
    return seconds


def yields_by_message(host: Host, another: Host, redis: Redis, load: Load) -> bool:
    """Whether a holder that is asked for its upload over Redis answers."""
    address = ("127.0.0.1", redis.port)
    with socket.create_connection(address, timeout=1.0) as spy:
        spy.sendall(b"PSUBSCRIBE *\r\n")
        seconds = take_over(host, another, load, f"by message {time.monotonic()}.bin")
        heard = b""
        with contextlib.suppress(TimeoutError):
            while b"yielded" not in heard:
                heard += spy.recv(65536)
    print(f"taken over in {seconds:.2f} s, by message: {b'yielded' in heard}")
    return b"yielded" in heard


def test_postgresql_crashes_and_comes_back(
    hosts: Callable[..., Host], server: PostgresServer, database: str
) -> None:
    host = hosts(extra=on(server.setting(database)))
    with Load(host) as load:
        with failing(load, host):
            server.stop()
        server.start()
        print(f"complete {load.finish(REST):.1f} s later")
    assert_not_flooded(host)


def test_postgresql_hangs_and_its_notifications_come_back(
    hosts: Callable[..., Host], server: PostgresServer, database: str
) -> None:
    """Bytes are received meanwhile, and none is called durable that no row has."""
    host = hosts(extra=on(server.setting(database)))
    name, data = "begun before.bin", os.urandom(MIB)
    with host.another_server() as another, Load(host) as load, host.connect() as connection:
        assert yields_by_notification(host, another, server, database, load)
        load.contents[name] = data
        stream, _created = connection.create(name, len(data))
        with failing(load, host):
            server.suspend()
            try:
                connection.upload(stream, data)
                assert connection.durable[stream] < len(data)
                wait_for(
                    lambda: "Other processes are not" in host.server.log(),
                    what="the end of messages",
                )
            finally:
                server.resume()
        load.results[name] = connection.finish(stream, data)
        wait_for(
            lambda: yields_by_notification(host, another, server, database, load),
            seconds=REST,
            what="messages by NOTIFY",
        )
        load.finish(REST)
    assert_not_flooded(host)


def yields_by_notification(
    host: Host, another: Host, server: PostgresServer, database: str, load: Load
) -> bool:
    """Whether a holder that is asked for its upload by NOTIFY answers."""
    with server.connect(database) as spy:
        spy.execute(f'LISTEN "async-upload.{hashlib.sha256(database.encode()).hexdigest()[:16]}"')
        seconds = take_over(host, another, load, f"by notification {time.monotonic()}.bin")
        heard = "".join(each.payload for each in spy.notifies(timeout=1.0))
    print(f"taken over in {seconds:.2f} s, by notification: {'yielded' in heard}")
    return "yielded" in heard


def test_postgresql_answers_200_ms_late(
    hosts: Callable[..., Host], server: PostgresServer, database: str
) -> None:
    with PostgresProxy(server.port) as proxy:
        host = hosts(extra=on(server.setting(database, proxy.port)))
        # More than clients send in both measurements, and before.
        with Load(host, size=6 * MIB + int(3 * FAILS_FOR * SLOW)) as load:
            speed, small = load.measure(FAILS_FOR)
            proxy.delay = 0.2
            late_speed, late_small = load.measure(FAILS_FOR)
            proxy.delay = 0.0
            load.finish(REST)
    print(f"{late_speed / speed:.2f} of the speed, {late_small / small:.2f} of the small files")
    assert late_speed > 0.8 * speed


def test_answers_to_commits_are_lost(
    hosts: Callable[..., Host], server: PostgresServer, database: str
) -> None:
    with PostgresProxy(server.port) as proxy:
        host = hosts(extra=on(server.setting(database, proxy.port)))
        with Load(host) as load:
            proxy.cut_every = 5
            with failing(load, host):
                pass
            load.finish(REST)
        print(f"{proxy.cuts} of {proxy.commits} commits were not answered")
        assert proxy.cuts >= 10
    assert_not_flooded(host)


def test_others_take_all_connections_to_postgresql(
    hosts: Callable[..., Host], server: PostgresServer, database: str
) -> None:
    server.stop()
    server.start(max_connections=10)
    try:
        host = hosts(extra=on(server.setting(database)))
        with Load(host) as load, contextlib.ExitStack() as others:
            with failing(load, host):
                take_all(server, database, others)
            others.close()
            load.finish(REST)
        assert_not_flooded(host)
    finally:
        server.stop()
        server.start()


def take_all(server: PostgresServer, database: str, taken: contextlib.ExitStack) -> None:
    """Take the connections of everybody else."""
    import psycopg

    server.terminate(database)
    for _again in range(50):
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.enter_context(server.connect("postgres", "site"))
        server.terminate(database)


@pytest.mark.parametrize("size", [1, 2])
def test_a_pool_of_few_connections_is_shared_with_the_site(
    hosts: Callable[..., Host], server: PostgresServer, database: str, size: int
) -> None:
    """Pages and uploads take turns, also while pages keep all connections for longer than a call waits."""
    pool = {"min_size": 1, "max_size": size}
    host = hosts(extra=on(server.setting(database, pool=pool)))
    with Load(host) as load, host.connect(load.ticket()) as refused:
        for _ in range(10):
            assert host.get("/ticket/", user="demo")
        with failing(load, host), ThreadPoolExecutor(size) as pages:
            held = [pages.submit(host.get, "/hold/", seconds=HELD) for _ in range(size)]
            if size == 1:
                time.sleep(0.5)  # for the page's query
                stream = refused.next_stream()
                refused.send(messages.Query(str(uuid.uuid4())), stream)
                error = refused.error(timeout=HELD)
                assert (error.code, error.retryable) == ("database_unavailable", True)
            for each in held:
                each.result()
        print(f"complete {load.finish(REST):.1f} s later")
    assert_not_flooded(host)


def test_the_staging_disk_is_full(hosts: Callable[..., Host], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 96 * MIB) as disk:
        host = hosts(extra={"E2E_DISK": str(disk.path)})
        with Load(host) as load:
            ballast = disk.path / "ballast"
            with failing(load, host):
                fill(ballast)
            ballast.unlink()
            load.finish(REST)
        assert_not_flooded(host)


def fill(ballast: Path) -> None:
    """Leave no room on the disk."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * KIB))


def test_the_disk_of_the_storage_is_full_while_files_are_copied_there(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "storage", 96 * MIB) as disk:
        host = hosts(extra={"E2E_STORAGE": str(disk.path / "finished")})
        with Load(host) as load:
            ballast = disk.path / "ballast"
            with failing(load, host):
                fill(ballast)
                load.proxy.rate = None
            ballast.unlink()
            load.finish(REST)
        assert_not_flooded(host)


def test_a_worker_is_stopped_in_a_transaction_and_wakes(
    hosts: Callable[..., Host], server: PostgresServer, database: str
) -> None:
    """Its clients go on at the other worker, and what it does when it wakes changes nothing.

    Only a file that it was about to publish waits until it wakes, or is killed.
    """
    with PostgresProxy(server.port) as proxy:
        proxy.delay = 0.02
        host = hosts(extra=on(server.setting(database, proxy.port)), IDLE_TIMEOUT=3.0)
        with host.another_server() as another, Load(host) as load:

            def waiting() -> set[str]:
                published = {
                    row["name"] for row in another.uploads() if row["state"] == "finalizing"
                }
                return set(load.late()) - published

            began = time.monotonic()
            stop_in_a_transaction(host, server, database)
            try:
                load.proxy.upstream = another.port
                load.hurry()
                wait_for(
                    lambda: not waiting(),
                    seconds=REST,
                    what="the files that are not being published",
                )
                print(f"{len(load.results)} files {time.monotonic() - began:.1f} s after the stop")
                time.sleep(max(0.0, began + FAILS_FOR - time.monotonic()))
                done = stats_of(host, load)
            finally:
                host.server.cont()
            print(f"{len(load.late())} files waited for the worker that was stopped")
            load.finish(REST, orphans=True)
            assert done.items() <= stats_of(host, load).items()
        with host.connect() as connection:
            stream, _created = connection.create("afterwards.bin", 4)
            connection.upload(stream, b"data")
            connection.finish(stream, b"data")


def stop_in_a_transaction(host: Host, server: PostgresServer, database: str) -> None:
    """SIGSTOP while it has locked the rows of checkpoints."""
    query = (
        "SELECT FROM pg_stat_activity WHERE datname = %s AND state = 'idle in transaction' "
        """AND query LIKE 'UPDATE%%"durable"%%'"""
    )
    with server.connect() as admin:
        while True:
            host.server.stop()
            time.sleep(0.1)  # what it asked before has been answered
            if admin.execute(query, (database,)).fetchall():
                return
            host.server.cont()
            time.sleep(0.03)


def stats_of(host: Host, load: Load) -> dict[str, tuple[int, int, int]]:
    """What would change if somebody wrote to a published file."""
    stats = {name: host.path(each.stored_as).stat() for name, each in load.results.items()}
    return {name: (each.st_ino, each.st_size, each.st_mtime_ns) for name, each in stats.items()}


def test_the_clock_is_moved_by_an_hour_both_ways(
    hosts: Callable[..., Host], tmp_path: Path, server: PostgresServer, database: str
) -> None:
    clock = Clock(tmp_path)
    host = hosts(extra={**clock.environment, **on(server.setting(database))}, TICKET_MAX_AGE=900.0)
    with Load(host, ticket=host.ticket) as load:
        for seconds in (3600, -3600, 0):
            clock.move(seconds)
            load.proxy.cut()
            with failing(load, host):
                host.manage("purge_uploads")
            assert not {row["state"] for row in host.uploads()} & {"expired", "failed"}
        load.finish(REST)
    assert_not_flooded(host)


def test_what_is_inspected_while_the_clock_is_moved_is_not_taken_over(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    clock = Clock(tmp_path)
    host = hosts(extra=clock.environment)
    data = os.urandom(2 * MIB)
    path = "/ws/inspecting/"
    ticket = host.ticket(endpoint="inspecting", max_age=2 * 3600)
    with host.another_server() as another, another.connect(ticket, path=path) as new:
        with host.connect(ticket, path=path) as old:
            stream, created = old.create("inspected.bin", len(data))
            old.upload(stream, data)
            old.send(finish(data), stream)
            host.wait_for_signals("inspect", created.upload)
        clock.move(3600)
        number = new.next_stream()
        new.send(messages.Attach(created.upload), number)
        completed = new.expect(messages.Completed, stream=number)
        assert host.path(completed.stored_as).read_bytes() == data
        assert len(host.signals("inspect", created.upload)) == 1
