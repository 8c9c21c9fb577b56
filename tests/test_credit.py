"""Credit: a floor for everybody, fair shares above it, and never more than the budget."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_async_upload import credit
from django_async_upload.credit import FLOOR, LARGEST_CHUNK, WINDOW, Account, Budget
from django_async_upload.exceptions import Busy

MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(credit, "time", clock)
    return clock


def nothing() -> None:
    pass


def test_an_account_begins_with_the_floor_and_gives_it_back(clock: Clock) -> None:
    budget = Budget(MIB)
    account = budget.open(nothing)
    assert budget.promised == FLOOR
    account.close()
    assert budget.promised == 0
    assert not budget.accounts
    account.close()
    assert budget.promised == 0


def test_where_not_even_the_floor_is_left_one_is_busy(clock: Clock) -> None:
    budget = Budget(3 * FLOOR)
    accounts = [budget.open(nothing) for _ in range(3)]
    with pytest.raises(Busy) as caught:
        budget.open(nothing)
    assert caught.value.retry_after == 1.0
    accounts[0].close()
    budget.open(nothing)


def test_who_consumes_is_granted_what_the_last_second_took(clock: Clock) -> None:
    account = Budget(64 * MIB).open(nothing)
    assert account.grant(0) == FLOOR
    account.consume(MIB)
    assert account.grant(0) == MIB
    clock.now += 1.0
    account.consume(3 * MIB)
    assert account.grant(0) == 3 * MIB
    clock.now += 1.0
    assert account.grant(0) == 3 * MIB  # the last second's
    clock.now += 2.0
    assert account.grant(0) == FLOOR
    account.consume(100 * MIB)
    assert account.grant(0) == WINDOW


def test_a_grant_is_within_the_fair_share_of_half_the_budget(clock: Clock) -> None:
    budget = Budget(8 * MIB)
    accounts = [budget.open(nothing) for _ in range(4)]
    for account in accounts:
        account.consume(10 * MIB)
        assert account.grant(0) == MIB
    assert budget.promised == budget.total // 2


def test_what_was_promised_is_not_taken_back_silently(clock: Clock) -> None:
    account = Budget(8 * MIB).open(nothing)
    account.consume(4 * MIB)
    assert account.grant(0) == 4 * MIB
    clock.now += 5.0
    assert account.grant(4 * MIB) == 4 * MIB


def test_the_idle_are_asked_to_pause_once_and_the_busy_are_not(clock: Clock) -> None:
    paused: list[str] = []
    budget = Budget(4 * MIB)
    idle: dict[str, Account] = {}
    for name, share in (("first", 2 * MIB), ("second", MIB), ("third", 2 * MIB // 3)):
        idle[name] = budget.open(partial(paused.append, name))
        idle[name].consume(3 * MIB)
        assert idle[name].grant(0) == share
    clock.now += 3.0
    busy = budget.open(lambda: paused.append("busy"))
    busy.consume(8 * MIB)
    assert busy.grant(0) < MIB // 2  # the idle ones have it
    busy.grant(0)
    assert sorted(paused) == sorted(idle)
    first = idle["first"]
    assert first.is_pausing
    assert first.grant(MIB) == MIB  # nothing new meanwhile
    first.paused()
    assert first.promised == FLOOR
    assert busy.grant(0) == MIB // 2
    assert not first.is_pausing


def test_a_refused_stream_has_credit_called_back_for_the_next(clock: Clock) -> None:
    paused: list[Account] = []
    budget = Budget(MIB)
    account = budget.open(lambda: paused.append(account))
    account.consume(8 * MIB)
    assert account.grant(0) == MIB // 2
    for _ in range(MIB // 2 // FLOOR):
        budget.open(nothing)
    clock.now += 3.0
    with pytest.raises(Busy):
        budget.open(nothing)
    assert paused == [account]
    account.paused()
    budget.open(nothing)


@pytest.mark.parametrize(
    ("consumed", "granted", "chunk"),
    [
        (0, FLOOR, FLOOR),
        (MIB, MIB, 208_896),  # a fifth of a second, whole pages
        (8 * MIB, MIB, MIB // 4),  # several to a grant
        (100 * MIB, WINDOW, LARGEST_CHUNK),
    ],
)
def test_the_advised_chunk(clock: Clock, consumed: int, granted: int, chunk: int) -> None:
    account = Budget(64 * MIB).open(nothing)
    account.consume(consumed)
    assert account.chunk(granted) == chunk


actions = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.just(0)),
        st.tuples(st.just("close"), st.integers(0, 20)),
        st.tuples(st.just("send"), st.integers(0, 20)),
        st.tuples(st.just("pause"), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.integers(0, 30)),
    ),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1 * MIB, 40 * MIB), actions=actions)
def test_promises_cover_what_may_come_and_never_exceed_the_budget(
    total: int, actions: list[tuple[str, int]]
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credit, "time", clock)
        budget = Budget(total)
        unused: dict[Account, int] = {}
        for action, number in actions:
            accounts = list(unused)
            account: Any = accounts[number % len(accounts)] if accounts else None
            if action == "open":
                try:
                    unused[budget.open(nothing)] = FLOOR
                except Busy:
                    assert budget.promised + FLOOR > total
            elif action == "wait":
                clock.now += number / 10
            elif account is None:
                continue
            elif action == "close":
                account.close()
                del unused[account]
            elif action == "send":  # all that may be sent is sent, and written
                account.consume(unused[account])
                unused[account] = account.grant(0)
            elif account.is_pausing:  # PAUSED: nothing more is on its way
                account.paused()
                unused[account] = account.grant(0)
            assert 0 <= budget.promised <= total
            assert budget.promised == sum(each.promised for each in budget.accounts)
            for each, size in unused.items():
                assert size <= each.promised
        for each in unused:
            each.close()
        assert budget.promised == 0


FAULTS = """
import resource
from django_async_upload.credit import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        messages = [b"x" * (512 << 10) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_messages() -> None:
    command = [sys.executable, "-c", FAULTS]
    said = subprocess.run(command, env={}, capture_output=True, text=True, check=True).stdout
    before, _, after = said.split()
    assert int(after) < int(before) / 4
