"""Publishing a part: by a link where the storage allows, streamed everywhere else."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile, File
from django.core.files.storage import (
    FileSystemStorage,
    InMemoryStorage,
    Storage,
    default_storage,
)

from django_async_upload.exceptions import StorageFailed, StorageFull
from django_async_upload.stores import FileSystemStore, MemoryStore, Writer
from django_async_upload.stores.publication import link as link_module
from django_async_upload.stores.publication.base import Finished, NameTaken, Unsuited
from django_async_upload.stores.publication.copy import PartReader, save
from django_async_upload.stores.publication.link import (
    LinkPublication,
    is_linked,
    links_into,
    sync_link,
    sync_names,
)
from django_async_upload.stores.publication.names import (
    NAME_MAX,
    STORED_NAME_MAX,
    available_name,
    own_name,
)
from django_async_upload.testing.stores import split

DATA = os.urandom(100_000)
EVIL_NAMES = ["../out", "a/../../out", "/etc/passwd", "", ".", "..", "a/..", "a/../b"]


def link(storage: FileSystemStorage, path: str, name: str, *, durability: str = "fsync") -> None:
    """Link, and make the name durable."""
    sync_names(link_module.link(storage, path, name, durability=durability))


@pytest.fixture
def store(tmp_path: Path) -> FileSystemStore:
    return FileSystemStore(tmp_path / "staging")


@pytest.fixture
def writer(store: FileSystemStore) -> Iterator[Writer]:
    writer = store.create(len(DATA))
    writer.append(split(DATA))
    yield writer
    writer.close()


@pytest.fixture
def storage(tmp_path: Path) -> FileSystemStorage:
    return FileSystemStorage(tmp_path / "media")


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


class TestLinksInto:
    def test_a_file_system_storage_whose_folder_is_still_to_be_made(
        self, storage: FileSystemStorage, writer: Writer
    ) -> None:
        assert links_into(storage, writer.path())
        assert not os.path.exists(storage.location)

    def test_the_default_storage_though_it_is_a_lazy_object(
        self, writer: Writer, tmp_path: Path, settings: Any
    ) -> None:
        settings.MEDIA_ROOT = tmp_path / "default"
        assert links_into(default_storage, writer.path())

    def test_not_a_storage_that_overwrites(self, writer: Writer, tmp_path: Path) -> None:
        assert not links_into(FileSystemStorage(tmp_path, allow_overwrite=True), writer.path())

    def test_not_a_storage_that_saves_in_its_own_way(self, writer: Writer, tmp_path: Path) -> None:
        class Encrypting(FileSystemStorage):
            def _save(self, name: str, content: Any) -> str:
                raise AssertionError

        class Hashing(FileSystemStorage):
            def save(self, name: Any, content: Any, max_length: int | None = None) -> str:
                raise AssertionError

        assert not links_into(Encrypting(tmp_path), writer.path())
        assert not links_into(Hashing(tmp_path), writer.path())
        assert not links_into(InMemoryStorage(), writer.path())

    def test_a_storage_that_only_names_in_its_own_way(self, writer: Writer, tmp_path: Path) -> None:
        class Numbering(FileSystemStorage):
            def get_alternative_name(self, file_root: str, file_ext: str) -> str:
                return f"{file_root}-2{file_ext}"

        assert links_into(Numbering(tmp_path), writer.path())

    def test_not_another_file_system(self, writer: Writer) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            if os.stat(folder).st_dev == os.stat(writer.path()).st_dev:
                pytest.skip("/dev/shm is no file system of its own")
            assert not links_into(FileSystemStorage(folder), writer.path())

    def test_not_a_file_that_is_gone(self, storage: FileSystemStorage) -> None:
        assert not links_into(storage, "/nowhere")


class TestLink:
    def test_it_copies_nothing(self, storage: FileSystemStorage, writer: Writer) -> None:
        link(storage, writer.path(), "a/b/c.bin")
        assert os.path.samefile(writer.path(), storage.path("a/b/c.bin"))
        assert is_linked(storage, writer.path(), "a/b/c.bin")
        assert Path(storage.path("a/b/c.bin")).read_bytes() == DATA

    @pytest.mark.parametrize("umask", [0o000, 0o077])
    @pytest.mark.parametrize("modes", [(0o644, None), (0o640, 0o2750), (None, 0o700)])
    def test_modes_are_those_of_the_storages_own_save(
        self, writer: Writer, tmp_path: Path, umask: int, modes: tuple[int | None, int | None]
    ) -> None:
        mine = FileSystemStorage(tmp_path / "mine", None, *modes)
        theirs = FileSystemStorage(tmp_path / "theirs", None, *modes)
        temporary = tmp_path / "temporary"
        temporary.touch(mode=0o600)
        with temporary.open("rb") as file:
            content = File(file)
            content.temporary_file_path = lambda: str(temporary)
            before = os.umask(umask)
            try:
                theirs.save("a/b/c.bin", content)
                link(mine, writer.path(), "a/b/c.bin")
            finally:
                os.umask(before)
        for name in ["", "a", "a/b", "a/b/c.bin"]:
            assert mode(mine.path(name)) == mode(theirs.path(name)), name

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
    def test_the_group_is_that_of_the_storages_folder(
        self, storage: FileSystemStorage, writer: Writer
    ) -> None:
        os.mkdir(storage.location)
        os.chown(storage.location, -1, 12345)
        link(storage, writer.path(), "c.bin")
        assert os.stat(storage.path("c.bin")).st_gid == 12345

    def test_the_file_has_its_mode_before_it_is_seen(
        self, storage: FileSystemStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        monkeypatch.setattr(os, "link", lambda path, *args, **kwargs: seen.append(mode(path)))
        link(storage, writer.path(), "c.bin")
        assert seen == [0o644]

    def test_a_name_that_is_taken_is_not_overwritten(
        self, storage: FileSystemStorage, writer: Writer
    ) -> None:
        os.mkdir(storage.location)
        Path(storage.path("taken")).write_bytes(b"theirs")
        os.symlink("/nowhere", storage.path("dangling"))
        for name in ["taken", "dangling"]:
            with pytest.raises(FileExistsError):
                link(storage, writer.path(), name)
            assert not is_linked(storage, writer.path(), name)
        assert Path(storage.path("taken")).read_bytes() == b"theirs"

    def test_its_own_name_is_taken_too(self, storage: FileSystemStorage, writer: Writer) -> None:
        link(storage, writer.path(), "c.bin")
        with pytest.raises(FileExistsError):
            link(storage, writer.path(), "c.bin")
        assert is_linked(storage, writer.path(), "c.bin")
        assert not is_linked(storage, writer.path(), "d.bin")

    def test_a_file_that_has_another_name_is_not_published(
        self, storage: FileSystemStorage, writer: Writer, tmp_path: Path
    ) -> None:
        """Through that name it could be changed afterwards."""
        os.link(writer.path(), tmp_path / "kept")
        with pytest.raises(Unsuited):
            link(storage, writer.path(), "c.bin")
        assert not storage.exists("c.bin")

    @pytest.mark.parametrize("name", EVIL_NAMES)
    def test_no_name_leaves_the_storage(
        self, storage: FileSystemStorage, writer: Writer, name: str, tmp_path: Path
    ) -> None:
        with pytest.raises(SuspiciousFileOperation):
            link(storage, writer.path(), name)
        assert {path.name for path in tmp_path.iterdir()} == {"staging"}

    def test_a_file_where_a_folder_should_be_is_an_error(
        self, storage: FileSystemStorage, writer: Writer
    ) -> None:
        link(storage, writer.path(), "c.bin")
        with pytest.raises(StorageFailed) as caught:
            link(storage, writer.path(), "c.bin/d.bin")
        assert caught.value.facts == {"errno": "ENOTDIR"}

    @pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
    def test_a_file_system_that_does_not_link_says_so(
        self,
        storage: FileSystemStorage,
        writer: Writer,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
    ) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(Unsuited):
            link(storage, writer.path(), "c.bin")

    @pytest.fixture
    def synced(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Paths of files and folders, in the order in which they were synced."""
        synced: list[str] = []

        def fsync(fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))

        monkeypatch.setattr(os, "fsync", fsync)
        return synced

    def test_fsync_syncs_the_file_then_the_new_folders(
        self, storage: FileSystemStorage, writer: Writer, synced: list[str]
    ) -> None:
        link(storage, writer.path(), "a/b/c.bin")
        media = storage.location
        assert synced == [
            writer.path(),
            f"{media}/a/b",
            os.path.dirname(media),
            media,
            f"{media}/a",
        ]
        synced.clear()
        os.unlink(storage.path("a/b/c.bin"))
        link(storage, writer.path(), "a/b/d.bin", durability="os")
        assert synced == []

    def test_a_link_of_before_a_crash_is_synced_with_the_folders_that_may_have_been_new(
        self, storage: FileSystemStorage, writer: Writer, synced: list[str]
    ) -> None:
        link(storage, writer.path(), "a/b/c.bin", durability="os")
        sync_link(storage, "a/b/c.bin", durability="os")
        assert synced == []
        sync_link(storage, "a/b/c.bin")
        media = storage.location
        assert synced == [f"{media}/a/b", f"{media}/a", media, os.path.dirname(media)]

    def test_its_own_file_is_withdrawn_and_no_other_of_that_name(
        self, store: FileSystemStore, storage: FileSystemStorage, writer: Writer
    ) -> None:
        way = LinkPublication(store)
        part = Finished(writer, storage, uuid.uuid4(), "c.bin", lambda done: None)
        storage.save("c.bin", ContentFile(b"theirs"))
        (outcome,) = way.publish([part])
        assert isinstance(outcome, NameTaken)
        way.withdraw(part)
        assert Path(storage.path("c.bin")).read_bytes() == b"theirs"
        part.name = "d.bin"
        assert way.publish([part]) == ["d.bin"]
        way.withdraw(part)
        assert not storage.exists("d.bin")


def publish(storage: FileSystemStorage, path: str, name: str) -> str:
    """What the service does: the name, or the next free one."""
    while True:
        try:
            link(storage, path, name, durability="os")
        except FileExistsError:
            name = available_name(storage, name)
        else:
            return name


PUBLISH = """
import sys
from django.conf import settings
settings.configure()
from django.core.files.storage import FileSystemStorage
from tests.stores.test_publication import publish
media, *paths = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for path in paths:
    print(publish(FileSystemStorage(media), path, "same.txt"))
"""


class TestRaces:
    def test_a_hundred_threads_that_want_one_name_all_get_one(
        self, storage: FileSystemStorage, store: FileSystemStore
    ) -> None:
        paths = self.make_parts(store, 100)
        with ThreadPoolExecutor(32) as pool:
            names = list(pool.map(lambda path: publish(storage, path, "same.txt"), paths))
        self.assert_all_survive(storage, names, 100)

    def test_processes_that_want_one_name_all_get_one(
        self, storage: FileSystemStorage, store: FileSystemStore
    ) -> None:
        paths = self.make_parts(store, 100)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PUBLISH, storage.location, *paths[index::4]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(4)
        ]
        names: list[str] = []
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            names += process.communicate(timeout=30)[0].split()
        self.assert_all_survive(storage, names, 100)

    def make_parts(self, store: FileSystemStore, count: int) -> list[str]:
        paths = []
        for index in range(count):
            writer = store.create(None)
            writer.append(split(b"%d" % index))
            paths.append(writer.path())
            writer.close()
        return paths

    def assert_all_survive(self, storage: Storage, names: list[str], count: int) -> None:
        assert len(set(names)) == count
        assert {int(storage.open(name).read()) for name in names} == set(range(count))


class TestAvailableName:
    @pytest.mark.parametrize(
        "name", ["a" * 255, "a" * 251 + ".txt", "é" * 125 + ".txt", "x/" + "𝄞" * 60 + ".tar.gz"]
    )
    def test_a_name_that_fits_is_kept_and_its_alternative_fits(
        self, storage: FileSystemStorage, writer: Writer, name: str
    ) -> None:
        assert available_name(storage, name) == name
        link(storage, writer.path(), name)
        other = available_name(storage, name)
        assert other != name
        assert os.path.splitext(other)[1][:4] == os.path.splitext(name)[1][:4]
        os.unlink(storage.path(name))
        link(storage, writer.path(), other)

    @pytest.mark.parametrize("name", ["é" * 300 + ".txt", "a." + "b" * 300, "𝄞" * 255])
    def test_a_name_that_does_not_fit_is_shortened(
        self, storage: FileSystemStorage, writer: Writer, name: str
    ) -> None:
        short = available_name(storage, name)
        assert name.startswith(os.path.splitext(short)[0])
        link(storage, writer.path(), short)

    def test_it_keeps_to_the_columns_length(self, storage: FileSystemStorage) -> None:
        assert len(available_name(storage, "a" * 200 + ".txt", max_length=50)) == 50
        with pytest.raises(SuspiciousFileOperation):
            available_name(storage, "folder/" * 10 + "a.txt", max_length=50)

    @pytest.mark.parametrize("name", EVIL_NAMES)
    def test_no_name_leaves_the_storage(self, storage: FileSystemStorage, name: str) -> None:
        with pytest.raises(SuspiciousFileOperation):
            available_name(storage, name)


class TestOwnName:
    UPLOAD = uuid.UUID("0123456789abcdef0123456789abcdef")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("a.bin", "a_{}.bin"),
            ("in/2026/report.tar.gz", "in/2026/report.tar_{}.gz"),
            ("none", "none_{}"),
            (f"in/{UPLOAD}/a.bin", f"in/{UPLOAD}/a.bin"),
            (f"{UPLOAD.hex}.bin", f"{UPLOAD.hex}.bin"),
        ],
    )
    def test_it_has_the_uploads_id(self, name: str, expected: str) -> None:
        assert own_name(name, self.UPLOAD) == expected.format(self.UPLOAD.hex)

    @pytest.mark.parametrize("name", ["é" * 125 + ".txt", "a" * 255, "/".join(["d" * 100] * 5)])
    def test_it_fits_the_file_system_and_the_column(self, name: str) -> None:
        found = own_name(name, self.UPLOAD)
        assert self.UPLOAD.hex in found
        assert len(found) <= STORED_NAME_MAX
        assert len(os.fsencode(os.path.basename(found))) <= NAME_MAX
        assert own_name(found, self.UPLOAD) == found


class TestSave:
    def test_any_storage_gets_the_bytes_and_the_progress(self, writer: Writer) -> None:
        storage = InMemoryStorage()
        done: list[int] = []
        assert save(storage, "a/b.bin", writer, done.append) == "a/b.bin"
        assert storage.open("a/b.bin").read() == DATA
        assert done[-1] == len(DATA)
        assert done == sorted(set(done))

    def test_a_store_without_paths_is_published_too(self, storage: FileSystemStorage) -> None:
        writer = MemoryStore().create(None)
        writer.append(split(DATA))
        name = save(storage, "c.bin", writer)
        other = save(storage, "c.bin", writer)
        assert name != other
        for each in [name, other]:
            assert Path(storage.path(each)).read_bytes() == DATA

    def test_a_file_of_a_file_system_storage_is_synced_with_its_folders(
        self, storage: FileSystemStorage, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        monkeypatch.setattr(
            os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        )
        save(storage, "a/c.bin", writer)
        media = storage.location
        assert synced == [f"{media}/a/c.bin", f"{media}/a", media, os.path.dirname(media)]

    def test_a_storage_that_seeks_and_reads_backwards_gets_the_right_bytes(
        self, writer: Writer
    ) -> None:
        class Multipart(InMemoryStorage):
            def _save(self, name: str, content: Any) -> str:
                assert content.size == len(DATA)
                content.seek(0, os.SEEK_END)
                assert content.tell() == len(DATA)
                content.seek(-10, os.SEEK_CUR)
                assert content.read() == DATA[-10:]
                content.seek(0)
                return str(super()._save(name, content))

        storage = Multipart()
        assert storage.open(save(storage, "c.bin", writer)).read() == DATA

    def test_a_disk_that_is_full_is_an_upload_error(self, writer: Writer) -> None:
        class Full(InMemoryStorage):
            def _save(self, name: str, content: Any) -> str:
                raise OSError(errno.ENOSPC, "full")

        with pytest.raises(StorageFull):
            save(Full(), "c.bin", writer)


def test_a_part_reader_reads_what_was_received(writer: Writer) -> None:
    reader = PartReader(writer)
    assert reader.readall() == DATA
    assert reader.read(1) == b""
