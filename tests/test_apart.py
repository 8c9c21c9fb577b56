"""A host's code is called apart: its threads are bounded in number, its calls in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from django_async_upload.concurrency import apart as module
from django_async_upload.concurrency.apart import HostThreads, Unfinished

SHORT, LONG = 0.05, 20.0
"""Seconds: of a limit that a test exceeds, and of one that it must not reach."""


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostThreads]:
    """Threads for eight calls at once, two of them an owner's, and for twice as many that hang."""
    monkeypatch.setattr(module, "AT_ONCE", 8)
    monkeypatch.setattr(module, "MAX_STUCK", 16)
    threads = HostThreads("test")
    yield threads
    threads.close()


async def hang(threads: HostThreads, released: threading.Event, owner: str) -> None:
    with pytest.raises(Unfinished, match="did not return"):
        await threads.call(owner, SHORT, released.wait)


async def test_a_call_returns_what_it_returns_and_raises_what_it_raises(
    threads: HostThreads,
) -> None:
    assert await threads.call("a", LONG, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.call("a", LONG, lambda: 1 // 0)


async def test_an_iterator_that_ends_too_early_is_an_error_too(threads: HostThreads) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.call("a", SHORT, lambda: next(iter(())))


async def test_a_call_that_makes_progress_may_take_longer(threads: HostThreads) -> None:
    steps: list[int] = []

    def work() -> int:
        for step in range(6):
            steps.append(step)
            threading.Event().wait(SHORT / 2)
        return len(steps)

    assert await threads.call("a", SHORT, work, lambda: len(steps)) == 6


async def test_a_call_that_hangs_delays_no_other_one(
    threads: HostThreads, released: threading.Event
) -> None:
    for owner in "aabbccdd":
        await hang(threads, released, owner)
    async with asyncio.timeout(LONG):
        assert await threads.call("a", LONG, lambda: 7) == 7
        assert await threads.call("e", LONG, lambda: 7) == 7


async def test_an_owner_makes_a_quarter_of_the_calls_at_once(
    threads: HostThreads, released: threading.Event
) -> None:
    calls = [asyncio.create_task(threads.call("a", LONG, released.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(threads.call("a", LONG, lambda: True)))
    assert await threads.call("b", LONG, lambda: 7) == 7
    assert not any(call.done() for call in calls)
    released.set()
    assert await asyncio.gather(*calls) == [True] * 3


async def test_an_owner_whose_calls_hang_gets_no_more_threads_until_they_return(
    threads: HostThreads, released: threading.Event
) -> None:
    for _ in range(4):
        await hang(threads, released, "a")
    with pytest.raises(Unfinished, match="was not called: too many earlier calls"):
        await threads.call("a", LONG, lambda: 7)
    assert await threads.call("b", LONG, lambda: 7) == 7
    released.set()
    async with asyncio.timeout(LONG):
        while threads._stuck:
            await asyncio.sleep(0.01)
    assert await threads.call("a", LONG, lambda: 7) == 7


async def test_calls_that_hang_leave_a_limited_number_of_threads(
    threads: HostThreads, released: threading.Event
) -> None:
    for owner in 4 * "abcd":
        await hang(threads, released, owner)
    with pytest.raises(Unfinished, match="was not called"):
        await threads.call("e", LONG, lambda: 7)


async def test_a_cancelled_caller_does_not_wait_and_its_call_is_counted(
    threads: HostThreads, released: threading.Event
) -> None:
    call = asyncio.create_task(threads.call("a", LONG, released.wait))
    await asyncio.sleep(0)
    call.cancel()
    async with asyncio.timeout(LONG):
        await asyncio.wait({call})
    assert call.cancelled()
    assert threads._stuck == {"a": 1}


async def test_closing_waits_for_no_call_and_allows_no_more(
    threads: HostThreads, released: threading.Event
) -> None:
    await hang(threads, released, "a")
    threads.close()
    with pytest.raises(RuntimeError):
        await threads.call("b", LONG, lambda: 7)
