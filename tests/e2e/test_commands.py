"""Commands as a person or cron runs them, while the database is away: a line that says why, and no traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from .hosts import Host, environment, migrated
from .postgres import Postgres
from .servers import ROOT, free_port

pytestmark = pytest.mark.one_server


def run(env: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "django", *command],
        cwd=ROOT,
        env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def postgres(port: int) -> dict[str, str]:
    """The environment of a site whose PostgreSQL is at this port."""
    setting = {"NAME": "nobody", "HOST": "127.0.0.1", "PORT": port, "USER": "nobody"}
    return {"E2E_POSTGRES": json.dumps(setting)}


REFUSED, NO_FILE, NO_TABLES = "refused", "no file", "no tables"


@pytest.mark.parametrize(
    ("command", "why", "said"),
    [
        ("upload_status", REFUSED, "Connection refused"),
        ("upload_ticket demo", REFUSED, "Connection refused"),
        ("purge_uploads", REFUSED, "Connection refused"),
        ("deliver_upload_signals", REFUSED, "The server's database does not answer."),
        ("upload_ticket demo", NO_FILE, "unable to open database file"),
        ("upload_status", NO_TABLES, "run migrate"),
    ],
)
def test_why_the_database_cannot_be_used_is_said_in_a_line(
    command: str, why: str, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("psycopg", reason="needs psycopg")
    root = tmp_path / "none" if why == NO_FILE else tmp_path
    extra = postgres(free_port()) if why == REFUSED else {}
    done = run(environment(root, {}, **extra), *command.split())
    assert done.returncode == 1
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("CommandError: ")]
    assert said in line
    assert "Traceback" not in done.stderr


def test_the_status_of_workers_does_not_wait_for_a_database_that_hangs(host: Host) -> None:
    """Nor for its NOTIFY, which would have carried the question to other machines."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # accepts, and says nothing
        env = {**host.server.env, **postgres(hanging.getsockname()[1])}
        done = run(env, "upload_status", "--json")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "CommandError: The database does not answer."
    status = json.loads(done.stdout)
    assert (status["uploads"], status["outbox"], status["scope"]) == (None, None, "machine")


def test_the_workers_are_shown_although_the_database_is_away(hosts: Callable[..., Host]) -> None:
    with Postgres() as database:
        host = hosts(extra=migrated(database.setting))
        with database.gone():
            done = run(host.server.env, "upload_status", "--json")
    assert done.returncode == 1
    assert "not currently accepting connections" in done.stderr.splitlines()[-1]
    (worker,) = json.loads(done.stdout)["workers"]
    assert worker["pid"] in {each.pid for each in host.server.processes()}
