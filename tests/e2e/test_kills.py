"""Processes that die at any moment, and files that arrive all the same."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from .conftest import KILLS, SERVERS
from .hosts import Host
from .programs import Program, put
from .proxy import ChaosProxy
from .servers import wait_for

MIB = 1024 * 1024
WINDOW = 8 * MIB


@pytest.mark.timeout(600)
def test_a_server_that_is_killed_again_and_again_gets_the_file_that_was_sent(
    hosts: Callable[..., Host], tmp_path: Path, chance: random.Random
) -> None:
    """Killed at random moments, from the handshake to the publication; the client resumes by itself."""
    host = hosts()
    ticket = host.ticket()
    source = tmp_path / "killed.bin"
    kills, left = 0, -(-KILLS // len(SERVERS))
    while left > 0:
        source.write_bytes(data := chance.randbytes(chance.randint(4, 32) * MIB + 1))
        with host.proxy() as proxy:
            proxy.rate = 48 * MIB
            ours = 0
            with put(tmp_path / "home", host.url(proxy.port), ticket, source) as program:
                while program.is_running and left > 0:
                    wait_until_a_random_moment(program, proxy, chance)
                    if not program.is_running:
                        break
                    host.server.kill()
                    kills, ours, left = kills + 1, ours + 1, left - 1
                    host.server.start()
                (result,) = program.results()
            resent = proxy.data_bytes() - len(data)
            print(f"{len(data)} bytes, {ours} kills, {resent} bytes sent again")
            assert resent <= ours * WINDOW
        assert result["crc32c"] == f"{crc32c(data):08x}"
        stored = host.path(result["stored_as"])
        assert stored.read_bytes() == data
        assert_completed_once(host, ticket, result["id"])
        stored.unlink()
    assert host.files() == []
    assert kills >= KILLS / len(SERVERS)


def wait_until_a_random_moment(program: Program, proxy: ChaosProxy, chance: random.Random) -> None:
    """Mostly a moment while bytes flow; sometimes before the client is back, or after its last byte."""
    heard = proxy.bytes_up
    deadline = time.monotonic() + 10
    while program.is_running and proxy.bytes_up == heard and time.monotonic() < deadline:
        time.sleep(0.002)
    goal = proxy.data_bytes() + chance.choice([0, 1, 1, 1]) * chance.randrange(12 * MIB)
    deadline = time.monotonic() + chance.uniform(0, 0.6)
    while program.is_running and proxy.data_bytes() < goal and time.monotonic() < deadline:
        time.sleep(0.002)


def assert_completed_once(host: Host, ticket: str, upload: str) -> None:
    """Delivered at least once, and always the same event."""
    # Killed between the answer and the signal, a server without lifespan looks after that at its next connection.
    host.connect(ticket).close()
    told = host.wait_for_signals("upload_completed", upload)
    assert len({each["event"] for each in told}) == 1


def test_a_client_that_was_killed_goes_on_from_durable_when_it_is_started_again(
    host: Host, tmp_path: Path, chance: random.Random
) -> None:
    source = tmp_path / "client killed.bin"
    source.write_bytes(data := os.urandom(32 * MIB))  # more than passes before the last kill
    ticket = host.ticket()
    kills = 4
    with host.proxy() as proxy:
        proxy.rate = 16 * MIB
        for number in range(kills):
            # Bytes that were on their way when the client died count, too.
            proxy.stall_after(chance.randrange(MIB, 6 * MIB))
            proxy.flow()
            with put(tmp_path / "home", host.url(proxy.port), ticket, source) as program:
                wait_for(
                    lambda number=number: proxy.is_stalled and proxy.connections > number,
                    what=f"progress {number}",
                )
                assert program.is_running
        proxy.flow()
        with put(tmp_path / "home", host.url(proxy.port), ticket, source) as program:
            (result,) = program.results()
        resent = proxy.data_bytes() - len(data)
    assert result["resumed"]
    assert resent <= kills * WINDOW
    assert host.path(result["stored_as"]).read_bytes() == data
    assert len([each for each in host.uploads() if each["name"] == source.name]) == 1


def test_a_file_that_was_changed_while_the_client_was_dead_is_not_spliced(
    host: Host, tmp_path: Path
) -> None:
    """Its head differs, its size and time stamp do not: only reading it again can tell."""
    source = tmp_path / "changed.bin"
    source.write_bytes(data := os.urandom(32 * MIB))
    status = source.stat()
    ticket = host.ticket()
    with host.proxy() as proxy:
        proxy.rate = 8 * MIB
        proxy.stall_after(10 * MIB)
        with put(tmp_path / "home", host.url(proxy.port), ticket, source):
            wait_for(lambda: proxy.is_stalled, what="progress")
        with source.open("r+b") as file:
            file.write(bytes(100))
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        proxy.flow()
        # At the same address: an upload belongs to the endpoint where it was begun.
        with put(tmp_path / "home", host.url(proxy.port), ticket, source) as program:
            assert program.wait() != 0
            assert "file_changed" in program.errors + str(program.printed())
    assert not [each for each in host.files() if each.name.startswith("changed")]
    assert data != source.read_bytes()
