"""The command line over HTTP, by choice and where a WebSocket is refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hosts import Host
from .programs import Program, put
from .proxy import ChaosProxy
from .servers import wait_for

MIB = 1024 * 1024


def put_http(home: Path, host: Host, *files: Path | str, port: int | None = None) -> Program:
    arguments = ("--url", host.url(port), "--ticket", host.ticket(), "--json", "--http")
    return Program(home, "put", *files, *arguments)


@contextlib.contextmanager
def without_websockets(host: Host) -> Iterator[ChaosProxy]:
    with host.proxy() as proxy:
        proxy.websockets_allowed = False
        yield proxy


def write(path: Path, size: int) -> bytes:
    data = os.urandom(size)
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("size", [0, 5, 60_000, 70_000, 40 * MIB + 1])
def test_files_of_every_size_arrive(host: Host, tmp_path: Path, size: int) -> None:
    data = write(tmp_path / "film.mov", size)
    with put_http(tmp_path / "home", host, tmp_path / "film.mov") as program:
        (result,) = program.results()
    assert (result["size"], result["bytes_sent"], result["resumed"]) == (size, size, False)
    assert result["receipt"]
    assert host.path(result["stored_as"]).read_bytes() == data


def test_many_small_files_arrive(host: Host, tmp_path: Path) -> None:
    contents = {f"{number}.txt": b"%d" % number * 100 for number in range(60)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in contents]
    with put_http(tmp_path / "home", host, *files) as program:
        results = program.results()
    stored = {each["name"]: host.path(each["stored_as"]).read_bytes() for each in results}
    assert stored == contents


def test_standard_input_arrives(host: Host, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB + 7)
    arguments = ("--url", host.url(), "--ticket", host.ticket(), "--json", "--http")
    with Program(tmp_path / "home", "put", "-", *arguments, stdin=subprocess.PIPE) as program:
        assert program.process.stdin is not None
        for start in range(0, len(data), 500_000):
            program.process.stdin.write(data[start : start + 500_000])
        program.process.stdin.close()
        (result,) = program.results()
    assert host.path(result["stored_as"]).read_bytes() == data


def test_a_refused_websocket_is_not_needed(host: Host, tmp_path: Path) -> None:
    data = write(tmp_path / "film.mov", 10 * MIB)
    with (
        without_websockets(host) as proxy,
        put(
            tmp_path / "home", host.url(proxy.port), host.ticket(), tmp_path / "film.mov"
        ) as program,
    ):
        (result,) = program.results()
        assert "Uploading over HTTP" in program.errors
    assert host.path(result["stored_as"]).read_bytes() == data


@pytest.mark.usefixtures("streams")
def test_a_broken_connection_is_resumed(host: Host, tmp_path: Path) -> None:
    data = write(tmp_path / "film.mov", 24 * MIB)
    with host.proxy() as proxy:
        proxy.cut_after(10 * MIB)
        with put_http(tmp_path / "home", host, tmp_path / "film.mov", port=proxy.port) as program:
            (result,) = program.results()
        # Twice is sent what was under way.
        assert proxy.bytes_up < 24 * MIB + 8 * MIB
    assert result["resumed"]
    assert host.path(result["stored_as"]).read_bytes() == data


@pytest.mark.parametrize("begun", ["websocket", "http"])
def test_what_was_begun_at_one_door_is_finished_at_the_other(
    host: Host, tmp_path: Path, begun: str
) -> None:
    data = write(tmp_path / "film.mov", 48 * MIB)
    home, url = tmp_path / "home", None
    with host.proxy() as proxy:
        proxy.rate = 12 * MIB
        url = host.url(proxy.port)  # the state file knows the upload by it
        ways = {"websocket": (), "http": ("--http",)}
        first, second = begun, "http" if begun == "websocket" else "websocket"
        common = ("put", tmp_path / "film.mov", "--url", url, "--ticket", host.ticket(), "--json")
        with Program(home, *common, *ways[first]) as program:
            wait_for(lambda: proxy.bytes_up > 16 * MIB, what="16 MiB")
            program.kill()
        proxy.rate = None
        with Program(home, *common, *ways[second]) as program:
            (result,) = program.results()
    assert result["resumed"]
    assert 0 < result["bytes_sent"] < 40 * MIB
    assert host.path(result["stored_as"]).read_bytes() == data
    assert [each["id"] for each in host.uploads()].count(result["id"]) == 1


def test_an_upload_is_looked_at_and_cancelled(host: Host, tmp_path: Path) -> None:
    write(tmp_path / "film.mov", MIB)
    home = tmp_path / "home"
    with put_http(home, host, tmp_path / "film.mov") as program:
        (result,) = program.results()
    common = ("--url", host.url(), "--ticket", host.ticket(), "--json", "--http")
    with Program(home, "status", result["id"], *common) as program:
        (status,) = program.results()
    assert (status["state"], status["stored_as"]) == ("completed", result["stored_as"])
    with Program(home, "cancel", result["id"], *common) as program:
        assert program.wait() == 1
        assert "upload_over" in program.errors or "over" in program.errors
    with Program(home, "cancel", result["id"], "--finished", *common) as program:
        assert program.results() == [{"id": result["id"], "state": "cancelled"}]
    with Program(home, "status", result["id"], *common) as program:
        assert program.results()[0]["state"] == "cancelled"
