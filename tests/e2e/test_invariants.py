"""The checker of the crash matrix names what is wrong: with files, with rows, with signals, and with the app itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from django_async_upload.exceptions import UploadError

from .crashes import Case, Scenario, crash
from .crashsite import crash_site
from .forks import Forks
from .invariants import EVENTS, UPLOADS, Evidence, Records, broken_at_rest, lost_by_crash
from .servers import ROOT
from .stage import Stage, bound, cancelled, group, large


@dataclass
class Copy:
    """A copy of a site at rest, to be tampered with."""

    evidence: Evidence
    expected: dict[str, set[str]]

    def change(self, sql: str) -> None:
        database = self.evidence.disk / "db.sqlite3"
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            assert connection.execute(sql).rowcount > 0

    def published(self) -> Path:
        """The file of small-3.bin."""
        (row,) = self.evidence.records.query(f"SELECT * FROM {UPLOADS} WHERE name = 'small-3.bin'")
        return self.evidence.path(row)

    def broken(self) -> str:
        return "\n".join(broken_at_rest(self.evidence, self.expected))


@pytest.fixture(scope="module")
def at_rest(
    forks: Forks, crash_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("rest") / "site"
    with crash_site(forks, crash_template, root, "sqlite", 1, ()) as site:
        stage = Stage(site, random.Random(1))

        async def play() -> None:
            await site.start(site.workers[0])
            await asyncio.gather(group(stage), bound(stage), cancelled(stage))
            await stage.end()

        asyncio.run(play())
        yield stage


@pytest.fixture
def site(at_rest: Stage, tmp_path: Path) -> Copy:
    root = tmp_path / "copy"
    evidence = at_rest.site.evidence
    with closing(sqlite3.connect(evidence.disk / "db.sqlite3")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(evidence.disk, root)
    untouched = {}
    for path in evidence.untouched:
        own = root / path.relative_to(evidence.disk)
        untouched[own] = (own.stat().st_ino, own.stat().st_mtime_ns)
    evidence = replace(
        evidence,
        records=Records(root / "db.sqlite3"),
        disk=root,
        signals=root / "signals.jsonl",
        untouched=untouched,
    )
    return Copy(evidence, at_rest.expected)


def test_nothing_is_wrong_with_a_site_at_rest(site: Copy) -> None:
    assert site.broken() == ""
    assert not list(lost_by_crash(site.evidence))


def second_signal(site: Copy) -> None:
    signals = [json.loads(line) for line in site.evidence.signals.read_text().splitlines()]
    completed = next(each for each in signals if each["signal"] == "upload_completed")
    with site.evidence.signals.open("a") as log:
        log.write(json.dumps({**completed, "event": "another"}) + "\n")


def other_bytes(site: Copy) -> None:
    path = site.published()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def silence(site: Copy) -> None:
    site.evidence.signals.unlink()


TAMPERED: list[tuple[Callable[[Copy], object], str]] = [
    (lambda site: site.published().unlink(), "there is no file"),
    (other_bytes, "other bytes than the client's"),
    (lambda site: (site.published().parent / "twice").write_bytes(b""), "no completed upload"),
    (
        lambda site: (site.evidence.staging / ("0" * 32)).write_bytes(b""),
        "staging folder still has",
    ),
    (lambda site: (site.evidence.staging / f"{'0' * 32}.link").touch(), "staging folder still has"),
    (lambda site: next(iter(site.evidence.untouched)).unlink(), "was touched"),
    (lambda site: os.utime(next(iter(site.evidence.untouched))), "was touched"),
    (second_signal, "completed 2 times"),
    (silence, "the host heard None"),
    (lambda site: site.change(f"DELETE FROM {EVENTS}"), "completed with 0 events"),
    (lambda site: site.change(f"UPDATE {EVENTS} SET delivered_at = NULL"), "was not delivered"),
    (
        lambda site: site.change(f"UPDATE {UPLOADS} SET state = 'failed' WHERE name = 'bound.bin'"),
        "failed, and should be bound",
    ),
    (
        lambda site: site.change(
            f"UPDATE {UPLOADS} SET stored_as = 'x' WHERE name = 'small-2.bin'"
        ),
        "was told another name",
    ),
    (
        lambda site: site.change(f"DELETE FROM {UPLOADS} WHERE name = 'cancelled.bin'"),
        "there is no row",
    ),
    (
        lambda site: site.change(
            f"UPDATE {UPLOADS} SET name = 'bound.bin' WHERE name LIKE 'small%'"
        ),
        "more than one upload",
    ),
    (
        lambda site: site.change(f"UPDATE {UPLOADS} SET part = 'x' WHERE state = 'completed'"),
        "still names a part",
    ),
    (
        lambda site: site.change("DELETE FROM site_under_test_document"),
        "the host has no document",
    ),
]


@pytest.mark.parametrize("number", range(len(TAMPERED)))
def test_the_checker_sees(number: int, site: Copy) -> None:
    tamper, named = TAMPERED[number]
    tamper(site)
    assert named in site.broken()


def test_the_checker_sees_that_acknowledged_bytes_are_gone(site: Copy) -> None:
    site.change(f"UPDATE {UPLOADS} SET state = 'uploading' WHERE name = 'cancelled.bin'")
    (told,) = (told for _, told in site.evidence.told() if told.name == "cancelled.bin")
    told.durable = max(told.durable, 1)  # the cancellation may have come before any checkpoint
    assert "bytes are durable, and the part has 0 of them" in "\n".join(
        lost_by_crash(site.evidence)
    )


@dataclass(frozen=True)
class Fault:
    """A fault of the app that only a crash shows."""

    file: str
    old: str
    new: str
    case: Case


FAULTS = {
    "a part is deleted before the completion is committed": Fault(
        "engine/publish.py",
        "        events = await self._call(rows.complete, sessions, items)\n",
        "        await self._store.run(self._clean_up, items)\n"
        "        events = await self._call(rows.complete, sessions, items)\n",
        Case(Scenario(large, ()), "rows.complete.before_commit", "sqlite", 1),
    ),
    "a delivery is recorded before the receivers were called": Fault(
        "engine/outbox.py",
        '            failpoint("deliver.before_signal")\n',
        "            await self._database.call(note, Outcome(event.pk, event.attempts))\n"
        '            failpoint("deliver.before_signal")\n',
        Case(Scenario(group, ()), "deliver.before_signal", "sqlite", 1),
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_the_matrix_sees_that(what: str, crash_template: Path, tmp_path: Path) -> None:
    fault = FAULTS[what]
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source)
    path = source / "django_async_upload" / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1
    path.write_text(text.replace(fault.old, fault.new))
    with Forks(source) as forks, pytest.raises((AssertionError, UploadError)) as failure:
        asyncio.run(crash(forks, crash_template, tmp_path / "site", fault.case))
    print(failure.value)
    assert "not reached" not in str(failure.value)
