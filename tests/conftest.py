"""What holds for all tests."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest

SERVER = re.compile(r"[\[-](uvicorn|daphne|hypercorn|granian|rabbitmq|redis|notify)[]-]")
"""In the id of a test that is run on several servers, or with several brokers or buses: which one."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup`` each server has a worker of its own.

    Not by the mark ``xdist_group``: pytest-xdist 3.8 writes it into a node's id, which pytest 9.2 computes anew.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ServerScheduling(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = SERVER.search(nodeid)
            return found[1] if found else str(super()._split_scope(nodeid))

    return ServerScheduling(config, log)


SLOW = {"e2e", "browser", "dist"}
SLOW_SECONDS = 300
"""The time limit of tests that start servers and browsers; that of the others is in pyproject.toml."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if marks & SLOW and "timeout" not in marks:
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing is missing: a test that is skipped because it needs something fails."""
    report = yield
    if os.environ.get("CI") and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith("needs "):
            report.outcome = "failed"
            report.longrepr = f"CI must run this test, which {reason}"
    return report


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Ends the calls that hang."""
    released = threading.Event()
    yield released
    released.set()
