"""The authentication of a client: by session cookie, by ticket, or in the host's own way; and again later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.sessions.backends.base import SessionBase

from .exceptions import (
    AuthenticationRequired,
    AuthenticationTimeout,
    ConnectionRefused,
    TicketInvalid,
    UploadError,
)
from .sessions.owners import Owner
from .tickets import read_ticket

Answer = asyncio.Future[Owner]
"""The result of an AUTH."""


class Login:
    """Who the client of a connection, or of a request, is."""

    def __init__(
        self,
        endpoint: str,
        look_up: Callable[[Any], Awaitable[Owner]],
        take_slot: Callable[[Owner], Awaitable[None]],
        changed: Callable[[Owner], None],
    ) -> None:
        """``look_up`` reads an owner from the database by a session, a ticket or an earlier owner; ``take_slot`` counts
        the connection as the owner's, or raises :class:`TooManyConnections`; ``changed`` is called with each new
        owner object."""
        self._endpoint = endpoint
        self._look_up = look_up
        self._take_slot = take_slot
        self._taking_slot = asyncio.Lock()
        self._changed = changed
        self._owner: Owner | None = None
        self._count = 0
        self._answer = _new_answer()
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the last AUTH was answered."""
        return self._answer.done()

    @property
    def key(self) -> str | None:
        """The owner's; None before the first authentication."""
        return None if self._owner is None else self._owner.key

    async def wait(self) -> Owner:
        """Wait for the answer to the last AUTH. Raises :class:`ConnectionRefused`."""
        return await asyncio.shield(self._answer)

    async def by_cookie(self, scope: dict[str, Any]) -> None:
        """Authenticate at the handshake; without a login the client may send a ticket. Raises :class:`UploadError`."""
        session = _session_of(scope)
        if session is not None and session.session_key is None:
            return  # without a cookie, as programs come: no query
        try:
            owner = await self._look_up(session or scope)
        except ConnectionRefused:
            return
        await self._take_slot(owner)
        self._accept(owner, self._answer)

    async def by_host(self, user: AbstractBaseUser) -> None:
        """Authenticate as the user whom the host found. Raises :class:`UploadError`."""
        owner = await self._look_up({"user": user})
        await self._take_slot(owner)
        self._accept(owner, self._answer)

    def expect(self) -> Answer:
        """AUTH was received: later messages depend on its answer, which :meth:`by_auth` gives.

        The client has kept its deadline: how long the answer takes is up to the database.
        """
        self._end_deadline()
        if self._answer.done():
            self._answer = _new_answer()
        return self._answer

    async def by_auth(self, ticket: str | None, answer: Answer) -> Owner | None:
        """Authenticate by ticket, or extend the login without one. Raises :class:`UploadError`.

        Returns None where the answer is not wanted any more: the deadline has passed, or the connection has ended.
        """
        try:
            if ticket is None and self._owner is None:
                raise AuthenticationRequired
            known = self._owner
            credential = known if ticket is None else read_ticket(ticket, endpoint=self._endpoint)
            owner = await self._look_up(credential)
            async with self._taking_slot:  # a connection is counted once
                if self._owner is None and not answer.done():
                    await self._take_slot(owner)
                if answer.done():
                    return None
                if self._owner is not None and owner.key != self._owner.key:
                    raise TicketInvalid
                self._accept(owner, answer)
        except UploadError as error:
            _refuse(answer, error)
            raise
        return owner

    async def reload(self) -> Owner:
        """Read the owner again, so that no permission is cached. Raises :class:`ConnectionRefused`."""
        owner = await self.wait()
        count = self._count
        owner = await self._look_up(self._owner)
        if count == self._count:  # otherwise a newer AUTH was accepted meanwhile
            self._set(owner)
        return owner

    def refuse(self, error: UploadError) -> None:
        """Answer an AUTH that is awaited with an error."""
        self._end_deadline()
        _refuse(self._answer, error)

    def limit(self, seconds: float, late: Callable[[UploadError], None]) -> None:
        """Where no AUTH is received in time, refuse it and call ``late`` with the error."""

        def ring() -> None:
            if not self._answer.done():
                error = AuthenticationTimeout(seconds=seconds)
                self.refuse(error)
                late(error)

        if not self._answer.done():
            self._deadline = asyncio.get_running_loop().call_later(seconds, ring)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _accept(self, owner: Owner, answer: Answer) -> None:
        self._count += 1
        self._set(owner)
        answer.set_result(owner)

    def _set(self, owner: Owner) -> None:
        self._owner = owner
        self._changed(owner)


def _new_answer() -> Answer:
    answer: Answer = asyncio.get_running_loop().create_future()
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
    return answer


def _refuse(answer: Answer, error: UploadError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _session_of(scope: dict[str, Any]) -> SessionBase | None:
    """The session of the cookie, to be read from the database: the one in the scope is outdated."""
    session = scope.get("session")
    if session is None:
        return None
    engine = import_module(settings.SESSION_ENGINE)
    key = session.session_key
    # A cookie may contain any text, and databases refuse a NUL.
    return engine.SessionStore(key if key and key.isprintable() else None)  # type: ignore[no-any-return]
