"""Two machines of a site, with one folder, one PostgreSQL, and messages by Redis or by PostgreSQL's NOTIFY."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import NamedTuple

import pytest

from django_async_upload.protocol import messages

from .conftest import tracebacks
from .hosts import Host, environment, prepare
from .machines import Machine, MachineServer, machines
from .postgres import PostgresServer
from .raw import Failed, finish
from .redis import running_redis
from .servers import wait_for

KIB, MIB = 1024, 1024 * 1024
SESSIONS, BYTES = 30, 64 * MIB
"""Quotas of a user."""
CONNECTED = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
"""As docs/deployment.md has it, for a network that loses every packet."""


class Site(NamedTuple):
    a: Host
    b: Host
    machine: Machine
    """That of ``a``."""


@pytest.fixture(scope="module", params=["redis", "notify"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Leave it with its links up, and with no upload of demo's or other's open."""
    root = tmp_path_factory.mktemp("site")
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(machines(root, 2))
        gateways = [each.gateway for each in made]
        postgres = PostgresServer()
        stack.callback(postgres.remove)
        postgres.start(addresses=gateways)
        database = postgres.make_database()
        prepare(root, E2E_POSTGRES=json.dumps(postgres.setting(database)))
        redis = None
        if request.param == "redis":
            redis = stack.enter_context(running_redis(root, gateways))
        uploads = {"USER_MAX_SESSIONS": SESSIONS, "USER_MAX_BYTES": BYTES}
        hosts = []
        for each in made:
            setting = postgres.setting(database, host=each.gateway, **CONNECTED)
            extra = {"E2E_POSTGRES": json.dumps(setting), "E2E_HOSTS": each.address}
            if redis is not None:
                extra["E2E_LAYERS"] = json.dumps(redis.layers(address=each.gateway))
            env = environment(root, uploads, **extra)
            server = MachineServer(each, env, root / f"{each.name}.log")
            stack.callback(server.kill)
            server.start()
            hosts.append(Host(root, server))
        yield Site(*hosts, made[0])
        for host in hosts:
            assert not tracebacks(host.server.log()), host.server.log()[-6000:]


def bytes_read(host: Host) -> int:
    """What the server has read of files."""
    return sum(each.io_counters().read_chars for each in host.server.processes())


def test_an_upload_that_is_cut_at_one_machine_is_finished_at_the_other_in_the_same_file(
    site: Site,
) -> None:
    """The old machine does not see that its client is gone. The new one, which has another boot id, proves by
    reading that the shared folder has what the old one wrote."""
    data = os.urandom(24 * MIB)
    stop = len(data) - MIB
    with site.a.connect() as old:
        stream, created = old.create("moved.bin", len(data))
        old.upload(stream, data, stop=stop)
        (part,) = site.a.parts()
        inode = part.stat().st_ino
        with site.b.connect() as new:
            before = bytes_read(site.b)
            begun = time.monotonic()
            stream, ready = new.attach(created.upload, data)
            print(f"READY after {time.monotonic() - begun:.2f} s")
            assert ready.offset == stop
            assert bytes_read(site.b) - before >= stop
            assert site.b.parts() == [part]
            new.upload(stream, data, offset=stop)
            stored = new.finish(stream, data).stored_as
        assert old.error().code == "taken_over"
    published = site.a.path(stored)
    assert published.read_bytes() == data
    assert published.stat().st_ino == inode
    assert len(site.a.wait_for_signals("upload_completed", created.upload)) == 1


def test_what_a_machine_wakes_with_that_was_cut_off_changes_no_published_file(site: Site) -> None:
    """It holds the upload, its file is open and locked, and when the link is back, the first that arrives is the rest
    of another file, with its FINISH."""
    rest = 16 * KIB  # a holder may send so much at any time
    data = os.urandom(2 * MIB + rest)
    wrong = data[: 2 * MIB] + b"\xee" * rest
    with site.a.connect() as old:
        stream, created = old.create("cut off.bin", len(data))
        old.upload(stream, data, stop=2 * MIB)
        wait_for(lambda: old.durable[stream] == 2 * MIB or old.receive(), what="a checkpoint")
        (part,) = site.a.parts()
        inode = part.stat().st_ino
        with site.machine.cut_off():
            old.send_data(stream, 2 * MIB, wrong[2 * MIB :])
            old.send(finish(wrong), stream)
            with site.b.connect() as new:
                begun = time.monotonic()
                stream, ready = new.attach(created.upload, data)
                print(f"READY after {time.monotonic() - begun:.2f} s")
                assert ready.offset == 2 * MIB
                new.upload(stream, data, offset=ready.offset)
                stored = new.finish(stream, data).stored_as
            published = site.b.path(stored)
            assert published.read_bytes() == data
            before = published.stat()
            assert before.st_ino != inode, "the one that is cut off has that file open"
        old.timeout = 90
        assert old.error().code == "taken_over"
    wait_for(lambda: not site.a.parts(), what="the end of the parts")
    after = published.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        *(before.st_ino, before.st_size, before.st_mtime_ns),
    )
    assert published.read_bytes() == data
    assert len(site.b.wait_for_signals("upload_completed", created.upload)) == 1
    wait_for(lambda: reached(site) == 2, seconds=60, what="messages to the machine that is back")


def reached(site: Site) -> int:
    """The number of workers that a command at ``b`` reaches."""
    return len(json.loads(site.b.manage("upload_status", "--json"))["workers"])


@pytest.mark.parametrize(
    ("user", "size", "fit", "code"),
    [("other", 1, SESSIONS, "session_quota"), ("demo", 9 * MIB, BYTES // (9 * MIB), "byte_quota")],
)
def test_uploads_that_begin_at_both_machines_at_once_fill_a_quota_exactly(
    site: Site, user: str, size: int, fit: int, code: str
) -> None:
    ticket = site.a.ticket(user)
    barrier = Barrier(2)

    def fill(host: Host) -> Counter[str]:
        with host.connect(ticket) as connection:
            barrier.wait(60)
            begun, codes = [], Counter[str]()
            for number in range(fit):
                try:
                    begun.append(connection.create(f"{number}.bin", size)[0])
                except Failed as refusal:
                    codes[refusal.error.code] += 1
            barrier.wait(60)
            for stream in begun:
                connection.send(messages.Cancel(), stream)
                connection.expect(messages.Cancelled, stream=stream)
        return codes + Counter(created=len(begun))

    with ThreadPoolExecutor() as threads:
        at_a, at_b = threads.map(fill, (site.a, site.b))
    print(at_a, at_b)
    assert at_a + at_b == Counter({"created": fit, code: fit})


END = """
from django_async_upload.engine import service
(ended,) = service.end(["{pk}"], "cancelled")
"""
"""What the admin's action does."""


@pytest.mark.parametrize("how", ["cancelled by its client", "ended in the admin"])
def test_what_ends_at_one_machine_stops_the_holder_at_the_other(site: Site, how: str) -> None:
    data = os.urandom(2 * MIB)
    with site.a.connect() as old, site.b.connect() as new:
        stream, created = old.create("ended.bin", len(data))
        old.upload(stream, data, stop=MIB)
        if how == "ended in the admin":
            site.b.manage("shell", "--command", END.format(pk=created.upload))
        else:
            number = new.next_stream()
            new.send(messages.Cancel(created.upload), number)
            new.expect(messages.Cancelled, stream=number)
        begun = time.monotonic()
        assert old.error().code == "upload_over"
        print(f"its holder stopped after {time.monotonic() - begun:.2f} s")
        assert time.monotonic() - begun < 3
    wait_for(lambda: not site.a.parts(), what="the end of the part")


def test_a_command_at_one_machine_sees_and_drains_the_workers_of_both(site: Site) -> None:
    status = json.loads(site.a.manage("upload_status", "--json"))
    assert status["scope"] == "site"
    assert [each["host"] for each in status["workers"]] == sorted(
        each.server.inside[-2] for each in (site.a, site.b)
    )
    with site.b.connect() as client:
        drained = site.a.manage("upload_drain", "--all", "--retry-after", "0.2", "--wait")
        assert drained == "2 workers are drained.\n"
        client.expect(messages.Drain)
        assert client.close_code() == 4503
        with pytest.raises(Failed) as refused:
            site.b.connect()
        assert refused.value.error.code == "draining"
    assert site.a.manage("upload_undrain", "--all") == "2 workers take clients.\n"
    with site.b.connect() as client:
        stream, _created = client.create("afterwards.bin", 4)
        client.upload(stream, b"data")
        client.finish(stream, b"data")


def test_a_command_reaches_one_machine_only_where_the_other_is_cut_off(site: Site) -> None:
    with site.machine.cut_off():
        assert reached(site) == 1
    wait_for(lambda: reached(site) == 2, seconds=60, what="messages to the machine that is back")
