"""Two workers behind a balancer are restarted one after the other, while many clients upload.

``E2E_UPLOADS`` is how many do (40).
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

from .balancer import Balancer
from .hosts import hosting
from .servers import wait_for
from .uploaders import Uploaders

MIB = 1024 * 1024
UPLOADS = int(os.environ.get("E2E_UPLOADS", "40"))
TOTAL = 16 * MIB
"""Bytes per second, all uploads together."""
WINDOW = 8 * MIB
SIZE = 12 * MIB
"""Of each file: a restart that lost more than a window would be seen."""
LONGEST_WAIT = 3.0


def test_a_rolling_restart_fails_no_upload_and_no_client_waits_long(
    template: Path, tmp_path: Path
) -> None:
    rate = TOTAL / UPLOADS
    limits = {"USER_MAX_CONNECTIONS": 2 * UPLOADS}
    with (
        hosting("uvicorn", template, tmp_path / "site", limits) as host,
        host.another_server() as another,
        Balancer([host.server, another.server], rate=rate) as balancer,
    ):
        servers = [host.server, another.server]
        wait_for(lambda: all(map(balancer.is_ready, servers)), what="both servers")
        with Uploaders(
            tmp_path,
            host.url(balancer.port),
            host.ticket(),
            count=UPLOADS,
            size=SIZE,
        ) as uploaders:
            wait_for(lambda: uploaders.have_begun, what="the first bytes of each")
            for server in servers:
                (main,) = (each.pid for each in server.processes())
                host.manage("upload_drain", "--pid", str(main), "--wait")
                server.terminate()
                server.start()
                wait_for(lambda server=server: balancer.is_ready(server), what="the server")
            assert uploaders.are_running, "they ended before the restarts"
        report(uploaders)
        for each in uploaders.all:
            assert each.result is not None
            assert host.path(each.result.stored_as).read_bytes() == each.path.read_bytes()
            assert each.resent <= 2 * WINDOW
            assert each.longest_wait < LONGEST_WAIT
        assert len(host.files()) == UPLOADS
        assert any(each.result and each.result.resumed for each in uploaders.all)


def report(uploaders: Uploaders) -> None:
    waits = [each.longest_wait for each in uploaders.all]
    resent = [each.resent for each in uploaders.all]
    resumed = sum(bool(each.result and each.result.resumed) for each in uploaders.all)
    print(
        f"{len(waits)} uploads, {resumed} resumed; longest wait {max(waits):.2f} s, median {median(waits):.2f} s; "
        f"sent again {max(resent)} bytes at most, median {median(resent):.0f}"
    )
