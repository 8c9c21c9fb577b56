"""The pace of one owner's frames: a burst is read at once, and the rest at a limited rate."""

from __future__ import annotations

import pytest

from django_async_upload.concurrency import pace as module
from django_async_upload.concurrency.pace import Pace, Rates


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Ten frames a second, five of them at once."""
    monkeypatch.setattr(module, "FRAMES_PER_SECOND", 10)
    monkeypatch.setattr(module, "BURST_SECONDS", 0.5)
    return Pace()


def test_a_burst_is_read_without_a_delay(pace: Pace) -> None:
    assert [pace.delay(100.0, 1) for _ in range(5)] == [0.0] * 5


def test_what_is_beyond_the_burst_is_read_at_the_limit(pace: Pace) -> None:
    assert pace.delay(100.0, 5) == 0.0
    assert pace.delay(100.0, 1) == pytest.approx(0.1)
    assert pace.delay(100.0, 3) == pytest.approx(0.4)
    assert pace.delay(100.4, 1) == pytest.approx(0.1)


def test_idle_time_saves_up_one_burst_and_no_more(pace: Pace) -> None:
    pace.delay(100.0, 5)
    assert pace.delay(1000.0, 5) == 0.0
    assert pace.delay(1000.0, 1) == pytest.approx(0.1)


def test_it_has_rested_half_a_burst_after_what_it_counted_is_over(pace: Pace) -> None:
    pace.delay(100.0, 5)
    assert not pace.has_rested(100.25)
    assert pace.has_rested(100.26)


def test_each_of_many_things_may_happen_a_few_times_at_once_and_then_at_a_rate() -> None:
    rates = Rates(3, 2.0)
    assert [rates.delay("one", 100.0) for _ in range(3)] == [0.0] * 3
    assert rates.delay("two", 100.0) == 0.0
    assert [rates.delay("one", 100.5) for _ in range(9)] == [1.5] * 9  # a refusal does not count
    assert rates.delay("one", 102.0) == 0.0
    assert rates.delay("one", 102.0) == 2.0
    assert [rates.delay("one", 200.0) for _ in range(4)] == [0.0] * 3 + [2.0]


def test_what_has_not_happened_for_a_while_is_forgotten() -> None:
    rates = Rates(3, 2.0)
    for number in range(1000):
        rates.delay(number, 100.0 + number)
    assert len(rates._due) < 5
