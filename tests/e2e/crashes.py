"""Uploads and their ends, for servers that die meanwhile: the scenarios of the crash matrix, and random kills.

python -m tests.e2e.crashes --matrix           every failpoint in every scenario and configuration
python -m tests.e2e.crashes --kills 1000       that many SIGKILLs at random moments
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from .crashsite import CrashSite, crash_site
from .forks import Forks
from .stage import (
    Stage,
    bound,
    cancelled,
    cancelled_elsewhere,
    checking,
    discarded,
    discarded_copy,
    drained,
    drained_everywhere,
    ended_by_host,
    group,
    large,
    left,
    left_to_copy,
    make_template,
    posted,
    purged,
    resumed,
    sent_again,
    slow,
    stolen,
    stopped,
    streamed,
    unwritable,
    watched,
    yielded,
)

PUBLICATION = (
    "publish.before_sync",
    "publish.after_sync",
    "publish.before_commit",
    "publish.after_commit",
    "publish.after_files",
    "rows.complete.before_commit",
    "rows.complete.after_commit",
    "part.before_unlink",
    "part.after_unlink",
    "complete.after_unlink",
)
LINK = (
    "link.before_sync_of_file",
    "link.before_link",
    "link.after_link",
    "link.before_sync",
    "link.after_sync",
)
DELIVERY = (
    "deliver.before_signal",
    "deliver.after_signal",
    "outbox.note.before_commit",
    "outbox.note.after_commit",
)
WITHDRAWAL = ("aside.before_rename", "aside.after_rename", "aside.before_sync", "aside.after_sync")


@dataclass(frozen=True)
class Scenario:
    play: Callable[[Stage], Awaitable[None]]
    points: tuple[str, ...]
    """The failpoints that it reaches, with the passage where that is not the first."""
    before: tuple[str, ...] = ()
    """Failpoints of earlier starts of workers; the one that counts comes after them."""
    in_command: bool = False
    """Whether a command passes the failpoint, and no worker."""
    workers: int | None = None
    """How many it needs, where that matters."""
    database: str | None = None
    """Which one it needs, where that matters: without a channel layer PostgreSQL carries hints."""

    @property
    def name(self) -> str:
        return self.play.__name__


def commits(*functions: str) -> tuple[str, ...]:
    """Before and after the commit of what these functions of the database's thread have changed."""
    return tuple(f"{each}.{when}_commit" for each in functions for when in ("before", "after"))


SCENARIOS = [
    Scenario(
        large,
        (
            "accept.before_send",
            "accept.after_send",
            *commits("slots.take", "rows.create"),
            "staging.before_sync",
            "staging.after_sync",
            "part.after_create",
            "checkpoint.before_commit",
            "checkpoint.after_commit",
            *commits("rows.change"),
            "created.before_send",
            "started.before_signal",
            "started.after_signal",
            "frame.before_send:3",
            "frame.after_send:3",
            "ack.before_send",
            "ack.before_send:3",
            "part.before_sync",
            "part.after_sync",
            "part.after_sync_of_names",
            "checkpoint.before_commit:2",
            "checkpoint.after_commit:2",
            "checkpoint.after_commit:3",
            *PUBLICATION,
            *LINK,
            *DELIVERY,
            "answer.before_send",
            *commits("slots.free"),
        ),
    ),
    Scenario(
        group,
        (
            "small.after_write",
            "part.after_create:3",
            "parts.before_sync_of_names",
            "parts.after_sync_of_names",
            *commits("rows.create"),
            *PUBLICATION,
            *LINK,
            "link.after_link:4",
            "complete.after_unlink:4",
            *DELIVERY,
            "answer.before_send",
            "answer.before_send:5",
        ),
    ),
    Scenario(
        checking,
        (
            "verify.before_commit",
            "verify.after_commit",
            "copy.before_save",
            "copy.after_save",
            "copy.after_sync_of_file",
            "copy.after_sync",
            *commits("answers.ask", "answers.save"),
            *PUBLICATION,
            *DELIVERY,
            "answer.before_send",
        ),
    ),
    Scenario(streamed, ("part.after_create", "checkpoint.after_commit", *PUBLICATION)),
    Scenario(
        resumed,
        (
            *commits("rows.take_over"),
            "attach.after_open",
            "attached.before_send",
            "ready.before_send",
            "resumed.before_signal",
            "resumed.after_signal",
        ),
    ),
    Scenario(
        stolen,
        (
            "part_copy.before_sync",
            "part_copy.after_sync",
            "part_copy.after_sync_of_names",
            "checkpoint.after_unlink",
        ),
        before=("",),
        workers=2,
    ),
    Scenario(
        cancelled,
        (
            *commits("rows.end"),
            "part.before_unlink",
            "part.after_unlink",
            "end.after_unlink",
            "end.after_signal",
            "answer.before_send",
        ),
    ),
    Scenario(
        ended_by_host,
        (
            "host_end.before_commit",
            "host_end.after_commit",
            "part.before_unlink",
            "host_end.after_unlink",
            "host_end.before_signal",
            "host_end.after_signal",
        ),
    ),
    Scenario(
        discarded,
        (
            *commits("rows.discard"),
            *WITHDRAWAL,
            *commits("rows.mark_withdrawn"),
            "discard.before_unlink",
            "discard.after_unlink",
            "discard.before_signal",
            "discard.after_signal",
        ),
    ),
    Scenario(
        discarded_copy,
        ("aside.before_delete", "aside.after_delete", *commits("rows.mark_withdrawn")),
    ),
    Scenario(
        bound,
        (
            "bind.before_link",
            "bind.after_link",
            "bind.before_sync",
            "bind.after_sync",
            "bind.after_sync_of_names",
            "bind.before_update",
            "bind.after_update",
            "bind.after_commit",
            "bind.before_unlink",
            "bind.after_unlink",
            *WITHDRAWAL,
            "withdraw.before_commit",
            "withdraw.after_commit",
            "withdraw.after_unlink",
        ),
    ),
    Scenario(
        posted,
        (
            "hold.before_commit",
            "hold.after_commit",
            "release.before_commit",
            "release.after_commit",
            "renew_hold.before_commit",
            "renew_hold.after_commit",
            "bind.after_link",
            "bind.after_update",
            "bind.after_commit",
            "withdraw.after_commit",
        ),
    ),
    Scenario(
        purged,
        (
            "purge.after_unlink",
            "part.before_unlink",
            "part.before_unlink:2",
            "expire.before_commit",
            "expire.after_commit",
            "expire.after_unlink",
            "expire.after_signal",
            "purge.before_commit",
            "delete.before_commit",
            "delete.after_commit",
            *WITHDRAWAL,
            "withdraw.before_commit",
            "withdraw.after_commit",
            "withdraw.after_unlink",
            "purge.after_commit",
            "purge.before_unlink_of_link",
            "purge.after_unlink_of_link",
            "delete_ended.before_commit",
            "delete_ended.after_commit",
            "delete_usage.before_commit",
            "delete_usage.after_commit",
        ),
        in_command=True,
    ),
    Scenario(
        left,
        (
            *commits("rows.adopt"),
            "part_name.before_link",
            "part_name.after_link",
            "part_name.before_sync",
            "part_name.after_sync",
            "resume.after_open",
            "rows.complete.after_commit",
        ),
        before=("publish.after_files",),
    ),
    Scenario(
        left,
        ("link.before_second_sync", "link.after_second_sync"),
        before=("link.after_link",),
    ),
    Scenario(
        left, ("part.before_unlink",), before=("publish.after_files", "rows.adopt.after_commit")
    ),
    # A second worker would look, and die, before there is anything to find.
    Scenario(left, commits("rows.find_abandoned"), before=("publish.after_files",), workers=1),
    Scenario(left, commits("outbox.claim_due"), before=("deliver.before_signal",), workers=1),
    Scenario(
        left_to_copy,
        (
            "resume.after_open",
            "copy.before_delete",
            "copy.after_delete",
            "copy.after_save",
            "rows.complete.before_commit",
        ),
        before=("publish.after_files",),
    ),
    Scenario(unwritable, commits("rows.delete_new", "rows.note_error")),
    Scenario(slow, commits("outbox.renew", "rows.touch", "slots.renew")),
    Scenario(stopped, commits("outbox.release_claims")),
    Scenario(
        drained,
        (
            "worker.before_send",
            "worker.after_send",
            "drain.before_send",
            "drain.after_send",
            "drain.after_save",
            "drain.after_close",
            "close.before_send",
            "close.after_send",
        ),
    ),
    Scenario(
        drained_everywhere,
        ("worker.answer.before_hint", "worker.answer.after_hint"),
        database="postgresql",
    ),
    Scenario(
        yielded,
        ("yield.before_hint", "yield.after_hint"),
        before=("",),
        workers=2,
        database="postgresql",
    ),
    Scenario(
        yielded,
        ("yielded.before_hint", "yielded.after_hint"),
        workers=2,
        database="postgresql",
    ),
    Scenario(
        cancelled_elsewhere,
        ("ended.before_hint", "ended.after_hint"),
        before=("",),
        workers=2,
        database="postgresql",
    ),
    Scenario(watched, ("watched.before_hint", "progress.before_hint")),
    Scenario(watched, ("watched.after_hint", "progress.after_hint"), database="postgresql"),
    Scenario(
        sent_again,
        (*commits("outbox.revive", "outbox.claim_again"), "outbox.note.after_commit:2"),
        in_command=True,
    ),
]
CONFIGURATIONS = [
    (database, workers) for database in ("sqlite", "postgresql") for workers in (1, 2)
]


@dataclass(frozen=True)
class Case:
    """One crash: a failpoint of a scenario, on a database, with one worker or two."""

    scenario: Scenario
    point: str
    database: str
    workers: int

    def __str__(self) -> str:
        return f"{self.scenario.name}-{self.point}-{self.database}-{self.workers}"


def matrix() -> list[Case]:
    """Every failpoint in every scenario that reaches it, in every configuration."""
    return [
        Case(scenario, point, database, workers)
        for scenario in SCENARIOS
        for point in scenario.points
        for database, workers in CONFIGURATIONS
        if scenario.workers in (None, workers) and scenario.database in (None, database)
    ]


def each_failpoint_once() -> list[Case]:
    """Each failpoint in the first scenario that reaches it, in one configuration: these take turns."""
    chosen: dict[str, list[Case]] = {}
    for case in matrix():
        cases = chosen.setdefault(case.point.partition(":")[0], [])
        if not cases or (cases[0].scenario is case.scenario and cases[0].point == case.point):
            cases.append(case)
    return [cases[turn % len(cases)] for turn, cases in enumerate(chosen.values())]


async def crash(forks: Forks, template: Path, root: Path, case: Case) -> None:
    """Play a scenario through one crash. Raises AssertionError with every broken promise."""
    scenario = case.scenario
    starts = [*scenario.before, "" if scenario.in_command else case.point]
    with crash_site(forks, template, root, case.database, case.workers, starts) as site:
        stage = Stage(site, random.Random(str(case)))
        stage.point = case.point if scenario.in_command else ""
        with telling(str(case), site):
            for worker in site.workers:
                await site.start(worker)
            await scenario.play(stage)
            await site.die(len(scenario.before) + 1 - scenario.before.count(""))
            await stage.end()


async def kill_at_random(forks: Forks, template: Path, root: Path, seed: str) -> int:
    """Play scenarios at once while workers are killed at random moments; returns how often.

    Raises AssertionError with every broken promise.
    """
    chance = random.Random(seed)
    database, workers = chance.choice(CONFIGURATIONS)
    with crash_site(forks, template, root, database, workers, ()) as site:
        stage = Stage(site, chance)
        with telling(f"seed {seed}, {database}, {workers} workers", site):
            for worker in site.workers:
                await site.start(worker)
            numbers = count()

            async def play() -> None:
                while site.crashes < MOST_KILLS:
                    stage.prefix = f"{next(numbers)}-"
                    await chance.choice(AT_RANDOM)(stage)

            together = asyncio.gather(*(play() for _ in range(PLAYERS)))
            while not together.done():
                await asyncio.wait({together}, timeout=chance.uniform(0, 0.8))
                worker = chance.choice(site.workers)
                if worker.is_running and site.crashes < MOST_KILLS:
                    worker.kill()
                    await asyncio.sleep(chance.choice([0, 0, 0.1]))
                    await site.revive(worker)
            await together
            await stage.end()
        return site.crashes


AT_RANDOM = (large, group, checking, streamed, resumed, cancelled, ended_by_host, discarded, bound)
PLAYERS = 5
MOST_KILLS = 20
"""At one site: then its clients are left in peace, and what they have is looked at."""


@contextlib.contextmanager
def telling(what: str, site: CrashSite) -> Iterator[None]:
    """Add to an exception what it was about, and the end of the server's log."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{what}; the server's log:\n{site.log.read_text()[-4000:]}")
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.e2e.crashes")
    parser.add_argument("--matrix", action="store_true", help="the whole matrix")
    parser.add_argument("--only", default="", help="cases of the matrix whose name has this text")
    parser.add_argument("--kills", type=int, default=0, metavar="COUNT", help="random kills")
    parser.add_argument("--seed", default=str(random.randrange(10**9)), help="of the random kills")
    parser.add_argument("--at-once", type=int, default=4, metavar="SITES", help="%(default)s")
    wanted = parser.parse_args()
    sys.exit(asyncio.run(run(wanted)))


async def run(wanted: argparse.Namespace) -> int:
    """Returns the number of failures."""
    done, failed, kills = 0, 0, 0
    turns = asyncio.Semaphore(wanted.at_once)

    async def one(name: str, work: Callable[[Path], Awaitable[int | None]]) -> None:
        nonlocal done, failed, kills
        root = Path(tempfile.mkdtemp(prefix="crash-"))
        try:
            killed = await work(root / "site") or 0
            kills += killed  # not before the await: others add meanwhile
        except Exception as error:
            failed += 1
            print(f"--- {name}", *traceback.format_exception(error), sep="\n", flush=True)
        else:
            done += 1
        finally:
            shutil.rmtree(root)
            turns.release()

    with (
        tempfile.TemporaryDirectory() as folder,
        make_template(Path(folder)) as template,
        Forks() as forks,
    ):
        async with asyncio.TaskGroup() as group:
            for case in matrix() if wanted.matrix else ():
                if wanted.only in str(case):
                    await turns.acquire()
                    work = partial(crash, forks, template, case=case)
                    group.create_task(one(str(case), work))
            number = 0
            while kills < wanted.kills:
                await turns.acquire()
                if kills < wanted.kills:
                    seed = f"{wanted.seed}-{number}"
                    number += 1
                    work = partial(kill_at_random, forks, template, seed=seed)
                    group.create_task(one(seed, work))
    print(
        f"{done} crashed sites were whole, {failed} were not; {kills} random kills, seed {wanted.seed}"
    )
    return failed


if __name__ == "__main__":
    main()
