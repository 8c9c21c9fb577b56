"""The app's own answer to a completed upload: the hook runs once, and the row keeps the answer for later requests.

The hook runs after the completion is committed, before the client is notified: so it can bind the file, and a process
that recovers an upload needs no endpoint. If the hook fails, the upload is complete all the same, and its answer is
empty.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

from django.utils import timezone

from .. import conf
from ..concurrency.apart import Unfinished, apart
from ..models import UploadSession
from ..sessions import answers
from ..sessions.answers import Answer, Asking, InvalidAnswer
from .database import Database
from .outcomes import End, end_of
from .verify import Hooks

logger = logging.getLogger("django_async_upload")

AT_ONCE_PER_OWNER: Final = 8
"""Uploads of one owner whose answers one process asks for at the same time: sync hooks have a thread each."""
GRACE: Final = 10.0
"""Seconds beyond the hook's time limit before another process may call it."""
PATIENCE: Final = 60.0
"""Seconds for which saving the answer is retried."""


class Answers:
    """The answers that this process obtains."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asking: dict[uuid.UUID, asyncio.Task[UploadSession]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @property
    def running(self) -> list[asyncio.Task[UploadSession]]:
        return list(self._asking.values())

    async def answered(self, end: End, hooks: Hooks) -> End:
        """Return a published upload with its answer; a cancelled one has none.

        The hook continues if the caller is cancelled. Raises :class:`Busy` while another process calls the hook.
        """
        session = end.session
        if not hooks.responds or not session.is_completed or session.response is not None:
            return end
        asking = self._asking.get(session.pk)
        if asking is None:
            asking = asyncio.create_task(self._answer_in_turn(session, hooks))
            self._asking[session.pk] = asking
            asking.add_done_callback(partial(self._forget, session.pk))
        return end_of(await asyncio.shield(asking))

    def _forget(self, pk: uuid.UUID, asking: asyncio.Task[UploadSession]) -> None:
        del self._asking[pk]
        if not asking.cancelled():
            asking.exception()  # retrieved: callers that wait get it

    async def _answer_in_turn(self, session: UploadSession, hooks: Hooks) -> UploadSession:
        turns = self._turns.setdefault(session.owner_key, asyncio.Semaphore(AT_ONCE_PER_OWNER))
        async with turns:
            return await self._answer(session, hooks)

    async def _answer(self, session: UploadSession, hooks: Hooks) -> UploadSession:
        seconds = conf.uploads().receiver_timeout
        owner = session.owner_key
        asking = Asking(session.pk, _until(seconds + GRACE))
        session = await self._database.call(answers.ask, asking, owner=owner)
        if not session.is_completed or session.response is not None:
            return session
        answer = Answer(session.pk, await self._ask(session, hooks, seconds))
        return await self._database.call(answers.save, answer, owner=owner, patience=PATIENCE)

    async def _ask(self, session: UploadSession, hooks: Hooks, seconds: float) -> dict[str, Any]:
        upload = session.pk  # a copy, since the hook may change the session
        try:
            return answers.as_json(await apart(partial(hooks.respond, session), seconds))
        except Unfinished as error:
            logger.error("No answer of the app to upload %s (respond_failed): it %s", upload, error)
        except InvalidAnswer as error:
            logger.error("No answer of the app to upload %s (response_invalid): %s", upload, error)
        except Exception as error:
            logger.error(
                "No answer of the app to upload %s (respond_failed)", upload, exc_info=error
            )
        return {}


def _until(seconds: float) -> datetime:
    """The time in that many seconds, with a random fraction, so that no other process writes the same time."""
    return timezone.now() + timedelta(seconds=seconds, microseconds=secrets.randbelow(1_000_000))
