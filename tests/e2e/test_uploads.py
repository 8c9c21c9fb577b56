"""Files of every size, and connections that stay open long."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from django_async_upload.protocol import messages

from .hosts import Host
from .programs import Program, put
from .raw import Failed, RawConnection, finish
from .servers import wait_for

MIB = 1024 * 1024


def write_random(path: Path, size: int) -> int:
    """Fill ``path`` and return its CRC-32C; never holds more than a piece of it."""
    crc = 0
    with path.open("wb") as file:
        while size > 0:
            piece = os.urandom(min(size, MIB))
            file.write(piece)
            crc = crc32c(piece, crc)
            size -= len(piece)
    return crc


def test_a_large_file_arrives(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    crc = write_random(source, 300 * MIB)
    before = host.server.memory()
    with put(tmp_path / "home", host.url(), host.ticket(), source) as program:
        (result,) = program.results(200)
    print(f"300 MiB in {result['seconds']:.1f} s, the server grew {host.server.memory() - before}")
    assert result["crc32c"] == f"{crc:08x}"
    stored = host.path(result["stored_as"])
    assert same(source, stored)
    assert host.server.memory() - before < 64 * MIB
    stored.unlink()


def same(one: Path, two: Path) -> bool:
    digests = []
    for path in (one, two):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").digest())
    return digests[0] == digests[1]


def test_an_empty_file_arrives(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "empty.txt"
    source.touch()
    with put(tmp_path / "home", host.url(), host.ticket(), source) as program:
        (result,) = program.results()
    assert (result["size"], result["crc32c"]) == (0, "00000000")
    assert host.path(result["stored_as"]).read_bytes() == b""


def test_standard_input_of_unknown_length_arrives(host: Host, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB + 7)
    with put(tmp_path / "home", host.url(), host.ticket(), "-", stdin=subprocess.PIPE) as program:
        assert program.process.stdin is not None
        for start in range(0, len(data), 500_000):
            program.process.stdin.write(data[start : start + 500_000])
        program.process.stdin.close()
        (result,) = program.results()
    assert result["size"] == len(data)
    assert host.path(result["stored_as"]).read_bytes() == data


def test_two_thousand_small_files_arrive_on_one_connection(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    contents = {f"small-{number:04}.txt": os.urandom(number % 3000) for number in range(2000)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = sorted(folder.iterdir())
    begun = time.monotonic()
    with host.proxy() as proxy:
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), *files) as program:
            results = program.results(200)
        assert proxy.connections == 1
        assert proxy.data_bytes() == sum(map(len, contents.values()))
    seconds = time.monotonic() - begun
    print(f"2,000 files in {seconds:.1f} s, {len(files) / seconds:.0f} a second")
    assert {each["name"] for each in results} == set(contents)
    for each in results:
        assert host.path(each["stored_as"]).read_bytes() == contents[each["name"]]


def test_large_files_and_small_ones_share_one_connection(host: Host, tmp_path: Path) -> None:
    crcs = {}
    for number in range(6):
        for size in (6 * MIB, 100):
            path = tmp_path / f"mixed-{number}-{size}.bin"
            crcs[path.name] = f"{write_random(path, size):08x}"
    files = sorted(tmp_path.glob("mixed-*"))
    with host.proxy() as proxy:
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), *files) as program:
            results = program.results()
        assert proxy.connections == 1
    assert {each["name"]: each["crc32c"] for each in results} == crcs
    for each in results:
        assert same(tmp_path / each["name"], host.path(each["stored_as"]))


def test_a_sha_256_is_checked_and_told(host: Host) -> None:
    data = os.urandom(3 * MIB)
    digest = hashlib.sha256(data).hexdigest()
    with host.connect() as connection:
        stream, _ = connection.create("digest.bin", len(data), digest="sha-256")
        connection.upload(stream, data)
        completed = connection.finish(stream, data, digests={"sha-256": digest})
    assert completed.digests["sha-256"] == digest


def test_a_ticket_that_runs_out_is_renewed_in_the_middle_of_an_upload(host: Host) -> None:
    data = os.urandom(MIB)
    ticket, runs_out = host.ticket(max_age=5), time.monotonic() + 5
    with host.connect(ticket) as connection:
        stream, _ = connection.create("renewed.bin", len(data))
        connection.upload(stream, data, stop=MIB // 2)
        connection.send(messages.Auth(host.ticket()))
        renewed = connection.expect(messages.Authenticated)
        assert renewed.expires_in is not None
        assert renewed.expires_in > 60
        wait_for(lambda: time.monotonic() > runs_out + 0.1, what="its end")
        connection.upload(stream, data, offset=MIB // 2)
        stored = connection.finish(stream, data).stored_as
    assert host.path(stored).read_bytes() == data


def test_a_finish_after_the_ticket_ran_out_interrupts_and_a_new_ticket_finishes(host: Host) -> None:
    data = os.urandom(MIB)
    ticket, runs_out = host.ticket(max_age=5), time.monotonic() + 5
    with host.connect(ticket) as connection:
        stream, created = connection.create("ran out.bin", len(data))
        connection.upload(stream, data)
        wait_for(lambda: time.monotonic() > runs_out + 0.1, what="its end")
        with pytest.raises(Failed) as failed:
            connection.finish(stream, data)
        assert failed.value.error.code == "ticket_expired"
        assert failed.value.stream == stream
        connection.send(messages.Auth(host.ticket()))
        connection.expect(messages.Authenticated)
        stream, ready = connection.attach(created.upload, data)
        assert ready.offset == len(data)
        stored = connection.finish(stream, data).stored_as
    assert host.path(stored).read_bytes() == data


def test_a_login_that_ended_meanwhile_cannot_finish(host: Host) -> None:
    data = os.urandom(100_000)
    cookie = host.login()
    with RawConnection(host.port, origin=host.server.url, cookie=cookie) as connection:
        assert connection.greet().authenticated
        stream, _ = connection.create("logged out.bin", len(data))
        connection.upload(stream, data)
        host.get("/logout/", session=cookie.partition("sessionid=")[2].split(";")[0])
        with pytest.raises(Failed) as failed:
            connection.finish(stream, data)
        assert failed.value.error.code == "authentication_required"
    assert not [each for each in host.files() if each.name.startswith("logged")]


def test_a_ticket_of_another_user_does_not_change_whose_connection_it_is(host: Host) -> None:
    data = os.urandom(1000)
    with host.connect() as connection:
        stream, created = connection.create("mine.bin", len(data))
        connection.send(messages.Auth(host.ticket("other")))
        while True:
            _, message = connection.receive()
            if isinstance(message, messages.Error | messages.Authenticated):
                break
        assert isinstance(message, messages.Error), "one connection served two owners"
    with host.connect() as connection:
        stream, ready = connection.attach(created.upload, data)
        connection.upload(stream, data, offset=ready.offset)
        connection.finish(stream, data)


def test_two_programs_that_both_hold_one_upload_end_with_one_of_them(
    host: Host, tmp_path: Path
) -> None:
    """Both reconnect for ever; neither may steal for ever."""
    source = tmp_path / "two.bin"
    source.write_bytes(data := os.urandom(24 * MIB))
    ticket = host.ticket()
    home = tmp_path / "home"
    with host.proxy() as proxy:
        proxy.rate = 8 * MIB
        url = host.url(proxy.port)
        proxy.stall_after(2 * MIB)
        with put(home, url, ticket, source) as one:
            wait_for(lambda: proxy.is_stalled, what="progress")
            state = next(each for each in home.rglob("*.json"))
            copy = tmp_path / "copy" / state.relative_to(home)
            copy.parent.mkdir(parents=True)
            copy.write_bytes(state.read_bytes())
            with put(tmp_path / "copy", url, ticket, source) as two:
                wait_for(lambda: proxy.connections == 2, what="the other one")
                proxy.flow()
                statuses = [one.wait(), two.wait()]
                assert sorted(map(bool, statuses)) == [False, True], (one.errors, two.errors)
                loser = one if statuses[0] else two
                assert "taken_over" in loser.errors + str(loser.printed())
        assert proxy.connections < 12
    (row,) = [each for each in host.uploads() if each["name"] == "two.bin"]
    assert host.path(row["stored_as"]).read_bytes() == data


def test_status_and_cancel_work_from_the_command_line(host: Host, tmp_path: Path) -> None:
    with host.connect() as connection:
        stream, created = connection.create("cancel me.bin", 1000)
        connection.send(messages.Release(), stream)
        connection.expect(messages.Released, stream=stream)
    access = ("--url", host.url(), "--ticket", host.ticket(), "--json")
    with Program(tmp_path / "home", "status", created.upload, *access) as program:
        assert program.wait() == 0, program.errors
        assert created.upload in str(program.printed())
    with Program(tmp_path / "home", "cancel", created.upload, *access) as program:
        assert program.wait() == 0, program.errors
    (row,) = [each for each in host.uploads() if each["id"] == created.upload]
    assert row["state"] == "cancelled"


def test_a_server_that_is_told_to_end_lets_the_client_go_on_elsewhere(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    host = hosts()
    source = tmp_path / "restarted.bin"
    source.write_bytes(data := os.urandom(24 * MIB))
    with host.proxy() as proxy:
        proxy.rate = 16 * MIB
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            wait_for(lambda: proxy.data_bytes() > 8 * MIB, what="progress")
            host.server.terminate()
            host.server.start()
            (result,) = program.results()
        assert proxy.data_bytes() - len(data) <= 8 * MIB
    assert host.path(result["stored_as"]).read_bytes() == data


def test_a_drained_connection_is_told_first_and_has_everything_durable(host: Host) -> None:
    data = os.urandom(2 * MIB)
    with host.connect() as connection:
        stream, created = connection.create("drained.bin", len(data))
        connection.upload(stream, data, stop=MIB)
        host.get("/drain/")
        assert connection.expect(messages.Drain).retry_after == pytest.approx(0.2)
        assert connection.close_code() == 4503
    with pytest.raises(Failed) as failed:
        host.connect()
    assert failed.value.error.code == "draining"
    host.get("/undrain/")
    with host.connect() as connection:
        stream, ready = connection.attach(created.upload, data)
        assert (ready.offset, ready.durable) == (MIB, MIB)


def test_a_program_survives_a_drain(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "drained too.bin"
    source.write_bytes(data := os.urandom(16 * MIB))
    with host.proxy() as proxy:
        proxy.rate = 16 * MIB
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            proxy.stall_after(4 * MIB)
            wait_for(lambda: proxy.is_stalled, what="progress")
            host.get("/drain/")
            proxy.flow()
            wait_for(lambda: proxy.connections >= 2, what="an attempt that is refused")
            host.get("/undrain/")
            (result,) = program.results()
    assert host.path(result["stored_as"]).read_bytes() == data


def test_data_and_finish_sent_before_the_answer_to_create_are_taken(host: Host) -> None:
    with host.connect() as connection:
        data = os.urandom(min(10_000, connection.hello.stream_limit))
        stream = connection.next_stream()
        connection.send(
            messages.Create(key=uuid.uuid4().hex, name="one breath.bin", size=len(data)), stream
        )
        connection.send_data(stream, 0, data)
        connection.send(finish(data), stream)
        completed = connection.expect(messages.Completed, stream=stream)
    assert host.path(completed.stored_as).read_bytes() == data
