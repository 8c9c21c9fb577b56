"""The host's disk, database and receivers fail: a clear error or a pause, and nothing acked is lost."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crc32c import crc32c

from django_async_upload.protocol import messages

from .disks import small_disk
from .hosts import Host, migrated
from .postgres import Postgres
from .raw import Failed, RawConnection, SteadyUpload, finish
from .servers import wait_for

pytestmark = pytest.mark.one_server

MIB = 1024 * 1024
GONE_FOR = 5.0
"""Seconds that a database is locked, or gone."""


def send_on(host: Host, ticket: str, upload: str, data: bytes) -> messages.Completed:
    """Attach again after each retryable error, and finish."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with host.connect(ticket) as connection:
                stream, ready = connection.attach(upload, data)
                connection.upload(stream, data, offset=ready.offset)
                return connection.finish(stream, data)
        except Failed as failed:
            if not failed.error.retryable or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_full_disk_is_an_error_at_creation_where_the_size_is_known(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 24 * MIB) as disk:
        host = hosts(extra={"E2E_DISK": str(disk.path)})
        with host.connect() as connection, pytest.raises(Failed) as failed:
            connection.create("too big for the disk.bin", 64 * MIB)
        error = failed.value.error
        assert (error.code, error.retryable) == ("storage_full", True)
        assert host.parts() == []
        assert "/" not in error.message, "the message shows a path"


def test_a_disk_that_fills_up_loses_nothing_that_was_acked(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 24 * MIB) as disk:
        host = hosts(extra={"E2E_DISK": str(disk.path)})
        ticket = host.ticket()
        data = os.urandom(16 * MIB)
        ballast = disk.path / "ballast"
        ballast.write_bytes(bytes(16 * MIB))
        with host.connect(ticket) as connection:
            stream, created = connection.create("unknown size.bin")
            with pytest.raises(Failed) as failed:
                connection.upload(stream, data)
            assert (failed.value.error.code, failed.value.error.retryable) == ("storage_full", True)
            durable = connection.durable.get(stream, 0)
        ballast.unlink()
        with host.connect(ticket) as connection:
            stream, ready = connection.attach(created.upload, data)
            assert ready.offset >= durable
            connection.upload(stream, data, offset=ready.offset)
            stored = connection.finish(stream, data).stored_as
        assert host.path(stored).read_bytes() == data


def test_a_read_only_folder_is_a_storage_error_that_heals(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 48 * MIB) as disk:
        host = hosts(extra={"E2E_DISK": str(disk.path)})
        ticket = host.ticket()
        data = os.urandom(4 * MIB)
        with host.connect(ticket) as connection:
            stream, created = connection.create("read only.bin", len(data))
            connection.upload(stream, data, stop=2 * MIB)
            connection.send(messages.Release(), stream)
            assert connection.expect(messages.Released, stream=stream).durable == 2 * MIB
            host.tracebacks_expected = True  # the operator must find out
            disk.remount("ro")
            with pytest.raises(Failed) as failed:
                connection.create("another.bin", MIB)
            assert (failed.value.error.code, failed.value.error.retryable) == (
                "storage_error",
                True,
            )
            with pytest.raises(Failed) as failed:
                connection.attach(created.upload, data)
            assert (failed.value.error.code, failed.value.error.retryable) == (
                "storage_error",
                True,
            )
            disk.remount("rw")
        completed = send_on(host, ticket, created.upload, data)
        assert host.path(completed.stored_as).read_bytes() == data


@pytest.mark.parametrize("patience", ["0.1", "20"], ids=["an impatient driver", "a patient driver"])
def test_a_database_that_is_locked_for_five_seconds_is_waited_for(
    hosts: Callable[..., Host], patience: str
) -> None:
    host = hosts(extra={"E2E_SQLITE_TIMEOUT": patience})
    ticket = host.ticket()
    data = os.urandom(24 * MIB)
    with (
        ThreadPoolExecutor() as sender,
        host.connect(ticket) as connection,
        host.connect(ticket) as other,
    ):
        stream, created = connection.create("locked.bin", len(data))
        connection.upload(stream, data, stop=4 * MIB)
        with host.locked():
            begun = time.monotonic()
            key = uuid.uuid4().hex
            other.send(messages.Create(key=key, name="while locked.bin", size=5), 1)
            other.send_data(1, 0, b"small")
            other.send(finish(b"small"), 1)
            sending = sender.submit(_upload, connection, stream, data, 4 * MIB)
            time.sleep(GONE_FOR)
            assert connection.durable[stream] < len(data), "durable without its checkpoint"
        sending.result(60)
        small = other.expect(messages.Completed, stream=1)
        completed = send_on(host, ticket, created.upload, data)
        assert time.monotonic() - begun >= GONE_FOR
    assert host.path(small.stored_as).read_bytes() == b"small"
    assert host.path(completed.stored_as).read_bytes() == data


def _upload(connection: RawConnection, stream: int, data: bytes, offset: int) -> None:
    """Send all of it, unless the server says that it cannot continue for now."""
    try:
        connection.upload(stream, data, offset=offset)
    except Failed as failed:
        if not failed.error.retryable:
            raise


def test_postgresql_gone_for_five_seconds_is_waited_for(hosts: Callable[..., Host]) -> None:
    wait_for_postgresql(hosts)


@pytest.mark.one_server
def test_postgresql_gone_for_five_seconds_is_waited_for_with_a_pool(
    hosts: Callable[..., Host],
) -> None:
    wait_for_postgresql(hosts, OPTIONS={"pool": True})


def wait_for_postgresql(hosts: Callable[..., Host], **setting: object) -> None:
    with Postgres() as postgres:
        host = hosts(extra=migrated({**postgres.setting, **setting}))
        ticket = host.ticket()
        data = os.urandom(24 * MIB)
        with (
            ThreadPoolExecutor() as sender,
            host.connect(ticket) as connection,
            host.connect(ticket) as other,
        ):
            stream, created = connection.create("gone.bin", len(data))
            connection.upload(stream, data, stop=4 * MIB)
            with postgres.gone():
                key = uuid.uuid4().hex
                other.send(messages.Create(key=key, name="while gone.bin", size=5), 1)
                other.send_data(1, 0, b"small")
                other.send(finish(b"small"), 1)
                sending = sender.submit(_upload, connection, stream, data, 4 * MIB)
                time.sleep(GONE_FOR)
            sending.result(60)
            small = other.expect(messages.Completed, stream=1)
            completed = send_on(host, ticket, created.upload, data)
        assert host.path(small.stored_as).read_bytes() == b"small"
        assert host.path(completed.stored_as).read_bytes() == data
        host.server.kill()


@pytest.mark.parametrize("fault", ["raise", "hang", "cancel"])
def test_a_receiver_that_misbehaves_breaks_no_upload(host: Host, fault: str) -> None:
    host.tracebacks_expected = fault == "raise"
    start = host.server.log_size()
    data = os.urandom(MIB)
    uploads = []
    with SteadyUpload(host.port, host.ticket()), host.connect() as connection:
        for number in range(3):
            stream, created = connection.create(f"{fault}-{number}.bin", len(data))
            uploads.append(created.upload)
            connection.upload(stream, data)
            completed = connection.finish(stream, data)
            assert completed.crc32c == f"{crc32c(data):08x}"
            if fault == "hang":
                assert not host.signals("upload_completed", created.upload), "the answer waited"
        connection.send(messages.Ping(1))
        connection.expect(messages.Pong)
        if fault == "hang":
            assert not host.signals("upload_completed", created.upload), "the server waited"
    for upload in uploads:
        host.wait_for_signals("upload_completed", upload)
    if fault == "raise":
        # All of them, so that none is found in the log of a later test.
        broken = "ValueError: the receiver of this host is broken"
        for upload in uploads:
            wait_for(
                lambda upload=upload: broken in host.server.log(start).partition(upload)[2],
                what="the receiver's error in the log",
            )
        # It is called again, with the same id, and succeeds.
        for upload in uploads:
            wait_for(
                lambda upload=upload: len(host.signals("upload_completed", upload)) == 2,
                what="another call of the receiver",
                seconds=90,
            )
            first, second = host.signals("upload_completed", upload)
            assert first["event"] == second["event"]


def test_a_receiver_that_never_returns_does_not_keep_the_server_from_ending(
    hosts: Callable[..., Host],
) -> None:
    host = hosts(RECEIVER_TIMEOUT=3600.0)
    with host.connect() as connection:
        stream, created = connection.create("stuck-for-ever.bin", 4)
        connection.upload(stream, b"data")
        connection.finish(stream, b"data")
        host.wait_for_signals("upload_completed", created.upload)
    begun = time.monotonic()
    host.server.terminate(seconds=120)
    assert time.monotonic() - begun < 60, "it was killed"
