"""What a client is told: its numbers never promise more than the budget has, nor take back what is durable."""

from __future__ import annotations

import pytest

from django_async_upload.engine import credit
from django_async_upload.engine.credit import FLOOR, HEAD_START, LARGEST_WINDOW, Account, Budget
from django_async_upload.engine.flow import Flow

from .fixtures import KIB, MIB
from .test_credit import Clock


class Client:
    def __init__(self) -> None:
        self.acks = 0

    def tell(self) -> None:
        self.acks += 1


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(credit, "time", clock)
    return clock


@pytest.fixture
def account(client: Client, clock: Clock) -> Account:
    return Budget(4 * LARGEST_WINDOW).open("alice", pause=client.tell, evict=client.tell)


@pytest.fixture
def flow(account: Account, client: Client) -> Flow:
    return Flow(account, client.tell)


def test_a_client_begins_with_the_floor(flow: Flow) -> None:
    assert (flow.received, flow.durable, flow.limit, flow.chunk) == (0, 0, FLOOR, FLOOR)


def test_a_client_that_comes_back_has_a_head_start(
    flow: Flow, account: Account, clock: Clock
) -> None:
    flow.restart(20 * MIB)
    flow.keep(20 * MIB)
    flow.resume()
    assert flow.limit - flow.received == account.promised == HEAD_START
    assert flow.chunk == FLOOR
    flow.restart(20 * MIB + FLOOR)
    clock.now += 1.0
    flow.advance(flow.received + KIB)
    flow.grant()
    assert account.promised < HEAD_START
    assert account.grant(0) == FLOOR


def test_the_head_start_is_no_more_than_what_is_here_already(flow: Flow, account: Account) -> None:
    flow.restart(100 * KIB)
    flow.resume()
    assert flow.limit - flow.received <= account.promised == 100 * KIB


def test_what_was_written_is_credit_again_and_the_client_is_told(
    flow: Flow, account: Account, client: Client
) -> None:
    flow.advance(10 * MIB)
    flow.keep(10 * MIB)
    flow.grant()
    assert flow.received == 10 * MIB
    assert MIB < flow.limit - flow.received <= account.promised
    assert flow.chunk > FLOOR
    assert client.acks == 1


def test_the_limit_stays_within_the_window_beyond_what_is_durable(flow: Flow) -> None:
    flow.advance(LARGEST_WINDOW - FLOOR)
    flow.grant()
    assert LARGEST_WINDOW - flow.chunk < flow.limit <= LARGEST_WINDOW
    flow.keep(MIB)
    flow.grant()
    assert LARGEST_WINDOW < flow.limit <= LARGEST_WINDOW + MIB


def test_what_is_durable_stays_durable(flow: Flow) -> None:
    flow.keep(100)
    flow.keep(40)
    assert flow.durable == 100


def test_the_limit_rises_by_whole_chunks_or_where_less_than_one_is_left(
    flow: Flow, clock: Clock
) -> None:
    flow.advance(FLOOR)
    clock.now += 1.0
    flow.limit = 3 * FLOOR + 100
    flow.advance(2 * FLOOR + 100)  # as much is left as a chunk has, and 100 bytes more are granted
    flow.grant()
    assert flow.limit == 3 * FLOOR + 100
    flow.advance(2 * FLOOR + 101)
    flow.grant()
    assert flow.limit == 3 * FLOOR + 202


def test_a_pause_sets_the_limit_back_and_gives_the_credit_back(
    flow: Flow, account: Account, client: Client
) -> None:
    flow.advance(MIB)
    flow.grant()
    account.is_pausing = True
    assert flow.limit > 1100 * KIB
    account.budget.total = 0  # nothing more to grant
    flow.paused(1100 * KIB)
    assert flow.limit == 1100 * KIB
    assert account.promised == 76 * KIB
    assert not account.is_pausing
    assert client.acks == 2


def test_a_restart_sets_everything_but_durable_back_and_leaves_the_telling_to_the_caller(
    flow: Flow, client: Client
) -> None:
    flow.advance(10 * MIB)
    flow.keep(MIB)
    flow.grant()
    before = flow.limit
    flow.restart(MIB)
    assert (flow.received, flow.durable) == (MIB, MIB)
    assert MIB < flow.limit < before
    assert client.acks == 1
