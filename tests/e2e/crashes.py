"""Uploads and their ends, for servers that die meanwhile: the scenarios of the crash matrix, and random kills.

python -m tests.e2e.crashes --matrix           every failpoint in every scenario and configuration
python -m tests.e2e.crashes --kills 1000       that many SIGKILLs at random moments
"""

from __future__ import annotations

import argparse
import ast
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
from .servers import ROOT
from .stage import (
    Stage,
    bound,
    cancelled,
    checking,
    discarded,
    ended_by_host,
    group,
    large,
    left,
    left_to_copy,
    make_template,
    purged,
    resumed,
    stolen,
    streamed,
)


def failpoints() -> list[str]:
    """The names of all failpoints, from the source."""
    found = []
    for path in sorted((ROOT / "src/django_async_upload").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoint":
                (name,) = node.args
                found.append(str(ast.literal_eval(name)))
    return found


PUBLICATION = (
    "publish.before_sync",
    "publish.after_sync",
    "publish.before_commit",
    "publish.after_commit",
    "publish.after_files",
    "complete.before_commit",
    "complete.after_commit",
    "part.before_unlink",
    "part.after_unlink",
    "complete.after_unlink",
)
LINK = ("link.before_link", "link.after_link", "link.before_sync", "link.after_sync")
DELIVERY = ("deliver.before_signal", "deliver.after_signal", "deliver.after_commit")


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

    @property
    def name(self) -> str:
        return self.play.__name__


SCENARIOS = [
    Scenario(
        large,
        (
            "create.before_commit",
            "create.after_commit",
            "part.after_create",
            "checkpoint.before_commit",
            "checkpoint.after_commit",
            "created.before_send",
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
        ),
    ),
    Scenario(
        group,
        (
            "small.after_write",
            "part.after_create:3",
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
            "copy.after_sync",
            "respond.before_commit",
            "respond.after_commit",
            "respond.before_second_commit",
            "respond.after_second_commit",
            *PUBLICATION,
            *DELIVERY,
            "answer.before_send",
        ),
    ),
    Scenario(streamed, ("part.after_create", "checkpoint.after_commit", *PUBLICATION)),
    Scenario(
        resumed,
        (
            "attach.before_commit",
            "attach.after_commit",
            "attach.after_open",
            "attached.before_send",
            "ready.before_send",
        ),
    ),
    Scenario(stolen, ("checkpoint.after_unlink",), before=("",), workers=2),
    Scenario(
        cancelled,
        (
            "end.before_commit",
            "end.after_commit",
            "end.after_hint",
            "part.before_unlink",
            "part.after_unlink",
            "end.after_unlink",
            "end.after_signal",
            "answer.before_send",
        ),
    ),
    Scenario(
        ended_by_host,
        ("host_end.after_commit", "part.before_unlink", "host_end.after_unlink"),
    ),
    Scenario(
        discarded,
        (
            "discard.before_commit",
            "discard.after_commit",
            "discard.after_rename",
            "discard.after_second_commit",
            "discard.after_unlink",
        ),
    ),
    Scenario(
        bound,
        (
            "bind.after_link",
            "bind.before_commit",
            "bind.after_commit",
            "withdraw.after_rename",
            "withdraw.after_commit",
            "withdraw.after_unlink",
        ),
    ),
    Scenario(
        purged,
        (
            "expire.before_commit",
            "expire.after_commit",
            "expire.after_unlink",
            "expire.after_signal",
            "purge.before_commit",
            "purge.after_commit",
            "purge.after_unlink",
            "part.before_unlink",
            "part.before_unlink:2",
        ),
        in_command=True,
    ),
    Scenario(
        left,
        ("recover.after_commit", "resume.after_open", "complete.after_commit"),
        before=("publish.after_files",),
    ),
    Scenario(
        left_to_copy,
        ("resume.after_open", "copy.after_delete", "copy.after_save", "complete.before_commit"),
        before=("publish.after_files",),
    ),
]
UNREACHED: dict[str, str] = {}
"""Failpoints that no scenario reaches, with the reason."""
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
        if scenario.workers in (None, workers)
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
            kills += await work(root / "site") or 0
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
