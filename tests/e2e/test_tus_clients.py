"""Clients of tus, as their authors publish them, against a real server: tus-js-client, tuspy and aiotus."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiotus
import pytest
from tusclient.client import TusClient

from .hosts import Host
from .servers import wait_for
from .test_uploads import write_random

pytestmark = pytest.mark.xdist_group("tus")

HERE = Path(__file__).parent / "tus"
MIB = 1024 * 1024
SIZE = 20 * MIB + 7


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which tus-js-client is installed."""
    if not shutil.which("npm"):
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("tus-js-client")
    shutil.copy(HERE / "package.json", folder)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class Program:
    """tus-js-client as a process: see ``tus/client.mjs``."""

    def __init__(self, packages: Path, folder: Path, host: Host) -> None:
        folder.mkdir()
        (folder / "node_modules").symlink_to(packages / "node_modules")
        shutil.copy(packages / "package.json", folder)
        self.folder = folder
        self.host = host

    def begin(
        self, file: Path, *, port: int | None = None, path: str = "/ws/uploads/", **arguments: Any
    ) -> subprocess.Popen[str]:
        names = ("stopAt", "discard", "previous")
        options = {name: value for name, value in arguments.items() if name not in names}
        ticket = self.host.ticket(endpoint=arguments.pop("ticket_for", "default"))
        options = {
            "endpoint": f"http://127.0.0.1:{port or self.host.port}{path}",
            "headers": {"Authorization": f"Bearer {ticket}"},
            "metadata": {"filename": file.name, "filetype": "video/quicktime"},
            "retryDelays": [0, 100, 500, 1000, 3000, 3000, 3000],
            **{name: value for name, value in options.items() if name != "ticket_for"},
        }
        given = {name: arguments[name] for name in names if name in arguments}
        argument = json.dumps({"file": str(file), "options": options, **given})
        return subprocess.Popen(
            ["node", str(HERE / "client.mjs"), argument],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen[str], seconds: float = 100) -> dict[str, Any]:
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def upload(self, file: Path, **arguments: Any) -> dict[str, Any]:
        """Upload a file; returns what the client says in the end."""
        return self.end(self.begin(file, **arguments))


@pytest.fixture
def program(packages: Path, tmp_path: Path, host: Host) -> Program:
    return Program(packages, tmp_path / "js", host)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / f"{tmp_path.name}.mov"
    write_random(path, SIZE)
    return path


def is_stored(host: Host, source: Path, stored_as: str) -> bool:
    return host.path(urllib.parse.unquote(stored_as)).read_bytes() == source.read_bytes()


def statuses(found: dict[str, Any]) -> set[int]:
    return {status for _, _, status, _ in found["requests"]}


# tus-js-client --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chunkSize": 3 * MIB}], ids=["whole", "chunks"])
def test_a_file_arrives(
    host: Host, program: Program, source: Path, options: dict[str, Any]
) -> None:
    found = program.upload(source, **options)
    assert "error" not in found
    assert statuses(found) <= {201, 204}
    headers = found["headers"]
    assert headers["Upload-Receipt"]
    assert is_stored(host, source, headers["Upload-Stored-As"])
    (row,) = [each for each in host.uploads() if each["name"] == source.name]
    assert (row["state"], row["size"]) == ("completed", SIZE)
    assert host.wait_for_signals("upload_completed", row["id"])


@pytest.mark.one_server
@pytest.mark.parametrize(
    "options",
    [
        {"uploadDataDuringCreation": True},
        {"uploadDataDuringCreation": True, "chunkSize": 6 * MIB},
        {"uploadLengthDeferred": True, "chunkSize": 6 * MIB},
        {"overridePatchMethod": True, "chunkSize": 12 * MIB},
        {"addRequestId": True},
    ],
    ids="-".join,
)
def test_a_file_arrives_in_each_way_that_the_client_has(
    host: Host, program: Program, source: Path, options: dict[str, Any]
) -> None:
    found = program.upload(source, **options)
    assert "error" not in found
    assert statuses(found) <= {201, 204}
    assert is_stored(host, source, found["headers"]["Upload-Stored-As"])


@pytest.mark.one_server
def test_an_empty_file_arrives(host: Host, program: Program, tmp_path: Path) -> None:
    source = tmp_path / f"{tmp_path.name}-empty.txt"
    source.touch()
    found = program.upload(source)
    assert [each[0] for each in found["requests"]] == ["POST"]
    assert host.path(found["headers"]["Upload-Stored-As"]).read_bytes() == b""


@pytest.mark.one_server
def test_the_apps_own_answer_comes_with_the_last_response(program: Program, source: Path) -> None:
    found = program.upload(source, path="/ws/answering/", ticket_for="answering")
    assert json.loads(found["headers"]["Upload-Response"])["name"] == source.name


@pytest.mark.parametrize("parallel", [2, 5])
def test_parts_that_were_uploaded_in_parallel_become_one_file(
    host: Host, program: Program, source: Path, parallel: int
) -> None:
    found = program.upload(source, parallelUploads=parallel)
    assert "error" not in found
    assert [each[0] for each in found["requests"]].count("POST") == parallel + 1
    assert is_stored(host, source, found["headers"]["Upload-Stored-As"])
    rows = host.uploads()[-parallel - 1 :]
    assert [row["state"] for row in rows] == ["cancelled"] * parallel + ["completed"]
    assert {row["error"] for row in rows[:-1]} == {"joined"}
    assert found["url"].endswith(rows[-1]["id"])


def test_a_connection_that_is_cut_costs_nothing(host: Host, program: Program, source: Path) -> None:
    # Daphne spools a whole body before the app sees it.
    options = {"chunkSize": MIB} if host.server.kind == "daphne" else {}
    with host.proxy() as proxy:
        process = program.begin(source, port=proxy.port, **options)
        for size in (2 * MIB, 5 * MIB, 4 * MIB):
            proxy.cut_after(size)
            wait_for(lambda: not proxy.is_cutting, seconds=60, what="the cut")
        found = program.end(process)
    assert "error" not in found
    assert is_stored(host, source, found["headers"]["Upload-Stored-As"])
    heads = [int(offset) for method, _, _, offset in found["requests"] if method == "HEAD"]
    assert len(heads) >= 3
    assert heads == sorted(heads)
    assert heads[-1] > MIB
    assert [each[0] for each in found["requests"]].count("POST") == 1
    assert 423 not in statuses(found)


@pytest.mark.one_server
def test_parallel_parts_survive_a_cut_too(host: Host, program: Program, source: Path) -> None:
    with host.proxy() as proxy:
        process = program.begin(source, port=proxy.port, parallelUploads=3)
        proxy.cut_after(8 * MIB)
        found = program.end(process)
    assert "error" not in found
    assert is_stored(host, source, found["headers"]["Upload-Stored-As"])


def test_a_server_that_is_killed_loses_nothing_that_it_acknowledged(
    hosts: Callable[..., Host], packages: Path, tmp_path: Path, source: Path
) -> None:
    host = hosts()
    program = Program(packages, tmp_path / "killed", host)
    with host.proxy() as proxy:
        proxy.stall_after(9 * MIB)
        process = program.begin(source, port=proxy.port, chunkSize=4 * MIB)
        wait_for(lambda: proxy.is_stalled, seconds=60)
        host.server.kill()
        proxy.flow()
        host.server.start()
        found = program.end(process)
    assert "error" not in found
    heads = [int(offset) for method, _, _, offset in found["requests"] if method == "HEAD"]
    assert heads[-1] >= 8 * MIB
    assert is_stored(host, source, found["headers"]["Upload-Stored-As"])


@pytest.mark.one_server
def test_a_later_program_continues_what_an_earlier_one_left(
    host: Host, program: Program, source: Path
) -> None:
    first = program.upload(source, chunkSize=2 * MIB, stopAt=6 * MIB)
    assert first["error"] == "stopped"
    second = program.upload(source, chunkSize=2 * MIB, previous=True)
    assert second["url"] == first["url"]
    method, _, status, offset = second["requests"][0]
    assert (method, status, int(offset) >= 6 * MIB) == ("HEAD", 200, True)
    assert is_stored(host, source, second["headers"]["Upload-Stored-As"])


@pytest.mark.one_server
def test_an_upload_that_is_terminated_is_gone(host: Host, program: Program, source: Path) -> None:
    found = program.upload(source, chunkSize=2 * MIB, stopAt=6 * MIB, discard=True)
    assert found["requests"][-1][0] == "DELETE"
    assert found["requests"][-1][2] == 204
    (row,) = [each for each in host.uploads() if each["name"] == source.name]
    assert row["state"] == "cancelled"


@pytest.mark.one_server
def test_a_refusal_is_not_tried_again(host: Host, program: Program, source: Path) -> None:
    found = program.upload(source, metadata={"filename": "a/b"})
    assert [each[:1] + each[2:3] for each in found["requests"]] == [["POST", 400]]
    assert "name_refused" in found["error"]


# tuspy ----------------------------------------------------------------------------------------------


def tuspy(host: Host, port: int | None = None) -> TusClient:
    headers = {"Authorization": f"Bearer {host.ticket()}"}
    return TusClient(f"http://127.0.0.1:{port or host.port}/ws/uploads/", headers=headers)


@pytest.mark.parametrize("checks", [False, True])
def test_tuspy_uploads_in_chunks_and_goes_on_later(
    host: Host, source: Path, *, checks: bool
) -> None:
    metadata = {"filename": source.name, "empty": ""}
    uploader = tuspy(host).uploader(
        str(source), chunk_size=3 * MIB, metadata=metadata, upload_checksum=checks
    )
    uploader.upload(stop_at=9 * MIB)
    assert uploader.offset == 9 * MIB
    later = tuspy(host).uploader(
        str(source), chunk_size=3 * MIB, url=uploader.url, upload_checksum=checks
    )
    assert later.offset == 9 * MIB
    later.upload()
    (row,) = [each for each in host.uploads() if each["name"] == source.name]
    assert (row["state"], uploader.url.endswith(row["id"])) == ("completed", True)
    assert is_stored(host, source, row["stored_as"])


@pytest.mark.one_server
def test_tuspy_retries_after_a_cut(host: Host, source: Path) -> None:
    with host.proxy() as proxy:
        uploader = tuspy(host, proxy.port).uploader(
            str(source),
            chunk_size=4 * MIB,
            retries=5,
            retry_delay=1,
            metadata={"filename": source.name},
        )
        proxy.cut_after(6 * MIB)
        uploader.upload()
    (row,) = [each for each in host.uploads() if each["name"] == source.name]
    assert is_stored(host, source, row["stored_as"])


# aiotus ---------------------------------------------------------------------------------------------


def headers_of(host: Host) -> dict[str, str]:
    return {"Authorization": f"Bearer {host.ticket()}"}


async def test_aiotus_uploads_and_reads_the_metadata_back(host: Host, source: Path) -> None:
    headers = await asyncio.to_thread(headers_of, host)
    with source.open("rb") as file:
        location = await aiotus.upload(
            f"{host.server.url}/ws/uploads/",
            file,
            {"filename": source.name.encode(), "filetype": b"video/quicktime"},
            headers=headers,
        )
    assert location is not None
    metadata = await aiotus.metadata(location, headers=headers)
    assert metadata == {"filename": source.name.encode(), "filetype": b"video/quicktime"}
    (row,) = await asyncio.to_thread(
        lambda: [each for each in host.uploads() if each["name"] == source.name]
    )
    assert is_stored(host, source, row["stored_as"])


async def test_aiotus_concatenates_files(host: Host, source: Path) -> None:
    headers = await asyncio.to_thread(headers_of, host)
    data = source.read_bytes()
    files = [io.BytesIO(data[:MIB]), io.BytesIO(data[MIB : 2 * MIB]), io.BytesIO(data[2 * MIB :])]
    location = await aiotus.upload_multiple(
        f"{host.server.url}/ws/uploads/", files, {"filename": source.name.encode()}, headers=headers
    )
    assert location is not None
    (row,) = await asyncio.to_thread(
        lambda: [each for each in host.uploads() if each["name"] == source.name]
    )
    assert str(location).endswith(row["id"])
    assert is_stored(host, source, row["stored_as"])


# Crashes, and several processes -----------------------------------------------------------------------


@pytest.mark.one_server
@pytest.mark.parametrize(
    "failpoint",
    [
        "rows.change.after_commit:4",
        "link.before_link",
        "link.after_link",
        "rows.end.before_commit",
        "rows.end.after_commit",
    ],
)
def test_a_crash_during_the_concatenation_costs_nothing(
    hosts: Callable[..., Host], packages: Path, tmp_path: Path, source: Path, failpoint: str
) -> None:
    """While the parts are copied, when the file is published, and when the parts are deleted."""
    host = hosts(extra={"ASYNC_UPLOAD_FAILPOINT": failpoint})
    program = Program(packages, tmp_path / "crashed", host)
    process = program.begin(source, parallelUploads=2, retryDelays=[200] * 50)
    wait_for(lambda: not host.server.is_running, seconds=60, what=f"the crash at {failpoint}")
    del host.server.env["ASYNC_UPLOAD_FAILPOINT"]
    host.server.restart()
    found = program.end(process)
    if "error" in found:  # 4.3.1 does not try a concatenation again by itself
        assert found["error"] == "Error: socket hang up"
        found = program.upload(source, parallelUploads=2, previous=True)
    assert "error" not in found
    assert is_stored(host, source, found["headers"]["Upload-Stored-As"])
    assert len(host.files()) == 1
    rows = [each for each in host.uploads() if each["name"] == source.name]
    assert [row["state"] for row in rows] == ["completed"]
    assert {row["error"] for row in host.uploads()} == {"", "joined"}
    orphans = 1 if failpoint == "rows.end.after_commit" else 0  # the purge deletes it
    assert len(host.parts()) == orphans


def ask(
    host: Host, method: str, path: str, body: bytes = b"", **headers: object
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=30)
    sent = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    sent |= {"Tus-Resumable": "1.0.0", **headers_of(host)}
    connection.request(method, path, body, sent)
    response = connection.getresponse()
    response.read()
    return response


def path_of(response: http.client.HTTPResponse) -> str:
    assert response.status == 201
    return urllib.parse.urlsplit(response.headers["Location"]).path


@pytest.mark.one_server
def test_parts_that_other_processes_hold_are_concatenated(host: Host, source: Path) -> None:
    data = source.read_bytes()
    media_type = {"content_type": "application/offset+octet-stream"}
    with host.another_server() as other:
        here = path_of(
            ask(host, "POST", "/ws/uploads/", upload_concat="partial", upload_length=5 * MIB)
        )
        begun = ask(host, "PATCH", here, data[:MIB], upload_offset=0, **media_type)
        assert begun.headers["Upload-Offset"] == str(MIB)
        # The other process takes it from this one, and holds it.
        ended = ask(other, "PATCH", here, data[MIB : 5 * MIB], upload_offset=MIB, **media_type)
        assert ended.headers["Upload-Offset"] == str(5 * MIB)
        there = path_of(
            ask(
                other,
                "POST",
                "/ws/uploads/",
                data[5 * MIB :],
                upload_concat="partial",
                upload_length=len(data) - 5 * MIB,
                **media_type,
            )
        )
        for part in (here, there):
            assert ask(other, "HEAD", part).status == 200
        answer = ask(host, "POST", "/ws/uploads/", upload_concat=f"final;{here} {there}")
        assert answer.status == 201, answer.headers
        assert is_stored(host, source, answer.headers["Upload-Stored-As"])
        # The answer was lost: the other process gives the same one.
        again = ask(other, "POST", "/ws/uploads/", upload_concat=f"final;{here} {there}")
        assert path_of(again) == path_of(answer)


@pytest.mark.one_server
def test_an_upload_that_tus_began_ends_on_the_websocket(host: Host, source: Path) -> None:
    data = source.read_bytes()
    media_type = {"content_type": "application/offset+octet-stream"}
    path = path_of(ask(host, "POST", "/ws/uploads/", upload_length=SIZE))
    ask(host, "PATCH", path, data[: 3 * MIB], upload_offset=0, **media_type)
    with host.connect() as connection:
        stream, ready = connection.attach(path.rpartition("/")[2], data)
        assert ready.offset == 3 * MIB
        connection.upload(stream, data, offset=ready.offset)
        stored_as = connection.finish(stream, data).stored_as
    assert is_stored(host, source, stored_as)
    assert ask(host, "HEAD", path).headers["Upload-Offset"] == str(SIZE)
