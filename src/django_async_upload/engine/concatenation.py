"""Concatenation: one upload of the bytes of others, which are partial."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

from ..exceptions import Busy, Joined, NotFound, PartsRefused
from ..models import UploadSession
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.state import ACTIVE, State
from ..sessions.values import NewUpload, UploadAccess
from ..stores.base import Writer, combine_crc32c
from .service import LOCK_SECONDS, UploadService

SLICE: Final = 1024 * 1024
"""Bytes that are read from a part at once."""


class Concatenation:
    """The partial uploads of one client in the order in which their bytes are written, as those of a request would be,
    to an upload of their own.

    Nothing is lost by a crash in the middle: the parts are still there, and the same request finds the upload that was
    begun by its key, and continues it. They are deleted by :meth:`join`, once the upload is published.
    """

    def __init__(
        self, service: UploadService, sessions: Sequence[UploadSession], owner: Owner
    ) -> None:
        self._service = service
        self._owner = owner
        self._sessions = sessions
        self._ends = list(accumulate(session.size or 0 for session in sessions))
        self.size = self._ends[-1]
        """Bytes of all."""
        crc = 0
        for session in sessions:
            crc = combine_crc32c(crc, session.crc, session.size or 0)
        self.crc32c = f"{crc:08x}"
        """The CRC of all, eight hexadecimal digits."""
        ids = ",".join(str(session.pk) for session in sessions)
        self.key = hashlib.sha256(ids.encode()).hexdigest()[:32]
        """The key of the upload: the same parts in the same order make the same one."""

    @classmethod
    async def of(
        cls, service: UploadService, parts: Sequence[uuid.UUID], owner: Owner, endpoint: str
    ) -> Concatenation:
        """Find the parts. Raises :class:`PartsRefused` unless they all are partial uploads of this owner that have all
        their bytes, and :class:`ConnectionRefused`."""
        accesses = [UploadAccess(part, owner, endpoint) for part in parts]
        found = await asyncio.gather(
            *(service.find(access) for access in accesses), return_exceptions=True
        )
        sessions = []
        for part, session in zip(parts, found, strict=True):
            if isinstance(session, NotFound):
                raise PartsRefused(reason=f"there is no upload {part}", part=part)
            if isinstance(session, BaseException):
                raise session
            if not session.is_partial:
                raise PartsRefused(reason=f"upload {part} is not partial", part=part)
            sessions.append(session)
        if not sessions:
            raise PartsRefused(reason="none is named")
        concatenation = cls(service, sessions, owner)
        for session in sessions:
            await concatenation._check(session, owner, endpoint)
        return concatenation

    async def _check(self, session: UploadSession, owner: Owner, endpoint: str) -> None:
        part = session.pk
        if session.error == Joined.code:
            final = UploadAccess(uuid.UUID(session.error_facts["upload"]), owner, endpoint)
            try:
                is_same = (await self._service.find(final)).key == self.key
            except NotFound:
                is_same = False
            if not is_same:
                reason = f"upload {part} has become a part of another one"
                raise PartsRefused(reason=reason, part=part)
        elif session.state not in ACTIVE:
            raise PartsRefused(reason=f"upload {part} is over", part=part)
        elif session.durable != session.size:
            raise PartsRefused(reason=f"upload {part} is not finished", part=part, unfinished=True)

    def upload(self, new: NewUpload) -> NewUpload:
        """The upload to create, which gets the parts' size and key, and the name and metadata of ``new``."""
        parts = tuple(session.pk for session in self._sessions)
        return replace(new, key=self.key, size=self.size, parts=parts)

    async def read(self, offset: int) -> AsyncGenerator[bytes]:
        """The bytes from ``offset`` on, in pieces of at most :data:`SLICE`.

        Close the iterator: it has a part open. Raises :class:`DataLost`, :class:`StorageFailed` and :class:`Busy`.
        """
        store = self._service.store
        for session, end in zip(self._sessions, self._ends, strict=True):
            if offset >= end:
                continue
            size = session.size or 0
            begin = size - (end - offset)
            writer = await self._open(session)
            try:
                while begin < size:
                    data = await store.run_slow(_read, writer, begin, min(begin + SLICE, size))
                    begin += len(data)
                    yield data
            finally:
                await store.run(writer.close)
            offset = end

    async def _open(self, session: UploadSession) -> Writer:
        """Open a part. A request that has it open, and can write nothing more to it, loses it as to a newer one."""
        service = self._service
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_SECONDS
        while True:
            try:
                async with service.slow_turns(session.owner_key):
                    return await service.store.run_slow(
                        service.store.open, session.checkpoint, size=session.size, steal=False
                    )
            except Busy:
                if loop.time() >= deadline:
                    raise
            await service.hints.ask_to_yield(session.pk, session.epoch)
            # In a process that no message reaches, it finds that its epoch is outdated.
            access = UploadAccess(session.pk, self._owner, session.endpoint)
            session = await service.database.call(rows.take_over, access, owner=session.owner_key)

    async def join(self, final: UploadSession) -> None:
        """Delete the parts, whose bytes are in the published upload ``final`` now. Their rows say so."""
        for session in {session.pk: session for session in self._sessions}.values():
            if session.error != Joined.code:
                joined = Joined(upload=final.pk, size=session.size)
                await self._service.end(session, State.CANCELLED, error=joined)


def _read(writer: Writer, start: int, stop: int) -> bytes:
    return b"".join(writer.read(start, stop, size=SLICE))
