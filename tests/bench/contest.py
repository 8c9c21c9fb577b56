"""The contestants of one comparison, taken in turn so that a drift of the machine falls on all of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Result(NamedTuple):
    """The result of one run of one contestant."""

    value: float
    cost: float
    """Seconds of processor time at the server for each byte."""


Measure = Callable[[], float | Result]
"""One run of one contestant."""


@dataclass
class Figures:
    """What a contestant did in the rounds that count."""

    values: list[float] = field(default_factory=list)
    broken: str = ""
    """Why there are no more values."""
    costs: list[float] = field(default_factory=list)
    """Seconds of processor time at the server for each byte, where they were counted."""


def compete(contestants: dict[str, Measure], repetitions: int, title: str) -> dict[str, Figures]:
    """A B C A B C ...; one round more comes first, to warm up, and does not count."""
    figures = {name: Figures() for name in contestants}
    for number in range(repetitions + 1):
        print(f"{title}: round {number} of {repetitions}", file=sys.stderr, flush=True)
        for name, measure in contestants.items():
            if figures[name].broken:
                continue
            try:
                result = measure()
            except Exception as error:  # the contestant is broken; the others continue
                figures[name].broken = f"{type(error).__name__}: {error}"
                print(f"{name}: {figures[name].broken}", file=sys.stderr, flush=True)
                continue
            if not number:
                continue
            if isinstance(result, Result):
                figures[name].values.append(result.value)
                figures[name].costs.append(result.cost)
            else:
                figures[name].values.append(result)
    return figures
