"""Watchers of uploads, and what processes tell each other for them.

The truth is in the rows. A watcher reads those that it follows, again when it hears that one of them has changed, and
every few seconds. Messages over the bus save time, and bring the bytes that no row has yet; if one is lost, a later
look finds what it said. A process publishes only what some process has asked for in the last seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from django.utils import timezone

from ..exceptions import PermissionRefused
from ..models import UploadSession
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.state import ACTIVE, OVER, PUBLISHED, State
from ..sessions.values import MAX_WATCHED, WatchQuery, WatchScope
from .active import ActiveUpload
from .bus import Bus, Message
from .database import Database

SEND_SECONDS: Final = 0.25
"""Seconds between two tellings of a watcher, and between two messages of a process."""
LOOK_SECONDS: Final = 1.0
"""Seconds between a watcher's looks at the rows, where the bus reaches no other process."""
RARE_LOOK_SECONDS: Final = 5.0
"""Seconds between them where it does."""
LOOKS_REST: Final = 20
"""Pause after a look at the rows, in multiples of its duration: many watchers leave the database to uploads."""
RIGHTS_SECONDS: Final = 30.0
"""Seconds after which the right to watch is checked again."""
INTEREST_SECONDS: Final = 10.0
"""Seconds for which a process publishes what another one asked for; a watcher's process asks three times as often."""
PER_MESSAGE: Final = 200
"""Uploads in one message."""
SLACK: Final = timedelta(seconds=10)
"""How far the clocks of processes may differ: a look finds what began so long before the last one."""
EVERYTHING: Final = "*"


@lru_cache(4096)
def topic_of(owner_key: str) -> str:
    """A name for an owner in messages, which is no secret as a visitor's key is."""
    return hashlib.sha256(owner_key.encode()).hexdigest()[:16]


class Standing(NamedTuple):
    """What a watcher is told of an upload."""

    upload: uuid.UUID
    state: State
    name: str
    durable: int
    size: int | None
    stored_as: str | None
    error: str | None
    received: int
    epoch: int
    began: Any
    """When it was created."""


class WatchHooks(Protocol):
    """What a watcher asks its endpoint."""

    owner: Owner

    async def authenticated(self) -> Owner:
        """Wait for the answer to the last AUTH, and return its owner: another object after each. Raises
        :class:`ConnectionRefused`."""

    async def reload_owner(self) -> Owner:
        """The owner as now in the database. Raises :class:`ConnectionRefused`."""

    async def is_watchable(self, session: UploadSession | None) -> bool:
        """Whether the user may watch an upload of another owner, or with None all uploads of the endpoint."""


class Watch:
    """One watcher: the newest standing of each upload that it follows, and which of them it has not been told.

    :meth:`run` is its task; ``offer`` is called when :meth:`take` has something. However slow the watcher is, it holds
    one standing for each upload, of :data:`MAX_WATCHED` at most.
    """

    def __init__(
        self,
        watching: Watching,
        hooks: WatchHooks,
        endpoint: str,
        scope: WatchScope,
        uploads: Iterable[uuid.UUID],
        offer: Callable[[], None],
    ) -> None:
        self._watching = watching
        self._hooks = hooks
        self._endpoint = endpoint
        self._scope = scope
        self._named = dict.fromkeys(uploads)
        self._offer = offer
        self._known: dict[uuid.UUID, Standing] = {}
        self._news: dict[uuid.UUID, None] = {}
        self._missing: dict[uuid.UUID, bool] = {}
        """Uploads that do not exist for the watcher, and whether it was told so."""
        self._is_answered = False
        self._allowed: dict[uuid.UUID | None, bool] = {}
        """The hook's answers; under None the one for all uploads."""
        self._checked_at = float("-inf")
        self._checked_for: Owner | None = None
        """The answer to AUTH that was the last when the right was checked."""
        self._looked_at: Any = None
        self._look_due = 0.0
        self._rests_until = 0.0
        """No look before that because of a message."""
        self._wake = asyncio.Event()
        self._is_stopped = False

    @property
    def topics(self) -> set[str]:
        """What its process asks other processes for."""
        topics = {str(each) for each in self._named}
        if self._scope is WatchScope.ALL:
            topics.add(EVERYTHING)
        elif self._scope is WatchScope.OWN:
            topics.add(topic_of(self._hooks.owner.key))
        return topics

    # For the door -------------------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        return bool(self._news) or not self._is_answered or not all(self._missing.values())

    def take(
        self, size: Callable[[Standing], int], most: int
    ) -> tuple[list[Standing], list[uuid.UUID]]:
        """The uploads to tell next, at least one and of at most ``most`` bytes by ``size``, and those missing."""
        taken: list[Standing] = []
        for upload in self._news:
            standing = self._known[upload]
            most -= size(standing)
            if most < 0 and taken:
                break
            taken.append(standing)
        for standing in taken:
            del self._news[standing.upload]
        missing = [each for each, is_told in self._missing.items() if not is_told]
        self._missing.update(dict.fromkeys(missing, True))
        self._is_answered = True
        return taken, missing

    def stop(self) -> None:
        """End :meth:`run`."""
        self._is_stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Follow the uploads. Raises :class:`PermissionRefused` and other errors when it cannot go on."""
        loop = asyncio.get_running_loop()
        self._watching.add(self)
        try:
            while not self._is_stopped:
                if await self._must_check_rights() or loop.time() >= self._look_due:
                    await self._look()
                if self.has_news:
                    self._offer()
                await asyncio.sleep(SEND_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._look_due):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            self._watching.remove(self)

    # From other processes, and this one -----------------------------------------------------------

    def hear(self, moved: Mapping[uuid.UUID, int], touched: Mapping[uuid.UUID, str]) -> None:
        """``moved`` has the bytes received of uploads, ``touched`` those that changed, with their owners' topics."""
        for upload in self._known.keys() & moved.keys():
            standing, received = self._known[upload], moved[upload]
            if received > standing.received and standing.state in ACTIVE:
                self._known[upload] = standing._replace(received=received)
                self._news[upload] = None
                self._wake.set()
        if touched and self._follows(touched):
            now = asyncio.get_running_loop().time()
            self._look_due = min(self._look_due, max(now, self._rests_until))
            self._wake.set()

    def _follows(self, touched: Mapping[uuid.UUID, str]) -> bool:
        if self._scope is WatchScope.ALL:
            return True
        if self._scope is WatchScope.OWN and topic_of(self._hooks.owner.key) in touched.values():
            return True
        return not touched.keys().isdisjoint(self._named)

    # The rows -----------------------------------------------------------------------------------

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        began, now = loop.time(), timezone.now()
        if await self._must_check_rights():
            await self._check_rights()
        asked = dict.fromkeys(self._named)
        asked.update((pk, None) for pk, each in self._known.items() if each.state in ACTIVE)
        query = WatchQuery(
            endpoint=self._endpoint,
            scope=self._scope,
            owner_key=self._hooks.owner.key,
            uploads=tuple(islice(asked, MAX_WATCHED)),
            since=self._looked_at and self._looked_at - SLACK,
        )
        found: list[UploadSession] = await self._watching.database.call(
            rows.watched, query, owner=self._hooks.owner.key
        )
        seen = {each.pk: each for each in found if await self._may_watch(each)}
        for session in seen.values():
            self._learn(session)
        for upload in query.uploads:
            if upload not in seen:
                self._lose(upload)
        self._forget_ended(query)
        self._looked_at = now
        took = loop.time() - began
        self._rests_until = loop.time() + LOOKS_REST * took
        self._look_due = loop.time() + max(self._watching.look_seconds, LOOKS_REST * took)

    async def _must_check_rights(self) -> bool:
        """Whether the last check is too old, or the client has authenticated again since."""
        if await self._hooks.authenticated() is not self._checked_for:
            return True
        return asyncio.get_running_loop().time() - self._checked_at >= RIGHTS_SECONDS

    async def _check_rights(self) -> None:
        self._checked_for = await self._hooks.authenticated()
        self._checked_at = asyncio.get_running_loop().time()
        self._allowed.clear()
        await self._hooks.reload_owner()
        if self._scope is WatchScope.ALL and not await self._ask(None):
            raise PermissionRefused("You may not watch all uploads.")

    async def _may_watch(self, session: UploadSession) -> bool:
        return (
            session.owner_key == self._hooks.owner.key
            or await self._ask(None)
            or await self._ask(session)
        )

    async def _ask(self, session: UploadSession | None) -> bool:
        about = None if session is None else session.pk
        if about not in self._allowed:
            self._allowed[about] = await self._hooks.is_watchable(session)
        return self._allowed[about]

    def _learn(self, session: UploadSession) -> None:
        before = self._known.get(session.pk)
        if before is None and len(self._known) >= MAX_WATCHED:
            return
        standing = standing_of(session)
        if before is not None and (before.epoch, before.state) == (standing.epoch, standing.state):
            # The bytes that were heard of may have no checkpoint yet.
            standing = standing._replace(received=max(before.received, standing.received))
        self._missing.pop(session.pk, None)
        self._known[session.pk] = standing
        if before is None or before[:-2] != standing[:-2]:
            self._news[session.pk] = None

    def _lose(self, upload: uuid.UUID) -> None:
        """The upload does not exist, or not any more, or not for this watcher."""
        self._known.pop(upload, None)
        self._news.pop(upload, None)
        self._missing.setdefault(upload, False)

    def _forget_ended(self, query: WatchQuery) -> None:
        """Forget uploads that were told of to the end, and that the next look does not find."""
        if query.since is None:
            return
        for upload, standing in list(self._known.items()):
            is_told = upload not in self._news and upload not in self._named
            if is_told and standing.state not in ACTIVE and standing.began < query.since:
                del self._known[upload]


def standing_of(session: UploadSession) -> Standing:
    """What a watcher is told of an upload, by its row."""
    state = State(session.state)
    is_whole = state in PUBLISHED and session.size is not None
    return Standing(
        upload=session.pk,
        state=state,
        name=session.name,
        durable=session.durable,
        size=session.size,
        stored_as=session.stored_as if state in PUBLISHED else None,
        error=session.error or None if state in OVER else None,
        received=session.size if is_whole and session.size is not None else session.durable,
        epoch=session.epoch,
        began=session.created_at,
    )


class Watching:
    """The watchers of a process, and what it publishes for those of all processes."""

    def __init__(
        self, database: Database, bus: Bus, active: Mapping[uuid.UUID, ActiveUpload]
    ) -> None:
        self.database = database
        self._bus = bus
        self._active = active
        self._watches: set[Watch] = set()
        self._wanted: dict[str, float] = {}
        """Topics that a process has asked for: an upload's id, an owner's topic, or everything; and until when."""
        self._sampled: dict[uuid.UUID, int] = {}
        self._touched: dict[uuid.UUID, str] = {}
        self._publishing: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    def __len__(self) -> int:
        """The watchers of this process."""
        return len(self._watches)

    @property
    def look_seconds(self) -> float:
        """Seconds between looks at the rows."""
        return RARE_LOOK_SECONDS if self._bus.is_shared else LOOK_SECONDS

    def start(self) -> None:
        """Hear what other processes watch."""
        self._bus.unsubscribe("watched", self._asked)
        self._bus.subscribe("watched", self._asked)

    def stop(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()

    def watch(
        self,
        hooks: WatchHooks,
        endpoint: str,
        scope: WatchScope,
        uploads: Iterable[uuid.UUID],
        offer: Callable[[], None],
    ) -> Watch:
        """A new watcher, to be run."""
        return Watch(self, hooks, endpoint, scope, uploads, offer)

    def add(self, watch: Watch) -> None:
        if not self._watches:
            self._bus.subscribe("progress", self._hear)
        self._watches.add(watch)
        self._ask_for(watch.topics)

    def remove(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if not self._watches:
            self._bus.unsubscribe("progress", self._hear)

    def touch(self, session: UploadSession) -> None:
        """The row of an upload has changed otherwise than by bytes."""
        topic = topic_of(session.owner_key)
        if self._is_wanted(session.pk, topic):
            self._touched[session.pk] = topic

    def _is_wanted(self, upload: uuid.UUID, topic: str) -> bool:
        wanted = self._wanted
        return bool(wanted) and (EVERYTHING in wanted or topic in wanted or str(upload) in wanted)

    # Messages -----------------------------------------------------------------------------------

    def _ask_for(self, topics: Iterable[str]) -> None:
        asked = sorted(topics)
        for start in range(0, len(asked), PER_MESSAGE):
            self._bus.publish("watched", {"topics": asked[start : start + PER_MESSAGE]})

    def _asked(self, message: Message) -> None:
        """A process, perhaps this one, watches these topics."""
        until = asyncio.get_running_loop().time() + INTEREST_SECONDS
        for topic in message["topics"]:
            if topic not in self._wanted:
                self._sampled.clear()  # the new watcher is told where all of them are
            self._wanted[topic] = until
        if self._publishing is None:
            self._publishing = asyncio.create_task(self._publish_while_wanted())

    def _hear(self, message: Message) -> None:
        moved = {uuid.UUID(each): received for each, received in message["moved"].items()}
        touched = {uuid.UUID(each): topic for each, topic in message["touched"].items()}
        for watch in self._watches:
            watch.hear(moved, touched)

    async def _publish_while_wanted(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._wanted:
                self._publish()
                if self._watches and loop.time() - self._asked_at > INTEREST_SECONDS / 3:
                    self._asked_at = loop.time()
                    self._ask_for(set().union(*(watch.topics for watch in self._watches)))
                await asyncio.sleep(SEND_SECONDS)
                now = loop.time()
                self._wanted = {each: end for each, end in self._wanted.items() if end > now}
        finally:
            self._publishing = None
            self._sampled.clear()
            self._touched.clear()

    def _publish(self) -> None:
        """Publish what has changed since the last time."""
        sampled = {pk: upload.flow.received for pk, upload in self._active.items()}
        moved = [
            (str(pk), received)
            for pk, received in sampled.items()
            if self._sampled.get(pk) != received
            and self._is_wanted(pk, topic_of(self._active[pk].session.owner_key))
        ]
        touched = [(str(pk), topic) for pk, topic in self._touched.items()]
        self._sampled = sampled
        self._touched = {}
        for some, others in _chunks(moved, touched):
            self._bus.publish("progress", {"moved": dict(some), "touched": dict(others)})


def _chunks(
    moved: Sequence[tuple[str, int]], touched: Sequence[tuple[str, str]]
) -> Iterable[tuple[Sequence[tuple[str, int]], Sequence[tuple[str, str]]]]:
    for start in range(0, max(len(moved), len(touched)), PER_MESSAGE):
        stop = start + PER_MESSAGE
        yield moved[start:stop], touched[start:stop]
