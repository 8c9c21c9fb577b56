"""``upload_completed`` comes at least once, with one id; no event is lost with a process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import transaction
from django.utils import timezone

from django_async_upload import signals
from django_async_upload.engine import outbox, service
from django_async_upload.engine.outbox import AT_ONCE, AT_ONCE_PER_OWNER, Outbox
from django_async_upload.engine.service import UploadService
from django_async_upload.models import CompletionEvent
from django_async_upload.sessions import rows
from django_async_upload.sessions.owners import Owner

from .fixtures import Heard, forget_service, publish, run

pytest_plugins = ["tests.fixtures"]


Listen = Callable[[Any], None]


def left_behind(owner: Owner, name: str = "a.bin", **fields: Any) -> CompletionEvent:
    """An event that no process delivered."""
    return CompletionEvent.objects.create(session=publish(owner, name=name), **fields)


@pytest.fixture
def listen() -> Iterator[Listen]:
    connected: list[Any] = []

    def connect(receiver: Any) -> None:
        signals.upload_completed.connect(receiver, weak=False)
        connected.append(receiver)

    yield connect
    for receiver in connected:
        signals.upload_completed.disconnect(receiver)


async def reload(event: CompletionEvent) -> CompletionEvent:
    return await CompletionEvent.objects.aget(pk=event.pk)


async def test_what_was_left_behind_is_delivered_once_no_process_has_a_claim(
    uploads: UploadService, owner: Owner, heard: Heard
) -> None:
    now = timezone.now()
    fresh = await run(left_behind, owner)
    lapsed = await run(left_behind, owner, due_at=now - timedelta(seconds=1))
    claimed = await run(left_behind, owner, due_at=now + timedelta(seconds=60))
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
    uploads: UploadService,
    owner: Owner,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    event = await run(left_behind, owner)

    def die(items: Any) -> list[bool]:
        raise ValueError("the process died")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "note", die)
        assert await uploads.outbox.deliver_due() == 0
    assert "the process died" in caplog.text
    await make_due()
    assert await uploads.outbox.deliver_due() == 1
    assert [each["event_id"] for each in heard.named("completed")] == [event.pk, event.pk]


# Receivers that fail ------------------------------------------------------------------------------


async def make_due() -> None:
    """As if the pauses were over."""
    past = timezone.now() - timedelta(seconds=1)
    await CompletionEvent.objects.filter(delivered_at=None).aupdate(due_at=past)


async def test_a_receiver_that_raises_is_called_again_until_it_does_not(
    uploads: UploadService, owner: Owner, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker is down for a minute: no work is lost."""
    called: list[Any] = []

    async def receiver(event_id: Any, **kwargs: Any) -> None:
        called.append(event_id)
        if len(called) < 3:
            raise ValueError("the broker is down")

    listen(receiver)
    event = await run(left_behind, owner)
    pauses = []
    for attempt in (1, 2):
        begun = timezone.now()
        assert await uploads.outbox.deliver_due() == 0
        kept = await reload(event)
        assert (kept.attempts, kept.delivered_at, kept.given_up_at) == (attempt, None, None)
        assert "the broker is down" in kept.error
        assert "receiver" in kept.error
        pauses.append(kept.due_at - begun)
        assert await uploads.outbox.deliver_due() == 0  # it rests
        await make_due()
    assert outbox.FIRST_PAUSE <= pauses[0] < pauses[1]
    assert str(event.session_id) in caplog.text
    assert await uploads.outbox.deliver_due() == 1
    kept = await reload(event)
    assert (kept.attempts, kept.error) == (3, "")
    assert kept.delivered_at is not None
    assert called == [event.pk] * 3


async def test_a_receiver_that_binds_is_done_when_another_one_makes_it_be_called_again(
    uploads: UploadService, owner: Owner, listen: Listen
) -> None:
    attempts: list[str] = []

    def bind(session: Any, **kwargs: Any) -> None:
        with transaction.atomic():
            session.bind()

    def fail_once(**kwargs: Any) -> None:
        attempts.append("attempt")
        if len(attempts) == 1:
            raise ValueError("once")

    listen(bind)
    listen(fail_once)
    event = await run(left_behind, owner)
    assert await uploads.outbox.deliver_due() == 0
    await make_due()
    assert await uploads.outbox.deliver_due() == 1
    assert (await reload(event)).delivered_at is not None


async def test_the_server_tries_again_by_itself(
    uploads: UploadService,
    connect: Callable[..., Any],
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", timedelta(0))
    monkeypatch.setattr(rows, "CLAIM", timedelta(seconds=0.05))
    called: list[Any] = []

    def receiver(event_id: Any, **kwargs: Any) -> None:
        called.append(event_id)
        if len(called) < 3:
            raise ValueError("once more")

    listen(receiver)
    async with connect() as client:
        await client.upload("a.bin", b"data")
        async with asyncio.timeout(30):
            while await CompletionEvent.objects.filter(delivered_at=None).aexists():
                await asyncio.sleep(0.02)
    assert len(called) == 3
    assert len(set(called)) == 1


async def test_what_fails_too_often_is_given_up_loudly_until_an_administrator_sends_it_again(
    uploads: UploadService, owner: Owner, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    async def receiver(**kwargs: Any) -> None:
        if broken:
            raise ValueError("broken for good")

    listen(receiver)
    event = await run(left_behind, owner, attempts=outbox.ATTEMPTS - 1)
    assert await uploads.outbox.deliver_due() == 0
    kept = await reload(event)
    assert kept.given_up_at is not None
    assert kept.attempts == outbox.ATTEMPTS
    (record,) = [each for each in caplog.records if "given up" in each.getMessage()]
    assert record.levelname == "ERROR"
    assert str(event.session_id) in record.getMessage()
    assert "broken for good" in record.getMessage()
    assert vars(record).items() >= {
        ("code", "outbox_dead"),
        ("upload", str(event.session_id)),
        ("owner", owner.key),
        ("endpoint", "default"),
    }
    await make_due()
    assert await uploads.outbox.deliver_due() == 0
    assert (await reload(event)).attempts == outbox.ATTEMPTS
    broken = False
    assert await uploads.outbox.send_again([event.session_id]) == {event.session_id}
    kept = await reload(event)
    assert (kept.attempts, kept.given_up_at, kept.error) == (1, None, "")
    assert kept.delivered_at is not None


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_receivers_that_hang_delay_no_other_event(
    uploads: UploadService, owner: Owner, listen: Listen, settings: Any, kind: str
) -> None:
    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "RECEIVER_TIMEOUT": 0.3}
    released = threading.Event()
    told: list[str] = []

    def hang(session: Any, **kwargs: Any) -> None:
        if session.name == "hang.bin":
            released.wait(60)
        else:
            told.append(session.name)

    async def hang_too(session: Any, **kwargs: Any) -> None:
        if session.name == "hang.bin":
            await asyncio.Event().wait()
        else:
            told.append(session.name)

    listen(hang if kind == "sync" else hang_too)
    try:
        hanging = [await run(left_behind, owner, name="hang.bin") for _ in range(AT_ONCE)]
        await run(left_behind, owner, name="good.bin")
        async with asyncio.timeout(30):
            assert await uploads.outbox.deliver_due() == 1
        assert told == ["good.bin"]
        for event in hanging:
            kept = await reload(event)
            assert kept.delivered_at is None
            assert "0.3 s" in kept.error
    finally:
        released.set()


async def test_slow_receivers_of_one_owner_leave_room_for_another(
    uploads: UploadService, owner: Owner, bob: Any, listen: Listen
) -> None:
    released, bob_is_notified = asyncio.Event(), asyncio.Event()

    async def slow(session: Any, **kwargs: Any) -> None:
        if session.owner_id == bob.pk:
            bob_is_notified.set()
        else:
            await released.wait()

    listen(slow)
    until = timezone.now() + timedelta(seconds=60)
    for _ in range(2 * AT_ONCE):
        uploads.outbox.deliver(await run(left_behind, owner, due_at=until))
    uploads.outbox.deliver(await run(left_behind, Owner(f"user:{bob.pk}", bob), due_at=until))
    async with asyncio.timeout(30):
        await bob_is_notified.wait()
    released.set()
    await uploads.outbox.join()


async def test_only_so_many_receivers_run_at_once(
    uploads: UploadService, db: None, media: Path, listen: Listen
) -> None:
    running = most = 0

    async def slow(**kwargs: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    listen(slow)
    until = timezone.now() + timedelta(seconds=60)
    visitors = [Owner(f"visitor:{number}", AnonymousUser()) for number in range(3)]
    events = [
        await run(left_behind, visitor, due_at=until)
        for visitor in visitors
        for _ in range(AT_ONCE_PER_OWNER)
    ]
    for event in events:
        uploads.outbox.deliver(event)
    await uploads.outbox.join()
    assert most == AT_ONCE


async def test_what_was_left_is_taken_up_owners_in_turn(
    uploads: UploadService, owner: Owner, bob: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "BATCH", 2)
    for _ in range(5):
        await run(left_behind, owner)
    last = await run(left_behind, Owner(f"user:{bob.pk}", bob))
    assert await uploads.outbox.deliver_due() == 6
    assert last.pk in [each["event_id"] for each in heard.named("completed")[:2]]


async def test_closing_does_not_wait_for_ever_and_leaves_the_rest_to_others(
    uploads: UploadService, owner: Owner, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CLOSE_SECONDS", 0.2)
    released = threading.Event()
    listen(lambda **kwargs: released.wait(60) and None)
    until = timezone.now() + timedelta(seconds=60)
    for _ in range(AT_ONCE_PER_OWNER + 3):
        uploads.outbox.deliver(await run(left_behind, owner, due_at=until, attempts=1))
    try:
        async with asyncio.timeout(30):
            await forget_service()
    finally:
        released.set()
    due = CompletionEvent.objects.due(timezone.now())
    assert [each.attempts async for each in due] == [0, 0, 0]  # none was started


async def test_claims_are_renewed_while_receivers_run_and_while_events_wait_for_them(
    uploads: UploadService, owner: Owner, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = timedelta(seconds=1)
    monkeypatch.setattr(outbox, "CLAIM", claim)
    released = asyncio.Event()
    running = 0
    most = 0

    async def slow(**kwargs: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await released.wait()
        running -= 1

    listen(slow)
    until = timezone.now() + 2 * claim
    count = AT_ONCE_PER_OWNER + 3
    for event in [await run(left_behind, owner, due_at=until) for _ in range(count)]:
        uploads.outbox.deliver(event)
    async with asyncio.timeout(60):
        while await CompletionEvent.objects.filter(due_at__gt=until + claim).acount() < count:
            await asyncio.sleep(0.05)
    assert most == running == AT_ONCE_PER_OWNER
    released.set()
    await uploads.outbox.join()
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
