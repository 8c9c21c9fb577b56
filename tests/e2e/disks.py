"""File systems that can be filled and made read-only, and disks whose power can be cut. Only root can mount them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest


class SmallDisk:
    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, mode: str) -> None:
        """``ro`` or ``rw``. Raises CalledProcessError while a file is open for writing (ro)."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True, timeout=10)


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """A tmpfs of ``size`` bytes at ``path``; skips the test where it cannot be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip(f"needs root, to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)


PowerCut = Callable[[], Path]
"""Cuts the power of a disk, and mounts what was on it: returns its folder. It can be called again."""


@contextlib.contextmanager
def power_disk(root: Path, size: int) -> Iterator[tuple[Path, PowerCut]]:
    """An ext4 of ``size`` bytes whose journal commits only what is synced; skips where it cannot be mounted."""
    image, numbers = root / "image", count(1)
    with image.open("wb") as file:
        file.truncate(size)
    with contextlib.ExitStack() as stack:
        try:
            run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
            folder = stack.enter_context(mounted(image, root / "disk"))
        except OSError as error:
            pytest.skip(f"needs root, ext4 and loop devices, for a disk of its own: {error}")

        def cut() -> Path:
            number = next(numbers)
            copy = root / f"copy-{number}"
            run("cp", "--sparse=always", image, copy)
            return stack.enter_context(mounted(copy, root / f"after-{number}"))

        run("sync", "-f", folder)
        yield folder, cut


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    # The journal commits nothing by itself within the time of a test.
    run("mount", "-o", "loop,commit=300", image, folder)
    try:
        yield folder
    finally:
        run("umount", "--lazy", folder)


def run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
