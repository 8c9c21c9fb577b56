"""A mutation: where it changes the source, what that breaks, and which tests must notice it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = "src/django_async_upload"
LISTS: Final = Path(__file__).parent
DEFAULT_SECONDS: Final = 60.0


class DoesNotApply(Exception):
    """The text that a mutation replaces is not in its file, or is there more than once."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mutation, as the lists (``*.toml`` beside this module) have it."""

    breaks: str
    """What goes wrong in a program with this mutation."""
    file: str
    """Below the package's folder."""
    old: str
    """What is replaced; it occurs exactly once."""
    new: str
    tests: Sequence[str]
    """Files, or pytest's node ids; files of JavaScript are run by Node."""
    seconds: float = DEFAULT_SECONDS
    """Tests that take longer count as failed."""

    @property
    def path(self) -> str:
        """Below the root of the repository."""
        return f"{PACKAGE}/{self.file}"

    def __str__(self) -> str:
        return f"{self.file}: {self.breaks}"

    def apply(self, source: str) -> str:
        """The mutated source. Raises :class:`DoesNotApply`."""
        if (count := source.count(self.old)) != 1:
            raise DoesNotApply(f"{count} times in {self.path}: {self.old!r}")
        return source.replace(self.old, self.new)


def read_lists(folder: Path = LISTS) -> Iterator[Mutant]:
    """All mutants of a folder's lists."""
    for path in sorted(folder.glob("*.toml")):
        found: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8"))["mutant"]
        for each in found:
            yield Mutant(**each)
