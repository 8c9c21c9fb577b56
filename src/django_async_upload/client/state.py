"""The state file: unfinished uploads, so that a later program can resume them.

It is one JSON object, replaced as a whole by a rename under a lock, so that several programs can
share it. It contains no ticket and no cookie.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from .source import Identity, Path

logger = logging.getLogger("django_async_upload.client")

_VERSION: Final = 1


def default_state_path() -> str:
    """``async-upload/uploads.json`` in ``XDG_STATE_HOME`` (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.expanduser("~/.local/state")
    return os.path.join(home, "async-upload", "uploads.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """An unfinished upload. ``key`` is that of CREATE."""

    key: str
    url: str
    path: str
    identity: Identity
    name: str
    content_type: str = ""
    digest: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    upload: str | None = None
    """The upload's id; None until the server has answered."""

    def to_json(self) -> dict[str, Any]:
        # Not asdict(), which copies the metadata, since this runs for each small file.
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {**values, "identity": dataclasses.asdict(self.identity)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Entry:
        return cls(**{**values, "identity": Identity(**values["identity"])})


class StateFile:
    """Unfinished uploads by key. Changes made while the file is written are written together."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = os.path.abspath(path) if path is not None else default_state_path()
        self._entries: dict[str, Entry] | None = None
        self._changes: dict[str, Entry | None] = {}
        self._made = self._written = 0
        """The number of changes made, and of those that the file contains."""
        self._lock = asyncio.Lock()
        self._flushing: asyncio.Task[None] | None = None

    def read(self) -> dict[str, Entry]:
        """Read all entries by key from the file; blocks. Raises :class:`OSError`, and
        :class:`ValueError` for a file that is not a state file."""
        try:
            with open(self.path, encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            return {}
        try:
            content = json.loads(text)
            if content["version"] != _VERSION:
                raise KeyError(content["version"])
            entries = [Entry.from_json(values) for values in content["uploads"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not a state file of this version") from error
        return {entry.key: entry for entry in entries}

    async def load(self) -> None:
        """Read the file, once; afterwards :meth:`find` includes the entries of earlier programs."""
        if self._entries is None:
            self._entries = await asyncio.to_thread(self.read)

    def entries(self) -> list[Entry]:
        return list((self._entries or {}).values())

    def find(self, url: str, path: str) -> list[Entry]:
        """The entries of a file at an endpoint."""
        return [each for each in self.entries() if each.url == url and each.path == path]

    async def save(self, entry: Entry) -> None:
        """Add or change an entry, and wait until it is on the disk."""
        self._change(entry.key, entry)
        await self.flush()

    def change(self, entry: Entry) -> None:
        """Change an entry; the file is written later."""
        self._change(entry.key, entry)
        self._flush_soon()

    def remove(self, key: str) -> None:
        """Remove an entry; the file is written later."""
        self._change(key, None)
        self._flush_soon()

    def _change(self, key: str, entry: Entry | None) -> None:
        entries = self._entries = self._entries if self._entries is not None else {}
        _apply({key: entry}, entries)
        self._changes[key] = entry
        self._made += 1

    def _flush_soon(self) -> None:
        if self._flushing is None:
            self._flushing = asyncio.create_task(self.flush())
            self._flushing.add_done_callback(self._flushed)

    def _flushed(self, flushing: asyncio.Task[None]) -> None:
        self._flushing = None
        if not flushing.cancelled() and (error := flushing.exception()) is not None:
            logger.warning("The state file %s could not be written: %s", self.path, error)
        elif self._changes and not flushing.cancelled():
            self._flush_soon()  # changes made during the write

    async def flush(self) -> None:
        """Wait until the file contains every change so far."""
        wanted = self._made
        async with self._lock:
            if self._written >= wanted:
                return
            made, changes, self._changes = self._made, self._changes, {}
            try:
                await asyncio.to_thread(self._write, changes)
            except BaseException:
                self._changes = {**changes, **self._changes}
                raise
            self._written = made

    def _write(self, changes: dict[str, Entry | None]) -> None:
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with self._locked():
            entries = self.read()
            _apply(changes, entries)
            content = {
                "version": _VERSION,
                "uploads": [entry.to_json() for entry in entries.values()],
            }
            # mkstemp makes files of mode 0600.
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".uploads-")
            try:
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(content, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A separate lock file, since each write replaces the state file.
        with open(os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR, 0o600), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _apply(changes: Mapping[str, Entry | None], entries: dict[str, Entry]) -> None:
    """Put changed entries among the others, by key; None removes one."""
    for key, entry in changes.items():
        if entry is None:
            entries.pop(key, None)
        else:
            entries[key] = entry
