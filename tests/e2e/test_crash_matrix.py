"""A process dies at every step between CREATE and the delivery of the signal, and no promise is broken.

``CRASHES=all`` takes every failpoint in every scenario, on SQLite and on PostgreSQL, with one worker and with two.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from .crashes import Case, crash, each_failpoint_once, matrix
from .forks import Forks

CASES = matrix() if os.environ.get("CRASHES") == "all" else each_failpoint_once()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_promise_is_broken_by_a_crash(
    case: Case, forks: Forks, crash_template: Path, tmp_path: Path
) -> None:
    asyncio.run(crash(forks, crash_template, tmp_path / "site", case))
