"""The file system store, beyond what every store must do."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import DataLost, StorageFailed, StorageFull
from django_async_upload.stores import Checkpoint, FileSystemStore, Store, disk
from django_async_upload.stores.filewriter import FileWriter
from django_async_upload.stores.partfile import PartFile
from django_async_upload.testing.stores import StoreCompliance, split

DATA = os.urandom(100_000)


class TestWithFsync(StoreCompliance):
    def make_store(self, tmp_path: Path) -> Store:
        return FileSystemStore(tmp_path / "staging")


class TestWithOs(StoreCompliance):
    def make_store(self, tmp_path: Path) -> Store:
        return FileSystemStore(tmp_path / "staging", durability="os")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileSystemStore]:
    store = FileSystemStore(tmp_path / "a" / "staging")
    yield store
    store.close()


def fail(*args: object) -> None:
    raise OSError(errno.EIO, "the disk is ill")


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_an_unknown_durability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        FileSystemStore(tmp_path, durability="perhaps")


def test_no_other_account_may_read_a_part(store: FileSystemStore) -> None:
    umask = os.umask(0)
    try:
        writer = store.create(None)
    finally:
        os.umask(umask)
    assert mode(store.root) == 0o700
    assert mode(writer.path()) == 0o600


def test_descriptors_do_not_reach_child_processes(store: FileSystemStore) -> None:
    writer = store.create(None)
    assert isinstance(writer, FileWriter)
    assert not os.get_inheritable(writer._file.fd)


def test_a_symlink_in_the_root_is_no_part(store: FileSystemStore, tmp_path: Path) -> None:
    store.create(None).close()
    victim = tmp_path / "victim"
    victim.write_bytes(DATA)
    name = "0" * 32
    os.symlink(victim, os.path.join(store.root, name))
    with pytest.raises(DataLost):  # for good: it would be there at each attempt
        store.open(Checkpoint(name, 4, crc32c(DATA[:4]), disk.boot_id()))
    writer = store.open(Checkpoint(name, 0, 0))
    assert writer.part != name
    writer.close()
    assert name not in {part.name for part in store.parts()}
    store.delete(name)
    assert victim.read_bytes() == DATA


def test_other_files_in_the_root_are_left_alone(store: FileSystemStore) -> None:
    store.create(None).close()
    other = Path(store.root, "README")
    other.write_text("mine")
    Path(store.root, "f" * 32).mkdir()
    store.delete("README")
    assert len(list(store.parts())) == 1
    assert other.exists()


def allocated(path: str) -> int:
    return os.stat(path).st_blocks * 512


def test_room_is_reserved_with_the_first_bytes_and_the_size_stays(store: FileSystemStore) -> None:
    writer = store.create(8 << 20)
    assert allocated(writer.path()) == 0, "who sends nothing takes nothing"
    writer.append(split(DATA))
    found = os.stat(writer.path())
    assert found.st_size == len(DATA)
    assert found.st_blocks * 512 >= 8 << 20


def test_room_is_reserved_in_steps_and_given_back_when_the_writer_closes(
    store: FileSystemStore,
) -> None:
    writer = store.create(1 << 30)
    path = writer.path()
    writer.append(split(DATA))
    assert 16 << 20 <= allocated(path) < 20 << 20
    writer.close()
    assert os.stat(path).st_size == len(DATA)
    assert allocated(path) < 1 << 20


def test_a_margin_of_the_disk_is_left_free(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.folder.min_free = 1000
    monkeypatch.setattr(disk, "free_space", lambda fd: free)
    free = 999
    with pytest.raises(StorageFull):
        store.create(None)
    free = 1000 + len(DATA)
    with pytest.raises(StorageFull):
        store.create(len(DATA) + 1)
    assert not list(store.parts())
    known, unknown = store.create(len(DATA)), store.create(None)
    for writer in (known, unknown):
        free = 1000 + len(DATA)
        writer.append(split(DATA))
        free = 1000
        with pytest.raises(StorageFull):
            writer.append(split(bytes(1 << 25), offset=writer.received))
        assert writer.sync().offset == len(DATA)
    free = 1010
    with pytest.raises(StorageFull):
        unknown.append(split(bytes(11), offset=len(DATA)))
    unknown.append(split(bytes(10), offset=len(DATA)))


def test_free_space_is_compared_where_nothing_can_be_reserved(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_fallocate", lambda: None)
    store.create(1 << 20).close()
    with pytest.raises(StorageFull):
        store.create(2**50)


def test_offsets_beyond_four_gigabytes_are_offsets(store: FileSystemStore) -> None:
    writer = store.create(None)
    path, part, far = writer.path(), writer.part, 5 << 30
    writer.close()
    os.truncate(path, far)
    writer = store.open(Checkpoint(part, far, 7, disk.boot_id()))
    writer.append(split(DATA, offset=far))
    assert writer.received == far + len(DATA)
    assert writer.crc == crc32c(DATA, 7)
    assert b"".join(writer.read(far)) == DATA


def test_bytes_that_no_sync_covered_prove_nothing_after_a_reboot(store: FileSystemStore) -> None:
    writer = store.create(1 << 20)
    writer.append(split(DATA[:50_000]))
    checkpoint = writer.sync()
    path = writer.path()
    writer.close()
    os.truncate(path, 1 << 20)  # as after a power cut: the right size, and zeros
    with_zeros = store.open(replace(checkpoint, token="before"), size=1 << 20)
    assert with_zeros.received == 50_000
    assert os.path.getsize(path) == 50_000
    assert b"".join(with_zeros.read()) == DATA[:50_000]


@pytest.mark.parametrize("harm", ["short", "flipped", "gone"])
def test_fsync_loses_nothing_silently(store: FileSystemStore, harm: str) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = replace(writer.sync(), token="before")
    path = Path(writer.path())
    writer.close()
    do_harm(path, harm)
    with pytest.raises(DataLost) as caught:
        store.open(checkpoint)
    assert caught.value.facts == {"durable": len(DATA), "proved": 0}
    assert len(list(store.parts())) == (harm != "gone")


@pytest.mark.parametrize("harm", ["short", "flipped", "gone"])
def test_os_begins_again_after_a_reboot(tmp_path: Path, harm: str) -> None:
    store = FileSystemStore(tmp_path, durability="os")
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = replace(writer.sync(), token="before")
    path = Path(writer.path())
    writer.close()
    do_harm(path, harm)
    writer = store.open(checkpoint)
    assert (writer.received, writer.crc) == (0, 0)
    assert os.path.getsize(writer.path()) == 0


def test_os_proves_what_outlived_a_reboot(tmp_path: Path) -> None:
    store = FileSystemStore(tmp_path, durability="os")
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = replace(writer.sync(), token="before")
    writer.close()
    assert store.open(checkpoint).received == len(DATA)


def do_harm(path: Path, harm: str) -> None:
    if harm == "gone":
        path.unlink()
    elif harm == "short":
        os.truncate(path, len(DATA) - 1)
    else:
        with path.open("r+b") as file:
            file.write(bytes([DATA[0] ^ 1]))


def test_os_never_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise AssertionError

    monkeypatch.setattr(disk, "fdatasync", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    store = FileSystemStore(tmp_path / "staging", durability="os")
    writer = store.create(None)
    writer.append(split(DATA))
    assert writer.sync().offset == len(DATA)


def test_nothing_new_is_not_synced_again(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    calls: list[int] = []
    monkeypatch.setattr(disk, "fdatasync", calls.append)
    assert writer.sync() == writer.sync()
    assert len(calls) == 1


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, in order: "file", or the path of a directory."""
    calls: list[str] = []
    monkeypatch.setattr(disk, "fdatasync", lambda fd: calls.append("file"))
    monkeypatch.setattr(disk, "sync_directory", calls.append)
    return calls


def test_the_first_sync_makes_the_name_durable_and_so_does_a_rewrite(
    store: FileSystemStore, synced: list[str]
) -> None:
    writer = store.create(None)
    synced.clear()  # the folders that were made
    writer.append(split(DATA[:60_000]))
    checkpoint = writer.sync()
    writer.append(split(DATA[60_000:], offset=60_000))
    writer.sync()
    assert synced == ["file", store.root, "file"]
    synced.clear()
    writer.rewrite(checkpoint)
    assert synced == ["file", store.root]
    writer.append(split(DATA[60_000:], offset=60_000))
    writer.sync()
    assert synced == ["file", store.root, "file"]


def test_the_names_of_many_are_made_durable_at_once(
    store: FileSystemStore, synced: list[str]
) -> None:
    writers = [store.create(None) for _ in range(3)]
    synced.clear()
    for writer in writers:
        writer.append(split(DATA))
    assert [each.offset for each in store.sync_all(writers)] == [len(DATA)] * 3
    assert sorted(synced) == [store.root, "file", "file", "file"]


def test_a_failed_sync_leaves_only_what_is_durable(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA[:60_000]))
    checkpoint = writer.sync()
    writer.append(split(DATA[60_000:], offset=60_000))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "fdatasync", fail)
        with pytest.raises(StorageFailed) as caught:
            writer.sync()
    assert caught.value.facts == {"errno": "EIO"}
    # The kernel would report no error the next time, though the bytes are not there.
    with pytest.raises(StorageFailed):
        writer.sync()
    with pytest.raises(StorageFailed):
        writer.append(split(b"more", offset=len(DATA)))
    writer.close()
    again = store.open(checkpoint)
    assert again.received == 60_000
    again.close()


def test_a_failed_sync_after_a_truncation_leaves_no_hole(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA[:20_000]))
    checkpoint = writer.sync()
    writer.append(split(DATA[20_000:], offset=20_000))
    writer.sync()
    writer.truncate(checkpoint)
    monkeypatch.setattr(disk, "fdatasync", fail)
    writer.append(split(b"other", offset=20_000))
    with pytest.raises(StorageFailed):
        writer.sync()
    writer.close()
    assert store.open(checkpoint).received == 20_000


def test_a_rewrite_heals_a_failed_sync(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(1 << 20)
    writer.append(split(DATA[:60_000]))
    checkpoint = writer.sync()
    writer.append(split(DATA[60_000:], offset=60_000))
    with monkeypatch.context() as patch:
        patch.setattr(disk, "fdatasync", fail)
        with pytest.raises(StorageFailed):
            writer.sync()
    writer.rewrite(checkpoint)
    writer.append(split(DATA[60_000:], offset=60_000))
    renewed = writer.sync()
    assert renewed.offset == len(DATA)
    assert Path(writer.path()).read_bytes() == DATA


def test_a_failed_rewrite_leaves_no_file(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = writer.sync()
    before = open_descriptors()
    monkeypatch.setattr(disk, "fdatasync", fail)
    with pytest.raises(StorageFailed):
        writer.rewrite(checkpoint)
    assert [part.name for part in store.parts()] == [checkpoint.part]
    assert open_descriptors() == before


def test_copies_work_without_the_kernels_help(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    writer = store.create(None)
    writer.append(split(DATA))
    writer.rewrite(writer.sync())
    assert Path(writer.path()).read_bytes() == DATA


def test_a_write_that_fails_leaves_nothing_above_received(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA[:50_000]))
    write = os.pwritev

    def write_a_little(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset > 60_000:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, [buffers[0][:1000]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", write_a_little)
        with pytest.raises(StorageFull):
            writer.append(split(DATA[50_000:], offset=50_000))
    assert writer.received == os.path.getsize(writer.path()) == 50_000
    writer.append(split(b"end", offset=50_000))
    assert Path(writer.path()).read_bytes() == DATA[:50_000] + b"end"


def test_a_write_of_nothing_is_an_error(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    monkeypatch.setattr(os, "pwritev", lambda *args: 0)
    with pytest.raises(StorageFailed):
        writer.append(split(DATA))


def test_close_waits_for_a_running_write(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    begun = threading.Event()
    write = os.pwritev

    def write_slowly(fd: int, buffers: list[memoryview], offset: int) -> int:
        begun.set()
        time.sleep(0.2)
        return write(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", write_slowly)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(writer.append, split(DATA[:100]))
        begun.wait()
        writer.close()
        assert running.result() == 1


def test_the_path_is_refused_when_it_is_another_file(store: FileSystemStore) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    path = Path(writer.path())
    with path.open("ab") as file:
        file.write(b"stale")
    with pytest.raises(StorageFailed):
        writer.path()
    path.unlink()
    with pytest.raises(StorageFailed):
        writer.path()
    path.write_bytes(DATA)
    with pytest.raises(StorageFailed):
        writer.path()


def test_the_path_is_refused_where_another_file_of_the_same_size_stands(
    store: FileSystemStore,
) -> None:
    writer, other = store.create(None), store.create(None)
    for each in (writer, other):
        each.append(split(DATA))
    os.replace(other.path(), writer.path())
    with pytest.raises(StorageFailed):
        writer.path()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_part_deleted_between_its_opening_and_its_lock_is_lost(
    store: FileSystemStore, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = writer.sync()
    path = Path(writer.path())
    writer.close()
    lock = PartFile.lock

    def delete_and_lock(file: PartFile) -> None:
        store.delete(checkpoint.part)
        if replaced:
            path.write_bytes(DATA)
        lock(file)

    monkeypatch.setattr(PartFile, "lock", delete_and_lock)
    with pytest.raises(DataLost):
        store.open(checkpoint)


def test_a_lock_that_cannot_be_had_copies_only_what_is_proved(store: FileSystemStore) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = writer.sync()
    with open(writer.path(), "r+b") as file:
        file.write(bytes([DATA[0] ^ 1]))
    before = open_descriptors()
    with pytest.raises(DataLost):
        store.open(checkpoint)
    assert [part.name for part in store.parts()] == [checkpoint.part]
    assert open_descriptors() == before


def test_errors_leave_no_descriptor(
    store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.create(None)
    writer.append(split(DATA))
    checkpoint = writer.sync()
    writer.close()
    before = open_descriptors()
    with pytest.raises(DataLost):
        store.open(replace(checkpoint, offset=len(DATA) + 1))
    with pytest.raises(StorageFull):
        store.create(2**50)
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageFailed):
        store.open(checkpoint)
    with pytest.raises(StorageFailed):
        store.create(None)
    assert open_descriptors() == before
    assert [part.name for part in store.parts()] == [checkpoint.part]


def open_descriptors() -> list[str]:
    folder = "/proc/self/fd"
    return sorted(os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder) if alive(int(fd)))


def alive(fd: int) -> bool:
    """Not the descriptor that listed the folder."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_facts_never_name_a_path(store: FileSystemStore) -> None:
    Path(store.root).parent.mkdir(parents=True)
    Path(store.root).write_text("a file where the folder should be")
    with pytest.raises(StorageFailed) as caught:
        store.create(None)
    assert caught.value.facts.keys() == {"errno"}
    assert store.root not in str(caught.value)


def test_no_root_is_no_parts(store: FileSystemStore) -> None:
    assert list(store.parts()) == []
    store.delete("0" * 32)


def test_a_machine_without_boot_ids_proves_nothing_by_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = (
        "import builtins, io\n"
        "def refuse(*args, **kwargs): raise FileNotFoundError\n"
        "from django_async_upload.stores import disk\n"
        "disk.open = refuse\n"
        "assert disk.boot_id() == disk.boot_id()\n"
        "print(disk.boot_id())\n"
    )
    runs = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 2


class TestCheck:
    def test_a_root_still_to_be_made_is_good(self, store: FileSystemStore) -> None:
        assert store.check() == []
        assert not os.path.exists(store.root)

    def test_a_root_that_is_a_file_is_an_error(self, store: FileSystemStore) -> None:
        Path(store.root).parent.mkdir()
        Path(store.root).write_text("")
        assert [message.id for message in store.check()] == ["async_upload.E020"]

    def test_a_root_that_cannot_be_written_is_an_error(
        self, store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Root may write anywhere, so the answer is faked.
        monkeypatch.setattr(os, "access", lambda path, how: False)
        assert [message.id for message in store.check()] == ["async_upload.E020"]

    def test_a_root_for_everybody_is_a_warning(self, store: FileSystemStore) -> None:
        store.create(None).close()
        os.chmod(store.root, 0o755)
        assert [message.id for message in store.check()] == ["async_upload.W020"]

    def test_a_root_without_locks_is_an_error(
        self, store: FileSystemStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.create(None).close()

        def refuse(fd: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        assert [message.id for message in store.check()] == ["async_upload.E021"]
