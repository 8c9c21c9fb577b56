"""Credit: a floor for everybody, fair shares above it, and never more than the budget."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_async_upload.engine import credit
from django_async_upload.engine.credit import (
    FLOOR,
    LARGEST_CHUNK,
    LARGEST_WINDOW,
    RAMP,
    WINDOW,
    Account,
    Budget,
)
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


def opened(
    budget: Budget,
    owner: str = "alice",
    *,
    pause: Callable[[], None] = nothing,
    evict: Callable[[], None] = nothing,
    held: int = 0,
) -> Account:
    return budget.open(owner, pause=pause, evict=evict, held=held)


def test_an_account_begins_with_the_floor_and_gives_it_back(clock: Clock) -> None:
    budget = Budget(MIB)
    account = opened(budget)
    assert budget.promised == FLOOR
    account.close()
    assert budget.promised == 0
    assert not budget.accounts
    account.close()
    assert budget.promised == 0


def test_where_not_even_the_floor_is_left_one_is_busy(clock: Clock) -> None:
    budget = Budget(4 * FLOOR)
    accounts = [opened(budget, owner) for owner in ("alice", "bob", "carol", "dan")]
    with pytest.raises(Busy) as caught:
        opened(budget, "erin")
    assert caught.value.retry_after == 1.0
    accounts[0].close()
    opened(budget, "erin")


def test_who_consumes_is_granted_what_the_last_second_took(clock: Clock) -> None:
    account = opened(Budget(64 * MIB))
    assert account.grant(0) == FLOOR
    account.consume(MIB)
    assert account.grant(0) == RAMP * MIB  # in the first second
    clock.now += 1.0
    account.consume(3 * MIB)
    assert account.grant(0) == 3 * MIB
    clock.now += 1.0
    assert account.grant(0) == 3 * MIB  # the last second's
    clock.now += 2.0
    assert account.grant(0) == FLOOR
    account.consume(MIB)
    assert account.grant(0) == MIB  # a rest is no new beginning
    account.consume(100 * MIB)
    assert account.grant(0) == LARGEST_WINDOW


def test_a_grant_is_within_the_fair_share_of_half_the_budget(clock: Clock) -> None:
    budget = Budget(8 * MIB)
    accounts = [opened(budget) for _ in range(4)]
    for account in accounts:
        account.consume(10 * MIB)
    for account in accounts:
        assert account.grant(0) == MIB
    assert budget.promised == budget.total // 2


def test_shares_are_by_owner_first(clock: Clock) -> None:
    budget = Budget(32 * MIB)
    crowd = [opened(budget, "mallory") for _ in range(16)]
    alone = opened(budget, "bob")
    for account in [*crowd, alone]:
        account.consume(MIB)
    clock.now += 1.0
    for account in [*crowd, alone]:
        account.consume(16 * MIB)
    assert alone.grant(0) == 8 * MIB
    assert {account.grant(0) for account in crowd} == {MIB // 2}


def test_what_does_not_move_has_no_share(clock: Clock) -> None:
    budget = Budget(32 * MIB)
    for _ in range(1024):
        opened(budget, "mallory")
    for n in range(100):
        opened(budget, f"visitor {n}")
    alone = opened(budget, "bob")
    alone.consume(16 * MIB)
    assert WINDOW < alone.grant(0) <= budget.total // 2


def test_small_files_do_not_slow_a_large_one_down(clock: Clock) -> None:
    budget = Budget(32 * MIB)
    small = [opened(budget) for _ in range(250)]
    large = opened(budget)
    large.consume(16 * MIB)
    for account in small:
        account.consume(1024)
    assert large.grant(0) > WINDOW
    for account in small:
        account.consume(FLOOR)
    assert large.grant(0) < MIB


def test_slow_uploads_do_not_slow_a_fast_one_down(clock: Clock) -> None:
    budget = Budget(64 * MIB)
    slow = [opened(budget, f"visitor {n}") for n in range(1000)]
    fast = opened(budget, "bob")
    for _ in range(5):
        for _half in range(2):
            clock.now += 0.5
            for account in slow:
                account.consume(4096)
                account.grant(0)
        fast.consume(16 * MIB)
        assert fast.grant(0) > WINDOW
    for account in slow:
        account.consume(2 * FLOOR)
    assert fast.grant(0) < MIB


def test_uploads_that_begin_at_once_leave_room_for_the_next(clock: Clock) -> None:
    """The first ones have large shares until they have used them."""
    budget = Budget(64 * MIB)
    for n in range(16):
        account = opened(budget, f"visitor {n}")
        account.consume(100 * MIB)
        assert account.grant(0) >= FLOOR
    for n in range(256):
        opened(budget, f"visitor {n}")


def test_a_part_of_the_budget_is_for_other_owners(clock: Clock) -> None:
    budget = Budget(64 * FLOOR, max_uploads=64)
    for _ in range(48):
        opened(budget, "mallory")
    with pytest.raises(Busy):
        opened(budget, "mallory")
    for _ in range(16):
        opened(budget, "bob")


def test_what_an_upload_holds_beside_its_queue_counts(clock: Clock) -> None:
    budget = Budget(64 * FLOOR)
    account = opened(budget, held=30 * FLOOR)
    assert budget.promised == 31 * FLOOR
    with pytest.raises(Busy):
        opened(budget, held=18 * FLOOR)
    account.consume(MIB)
    assert (
        account.grant(0) == 10 * FLOOR
    )  # all that the owner may still have, and an eighth is for floors
    account.complete()
    assert budget.promised == 30 * FLOOR
    account.close()
    assert budget.promised == 0


@pytest.mark.parametrize("limits", [(64 * FLOOR, None), (1024 * FLOOR, 64)])
def test_an_owner_with_little_gets_the_floor_of_one_who_has_the_most(
    clock: Clock, limits: tuple[int, int | None]
) -> None:
    budget = Budget(*limits)
    evicted: list[str] = []
    for n in range(64):
        owner = ("mallory", "eve")[n % 2]
        opened(budget, owner, evict=partial(evicted.append, f"{owner} {n}"))
    opened(budget, "bob")
    opened(budget, "bob")
    assert evicted == ["mallory 0", "eve 1"]
    assert len(budget.accounts) == 64


def test_an_owner_at_his_limit_gives_up_what_was_idle_for_long(clock: Clock) -> None:
    budget = Budget(64 * FLOOR)
    evicted: list[int] = []
    opened(budget, evict=partial(evicted.append, -1)).complete()  # it continues to its end
    accounts = [opened(budget, evict=partial(evicted.append, n)) for n in range(48)]
    clock.now += credit.IDLE_SECONDS
    for account in accounts[1:]:
        account.consume(1)
    opened(budget)
    assert evicted == [0]
    with pytest.raises(Busy):
        opened(budget)


def test_credit_moves_to_the_owner_once_he_is_known(clock: Clock) -> None:
    budget = Budget(64 * FLOOR)
    early = opened(budget, "address:192.0.2.1")
    early.move("alice")
    assert budget.promised == early.share.promised == FLOOR
    assert early.share.owner == "alice"
    for _ in range(47):
        opened(budget, "alice")
    late = opened(budget, "address:192.0.2.1")
    with pytest.raises(Busy):
        late.move("alice")
    assert not late.is_open
    assert budget.promised == 48 * FLOOR


def test_what_was_promised_is_not_taken_back_silently(clock: Clock) -> None:
    account = opened(Budget(8 * MIB))
    account.consume(4 * MIB)
    assert account.grant(0) == 4 * MIB
    clock.now += 5.0
    assert account.grant(4 * MIB) == 4 * MIB


def wasteful(budget: Budget, owner: str, called: list[str]) -> Account:
    """An account that has earned a window of credit and stops."""
    account = opened(
        budget,
        owner,
        pause=lambda: called.append(f"pause {owner}"),
        evict=lambda: called.append(f"evict {owner}"),
    )
    account.consume(WINDOW)
    account.grant(0)
    return account


def test_the_idle_are_asked_to_pause_once_and_the_busy_are_not(clock: Clock) -> None:
    called: list[str] = []
    budget = Budget(16 * MIB)
    first, _second = wasteful(budget, "first", called), wasteful(budget, "second", called)
    clock.now += 3.0
    busy = wasteful(budget, "busy", called)  # the idle ones have most of it
    assert busy.promised == 2 * MIB  # an eighth is for the floors of new ones
    busy.consume(4 * MIB)
    busy.grant(0)
    clock.now += 1.0
    busy.consume(8 * MIB)
    busy.grant(0)
    assert called == ["pause first", "pause second"] or called == ["pause second", "pause first"]
    assert first.is_pausing
    assert first.grant(MIB) == MIB  # nothing new in between
    first.paused()
    assert first.promised == FLOOR
    assert busy.grant(0) == WINDOW
    assert not first.is_pausing


def test_one_byte_a_second_does_not_keep_a_window_of_credit(clock: Clock) -> None:
    called: list[str] = []
    budget = Budget(16 * MIB)
    trickling = wasteful(budget, "mallory", called)
    for _ in range(3):
        clock.now += 1.0
        trickling.consume(1)
    budget.reclaim()
    assert called == ["pause mallory"]


def test_who_does_not_answer_pause_is_closed_and_its_credit_free(clock: Clock) -> None:
    called: list[str] = []
    budget = Budget(16 * MIB)
    deaf = wasteful(budget, "mallory", called)
    clock.now += 3.0
    budget.reclaim()
    clock.now += credit.PAUSE_SECONDS / 2
    budget.reclaim()
    assert called == ["pause mallory"]
    clock.now += credit.PAUSE_SECONDS / 2
    budget.reclaim()
    assert called == ["pause mallory", "evict mallory"]
    assert not deaf.is_open
    assert budget.promised == 0
    deaf.consume(1)
    assert deaf.grant(7) == 7
    assert budget.promised == 0


def test_a_refused_stream_has_credit_called_back_for_the_next(clock: Clock) -> None:
    called: list[str] = []
    budget = Budget(MIB)
    account = wasteful(budget, "alice", called)
    assert account.promised == MIB // 2
    for _ in range(MIB // 4 // FLOOR):
        opened(budget, "alice")
    clock.now += 3.0
    with pytest.raises(Busy):
        opened(budget, "alice")
    assert called == ["pause alice"]
    account.paused()
    opened(budget, "alice")


def test_who_needs_two_seconds_for_a_chunk_is_not_asked_for_a_longer_one(clock: Clock) -> None:
    """In the middle of a chunk that takes long, its client could not answer PAUSE in time."""
    account = opened(Budget(64 * MIB))
    for _ in range(5):
        clock.now += 2.0
        account.consume(FLOOR)
        granted = account.grant(0)
        assert (granted, account.chunk(granted)) == (FLOOR, FLOOR)
        assert not account.is_wasting(clock.now + 1.9)


@pytest.mark.parametrize(
    ("consumed", "seconds", "granted", "chunk"),
    [
        (0, 0.0, FLOOR, FLOOR),
        (MIB, 1.0, 4 * MIB, 417_792),  # two fifths of a second, whole pages
        (MIB // 16, 0.1, 8 * MIB, MIB // 4),  # in the first second: four times the rate so far
        (MIB // 8, 0.5, 8 * MIB, 417_792),
        (8 * MIB, 1.0, MIB // 2, MIB // 4),  # two to a grant
        (8 * MIB, 1.0, LARGEST_CHUNK, LARGEST_CHUNK),  # one, where the share is small
        (8 * MIB, 1.0, 300 * 1024, 300 * 1024),
        (100 * MIB, 1.0, WINDOW, LARGEST_CHUNK),
    ],
)
def test_the_advised_chunk(
    clock: Clock, consumed: int, seconds: float, granted: int, chunk: int
) -> None:
    account = opened(Budget(64 * MIB))
    account.consume(consumed)
    clock.now += seconds
    assert account.chunk(granted) == chunk


actions = st.lists(
    st.tuples(
        st.sampled_from(["open", "close", "send", "pause", "wait", "complete", "move"]),
        st.integers(0, 30),
    ),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(1 * MIB, 40 * MIB),
    max_uploads=st.none() | st.integers(4, 20),
    actions=actions,
)
def test_promises_cover_what_may_come_and_never_exceed_the_budget(
    total: int, max_uploads: int | None, actions: list[tuple[str, int]]
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credit, "time", clock)
        budget = Budget(total, max_uploads)
        unused: dict[Account, int] = {}
        for action, number in actions:
            accounts = list(unused)
            account: Any = accounts[number % len(accounts)] if accounts else None
            if action == "open":
                with suppress(Busy):
                    unused[opened(budget, "abc"[number % 3], held=number)] = FLOOR
            elif action == "wait":
                clock.now += number / 10
            elif account is None:
                continue
            elif action == "close":
                account.close()
            elif action == "move":
                with suppress(Busy):
                    account.move("abc"[number % 3])
            elif action == "complete":
                account.complete()
                unused[account] = 0
            elif action == "send" and not account.is_complete:
                # All that may be sent is sent, and written.
                account.consume(unused[account])
                unused[account] = account.grant(0)
            elif account.is_pausing:  # PAUSED: nothing more is on its way
                account.paused()
                unused[account] = account.grant(0)
            for gone in [each for each in unused if not each.is_open]:
                del unused[gone]
            shares = {each.share for each in budget.accounts}
            assert 0 <= budget.promised <= total
            assert budget.promised == sum(each.promised for each in budget.accounts)
            assert budget.promised == sum(each.promised for each in shares)
            assert all(each.promised <= total * credit.OWNER_PART for each in shares)
            assert max_uploads is None or len(budget.accounts) <= max_uploads
            for each, size in unused.items():
                assert size <= each.promised
        for each in unused:
            each.close()
        assert budget.promised == 0
        assert not budget.accounts


FAULTS = """
import resource
from django_async_upload.engine.credit import keep_freed_memory

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
