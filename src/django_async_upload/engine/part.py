"""The part of an upload in the store, with the checkpoint of it that the upload's row has."""

from __future__ import annotations

from collections.abc import Sequence

from ..failpoints import failpoint
from ..models import UploadSession
from ..sessions import rows
from ..sessions.quotas import Growth
from ..sessions.state import State
from ..sessions.values import Change
from ..stores.base import Checkpoint, Piece, Writer
from .runtime import Runtime


class UploadPart:
    """The part that one upload writes. It is made with the first bytes, or by :meth:`made`."""

    session: UploadSession

    def __init__(self, runtime: Runtime) -> None:
        self.writer: Writer | None = None
        """None where no part is made yet."""
        self.checkpoint = Checkpoint("")
        """The last one that was saved in the row."""
        self._runtime = runtime
        self._store = runtime.store

    @property
    def name(self) -> str:
        """Its name in the store; empty where none is made yet."""
        return "" if self.writer is None else self.writer.part

    def resume(self, writer: Writer) -> None:
        """Continue the part of the row's checkpoint."""
        self.writer = writer
        self.checkpoint = self.session.checkpoint

    def append(self, pieces: Sequence[Piece]) -> int:
        """:meth:`Writer.append`, in a thread of the store."""
        if self.writer is None:
            self.writer = self._store.create(self.session.size)
        return self.writer.append(pieces)

    async def made(self) -> Writer:
        """The writer of the part, which is made here where no byte came."""
        if self.writer is None:
            self.writer = await self._store.run(self._store.create, self.session.size)
        return self.writer

    def crc(self, offset: int) -> int:
        """CRC-32C of the first ``offset`` bytes, where these are all that came, or those below the checkpoint."""
        assert self.writer is not None
        return self.writer.crc if offset == self.writer.received else self.checkpoint.crc

    def durable(self, received: int) -> int:
        """How many of the first ``received`` bytes are durable without a checkpoint, as the row names the part."""
        if self.writer is None or self.writer.part != self.checkpoint.part:
            return 0
        # A running write may have made more bytes durable than were acked.
        return min(received, self.writer.durable_unsynced)

    async def sync(self) -> Checkpoint:
        """:meth:`Writer.sync`; :meth:`save` has to follow."""
        assert self.writer is not None
        return await self._store.run(self.writer.sync)

    async def save(self, checkpoint: Checkpoint, state: State) -> None:
        """Save a checkpoint in the row. Raises the error that ended the upload."""
        session = self.session
        values = rows.checkpoint_values(checkpoint)
        growth = None
        if session.size is None and state is State.UPLOADING:
            before = self.checkpoint.offset
            growth = Growth(session.owner_key, session.address, before, checkpoint.offset)
        change = Change(session.pk, session.epoch, state, values, growth=growth)
        failpoint("checkpoint.before_commit")
        await self._runtime.database.call(
            rows.change, change, owner=session.owner_key, patience=60.0
        )
        failpoint("checkpoint.after_commit")
        stale, self.checkpoint = self.checkpoint, checkpoint
        session.expires_at = values["expires_at"]
        if stale.part and stale.part != checkpoint.part:
            await self._store.run(self._store.delete, stale.part)
            failpoint("checkpoint.after_unlink")

    async def truncate(self) -> int:
        """Discard the bytes above the checkpoint; returns its offset."""
        assert self.writer is not None
        await self._store.run(self.writer.truncate, self.checkpoint)
        return self.writer.received

    async def rewrite(self) -> int:
        """Go back to the checkpoint in a new part; returns its offset."""
        assert self.writer is not None
        async with self._runtime.slow_turns(self.session.owner_key):
            await self._store.run_slow(self.writer.rewrite, self.checkpoint)
        return self.writer.received

    async def close(self) -> None:
        """Close the part, which stays in the store."""
        if self.writer is not None:
            await self._store.run(self.writer.close)
