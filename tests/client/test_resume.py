"""Resuming after the program was killed: what is in the state file, and when."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.client.state import Entry, Identity, StateFile, default_state_path
from django_async_upload.exceptions import FileChanged, FileTooLarge
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import Header
from django_async_upload.protocol.messages import Message

from .scripted import ScriptedServer, Session, eventually

CONTENT = os.urandom(100_000)


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state.json"


def saved(state: Path) -> list[dict[str, object]]:
    content = json.loads(state.read_text())
    assert content["version"] == 1
    return list(content["uploads"])


async def killed(server: ScriptedServer, file: Path, state: Path, *, after: int = 40_000) -> None:
    """A program that sends so many bytes and then writes nothing more, to the server or to the disk."""

    def fall_silent(session: Session, header: Header, message: Message | bytes) -> bool:
        return server.payload_bytes > after

    server.hooks.append(fall_silent)  # or the upload may complete before its id is on the disk
    client = await server.client(state=state).__aenter__()
    upload = client.start(file)
    await eventually(lambda: server.payload_bytes > after)
    await eventually(lambda: [each for each in saved(state) if each["upload"]])
    server.hooks.remove(fall_silent)
    server.sessions[-1].lost = True
    kept = state.read_bytes()
    upload.task.cancel()
    await asyncio.wait({upload.task})
    await client.aclose()
    state.write_bytes(kept)


async def test_the_key_is_on_the_disk_before_create_is_sent(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    keys: list[tuple[object, str]] = []

    def look(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Create):
            keys.append((saved(state)[0]["key"], message.key))
        return False

    server.hooks.append(look)
    async with server.client(state=state) as client:
        await client.upload(file)
    ((on_disk, sent),) = keys
    assert on_disk == sent


async def test_the_file_is_for_its_owner_alone_and_holds_no_secret(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    async with server.client(state=state, ticket="the ticket", cookie="c=the cookie") as client:
        upload = client.start(file)
        await eventually(lambda: server.payload_bytes > 1000)
        assert stat.S_IMODE(state.stat().st_mode) == 0o600
        assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700
        assert "the ticket" not in state.read_text()
        assert "the cookie" not in state.read_text()
        await upload


async def test_what_is_over_is_forgotten(server: ScriptedServer, file: Path, state: Path) -> None:
    async with server.client(state=state) as client:
        await client.upload(file)
    assert saved(state) == []
    server.answer_once(m.Create, m.Error("file_too_large", "too large", retryable=False))
    async with server.client(state=state) as client:
        with pytest.raises(FileTooLarge):
            await client.upload(file, name="other")
    assert saved(state) == []


async def test_a_program_that_was_killed_goes_on_when_it_is_started_again(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    await killed(server, file, state)
    async with server.client(state=state) as client:
        result = await client.upload(file)
    assert server.contents == [CONTENT]
    assert len(server.uploads) == 1
    assert result.resumed
    assert server.payload_bytes - len(CONTENT) <= 256
    assert saved(state) == []


async def test_a_program_that_was_killed_before_the_answer_gets_the_result(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    await killed(server, file, state)
    (kept,) = server.uploads.values()
    kept.content[:] = CONTENT
    kept.completed = server.complete(kept, m.Finish(len(CONTENT), result_crc()))
    before = server.payload_bytes
    async with server.client(state=state) as client:
        result = await client.upload(file)
    assert result.resumed
    assert server.payload_bytes == before


def result_crc() -> str:
    from .scripted import crc

    return crc(CONTENT)


@pytest.mark.parametrize("change", ["size", "time", "inode"])
async def test_a_file_that_has_changed_is_refused_before_anything_is_sent(
    server: ScriptedServer, file: Path, state: Path, change: str
) -> None:
    await killed(server, file, state)
    sessions = len(server.sessions)
    status = file.stat()
    match change:
        case "size":
            file.write_bytes(CONTENT + b"x")
        case "time":
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        case "inode":
            other = file.with_name("other")
            other.write_bytes(CONTENT)
            os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
            other.replace(file)
    (entry,) = saved(state)
    async with server.client(state=state) as client:
        with pytest.raises(FileChanged) as caught:
            await client.upload(file)
    assert caught.value.facts["upload"] == entry["upload"]
    assert len(server.sessions) == sessions
    assert saved(state) == [entry]


async def test_a_file_whose_content_alone_has_changed_is_refused_by_its_proof(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    await killed(server, file, state)
    status = file.stat()
    with file.open("r+b") as handle:
        handle.write(b"another beginning")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    async with server.client(state=state) as client:
        with pytest.raises(FileChanged):
            await client.upload(file)
    assert server.contents == []
    assert len(saved(state)) == 1


async def test_after_a_cancel_a_changed_file_begins_again(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    await killed(server, file, state)
    (entry,) = saved(state)
    file.write_bytes(CONTENT[::-1])
    async with server.client(state=state) as client:
        await client.cancel(str(entry["upload"]))
        await client.upload(file)
    assert server.contents == [CONTENT[::-1]]


async def test_a_file_that_changes_while_it_is_sent_is_thrown_away(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    async with server.client(state=state) as client:
        upload = client.start(file)
        await eventually(lambda: server.payload_bytes > 20_000)
        with file.open("ab") as handle:
            handle.write(b"one line more")
        with pytest.raises(FileChanged):
            await upload
        await eventually(lambda: server.sessions[0].of(m.Cancel))
    assert server.contents == []
    assert saved(state) == []


async def test_the_same_file_twice_at_once_is_two_uploads(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    async with server.client(state=state) as client:
        await asyncio.gather(client.upload(file), client.upload(file))
    assert server.contents == [CONTENT] * 2


async def test_another_name_is_another_upload(
    server: ScriptedServer, file: Path, state: Path
) -> None:
    await killed(server, file, state)
    async with server.client(state=state) as client:
        result = await client.upload(file, name="other")
    assert not result.resumed
    assert len(server.uploads) == 2


# The file itself ----------------------------------------------------------------------------------


def entry(key: str, path: str = "/file") -> Entry:
    return Entry(key, "ws://test/", path, Identity(1, 2, 3, 4), "name", metadata={"a": [1]})


async def test_programs_share_the_file(state: Path) -> None:
    one, other = StateFile(state), StateFile(state)
    for each in (one, other):
        await each.load()
    await asyncio.gather(
        *(one.save(entry(f"one {n}")) for n in range(20)),
        *(other.save(entry(f"other {n}")) for n in range(20)),
    )
    assert len(one.read()) == 40
    one.remove("one 3")
    await one.flush()
    assert len(other.read()) == 39
    assert StateFile(state).read()["other 7"] == entry("other 7")


async def test_changes_that_come_together_are_one_write(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = StateFile._write
    monkeypatch.setattr(
        StateFile, "_write", lambda self, changes: (writes.append(1), write(self, changes))
    )
    file = StateFile(state)

    async def small_files(worker: int) -> None:
        for number in range(10):
            await file.save(entry(f"{worker} {number}"))
            assert f"{worker} {number}" in file.read()
            file.remove(f"{worker} {number}")

    await asyncio.gather(*(small_files(worker) for worker in range(50)))
    await file.flush()
    assert file.read() == {}
    assert len(writes) <= 50


async def test_a_change_beside_a_write_is_written_too(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, released = threading.Event(), threading.Event()
    write = StateFile._write

    def slow(self: StateFile, changes: Any) -> None:
        writing.set()
        released.wait(5)
        write(self, changes)

    monkeypatch.setattr(StateFile, "_write", slow)
    file = StateFile(state)
    file.change(entry("first"))
    await asyncio.to_thread(writing.wait, 5)
    file.change(entry("second"))  # and no caller waits for it
    released.set()
    async with asyncio.timeout(5):
        while len(file.read()) < 2:
            await asyncio.sleep(0.01)


async def test_a_file_of_another_program_is_left_alone(state: Path) -> None:
    state.parent.mkdir()
    for content in ("not JSON", "[]", '{"version": 1, "uploads": [{}]}', '{"version": 2}'):
        state.write_text(content)
        file = StateFile(state)
        with pytest.raises(ValueError):
            file.read()
        with pytest.raises(ValueError):
            await file.save(entry("x"))
        assert state.read_text() == content


def test_the_default_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert default_state_path() == "/home/somebody/.local/state/async-upload/uploads.json"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_state_path() == "/state/async-upload/uploads.json"
