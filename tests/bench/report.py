"""The table: ratios first, then what they were made from."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from .contest import Figures
from .rows import Row

_SCALES = {
    "MB/s": 1e-6,
    "ms": 1e3,
    "MiB": 2.0**-20,
    "files/s": 1.0,
    "s/GiB": 2.0**30,
    "KiB/s": 2.0**-10,
}
_PACKAGES = (
    *("django", "channels", "websockets", "crc32c", "uvicorn", "httptools", "h11", "granian"),
    *("tuspyserver", "fastapi"),
)
_HEADINGS = (
    *("ratio", "target", "", "comparison", "server", "durability"),
    *("this", "its processor time", "peer", "its processor time"),
)


def table(rows: Iterable[Row]) -> str:
    """In Markdown, the columns aligned; a figure is a median, with the range in parentheses."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |"
        for line in (lines[0], rule, *lines[1:])
    )


def _cells(row: Row) -> tuple[str, ...]:
    bound = "≤" if row.at_most else "≥"
    target = "" if row.target is None else f"{bound} {row.target:g}"
    where = (row.title, row.server, row.durability)
    if row.broken:
        # The whole message went to standard error.
        return ("-", target, "", *where, row.broken.splitlines()[0][:80], "", "", "")
    return (
        f"{row.ratio:.2f}",
        target,
        {True: "yes", False: "no", None: ""}[row.reached],
        *where,
        *_figures(row.mine, row),
        *_figures(row.peer, row),
    )


def _figures(figures: Figures, row: Row) -> tuple[str, str]:
    return _figure(figures.values, row.unit), _figure(figures.costs, "s/GiB")


def _figure(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    scale = _SCALES[unit]
    low, middle, high = (
        f"{value * scale:,.{0 if value * scale >= 100 else 1 if value * scale >= 10 else 2}f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} {unit}" if low == high else f"{middle} {unit} ({low} to {high})"


def circumstances(directory: Path, commands: Mapping[str, str], command: Sequence[str]) -> str:
    """Where and with what it was measured."""
    versions = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if node := shutil.which("node"):
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
        versions.append(f"node {said.stdout.strip().removeprefix('v')}")
    packages = directory / "npm" / "node_modules" / "@tus" / "server" / "package.json"
    if packages.exists():
        import json

        versions.append(f"@tus/server {json.loads(packages.read_text())['version']}")
    machine = (
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}, {file_system(directory)}"
    )
    lines = [
        f"- command: `{' '.join(command)}`",
        f"- machine: {machine}",
        f"- versions: {', '.join(versions)}",
        *(f"- {name}: `{line}`" for name, line in commands.items()),
    ]
    return "\n".join(lines)


def file_system(directory: Path) -> str:
    """The type of the file system that holds a directory."""
    mounts = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    return next(
        (mounts[str(each)] for each in (directory, *directory.parents) if str(each) in mounts),
        "unknown file system",
    )
