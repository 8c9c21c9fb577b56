"""Versions of ASGI servers that are too old for uploads."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from django.utils.version import get_version_tuple


class OldServer(NamedTuple):
    """An installed server that is older than its oldest good version."""

    name: str
    version: str
    oldest: str
    reason: str


OLDEST: Final = {
    "uvicorn": (
        "0.52.1",
        "it does not wait for a client that reads slowly: what is sent to it fills the memory",
    ),
    "daphne": ("4.2.2", "its limit of messages does not hold for frames (CVE-2026-44545)"),
}
"""Distribution -> its oldest good version, and what is wrong with those before it."""


def old_servers() -> Iterator[OldServer]:
    """The servers installed beside this app that are too old, whether or not they serve it."""
    for name, (oldest, reason) in OLDEST.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if get_version_tuple(installed) < get_version_tuple(oldest):
            yield OldServer(name, installed, oldest, reason)
