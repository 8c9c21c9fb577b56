"""The command line as a process, against a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from django_async_upload.client.source import Identity
from django_async_upload.client.state import Entry
from tests.e2e.hosts import Host, hosting, prepare

PROGRAM = str(Path(sys.executable).with_name("async-upload"))
ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    template = tmp_path_factory.mktemp("template")
    prepare(template)
    with hosting("uvicorn", template, tmp_path_factory.mktemp("host"), {}) as host:
        yield host


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
    return {**kept, "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(300_000))
    return path


def run(
    env: dict[str, str], *arguments: object, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, timeout=60)


def lines(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_file_gives_one_json_object(
    host: Host, env: dict[str, str], file: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    env["ASYNC_UPLOAD_TICKET"] = host.ticket()
    done = run(env, "put", file, tmp_path / "empty", "--url", host.url(), "--json", "--sha256")
    assert done.returncode == 0, done.stderr
    found = {str(each["name"]): each for each in lines(done)}
    assert set(found) == {"file.bin", "empty"}
    for each in found.values():
        assert {*each} >= {"id", "name", "size", "crc32c", "stored_as", "seconds", "resumed"}
    assert host.path(str(found["file.bin"]["stored_as"])).read_bytes() == file.read_bytes()


def test_without_json_it_says_where_each_file_went(
    host: Host, env: dict[str, str], file: Path
) -> None:
    done = run(env, "put", file, "--url", host.url(), "--cookie", host.login())
    assert done.returncode == 0, done.stderr
    assert f"{file} -> ".encode() in done.stdout
    assert done.stderr == b""


def test_standard_input_is_a_file_of_unknown_length(host: Host, env: dict[str, str]) -> None:
    content = os.urandom(2_000_000)
    ticket = ("--ticket", host.ticket(), "--url", host.url(), "--json")
    (unnamed,) = lines(run(env, "put", "-", *ticket, stdin=content))
    (named,) = lines(run(env, "put", "-", *ticket, "--name", "named", stdin=b""))
    assert (unnamed["name"], named["name"]) == ("stdin", "named")
    assert host.path(str(unnamed["stored_as"])).read_bytes() == content


def test_one_failure_among_others_fails_the_program(
    host: Host, env: dict[str, str], file: Path, tmp_path: Path
) -> None:
    done = run(
        env, "put", file, tmp_path / "no", "--url", host.url(), "--ticket", host.ticket(), "--json"
    )
    assert done.returncode == 1
    failed, completed = sorted(lines(done), key=lambda each: "error" not in each)
    assert {*failed} >= {"name", "error", "message", "retryable"}
    assert (failed["name"], failed["error"], failed["retryable"]) == ("no", "unreadable", False)
    assert completed["name"] == "file.bin"


def test_a_ticket_that_is_not_valid_is_an_error_with_a_code(
    host: Host, env: dict[str, str], file: Path, tmp_path: Path
) -> None:
    (tmp_path / "ticket").write_text("nonsense\n")
    done = run(
        env, "put", file, "--url", host.url(), "--ticket-file", tmp_path / "ticket", "--json"
    )
    assert done.returncode == 1
    assert [each["error"] for each in lines(done)] == ["ticket_invalid"]


def test_a_ticket_may_stand_in_a_file(
    host: Host, env: dict[str, str], file: Path, tmp_path: Path
) -> None:
    (tmp_path / "ticket").write_text(host.ticket() + "\n")
    done = run(env, "put", file, "--url", host.url(), "--ticket-file", tmp_path / "ticket")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["put"], "FILE"),
        (["put", "/", "--url", "ws://x/"], "/ is a directory"),
        (["put", "x", "--url", "ftp://x/"], "not a ws:// or wss:// URL"),
        (["put", "x", "--url", "ws://x/", "--metadata", "x"], "KEY=VALUE"),
        (["put", "x", "--url", "ws://x/", "--taker", "me"], "receiver"),
        (["put", "x", "--url", "ws://x/", "--jobs", "0"], "1 or more"),
        (["put", "x", "--url", "ws://x/", "--ticket-file", "/no/such"], "/no/such"),
        (["resume", "--state", "/etc/hostname"], "/etc/hostname"),
        ([], "COMMAND"),
    ],
)
def test_misuse_has_a_status_of_its_own(
    env: dict[str, str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "x").write_text("x")
    done = subprocess.run(
        [PROGRAM, *arguments], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_it_can_be_stopped_and_told_to_go_on(
    host: Host, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom(16 * 2**20))
    env["ASYNC_UPLOAD_TICKET"] = host.ticket()
    with host.proxy() as proxy:
        proxy.rate = 8 * 2**20
        url = host.url(proxy.port)
        process = subprocess.Popen(
            [PROGRAM, "put", str(file), "--url", url, "--metadata", "a=b", "--taker", "api"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Programs that a shell starts in the background ignore SIGINT, and so do their children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 20
        while proxy.data_bytes() < 4 * 2**20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert f"async-upload resume --url {url}".encode() in errors
        assert b"Traceback" not in errors
        proxy.rate = None
        done = run(env, "resume", "--url", url, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = lines(done)
    assert result["resumed"]
    assert int(str(result["bytes_sent"])) < file.stat().st_size
    assert host.path(str(result["stored_as"])).read_bytes() == file.read_bytes()
    again = run(env, "resume")
    assert (again.returncode, again.stdout) == (0, b"")
    assert b"nothing to resume" in again.stderr
    assert run(env, "resume", "unknown").returncode == 1


def test_a_ticket_goes_to_no_other_server_of_the_state_file(
    env: dict[str, str], file: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        urls = [f"ws://127.0.0.1:{server.getsockname()[1]}/ws/uploads/" for server in servers]
        identity = Identity.of(file.stat())
        entries = [
            Entry(key * 32, url, str(file), identity, file.name).to_json()
            for key, url in zip("ab", urls, strict=True)
        ]
        state = tmp_path / "uploads.json"
        state.write_text(json.dumps({"version": 1, "uploads": entries}))
        options = ("--state", state, "--ticket", "secret", "--patience", 0)
        done = run(env, "resume", *options)
        assert done.returncode == 2
        for url in urls:
            assert f"--url {url}" in done.stderr.decode()
        for server in servers:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):  # no client has connected
                server.accept()


def test_status_and_cancel_speak_of_an_upload(host: Host, env: dict[str, str], file: Path) -> None:
    common = ("--url", host.url(), "--ticket", host.ticket())
    (result,) = lines(run(env, "put", file, *common, "--json"))
    done = run(env, "status", result["id"], *common, "--json")
    (status,) = lines(done)
    assert (status["id"], status["state"]) == (result["id"], "completed")
    assert b"state: completed" in run(env, "status", result["id"], *common).stdout
    for command, upload in (("status", ID), ("cancel", ID), ("cancel", result["id"])):
        refused = run(env, command, upload, *common)
        assert refused.returncode == 1
        assert b"Traceback" not in refused.stderr


def test_watch_follows_uploads_until_they_have_ended(
    host: Host, env: dict[str, str], file: Path
) -> None:
    common = ("--url", host.url(), "--ticket", host.ticket())
    (result,) = lines(run(env, "put", file, *common, "--json"))
    done = run(env, "watch", result["id"], *common, "--json")
    assert done.returncode == 0
    (status,) = lines(done)
    assert (status["id"], status["state"]) == (result["id"], "completed")
    assert b"file.bin: completed" in run(env, "watch", result["id"], *common).stdout
    for arguments in ((ID,), ("--all",)):
        refused = run(env, "watch", *arguments, *common)
        assert refused.returncode == 1
        assert b"Traceback" not in refused.stderr


@pytest.mark.parametrize("module", ["websockets", "rich"])
def test_a_missing_extra_is_named(env: dict[str, str], module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\n"
    code += "from django_async_upload.client.cli import main\n"
    code += "sys.exit(main(['status', 'x', '--url', 'ws://x/']))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'django-resumable-upload[client]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_client_needs_no_django(env: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from django_async_upload.client import *\n"
        "import django_async_upload.client as c\n"
        "import django_async_upload.client.cli\n"
        "assert all(getattr(c, name) for name in c.__all__)\n"
        "found = {name for name in sys.modules if name.split('.')[0] in ('django', 'channels')}\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


def documented() -> list[str]:
    page = Path(__file__).parents[2] / "docs" / "reference" / "client.md"
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(documented())))
def test_the_code_in_the_reference_runs(
    host: Host, env: dict[str, str], tmp_path: Path, number: int
) -> None:
    (tmp_path / "large.bin").write_bytes(os.urandom(2**20))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"one")
    code = documented()[number]
    assert "ws://127.0.0.1:8000/ws/uploads/" in code
    code = code.replace("ws://127.0.0.1:8000/ws/uploads/", host.url())
    env["ASYNC_UPLOAD_TICKET"] = host.ticket()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout
