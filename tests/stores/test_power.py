"""A power cut: what no sync covered is gone, because only the image of the disk is looked at."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.core.files.storage import FileSystemStorage

from django_async_upload.stores import FileSystemStore
from django_async_upload.stores.publication.link import link, sync_names
from django_async_upload.testing.stores import split

from ..e2e.disks import PowerCut, power_disk

DATA = bytes(range(1, 256)) * 8192  # about 2 MiB, and no zero in it
HALF = len(DATA) // 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, PowerCut]]:
    """A disk, and a function that cuts its power and mounts what was on it."""
    with power_disk(tmp_path, 48 << 20) as (folder, cut):
        yield folder, cut


@pytest.mark.parametrize("size", [len(DATA), None], ids=["reserved", "unknown"])
def test_nothing_below_a_checkpoint_is_lost_and_nothing_unproved_is_kept(
    disk: tuple[Path, PowerCut], size: int | None
) -> None:
    folder, cut = disk
    writer = FileSystemStore(folder / "staging").create(size)
    writer.append(split(DATA[:HALF]))
    writer.sync()
    writer.append(split(DATA[HALF : HALF + 70_000], offset=HALF))
    checkpoint = writer.sync()
    assert checkpoint.offset == HALF + 70_000
    writer.append(split(DATA[checkpoint.offset :], offset=checkpoint.offset))

    store = FileSystemStore(cut() / "staging")
    found = store.open(replace(checkpoint, token="before the cut"), size=size)
    assert found.received == checkpoint.offset
    assert b"".join(found.read()) == DATA[: checkpoint.offset]
    found.append(split(DATA[found.received :], offset=found.received))
    assert Path(found.path()).read_bytes() == DATA


def test_a_rewritten_part_is_durable_before_its_name_is_known(
    disk: tuple[Path, PowerCut],
) -> None:
    folder, cut = disk
    writer = FileSystemStore(folder / "staging").create(len(DATA))
    writer.append(split(DATA[:HALF]))
    checkpoint = writer.sync()
    writer.append(split(DATA[HALF:], offset=HALF))
    writer.rewrite(checkpoint)

    store = FileSystemStore(cut() / "staging")
    renewed = replace(checkpoint, part=writer.part, token="before the cut")
    assert b"".join(store.open(renewed).read()) == DATA[:HALF]


def test_with_os_what_is_there_is_proved_or_begun_again(disk: tuple[Path, PowerCut]) -> None:
    folder, cut = disk
    store = FileSystemStore(folder / "staging", durability="os")
    checkpoints = []
    for _ in range(3):
        writer = store.create(len(DATA))
        writer.append(split(DATA))
        checkpoints.append(writer.sync())
    with open(os.path.join(store.root, checkpoints[0].part), "rb") as file:
        os.fsync(file.fileno())  # as if the kernel had written one of them already

    store = FileSystemStore(cut() / "staging", durability="os")
    received = []
    for checkpoint in checkpoints:
        found = store.open(replace(checkpoint, token="before the cut"), size=len(DATA))
        assert b"".join(found.read()) == DATA[: found.received]
        received.append(found.received)
    assert received == [len(DATA), 0, 0]


def test_a_published_file_and_its_new_folders_are_durable(disk: tuple[Path, PowerCut]) -> None:
    folder, cut = disk
    writer = FileSystemStore(folder / "staging").create(len(DATA))
    writer.append(split(DATA))
    writer.sync()
    storage = FileSystemStorage(folder / "media")
    sync_names(link(storage, writer.path(), "2026/11/file.bin"))

    published = cut() / "media" / "2026" / "11" / "file.bin"
    assert published.read_bytes() == DATA
    assert published.stat().st_mode & 0o777 == 0o644


def test_the_cut_does_cut(disk: tuple[Path, PowerCut]) -> None:
    folder, cut = disk
    Path(folder, "unsynced").write_bytes(DATA)
    assert not Path(cut(), "unsynced").exists()
