"""The life of a connection: when it ends, and what its client gets."""

from __future__ import annotations

import asyncio

from django_async_upload.exceptions import Draining, IdleTimeout
from django_async_upload.websocket.life import Life


async def test_it_opens_once_and_ends_once_with_the_first_reason() -> None:
    life = Life()
    assert not life.is_open
    assert not life.is_over
    life.begin()
    assert life.is_open
    first = IdleTimeout(seconds=1)
    assert life.end(first)
    assert not life.is_open
    assert life.is_over
    assert not life.end(Draining(retry_after=1.0)), "it was ended before"
    assert not life.end()
    assert life.error is first
    life.begin()
    assert not life.is_open


async def test_one_that_never_opened_has_nothing_to_be_undone() -> None:
    life = Life()
    assert not life.end()
    assert life.is_over
    assert life.error is None


async def test_it_lasts_until_it_ends_or_the_task_does() -> None:
    async def nothing() -> None:
        pass

    life, for_ever = Life(), asyncio.create_task(asyncio.sleep(3600))
    async with asyncio.timeout(10):
        await Life().last(asyncio.create_task(nothing()))
        lasting = asyncio.create_task(life.last(for_ever))
        await asyncio.sleep(0)
        assert not lasting.done()
        life.end()
        await lasting
    assert not for_ever.done()
    for_ever.cancel()
