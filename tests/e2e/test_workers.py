"""Servers that start several workers: what dies or drains, nothing is lost, and commands reach each of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.protocol import messages

from .conftest import clean_log
from .hosts import Host, hosting
from .raw import Closed
from .servers import FLEETS, wait_for
from .uploaders import Uploaders

MIB = 1024 * 1024
WORKERS = 4


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Iterator[Host]:
    with hosting(request.param, template, tmp_path / "fleet", {}) as host, clean_log(host):
        wait_for(lambda: len(workers(host)) == WORKERS, what="all workers")
        yield host


def workers(host: Host) -> list[dict[str, Any]]:
    return list(json.loads(host.manage("upload_status", "--json"))["workers"])


def test_uploads_survive_a_killed_worker_and_a_drain_of_all(fleet: Host, tmp_path: Path) -> None:
    with (
        fleet.proxy() as proxy,
        Uploaders(
            tmp_path, fleet.url(proxy.port), fleet.ticket(), count=8, size=3 * MIB
        ) as uploaders,
    ):
        proxy.rate = MIB // 4
        wait_for(lambda: uploaders.have_begun, what="the first bytes of each")
        before = workers(fleet)
        assert sum(each["uploads"] for each in before) == 8
        busiest = max(before, key=lambda each: each["uploads"])
        os.kill(busiest["pid"], signal.SIGKILL)
        pids = {each["pid"] for each in before} - {busiest["pid"]}
        wait_for(lambda: len(workers(fleet)) == WORKERS, what="a worker in its place")

        out = fleet.manage("upload_drain", "--retry-after", "0.2", "--wait")
        assert out == f"{WORKERS} workers are drained.\n"
        drained = workers(fleet)
        assert pids < {each["pid"] for each in drained}
        assert {(each["drained"], each["connections"]) for each in drained} == {(True, 0)}
        assert uploaders.are_running
        assert fleet.manage("upload_undrain") == f"{WORKERS} workers take clients.\n"
        proxy.rate = None
    for each in uploaders.all:
        assert each.result is not None
        assert fleet.path(each.result.stored_as).read_bytes() == each.path.read_bytes()
    assert len(fleet.files()) == 8
    assert drains_by_itself(fleet) == ("granian" not in fleet.server.kind)


def drains_by_itself(host: Host) -> bool:
    """Whether a client is told before a SIGTERM stops the server."""
    with host.connect() as connection, ThreadPoolExecutor() as thread:
        stopping = thread.submit(host.server.terminate)
        try:
            connection.expect(messages.Drain)
        except Closed:
            told = False
        else:
            told = connection.close_code() == 4503
        stopping.result()
    return told
