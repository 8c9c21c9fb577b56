"""Real faults: a full disk, a failing one, killed and stopped processes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from django.core.files.storage import FileSystemStorage

from django_async_upload.exceptions import StorageFull
from django_async_upload.stores import Checkpoint, FileSystemStore, Writer
from django_async_upload.stores.publication.link import is_linked, link
from django_async_upload.testing.stores import split

DATA = bytes(range(256)) * 1024

PRELUDE = """
import json, os, resource, sys
from dataclasses import asdict
from django.conf import settings
settings.configure()
from django.core.files.storage import FileSystemStorage
from django_async_upload.exceptions import *
from django_async_upload.stores import *
from django_async_upload.stores.publication.link import link, sync_names
from django_async_upload.testing.stores import split

DATA = bytes(range(256)) * 1024
HALF = len(DATA) // 2

def say(**facts):
    print(json.dumps(facts), flush=True)

store = FileSystemStore(sys.argv[1])
"""


def start(script: str, *arguments: str, under: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*under, sys.executable, "-c", PRELUDE + script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return dict(json.loads(line))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def inject(fault: str) -> tuple[str, ...]:
    """The command prefix that makes a system call of a command fail as given."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is missing")
    tried = subprocess.run([strace, "-f", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace: {tried.stderr.strip()[:200]}")
    call = fault.partition(":")[0]
    return (strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}")


def append_all(writer: Writer, data: bytes) -> None:
    while batch := data[writer.received : writer.received + 100_000]:
        writer.append(split(batch, 10_000, offset=writer.received))


class TestFullDisk:
    def test_it_is_an_error_at_creation_where_the_size_is_known(self, small_disk: Path) -> None:
        store = FileSystemStore(small_disk / "staging")
        append_all(store.create(512 * 1024), bytes(512 * 1024))
        with pytest.raises(StorageFull) as caught:
            store.create(768 * 1024)
        assert caught.value.facts == {"errno": "ENOSPC"}
        assert len(list(store.parts())) == 1

    def test_what_was_received_stays_and_the_upload_goes_on(self, small_disk: Path) -> None:
        store = FileSystemStore(small_disk / "staging")
        ballast = store.create(512 * 1024)
        append_all(ballast, bytes(512 * 1024))
        writer = store.create(None)
        data = DATA * 4
        with pytest.raises(StorageFull):
            append_all(writer, data)
        received = writer.received
        assert received == os.path.getsize(writer.path()) > 0
        assert b"".join(writer.read()) == data[:received]
        ballast.close()
        store.delete(ballast.part)
        writer.append(split(data[received : received + 100_000], offset=received))
        checkpoint = writer.sync()
        writer.close()
        assert store.open(checkpoint).received == received + 100_000

    def test_a_rewrite_that_does_not_fit_leaves_the_part(self, small_disk: Path) -> None:
        store = FileSystemStore(small_disk / "staging")
        writer = store.create(768 * 1024)
        writer.append(split(DATA))
        checkpoint = writer.sync()
        with pytest.raises(StorageFull):
            writer.rewrite(checkpoint)
        assert [part.name for part in store.parts()] == [checkpoint.part]
        assert b"".join(writer.read()) == DATA


def test_a_file_beyond_the_processs_limit_is_no_room(tmp_path: Path) -> None:
    process = start(
        """
writer = store.create(None)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    writer.append(split(DATA))
except StorageFull as error:
    say(**error.facts, received=writer.received, size=os.path.getsize(writer.path()))
""",
        str(tmp_path / "staging"),
    )
    assert hear(process) == {"errno": "EFBIG", "received": 0, "size": 0}
    assert process.wait() == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwritev

    def write_short(fd: int, buffers: list[memoryview], offset: int) -> int:
        whole = memoryview(b"".join(buffers[:8]))
        return write(fd, [whole[: 1 + offset % 7001]], offset)

    writer = FileSystemStore(tmp_path).create(None)
    monkeypatch.setattr(os, "pwritev", write_short)
    writer.append(split(DATA, 1000))
    assert Path(writer.path()).read_bytes() == DATA


class TestFailingDisk:
    def test_a_failed_fdatasync_is_not_tried_again_but_rewritten(self, tmp_path: Path) -> None:
        process = start(
            """
writer = store.create(len(DATA))
writer.append(split(DATA[:HALF]))
checkpoint = writer.sync()
writer.append(split(DATA[HALF:], offset=HALF))
try:
    writer.sync()
except StorageFailed as error:
    say(**error.facts, size=os.fstat(writer._file.fd).st_size)
writer.rewrite(checkpoint)
writer.append(split(DATA[HALF:], offset=HALF))
say(**asdict(writer.sync()), old=checkpoint.part)
""",
            str(tmp_path / "staging"),
            under=inject("fdatasync:error=EIO:when=2"),
        )
        assert hear(process) == {"errno": "EIO", "size": len(DATA) // 2}
        renewed = hear(process)
        assert renewed.pop("old") != renewed["part"]
        assert process.wait() == 0
        store = FileSystemStore(tmp_path / "staging")
        writer = store.open(Checkpoint(**renewed))
        assert Path(writer.path()).read_bytes() == DATA

    def test_a_directory_that_cannot_be_synced_makes_nothing_durable(self, tmp_path: Path) -> None:
        process = start(
            """
writer = store.create(None)
writer.append(split(DATA))
try:
    writer.sync()
except StorageFailed as error:
    say(**error.facts, size=os.fstat(writer._file.fd).st_size)
""",
            str(tmp_path),  # there already: the first fsync is that of the part's name
            under=inject("fsync:error=EIO:when=1"),
        )
        assert hear(process) == {"errno": "EIO", "size": 0}


class TestKilled:
    def run(self, tmp_path: Path, script: str, fault: str) -> Checkpoint:
        staging = tmp_path / "staging"
        staging.mkdir(mode=0o700)
        process = start(script, str(staging), str(tmp_path / "media"), under=inject(fault))
        checkpoint = Checkpoint(**hear(process))
        assert process.wait() in {-signal.SIGKILL, 128 + signal.SIGKILL}
        return checkpoint

    publish = """
writer = store.create(len(DATA))
writer.append(split(DATA))
say(**asdict(writer.sync()))
sync_names(link(FileSystemStorage(sys.argv[2]), writer.path(), "file.bin"))
"""

    def test_before_the_link_there_is_a_part_and_no_file(self, tmp_path: Path) -> None:
        checkpoint = self.run(tmp_path, self.publish, "linkat:signal=KILL:when=1")
        storage = FileSystemStorage(tmp_path / "media")
        assert storage.listdir("") == ([], [])
        writer = FileSystemStore(tmp_path / "staging").open(checkpoint)
        assert not is_linked(storage, writer.path(), "file.bin")
        link(storage, writer.path(), "file.bin")
        assert Path(storage.path("file.bin")).read_bytes() == DATA

    def test_after_the_link_the_file_is_found_again(self, tmp_path: Path) -> None:
        # The fsyncs: the part's name, the part with its new mode, and after the link the folder.
        checkpoint = self.run(tmp_path, self.publish, "fsync:signal=KILL:when=3")
        storage = FileSystemStorage(tmp_path / "media")
        writer = FileSystemStore(tmp_path / "staging").open(checkpoint)
        assert is_linked(storage, writer.path(), "file.bin")
        assert Path(storage.path("file.bin")).read_bytes() == DATA

    def test_in_a_rewrite_the_old_part_is_still_there(self, tmp_path: Path) -> None:
        script = """
writer = store.create(len(DATA))
writer.append(split(DATA))
checkpoint = writer.sync()
say(**asdict(checkpoint))
writer.rewrite(checkpoint)
"""
        checkpoint = self.run(tmp_path, script, "fdatasync:signal=KILL:when=2")
        store = FileSystemStore(tmp_path / "staging")
        assert len(list(store.parts())) == 2
        writer = store.open(checkpoint)
        assert writer.part == checkpoint.part
        assert b"".join(writer.read()) == DATA

    def test_in_the_middle_of_writing_all_that_was_written_is_proved(self, tmp_path: Path) -> None:
        script = """
writer = store.create(None)
writer.append(split(DATA[:HALF]))
say(**asdict(writer.sync()))
for start in range(HALF, len(DATA), 1000):
    writer.append(split(DATA[start:start + 1000], offset=start))
"""
        checkpoint = self.run(tmp_path, script, "pwritev,pwritev2:signal=KILL:when=100")
        writer = FileSystemStore(tmp_path / "staging").open(checkpoint, size=len(DATA))
        assert writer.part == checkpoint.part
        assert checkpoint.offset < writer.received < len(DATA)
        assert b"".join(writer.read()) == DATA[: writer.received]


def test_a_stopped_holder_that_wakes_does_not_touch_what_was_published(tmp_path: Path) -> None:
    holder = start(
        """
writer = store.create(None)
writer.append(split(DATA[:HALF]))
say(**asdict(writer.sync()))
sys.stdin.readline()
writer.append(split(b"stale" * 1000, offset=HALF))
say(part=writer.part, received=writer.received)
sys.stdin.readline()
""",
        str(tmp_path / "staging"),
    )
    checkpoint = Checkpoint(**hear(holder))
    holder.send_signal(signal.SIGSTOP)
    try:
        store = FileSystemStore(tmp_path / "staging")
        storage = FileSystemStorage(tmp_path / "media")
        writer = store.open(checkpoint, size=len(DATA))
        assert writer.part != checkpoint.part
        assert writer.received == checkpoint.offset
        writer.append(split(DATA[writer.received :], offset=writer.received))
        writer.sync()
        store.delete(checkpoint.part)
        link(storage, writer.path(), "file.bin")
        writer.close()
    finally:
        holder.send_signal(signal.SIGCONT)
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    woken = hear(holder)
    holder.communicate("\n")
    assert woken == {"part": checkpoint.part, "received": checkpoint.offset + 5000}
    assert Path(storage.path("file.bin")).read_bytes() == DATA
    assert asdict(checkpoint)["part"] not in {part.name for part in store.parts()}
