"""The checker: reads the database, the folders and what clients were told, and names every broken promise.

It shares nothing with the app: it reads the tables by SQL and the files by their paths.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from crc32c import crc32c

from .witness import Told, Witness

UPLOADS = "async_upload_uploadsession"
EVENTS = "async_upload_completionevent"
TOMBSTONES = "async_upload_tombstone"
DOCUMENTS = "site_under_test_document"

ACTIVE = {"created", "uploading", "interrupted", "verifying", "finalizing"}
PUBLISHED = {"completed", "bound"}
OVER = {"failed", "cancelled", "expired"}

LOCATIONS = {"async_upload": "staging-uploads", "copied": "copied", "default": "media"}
"""Alias of a storage -> its folder."""


class Records:
    """The site's database, without Django: SQLite's file, or what psycopg connects to."""

    def __init__(self, path: Path, postgres: Mapping[str, str] | None = None) -> None:
        self._path, self._postgres = path, postgres

    def query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Run a statement with ``%s`` for each value; returns the rows, ids as text with hyphens."""
        if self._postgres is None:
            with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as database:
                values = tuple(map(_for_sqlite, values))
                cursor = database.execute(sql.replace("%s", "?"), values)
                names = [each[0] for each in cursor.description or ()]
                return [_row(zip(names, row, strict=True)) for row in cursor.fetchall()]
        import psycopg

        where = {name.lower(): value for name, value in self._postgres.items()}
        where["dbname"] = where.pop("name")
        with psycopg.connect(**where, autocommit=True) as connection:
            for left in (3, 2, 1, 0):  # the app may have locked the same rows in another order
                try:
                    answer = connection.execute(sql, values)
                    break
                except psycopg.errors.DeadlockDetected:
                    if not left:
                        raise
            names = [each.name for each in answer.description or ()]
            rows = answer.fetchall() if names else []
            return [_row(zip(names, row, strict=True)) for row in rows]

    def uploads(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.query(f"SELECT * FROM {UPLOADS}")}

    def let_time_pass(self) -> None:
        """What a process that died has claimed, touched or held, nobody holds any longer."""
        past = datetime.now(UTC) - timedelta(minutes=10)
        self.query(f"UPDATE {EVENTS} SET due_at = %s WHERE delivered_at IS NULL", past)
        self.query(
            f"UPDATE {UPLOADS} SET updated_at = %s WHERE state IN ('verifying', 'finalizing')", past
        )
        self.query(f"UPDATE {TOMBSTONES} SET created_at = %s", past)
        self.query(f"UPDATE {UPLOADS} SET response_due = %s WHERE response_due IS NOT NULL", past)
        self.query(
            f"UPDATE {UPLOADS} SET expires_at = %s "
            "WHERE state IN ('completed', 'bound', 'cancelled') AND expires_at IS NOT NULL",
            past,
        )

    def age(self, name: str) -> None:
        """The upload of that name has ended long ago, and nobody has counted its owner's uploads since."""
        past = datetime.now(UTC) - timedelta(days=30)
        self.query(f"UPDATE {UPLOADS} SET updated_at = %s WHERE name = %s", past, name)
        self.query("UPDATE async_upload_usage SET counted_at = %s", past)

    def give_up(self) -> None:
        """No completion was delivered, and each was given up."""
        self.query(f"UPDATE {EVENTS} SET delivered_at = NULL, given_up_at = %s", datetime.now(UTC))

    def expire(self, name: str) -> None:
        """No client has come back for the upload of that name for a day."""
        past = datetime.now(UTC) - timedelta(minutes=10)
        self.query(f"UPDATE {UPLOADS} SET expires_at = %s WHERE name = %s", past, name)


def _for_sqlite(value: object) -> object:
    return value.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, datetime) else value


def _row(columns: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(columns)
    for name in ("id", "session_id"):
        if isinstance(row.get(name), str) and len(row[name]) == 32:
            row[name] = str(UUID(row[name]))
        elif isinstance(row.get(name), UUID):
            row[name] = str(row[name])
    return row


@dataclass
class Evidence:
    """All there is to look at. ``disk`` has the folders, ``signals`` is the host's record of them."""

    records: Records
    disk: Path
    signals: Path
    witness: Witness
    sources: dict[str, bytes] = field(default_factory=dict)
    """Name -> the file that a client has."""
    untouched: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Files of the host that the app has no business with -> inode and time of change."""

    @property
    def staging(self) -> Path:
        return self.disk / "staging"

    def told(self) -> Iterator[tuple[str, Told]]:
        yield from self.witness.told.items()

    def path(self, row: Mapping[str, Any]) -> Path:
        """Where the published file of an upload is."""
        return self.disk / LOCATIONS[row["storage"]] / row["stored_as"]


def lost_by_crash(evidence: Evidence) -> Iterator[str]:
    """Look while no process runs: what clients were told before must be there."""
    yield from evidence.witness.contradictions
    rows = evidence.records.uploads()
    for upload, told in evidence.told():
        row = rows.get(upload)
        if row is None:
            yield f"{told.name}: the client has its id, and there is no row"
        elif row["state"] in ACTIVE:
            if told.completed:
                yield f"{told.name}: the client was told that it completed, and it is {row['state']}"
            yield from _durable_bytes(evidence, row, told)
        elif row["state"] in PUBLISHED:
            yield from _file_of(evidence, row)
    yield from _host_files(evidence)


def broken_at_rest(evidence: Evidence, expected: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Look when all clients have ended, all events are delivered, and the purge has run.

    ``expected`` are the states in which the upload of each name may be.
    """
    yield from evidence.witness.contradictions
    rows = evidence.records.uploads()
    yield from _one_row_each(rows, expected)
    for upload, told in evidence.told():
        yield from _kept_word(told, rows.get(upload))
    for row in rows.values():
        if row["state"] in PUBLISHED:
            yield from _file_of(evidence, row)
        if row["state"] not in ACTIVE and row["part"]:
            yield f"{row['name']}: {row['state']}, and its row still names a part"
        has_name = row["stored_as"] and row["expires_at"] is not None
        if row["state"] in OVER | {"bound"} and has_name:
            yield f"{row['name']}: {row['state']}, and its published name still waits to be deleted"
    yield from _events(evidence, rows)
    yield from _left_over(evidence, rows)
    yield from _host_files(evidence)


def _durable_bytes(evidence: Evidence, row: Mapping[str, Any], told: Told) -> Iterator[str]:
    if not told.durable:
        return
    path = evidence.staging / row["part"]
    there = path.read_bytes() if row["part"] and path.is_file() else b""
    source = evidence.sources[told.name]
    if there[: told.durable] != source[: told.durable]:
        same = next(
            (n for n, pair in enumerate(zip(there, source, strict=False)) if len(set(pair)) > 1),
            len(there),
        )
        yield f"{told.name}: {told.durable} bytes are durable, and the part has {same} of them"
    offset = row["durable"]
    if crc32c(source[:offset]) != row["crc"]:
        yield f"{told.name}: the checkpoint at {offset} has another CRC than the file"


def _file_of(evidence: Evidence, row: Mapping[str, Any]) -> Iterator[str]:
    """The file of a published upload has the right bytes, and is where the row says, or at the host's."""
    name = row["name"]
    source = evidence.sources[name]
    if (row["size"], row["crc"]) != (len(source), crc32c(source)):
        yield f"{name}: the row of the published file has another size or CRC than the file"
    path = evidence.path(row)
    if row["state"] == "bound":
        document = evidence.records.query(
            f"SELECT attachment FROM {DOCUMENTS} WHERE name = %s", name
        )
        if not document:
            yield f"{name}: bound, and the host has no document of it"
            return
        path = evidence.disk / "media" / document[0]["attachment"]
    if not path.is_file():
        yield f"{name}: {row['state']}, and there is no file {path.name}"
    elif path.read_bytes() != source:
        yield f"{name}: {row['state']}, and the file has other bytes than the client's"


def _one_row_each(
    rows: Mapping[str, dict[str, Any]], expected: Mapping[str, Iterable[str]]
) -> Iterator[str]:
    names = [row["name"] for row in rows.values()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: there is more than one upload of it"
    states = {row["name"]: row["state"] for row in rows.values()}
    for name in states.keys() | expected.keys():
        state, allowed = states.get(name, "nowhere"), set(expected.get(name, ()))
        if state not in allowed:
            yield f"{name}: {state}, and should be {' or '.join(sorted(allowed)) or 'nowhere'}"


def _kept_word(told: Told, row: Mapping[str, Any] | None) -> Iterator[str]:
    if row is None:
        yield f"{told.name}: the client has its id, and there is no row"
        return
    if told.is_cancelled and row["state"] not in OVER:
        yield f"{told.name}: the client was told that it was cancelled, and it is {row['state']}"
    if told.completed and not told.is_cancelled:
        if row["state"] not in PUBLISHED:
            yield f"{told.name}: the client was told that it completed, and it is {row['state']}"
        elif told.completed.stored_as != row["stored_as"]:
            yield f"{told.name}: the client was told another name than the row has"


def _events(evidence: Evidence, rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Completed exactly once, and the host heard of it at least once, always by the same id."""
    events: dict[str, list[dict[str, Any]]] = {}
    for event in evidence.records.query(f"SELECT * FROM {EVENTS}"):
        events.setdefault(event["session_id"], []).append(event)
    heard: dict[str, set[str]] = {}
    for line in evidence.signals.read_text().splitlines() if evidence.signals.exists() else ():
        signal = json.loads(line)
        if signal["signal"] == "upload_completed":
            heard.setdefault(signal["upload"], set()).add(signal["event"])
    for upload, row in rows.items():
        mine = events.get(upload, [])
        ids = {event["id"] for event in mine}
        if row["state"] in PUBLISHED:
            if len(mine) != 1:
                yield f"{row['name']}: completed with {len(mine)} events"
            if any(event["delivered_at"] is None for event in mine):
                yield f"{row['name']}: its completion was not delivered"
            if heard.get(upload, set()) != ids:
                yield f"{row['name']}: its events are {ids}, and the host heard {heard.get(upload)}"
        elif mine:
            yield f"{row['name']}: {row['state']}, and its completion is still to be delivered"
        elif upload in heard and not row["completed_at"]:
            yield f"{row['name']}: {row['state']}, and the host heard that it completed"
    for upload, ids in heard.items():
        if len(ids) > 1:
            yield f"upload {upload}: completed {len(ids)} times"


def _left_over(evidence: Evidence, rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """No file without an upload: neither parts, nor links, nor published files."""
    for tombstone in evidence.records.query(f"SELECT * FROM {TOMBSTONES}"):
        yield f"a tombstone still has {tombstone['stored_as']}"
    parts = {row["part"] for row in rows.values() if row["part"]}
    for path in _files(evidence.staging):
        if path.name not in parts:
            yield f"the staging folder still has {path.name}"
    published = {evidence.path(row) for row in rows.values() if row["state"] == "completed"}
    for folder in ("staging-uploads", "copied"):
        for path in _files(evidence.disk / folder):
            if path not in published:
                yield f"{folder} has {path.name}, which no completed upload is stored as"


def _host_files(evidence: Evidence) -> Iterator[str]:
    for path, facts in evidence.untouched.items():
        found = path.stat() if path.is_file() else None
        if found is None or (found.st_ino, found.st_mtime_ns) != facts:
            yield f"the host's own file {path.name} was touched"


def _files(folder: Path) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file()]
