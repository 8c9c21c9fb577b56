"""A store that keeps parts in memory: the reference implementation, for tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock

from crc32c import crc32c

from ..exceptions import Busy, DataLost, StorageFailed
from .base import Checkpoint, Part, Position, Store, Writer
from .disk import boot_id


@dataclass(eq=False, slots=True)
class _Content:
    data: bytearray
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    is_open: bool = True


class MemoryStore(Store):
    """Parts live as long as the store. Nothing survives the process, whatever the durability."""

    def __init__(self, *, durability: str = "os", threads: int = 8) -> None:
        super().__init__(durability=durability, threads=threads)
        self._contents: dict[str, _Content] = {}
        self._lock = Lock()

    def create(self, size: int | None) -> Writer:
        return MemoryWriter(self, *self.renew(bytearray()))

    def open(
        self, checkpoint: Checkpoint, *, size: int | None = None, steal: bool = True
    ) -> Writer:
        with self._lock:
            content = self._contents.get(checkpoint.part)
            data = content.data[:size] if content else bytearray()
            crc = crc32c(data[: checkpoint.offset])
            if len(data) < checkpoint.offset or crc != checkpoint.crc:
                raise DataLost(durable=checkpoint.offset, proved=0)
            if content and content.is_open and not steal:
                raise Busy(retry_after=1.0)
            part = checkpoint.part
            mine = content if content and not content.is_open else None
            if mine:
                mine.data, mine.is_open = data, True
        if mine is None:
            part, mine = self.renew(data)
        writer = MemoryWriter(self, part, mine)
        writer.position = Position(len(data), crc32c(data[checkpoint.offset :], crc))
        return writer

    def delete(self, part: str) -> None:
        with self._lock:
            self._contents.pop(part, None)

    def parts(self) -> Iterator[Part]:
        with self._lock:
            found = list(self._contents.items())
        for name, content in found:
            yield Part(name, content.modified, len(content.data))

    def renew(self, data: bytearray) -> tuple[str, _Content]:
        """Create and open a part that contains ``data``."""
        part, content = secrets.token_hex(16), _Content(data)
        with self._lock:
            self._contents[part] = content
        return part, content


class MemoryWriter(Writer):
    def __init__(self, store: MemoryStore, part: str, content: _Content) -> None:
        self.part = part
        self._store = store
        self._content = content
        self._is_closed = False

    @property
    def token(self) -> str:
        return boot_id()

    def write(self, payloads: Sequence[memoryview]) -> None:
        self._check_open()
        self._content.data[self.received :] = b"".join(payloads)
        self._content.modified = datetime.now(UTC)

    def sync(self) -> Checkpoint:
        self._check_open()
        offset, crc = self.position
        return Checkpoint(self.part, offset, crc, self.token)

    def rewrite(self, checkpoint: Checkpoint) -> None:
        self._check_open()
        data = self._content.data[: checkpoint.offset]
        if (len(data), crc32c(data)) != (checkpoint.offset, checkpoint.crc):
            raise DataLost(durable=checkpoint.offset, proved=0)
        self._content.is_open = False
        self.part, self._content = self._store.renew(data)
        self.position = Position(checkpoint.offset, checkpoint.crc)

    def truncate(self, checkpoint: Checkpoint) -> None:
        self._check_open()
        if checkpoint.offset > self.received:
            raise DataLost(durable=checkpoint.offset, proved=self.received)
        del self._content.data[checkpoint.offset :]
        self.position = Position(checkpoint.offset, checkpoint.crc)

    def read(
        self, start: int = 0, stop: int | None = None, *, size: int = 1 << 20
    ) -> Iterator[bytes]:
        self._check_open()
        stop = self.received if stop is None else min(stop, self.received)
        for begin in range(start, stop, size):
            yield bytes(self._content.data[begin : min(begin + size, stop)])

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._content.is_open = False

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageFailed(reason="the writer is closed")
