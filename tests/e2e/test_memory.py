"""What clients can make a server hold in memory."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable

import psutil
import pytest

from django_async_upload.protocol import messages
from django_async_upload.protocol.frames import MAX_CHUNK, MAX_FRAME

from .hosts import Host
from .raw import Closed, RawConnection, SteadyUpload, frame_head
from .servers import KINDS, wait_for

MIB = 1024 * 1024


class Peak:
    """The most that the server's memory has grown by; look at it often."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before = host.server.memory()
        self.growth = 0

    def look(self) -> int:
        self.growth = max(self.growth, self._host.server.memory() - self._before)
        return self.growth


def warm_up(host: Host, ticket: str) -> None:
    """So that imports, pools and buffers that every upload needs are there before measuring."""
    data = os.urandom(8 * MIB)
    with host.connect(ticket) as connection:
        for _ in range(2):
            stream, _ = connection.create("warm.bin", len(data))
            connection.upload(stream, data, chunk=MAX_CHUNK)
            connection.finish(stream, data)


def test_a_flood_that_ignores_every_limit_costs_less_than_32_mib(
    hosts: Callable[..., Host], record_property: Callable[[str, object], None]
) -> None:
    """One socket after the other sends 1 MiB frames as fast as it can, and reads nothing."""
    host = hosts()
    ticket = host.ticket()
    warm_up(host, ticket)
    peak = Peak(host)
    payload = bytes(MAX_CHUNK)
    sent = 0
    with SteadyUpload(host.port, ticket):
        for _ in range(4):
            with host.connect(ticket) as connection:
                stream, _ = connection.create("flood.bin")
                deadline = time.monotonic() + 5
                offset = 0
                with contextlib.suppress(Closed, TimeoutError):
                    while time.monotonic() < deadline and offset < 100 * MIB:
                        connection.send_data(stream, offset, payload)
                        offset += len(payload)
                        peak.look()
                sent += offset
        peak.look()
    record_property("flood_growth", peak.growth)
    print(
        f"flood on {host.server.kind}: {sent / MIB:.0f} MiB sent, grew {peak.growth / MIB:.1f} MiB"
    )
    assert peak.growth < 32 * MIB


def test_a_flood_of_control_frames_costs_little_memory(hosts: Callable[..., Host]) -> None:
    """Pings and queries without end from a client that never reads an answer.

    Daphne does not hold a sender back: while other tests keep it from running, messages wait in its memory.
    """
    host = hosts()
    ticket = host.ticket()
    warm_up(host, ticket)
    peak = Peak(host)
    with SteadyUpload(host.port, ticket), host.connect(ticket) as connection:
        deadline = time.monotonic() + 3
        number = 1
        with contextlib.suppress(Closed, TimeoutError):
            while time.monotonic() < deadline:
                connection.send(messages.Ping(number))
                connection.send(messages.Query(str(uuid.uuid4())), number)
                number += 1
                if number % 500 == 0:
                    peak.look()
        peak.look()
    print(f"control flood on {host.server.kind}: {number} pairs, {peak.growth / MIB:.1f} MiB")
    assert peak.growth < (64 if host.server.kind == "daphne" else 32) * MIB


def test_sockets_that_send_half_a_message_are_cut_when_idle(hosts: Callable[..., Host]) -> None:
    """What they cost meanwhile is the server's own doing, and is printed."""
    host = hosts(IDLE_TIMEOUT=10.0, USER_MAX_CONNECTIONS=500)
    ticket = host.ticket()
    warm_up(host, ticket)
    before = host.server.memory()
    half = bytes(MAX_FRAME // 2)
    held: list[RawConnection] = []
    try:
        for _ in range(200):
            connection = RawConnection(host.port)
            connection.greet(ticket)
            connection.send_bytes(frame_head(MAX_FRAME) + half)
            held.append(connection)
            if len(held) % 50 == 0:
                print(f"{len(held)} halves: {(host.server.memory() - before) / MIB:.0f} MiB")
        cost = host.server.memory() - before
        for connection in held:
            assert is_cut(connection), "it was not cut"
    finally:
        for connection in held:
            connection.socket.close()
    flags = " ".join(KINDS[host.server.kind](host.port)[1:])
    print(f"200 half messages on {host.server.kind}: {cost / MIB:.0f} MiB with {flags}")
    assert cost < 200 * MIB
    wait_for(
        lambda: connections_of(host) <= 1,
        what="the end of the connections",
    )


def is_cut(connection: RawConnection) -> bool:
    """Whether the server ends the connection (it may say goodbye first)."""
    try:
        while True:
            connection.receive()
    except Closed:
        return True
    except TimeoutError:
        return False


def connections_of(host: Host) -> int:
    return sum(
        each.status == psutil.CONN_ESTABLISHED
        for process in host.server.processes()
        for each in process.net_connections(kind="tcp")
        if each.laddr and each.laddr.port == host.port
    )


def test_an_idle_connection_is_closed_and_a_pinging_one_is_not(hosts: Callable[..., Host]) -> None:
    host = hosts(IDLE_TIMEOUT=3.0)
    ticket = host.ticket()
    with host.connect(ticket) as idle, host.connect(ticket) as pinging:
        assert idle.hello.heartbeat == pytest.approx(1.0)
        begun = time.monotonic()
        nonce = 0
        while time.monotonic() - begun < 8:
            nonce += 1
            pinging.send(messages.Ping(nonce))
            assert pinging.expect(messages.Pong).nonce == nonce
            time.sleep(0.3)
        assert idle.error().code == "idle_timeout"
        assert idle.close_code() == 4408


def test_a_client_that_sends_no_byte_of_a_handshake_costs_a_socket_only(host: Host) -> None:
    with SteadyUpload(host.port, host.ticket()):
        before = host.server.memory()
        sockets = [socket.create_connection(("127.0.0.1", host.port)) for _ in range(100)]
        assert host.server.memory() - before < 16 * MIB
        for each in sockets:
            each.close()
