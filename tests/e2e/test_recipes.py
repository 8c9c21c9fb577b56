"""What docs/deployment.md gives to service managers is well-formed, and its commands do what it says."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .hosts import environment
from .recipes import block
from .servers import ROOT, free_port, wait_for

PAGE = "docs/deployment.md"
BIN = Path(sys.executable).parent


def service() -> Any:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block(PAGE, "ini", "[Service]"))
    return unit["Service"]


def container() -> dict[str, Any]:
    deployment = yaml.safe_load(block(PAGE, "yaml", "kind: Deployment"))
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def here(command: list[str]) -> list[str]:
    """The same command for the tests' site."""
    replaced = {"mysite.asgi:application": "tests.site.asgi:application"}
    program, *arguments = (replaced.get(each, each) for each in command)
    if arguments[0] == "manage.py":
        arguments[:1] = ["-m", "django"]
    return [str(BIN / Path(program).name), *arguments]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = block(PAGE, "ini", "[Service]").replace("/srv/mysite/.venv/bin", str(BIN))
    unit = unit.replace("/srv/mysite", str(tmp_path)).replace("/usr/bin/curl", "/bin/true")
    (tmp_path / "mysite@.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "mysite@8001.service")],
        capture_output=True,
        text=True,
    )
    assert "mysite" not in done.stderr, done.stderr


@pytest.mark.parametrize("manager", ["systemd", "kubernetes"])
def test_its_commands_serve_and_drain(manager: str, template: Path, tmp_path: Path) -> None:
    shutil.copy(template / "db.sqlite3", tmp_path)
    env = {**environment(tmp_path, {}), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    port = str(free_port())
    if manager == "systemd":
        serve = shlex.split(service()["ExecStart"].replace("%i", port))
    else:
        probe = container()["readinessProbe"]["httpGet"]
        assert (probe["path"], f"--port={probe['port']}") == ("/healthz/", "--port=8000")
        assert "--port=8000" in container()["command"]
        serve = [each.replace("8000", port) for each in container()["command"]]
    with subprocess.Popen(here(serve), cwd=ROOT, env=env) as server:
        try:
            drain = (
                shlex.split(service()["ExecStop"].removeprefix("-"))
                if manager == "systemd"
                else container()["lifecycle"]["preStop"]["exec"]["command"]
            )
            drain = here([each.replace("$MAINPID", str(server.pid)) for each in drain])

            def drained() -> bool:
                assert server.poll() is None
                done = subprocess.run(drain, cwd=ROOT, env=env, capture_output=True, text=True)
                return done.stdout == "1 workers are drained.\n"

            wait_for(drained, seconds=60, what="a drained worker")
        finally:
            server.kill()
