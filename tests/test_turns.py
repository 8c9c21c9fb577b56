"""Owners are served in turn, each from its oldest item on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from django_async_upload.concurrency.turns import Turns


def test_one_who_asks_last_is_served_beside_the_first_of_a_crowd() -> None:
    turns: Turns[str] = Turns()
    for n in range(1000):
        turns.add("mallory", f"mallory {n}")
    turns.add("bob", "bob")
    assert turns.take(3) == ["mallory 0", "bob", "mallory 1"]
    turns.add("carol", "carol")
    assert turns.take(2) == ["mallory 2", "carol"]
    assert len(turns) == 997


@given(asked=st.lists(st.sampled_from("abc")), most=st.integers(1, 5))
def test_everything_is_served_once_and_each_owner_in_order(asked: list[str], most: int) -> None:
    turns: Turns[tuple[str, int]] = Turns()
    for place, owner in enumerate(asked):
        turns.add(owner, (owner, place))
    served = []
    while turns:
        served += turns.take(most)
    assert sorted(served, key=lambda item: item[1]) == list(
        zip(asked, range(len(asked)), strict=True)
    )
    for owner in "abc":
        places = [place for each, place in served if each == owner]
        assert places == sorted(places)
