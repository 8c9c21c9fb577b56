"""A network that cuts, stalls, delays and flips bits between the client and the server."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c

from django_async_upload.protocol import frames, messages
from django_async_upload.protocol.frames import HEADER_SIZE, FrameType

from .hosts import Host
from .programs import put
from .servers import wait_for

MIB = 1024 * 1024
WINDOW = 8 * MIB


def test_a_connection_that_is_cut_again_and_again_costs_at_most_a_window_each_time(
    host: Host, tmp_path: Path, chance: random.Random
) -> None:
    source = tmp_path / "cut.bin"
    source.write_bytes(data := os.urandom(32 * MIB))
    cuts = 0
    with host.proxy() as proxy:
        proxy.rate = 32 * MIB
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            while cuts < 12 and program.is_running:
                before = proxy.connections
                proxy.cut_after(chance.randrange(1, 6 * MIB))
                wait_for(
                    lambda before=before: proxy.connections > before or not program.is_running,
                    what="another connection",
                )
                cuts += proxy.connections > before
            (result,) = program.results()
        resent = proxy.data_bytes() - len(data)
        print(f"{cuts} cuts, {resent} bytes sent again")
    assert cuts >= 4
    assert resent <= cuts * WINDOW
    assert host.path(result["stored_as"]).read_bytes() == data


def test_a_connection_that_stalls_is_given_up_and_the_upload_goes_on(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    host = hosts(IDLE_TIMEOUT=3.0)
    source = tmp_path / "stalled.bin"
    source.write_bytes(data := os.urandom(16 * MIB))
    with host.proxy() as proxy:
        proxy.rate = 16 * MIB
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            proxy.stall_after(4 * MIB)
            wait_for(lambda: proxy.is_stalled, what="progress")
            wait_for(lambda: proxy.connections > 1, what="another attempt")
            proxy.cut()
            proxy.flow()
            (result,) = program.results()
        assert proxy.data_bytes() - len(data) <= (proxy.connections - 1) * WINDOW
    assert host.path(result["stored_as"]).read_bytes() == data


def test_a_stall_that_ends_in_time_costs_nothing(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    host = hosts(IDLE_TIMEOUT=15.0)
    source = tmp_path / "pause.bin"
    source.write_bytes(data := os.urandom(8 * MIB))
    with host.proxy() as proxy:
        proxy.rate = 16 * MIB
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            proxy.stall_after(2 * MIB)
            wait_for(lambda: proxy.is_stalled, what="progress")
            time.sleep(2)
            proxy.flow()
            (result,) = program.results()
        assert proxy.connections == 1
        assert proxy.data_bytes() == len(data)
    assert host.path(result["stored_as"]).read_bytes() == data


def test_a_long_way_does_not_make_the_upload_wait_for_every_answer(
    host: Host, tmp_path: Path
) -> None:
    """With 100 ms there and back, a stop-and-wait upload of 64 KiB a turn has 0.64 MB/s."""
    source = tmp_path / "far away.bin"
    source.write_bytes(data := os.urandom(24 * MIB))
    speeds: list[float] = []
    with host.proxy() as proxy:
        proxy.delay = 0.05
        while not speeds or (speeds[-1] <= 2e6 and len(speeds) < 3):  # the machine may be busy
            with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
                (result,) = program.results()
            assert host.path(result["stored_as"]).read_bytes() == data
            speeds.append(len(data) / result["seconds"])
    print(f"{max(speeds) / 1e6:.1f} MB/s at 100 ms")
    assert max(speeds) > 2e6


def test_flipped_bits_in_messages_are_found_and_sent_again(
    host: Host, tmp_path: Path, chance: random.Random
) -> None:
    source = tmp_path / "flipped.bin"
    source.write_bytes(data := os.urandom(24 * MIB))
    with host.proxy() as proxy:
        proxy.rate = 32 * MIB
        flips = sorted(chance.randrange(2000, 20 * MIB) for _ in range(10))
        for place in flips:
            proxy.flip_payload(place)
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            (result,) = program.results()
        assert proxy.pending_flips == 0
        assert proxy.data_bytes() > len(data)
    assert result["crc32c"] == f"{crc32c(data):08x}"
    assert host.path(result["stored_as"]).read_bytes() == data


def test_flipped_bits_anywhere_in_the_connection_end_in_the_file_that_was_sent(
    hosts: Callable[..., Host], tmp_path: Path, chance: random.Random
) -> None:
    """Framing too: the server may get nonsense, or wait for bytes that never come."""
    host = hosts(IDLE_TIMEOUT=3.0)
    source = tmp_path / "nonsense.bin"
    source.write_bytes(data := os.urandom(24 * MIB))
    with host.proxy() as proxy:
        proxy.rate = 32 * MIB
        for place in (chance.randrange(4000, 20 * MIB) for _ in range(6)):
            proxy.flip_raw(place)
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            (result,) = program.results()
        assert proxy.pending_flips == 0
    assert host.path(result["stored_as"]).read_bytes() == data


def test_a_bit_flipped_in_a_header_is_damage_and_no_violation(host: Host) -> None:
    """Otherwise one bad cable would end an upload for good: a client does not come back from a violation."""
    data = os.urandom(4000)
    ticket = host.ticket()
    whole = frames.build_data(1, 0, data, crc32c)
    for bit in range(HEADER_SIZE * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 0x80 >> bit % 8
        with host.connect(ticket) as connection:
            connection.create("header.bin", len(data))
            connection.send_message(bytes(damaged))
            _, answer = connection.receive()
            if not isinstance(answer, messages.Rewind):
                assert isinstance(answer, messages.Error), bit
                assert (answer.code, answer.retryable) == ("corrupt_frame", True), bit


def test_answers_that_get_lost_on_the_way_leave_one_upload_and_one_file(
    host: Host, tmp_path: Path
) -> None:
    source = tmp_path / "answers.bin"
    source.write_bytes(data := os.urandom(3 * MIB))
    with host.proxy() as proxy:
        for kind in (FrameType.CREATED, FrameType.READY, FrameType.COMPLETED):
            proxy.lose(kind)
        with put(tmp_path / "home", host.url(proxy.port), host.ticket(), source) as program:
            (result,) = program.results()
        assert not proxy.is_losing
    found = [each for each in host.uploads() if each["name"] == source.name]
    assert [each["id"] for each in found] == [result["id"]]
    assert host.path(result["stored_as"]).read_bytes() == data
    told = host.wait_for_signals("upload_completed", result["id"])
    assert len({each["event"] for each in told}) == 1
