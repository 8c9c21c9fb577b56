"""The power fails at any moment, with durability "fsync": what clients were told as durable is on the disk.

Staging and media are on that disk, the database is on another one, which loses nothing. What was on the disk is looked
at in a copy of its image, while the process is stopped.
"""

from __future__ import annotations

import asyncio
import copy
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from .crashes import telling
from .crashsite import CrashSite
from .disks import PowerCut, power_disk
from .forks import Forks
from .invariants import UPLOADS, Evidence, Records, broken_at_rest, lost_by_crash
from .stage import MIB, Stage, bound, checking, group, large

SIZE = 384 * MIB
CUTS = 3
"""For each scenario, at random moments; and one at its end."""


@contextmanager
def on_a_disk(root: Path, forks: Forks, template: Path) -> Iterator[tuple[Stage, PowerCut]]:
    with power_disk(root, SIZE) as (folder, cut):
        site = CrashSite(forks, template, root / "site", None, 1, folder)
        try:
            yield Stage(site, random.Random(root.name)), cut
        finally:
            site.kill()


def after_a_cut(site: CrashSite, cut: PowerCut) -> Evidence:
    """Stop the worker, and cut the power: what is left, and what clients have been told by then."""
    worker = site.workers[0]
    worker.stop()
    witness = copy.copy(site.evidence.witness)
    witness.told = copy.deepcopy(witness.told)
    disk = cut()
    root = disk.with_name(f"{disk.name}-root")
    root.mkdir()
    for path in site.root.glob("*.*"):  # the database and the record of signals
        shutil.copy(path, root)
    worker.wake()
    records = Records(root / "db.sqlite3")
    # Nobody believes the length of a file after another boot.
    records.query(f"UPDATE {UPLOADS} SET token = 'before the cut' WHERE token <> ''")
    return replace(
        site.evidence,
        records=records,
        disk=disk,
        signals=root / "signals.jsonl",
        witness=witness,
        untouched={},
    )


@pytest.mark.parametrize("play", [large, group, checking, bound], ids=lambda each: each.__name__)
def test_what_was_told_is_on_the_disk(
    play: Callable[[Stage], Awaitable[None]], forks: Forks, crash_template: Path, tmp_path: Path
) -> None:
    async def lose_power() -> None:
        with on_a_disk(tmp_path, forks, crash_template) as (stage, cut), telling("", stage.site):
            site = stage.site
            await site.start(site.workers[0])
            playing = asyncio.create_task(play(stage))  # type: ignore[arg-type]
            losses = []
            for _ in range(CUTS):
                await asyncio.wait({playing}, timeout=stage.chance.uniform(0, 0.5))
                left = await asyncio.to_thread(after_a_cut, site, cut)
                losses += lost_by_crash(left)
            await playing
            left = await asyncio.to_thread(after_a_cut, site, cut)
            losses += lost_by_crash(left)
            assert not losses, "\n".join(losses)
            assert left.witness.told
            # Another process goes on with what is left.
            site.kill()
            site.move(left)
            await stage.end()
            assert not list(broken_at_rest(left, stage.expected))

    asyncio.run(lose_power())
