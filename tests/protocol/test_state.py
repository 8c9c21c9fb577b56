"""The life of an upload: the table of transitions, and what the specification says of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from django_async_upload.sessions.state import ACTIVE, OVER, PUBLISHED, SOURCES, State

PAGE = (Path(__file__).parents[2] / "docs/reference/protocol.md").read_text("utf-8")


def after(state: State) -> set[State]:
    return {target for target, sources in SOURCES.items() if state in sources}


def test_every_state_has_its_sources() -> None:
    assert set(SOURCES) == set(State)
    assert {state for state in State if not SOURCES[state]} == {State.CREATED}


def test_a_state_is_active_published_or_over() -> None:
    assert set(State) == ACTIVE | PUBLISHED | OVER
    assert len(ACTIVE) + len(PUBLISHED) + len(OVER) == len(State)


@pytest.mark.parametrize("state", sorted(OVER | {State.BOUND}))
def test_nothing_comes_after_the_end(state: State) -> None:
    assert after(state) == set()


def test_what_is_published_is_taken_by_the_host_or_thrown_away_by_its_sender() -> None:
    assert after(State.COMPLETED) == {State.BOUND, State.CANCELLED}
    assert after(State.FINALIZING) == {State.FINALIZING, State.COMPLETED, State.FAILED}


def test_only_what_is_finalizing_completes_and_only_what_is_completed_is_bound() -> None:
    assert SOURCES[State.COMPLETED] == {State.FINALIZING}
    assert SOURCES[State.BOUND] == {State.COMPLETED}


def test_an_upload_can_be_cancelled_but_not_in_the_middle_of_its_publication() -> None:
    assert SOURCES[State.CANCELLED] == ACTIVE - {State.FINALIZING} | {State.COMPLETED}


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_and_can_end(state: State) -> None:
    reached, layer = {State.CREATED}, {State.CREATED}
    while layer := {target for each in layer for target in after(each)} - reached:
        reached |= layer
    assert state in reached
    ends, layer = {state}, {state}
    while layer := {target for each in layer for target in after(each)} - ends:
        ends |= layer
    assert ends & (OVER | PUBLISHED)


def test_the_specification_names_every_state() -> None:
    table = PAGE.split("| state | meaning |")[1].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == {str(state) for state in State}
