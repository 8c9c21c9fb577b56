"""Try each mutation: ``python -m tests.mutants``. Prints those that no test notices; then the exit status is 1.

The work tree stays as it is: each job has a copy, in which one file at a time is mutated. First the tests that the
mutations name must pass as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from .laboratory import try_all
from .mutant import DoesNotApply, Mutant, read_lists

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    mutants = [each for each in read_lists() if options.only in str(each)]
    stale = list(filter(None, map(why_stale, mutants)))
    if options.check or stale:
        print(*stale, f"{len(mutants)} mutants, {len(stale)} of which do not apply.", sep="\n")
        return 1 if stale else 0
    verdicts = asyncio.run(try_all(ROOT, mutants, options.jobs))
    bad = [each for each in verdicts if not each.is_noticed]
    print(f"\n{len(verdicts)} mutants, {len(bad)} of which were not noticed.")
    print(*bad, sep="\n")
    return 1 if bad or len(verdicts) < len(mutants) else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    made.add_argument("--jobs", type=int, default=2, help="mutants at the same time (2)")
    made.add_argument("--only", default="", help="those whose file or description has this text")
    made.add_argument("--check", action="store_true", help="only look whether each still applies")
    return made


def why_stale(mutant: Mutant) -> str | None:
    """Why a mutation cannot be made any more, or its tests not be run."""
    try:
        mutant.apply((ROOT / mutant.path).read_text("utf-8"))
        for path, _, name in (test.partition("::") for test in mutant.tests):
            first = name.partition("::")[0]  # a class, which may inherit its tests, or a function
            if first not in (ROOT / path).read_text("utf-8"):
                raise DoesNotApply(f"{path} has no {first}")
    except (DoesNotApply, FileNotFoundError) as error:
        return f"DOES NOT APPLY  {mutant}\n    {error}"
    return None


if __name__ == "__main__":
    sys.exit(main())
