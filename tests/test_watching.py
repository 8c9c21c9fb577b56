"""Watchers over the consumer: what they are told, who may watch, and that a slow one delays nobody."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from django.contrib.auth.models import Permission
from django.test import Client

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine import watching
from django_async_upload.engine.service import UploadService, get_service
from django_async_upload.exceptions import (
    InternalError,
    PermissionRefused,
    TicketInvalid,
    UnexpectedMessage,
)
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.owners import Owner
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import issue_ticket
from django_async_upload.websocket.connection import MAX_WATCHES
from django_async_upload.websocket.errors import error_message

from .fixtures import KIB, MIB, finish, new_key, publish, row, run, settled

pytest_plugins = ["tests.fixtures"]

Connect = Callable[..., UploadCommunicator]
UNKNOWN = "00000000-0000-4000-8000-000000000000"


async def follow(
    client: UploadCommunicator, scope: str, *uploads: str, stream: int = 99
) -> m.Changed:
    await client.send(m.Watch(scope, list(uploads)), stream)
    return await client.wait_for(m.Changed, stream)


async def told(
    client: UploadCommunicator, upload: str, holds: Callable[[m.Status], Any], stream: int = 99
) -> m.Status:
    """Wait for a standing of an upload of which something holds."""
    while True:
        for each in (await client.wait_for(m.Changed, stream)).standings:
            status = m.Status.from_fields(each)
            if status.upload == upload and holds(status):
                return status


async def begin(client: UploadCommunicator, size: int = MIB, stream: int = 1) -> m.Created:
    await client.send(m.Create(new_key(), "a.bin", size), stream)
    return await client.wait_for(m.Created, stream)


@pytest.fixture
async def cookies_of(transactional_db: None) -> Callable[[Any], Any]:
    def cookies(user: Any) -> Any:
        client = Client()
        client.force_login(user)
        return client.cookies

    return cookies


async def test_a_watcher_gets_the_standing_at_once_and_then_the_changes(
    connect: Connect, media: Path
) -> None:
    async with connect() as uploader, connect() as watcher:
        created = await begin(uploader, 40 * KIB)
        first = await follow(watcher, "uploads", created.upload)
        assert first.standings == [
            {"upload": created.upload, "state": "uploading", "name": "a.bin", "durable": 0}
            | {"size": 40 * KIB}
        ]
        data = b"x" * 40 * KIB
        await uploader.send_data(1, 0, data[: 16 * KIB])
        half = await told(watcher, created.upload, lambda each: each.received or each.durable)
        assert max(half.received or 0, half.durable) == 16 * KIB
        ack = await uploader.wait_for(m.Ack, 1)
        while ack.limit < len(data):
            ack = await uploader.wait_for(m.Ack, 1)
        await uploader.send_data(1, 16 * KIB, data[16 * KIB :])
        await uploader.send(finish(data), 1)
        done = await told(watcher, created.upload, lambda each: each.state == "completed")
        assert done.stored_as == (await row(created.upload)).stored_as
        await watcher.send(m.Release(), 99)
        assert await watcher.wait_for(m.Released, 99) == m.Released(0)


async def test_bytes_are_told_before_any_row_has_them(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect() as uploader, connect() as watcher:
        created = await begin(uploader)
        await follow(watcher, "uploads", created.upload)
        watch = next(iter(get_service().watching._watches))
        watch._look_due = float("inf")
        monkeypatch.setattr(watch, "_follows", lambda touched: False)
        await uploader.send_data(1, 0, b"x" * 16 * KIB)
        status = await told(watcher, created.upload, lambda each: True)
        assert status.received == 16 * KIB


async def test_all_of_a_users_uploads_also_those_that_begin_later(
    connect: Connect, bob: Any, cookies_of: Any
) -> None:
    async with (
        connect() as uploader,
        connect() as watcher,
        connect(cookies=await run(cookies_of, bob)) as other,
    ):
        first = await begin(uploader)
        foreign = await begin(other)
        assert [each["upload"] for each in (await follow(watcher, "own")).standings] == [
            first.upload
        ]
        second = await begin(uploader, stream=2)
        await told(watcher, second.upload, lambda each: each.state == "uploading")
        await uploader.send(m.Cancel(), 2)
        await told(watcher, second.upload, lambda each: each.state == "cancelled")
        small = await uploader.upload("small.bin", b"tiny")
        await told(watcher, small.upload, lambda each: each.state == "completed")
        known = next(iter(get_service().watching._watches))._known
        assert uuid.UUID(foreign.upload) not in known


async def test_an_upload_of_another_owner_and_a_missing_one_look_the_same(
    connect: Connect, bob: Any, cookies_of: Any
) -> None:
    async with connect() as uploader, connect(cookies=await run(cookies_of, bob)) as watcher:
        created = await begin(uploader)
        answer = await follow(watcher, "uploads", created.upload, UNKNOWN)
        assert answer.standings == []
        assert answer.missing == [created.upload, UNKNOWN]


async def test_an_upload_whose_row_is_deleted_is_missing_from_then_on(
    connect: Connect, owner: Owner
) -> None:
    done = await run(publish, owner)
    async with connect() as watcher:
        await follow(watcher, "uploads", str(done.pk))
        await UploadSession.objects.filter(pk=done.pk).adelete()
        assert (await watcher.wait_for(m.Changed, 99)).missing == [str(done.pk)]


async def test_staff_with_the_permission_may_watch_everything(
    connect: Connect, bob: Any, cookies_of: Any
) -> None:
    async with connect() as uploader:
        created = await begin(uploader)
        bob.is_staff = True
        await bob.asave()
        cookies = await run(cookies_of, bob)
        async with connect(cookies=cookies) as watcher:
            with pytest.raises(PermissionRefused):
                await follow(watcher, "all")
        await bob.user_permissions.aadd(
            await Permission.objects.aget(codename="view_uploadsession")
        )
        async with connect(cookies=cookies) as watcher:
            assert (await follow(watcher, "all")).standings[0]["upload"] == created.upload
            named = await follow(watcher, "uploads", created.upload, stream=100)
            assert named.standings[0]["upload"] == created.upload


async def test_the_right_is_checked_again_while_somebody_watches(
    connect: Connect, bob: Any, cookies_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RIGHTS_SECONDS", 0.5)
    bob.is_staff = bob.is_superuser = True
    await bob.asave()
    async with connect(cookies=await run(cookies_of, bob)) as watcher:
        await follow(watcher, "all")
        bob.is_superuser = False
        await bob.asave()
        with pytest.raises(PermissionRefused):
            await watcher.wait_for(m.Completed, 99)


@pytest.mark.parametrize("by", ["login", "ticket"])
async def test_after_authenticating_again_a_watcher_is_not_told_what_it_may_no_longer_see(
    connect: Connect, bob: Any, cookies_of: Any, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(watching, "RIGHTS_SECONDS", float("inf"))
    bob.is_staff = bob.is_superuser = True
    await bob.asave()
    by_cookie = {"cookies": await run(cookies_of, bob)}
    options: dict[str, Any] = {"ticket": issue_ticket(bob)} if by == "ticket" else by_cookie
    async with connect() as uploader, connect(**options) as watcher:
        upload = (await begin(uploader)).upload
        await follow(watcher, "uploads", upload)
        await follow(watcher, "all", stream=100)
        bob.is_superuser = False
        await bob.asave()
        await watcher.send(m.Auth(issue_ticket(bob) if by == "ticket" else None))
        await watcher.wait_for(m.Authenticated)
        await uploader.send_data(1, 0, b"x" * 16 * KIB)
        told_after: list[m.Message] = []
        while len(told_after) < 2:
            told_after.append((await watcher.receive()).message)
    assert sorted(told_after, key=str) == [
        m.Changed([], [upload]),
        error_message(PermissionRefused("You may not watch all uploads.")),
    ]


async def test_a_ticket_of_another_owner_ends_the_watch_with_the_connection(
    connect: Connect, bob: Any, uploads: UploadService
) -> None:
    async with connect() as watcher:
        await follow(watcher, "own")
        assert len(uploads.watching) == 1
        await watcher.send(m.Auth(issue_ticket(bob)))
        with pytest.raises(TicketInvalid):
            await watcher.wait_for(m.Changed, 99)
    await settled()
    assert len(uploads.watching) == 0


class TeamConsumer(UploadConsumer):
    """Bob may watch what is named for the team."""

    async def may_watch(self, user: Any, session: UploadSession | None) -> bool:
        return session is not None and session.name.startswith("team")


async def test_a_hook_says_who_else_may_watch(connect: Connect, bob: Any, cookies_of: Any) -> None:
    application = AuthMiddlewareStack(TeamConsumer.as_asgi())
    async with (
        connect(application) as uploader,
        connect(application, cookies=await run(cookies_of, bob)) as watcher,
    ):
        await uploader.send(m.Create(new_key(), "team.bin", MIB), 1)
        team = await uploader.wait_for(m.Created, 1)
        await uploader.send(m.Create(new_key(), "private.bin", MIB), 2)
        private = await uploader.wait_for(m.Created, 2)
        answer = await follow(watcher, "uploads", team.upload, private.upload)
        assert [each["upload"] for each in answer.standings] == [team.upload]
        assert answer.missing == [private.upload]
        with pytest.raises(PermissionRefused):
            await follow(watcher, "all", stream=100)


async def test_a_hook_that_hangs_is_given_up(connect: Connect, settings: Any) -> None:
    class Hanging(UploadConsumer):
        async def may_watch(self, user: Any, session: UploadSession | None) -> bool:
            await asyncio.sleep(3600)
            return True

    settings.ASYNC_UPLOAD = {**settings.ASYNC_UPLOAD, "RECEIVER_TIMEOUT": 0.2}
    async with connect(AuthMiddlewareStack(Hanging.as_asgi())) as watcher:
        with pytest.raises(InternalError):
            await asyncio.wait_for(follow(watcher, "all"), 10)


async def test_an_upload_of_another_endpoint_is_missing(connect: Connect, owner: Owner) -> None:
    done = await run(publish, owner, endpoint="films")
    async with connect() as watcher:
        assert (await follow(watcher, "uploads", str(done.pk))).missing == [str(done.pk)]


async def test_a_ninth_watcher_of_a_connection_has_to_wait(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "django_async_upload")
    async with connect() as watcher:
        for stream in range(1, MAX_WATCHES + 1):
            await follow(watcher, "own", stream=stream)
        await watcher.send(m.Watch("own"), 50)
        _, refusal = await watcher.receive()
        assert isinstance(refusal, m.Error)
        assert refusal.code == "busy"
    assert [each.code for each in caplog.records if hasattr(each, "code")] == ["busy"]


async def test_a_watch_is_released_and_not_cancelled(connect: Connect) -> None:
    async with connect() as watcher:
        await follow(watcher, "own")
        await watcher.send(m.Release(), 99)
        await watcher.wait_for(m.Released, 99)
        await follow(watcher, "own", stream=100)
        await watcher.send(m.Cancel(), 100)
        with pytest.raises(UnexpectedMessage):
            await watcher.wait_for(m.Cancelled, 100)


async def test_many_uploads_come_in_several_messages_that_fit(
    connect: Connect, owner: Owner
) -> None:
    name = "a" * 100
    pks = [str((await run(publish, owner, name=f"{name}{i}")).pk) for i in range(60)]
    async with connect() as watcher:
        got: list[str] = []
        await watcher.send(m.Watch("uploads", pks), 99)
        answers = 0
        while len(got) < len(pks):
            got += [each["upload"] for each in (await watcher.wait_for(m.Changed, 99)).standings]
            answers += 1
    assert set(got) == set(pks)
    assert answers > 1


# Slow watchers ------------------------------------------------------------------------------------


async def test_of_what_a_slow_watcher_has_not_read_only_the_newest_is_kept(
    uploads: UploadService, owner: Owner
) -> None:
    """The socket has no room for a while: the sender takes nothing meanwhile."""
    sessions = [await run(publish, owner, state="uploading", durable=0, size=MIB) for _ in range(3)]

    class Hooks:
        def __init__(self) -> None:
            self.owner = owner

        async def authenticated(self) -> Owner:
            return owner

        async def reload_owner(self) -> Owner:
            return owner

        async def is_watchable(self, session: UploadSession | None) -> bool:
            return False

    offers: list[None] = []
    watch = uploads.watching.watch(
        Hooks(),
        "default",
        watching.WatchScope.OWN,
        (),
        lambda: offers.append(None),
    )
    task = asyncio.create_task(watch.run())
    while not offers:
        await asyncio.sleep(0.01)
    for received in range(1, 10_000):
        watch.hear({each.pk: received for each in sessions}, {})
    assert len(watch._news) == 3
    standings, missing = watch.take(lambda each: 1, 2)
    assert [each.received for each in standings] == [9_999, 9_999]
    assert not missing
    assert watch.has_news
    watch.stop()
    await task


async def test_a_watcher_that_reads_nothing_delays_no_upload(
    connect: Connect, application: Any, uploads: UploadService
) -> None:
    room = asyncio.Event()
    room.set()

    async def narrow(scope: Any, receive: Any, send: Any) -> None:
        async def send_when_there_is_room(message: Any) -> None:
            await room.wait()
            await send(message)

        await application(scope, receive, send_when_there_is_room)

    async with connect() as uploader, connect(narrow) as watcher:
        await follow(watcher, "own")
        room.clear()
        done = [await uploader.upload(f"{each}.bin", b"x" * MIB) for each in range(5)]
        await asyncio.sleep(2 * watching.SEND_SECONDS)
        (watch,) = uploads.watching._watches
        assert len(watch._news) <= len(done)
        room.set()
        heard: list[dict[str, Any]] = []
        while len({each["upload"] for each in heard if each["state"] == "completed"}) < len(done):
            heard += (await watcher.wait_for(m.Changed, 99)).standings
        assert len(heard) <= 2 * len(done)  # at most one frame was on its way when the room ended


async def test_nobody_is_told_where_nobody_watches(
    connect: Connect, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[str] = []
    publish_ = uploads.bus.publish
    monkeypatch.setattr(
        uploads.bus,
        "publish",
        lambda kind, message: (published.append(kind), publish_(kind, message)),
    )
    async with connect() as uploader:
        await uploader.upload("a.bin", b"x" * 100 * KIB)
    await settled()
    assert not {"progress", "watched"} & set(published)
    assert not uploads.watching._touched  # nothing gathers meanwhile


async def test_a_process_publishes_only_what_is_watched(
    connect: Connect, uploads: UploadService, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: set[str] = set()
    publish_ = uploads.bus.publish

    def record(kind: str, message: Any) -> None:
        published.update(message.get("moved", ()), message.get("touched", ()))
        publish_(kind, message)

    monkeypatch.setattr(uploads.bus, "publish", record)
    async with connect() as uploader, connect() as watcher:
        followed = (await begin(uploader, stream=1)).upload
        await follow(watcher, "uploads", followed)
        other = (await begin(uploader, stream=2)).upload
        for stream in (2, 1):
            await uploader.send_data(stream, 0, b"x" * 16 * KIB)
        await told(watcher, followed, lambda each: each.received == 16 * KIB)
        await uploader.send(m.Cancel(), 2)
        await uploader.wait_for(m.Cancelled, 2)
        await uploader.send(m.Cancel(), 1)
        await told(watcher, followed, lambda each: each.state == "cancelled")
    assert followed in published
    assert other not in published


async def test_a_process_stops_publishing_when_the_interest_ends(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "INTEREST_SECONDS", 0.5)
    async with connect() as watcher:
        await follow(watcher, "own")
        assert get_service().watching._publishing is not None
    for _ in range(200):
        if get_service().watching._publishing is None:
            break
        await asyncio.sleep(0.02)
    assert get_service().watching._publishing is None
