"""``upload_completed`` comes at least once, with one id; nothing is lost with a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_async_upload import outbox, signals
from django_async_upload.models import CompletionEvent
from django_async_upload.outbox import AT_ONCE, Outbox
from django_async_upload.owners import Owner
from django_async_upload.service import UploadService

from .fixtures import Heard, publish, run

pytest_plugins = ["tests.fixtures"]


def left_behind(owner: Owner, **fields: Any) -> CompletionEvent:
    """An event that nobody delivered."""
    return CompletionEvent.objects.create(session=publish(owner), **fields)


async def reload(event: CompletionEvent) -> CompletionEvent:
    return await CompletionEvent.objects.aget(pk=event.pk)


async def test_what_was_left_behind_is_delivered_once_it_is_nobodys(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    now = timezone.now()
    fresh = await run(left_behind, owner)
    lapsed = await run(left_behind, owner, claimed_until=now - timedelta(seconds=1))
    claimed = await run(left_behind, owner, claimed_until=now + timedelta(seconds=60))
    await run(left_behind, owner, delivered_at=now)
    assert await uploads.outbox.deliver_due() == 2
    assert {each["event_id"] for each in heard.named("completed")} == {fresh.pk, lapsed.pk}
    assert (await reload(fresh)).delivered_at is not None
    assert (await reload(claimed)).delivered_at is None
    assert await uploads.outbox.deliver_due() == 0
    assert len(heard) == 2


async def test_two_processes_deliver_each_event_once(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    events = [await run(left_behind, owner) for _ in range(10)]
    other = Outbox(uploads.database)
    counts = await asyncio.gather(uploads.outbox.deliver_due(), other.deliver_due())
    assert sum(counts) == 10
    assert sorted(each["event_id"] for each in heard.named("completed")) == sorted(
        event.pk for event in events
    )


async def test_an_event_that_was_told_but_not_noted_comes_again_with_its_id(
    uploads: UploadService, owner: Owner, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = await run(left_behind, owner)

    def die(items: Any) -> list[None]:
        raise ValueError("the process died")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "mark_delivered", die)
        with pytest.raises(ValueError):
            await uploads.outbox.deliver_due()
    await CompletionEvent.objects.aupdate(claimed_until=timezone.now() - timedelta(seconds=1))
    assert await uploads.outbox.deliver_due() == 1
    assert [each["event_id"] for each in heard.named("completed")] == [event.pk, event.pk]


async def test_a_receiver_that_raises_has_had_its_event(
    uploads: UploadService, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    async def receiver(**kwargs: Any) -> None:
        raise ValueError("broken")

    signals.upload_completed.connect(receiver)
    try:
        event = await run(left_behind, owner)
        assert await uploads.outbox.deliver_due() == 1
    finally:
        signals.upload_completed.disconnect(receiver)
    assert (await reload(event)).delivered_at is not None
    assert str(event.session_id) in caplog.text


async def test_claims_are_renewed_while_receivers_run_and_while_events_wait_for_them(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = timedelta(seconds=1)
    monkeypatch.setattr(outbox, "CLAIM", claim)
    go_on = asyncio.Event()
    running = 0
    most = 0

    async def slow(**kwargs: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1

    signals.upload_completed.connect(slow)
    try:
        until = timezone.now() + claim
        events = [await run(left_behind, owner, claimed_until=until) for _ in range(AT_ONCE + 3)]
        for event in events:
            uploads.outbox.deliver(event)
        for _ in range(8):
            await asyncio.sleep(0.3)
            assert not await CompletionEvent.objects.due(timezone.now()).acount()
        assert most == running == AT_ONCE
        go_on.set()
        await uploads.outbox.join()
    finally:
        signals.upload_completed.disconnect(slow)
    assert await CompletionEvent.objects.filter(delivered_at=None).acount() == 0


async def test_an_event_that_is_delivered_is_not_told(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    uploads.outbox.deliver(await run(left_behind, owner, delivered_at=timezone.now()))
    await uploads.outbox.join()
    assert not heard


async def test_a_receiver_may_use_what_it_is_given(
    uploads: UploadService, owner: Owner, connect: Callable[..., Any]
) -> None:
    seen: list[bytes] = []

    def receiver(session: Any, **kwargs: Any) -> None:
        with session.file as file:
            seen.append(file.read())
        session.delete()

    signals.upload_completed.connect(receiver)
    try:
        async with connect() as client:
            await client.upload("a.bin", b"data")
        await uploads.outbox.join()
    finally:
        signals.upload_completed.disconnect(receiver)
    assert seen == [b"data"]
    assert not await CompletionEvent.objects.aexists()
