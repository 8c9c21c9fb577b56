"""Sources of uploads: a file, which can be read again, or a stream, which cannot.

Methods that read may block. They run in a worker thread, one at a time per source.
"""

from __future__ import annotations

import abc
import bisect
import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

from crc32c import crc32c

from ..exceptions import DataLost, FileChanged
from ..protocol.frames import Flag, FrameType, build_header
from .transport import Buffer

_BLOCK: Final = 1024 * 1024
_MARK_EVERY: Final = 64 * 1024 * 1024
_PIECE: Final = 256 * 1024
_CAPACITY: Final = 8 * 1024 * 1024
_HEAD: Final = 64 * 1024
"""Bytes read when a file is opened: a small file needs no second hop to the thread."""

Path = str | os.PathLike[str]
Encode = Callable[[bytes, Buffer], list[bytes]]
Wake = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Identity:
    """Facts that identify a file's content without reading it."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


@dataclass(slots=True)
class Cut:
    """Consecutive DATA messages from ``start`` on, encoded for the wire."""

    start: int
    end: int
    messages: list[tuple[int, list[bytes]]]
    """For each message, the bytes of its payload and the buffers to write."""


class Source(abc.ABC):
    """The bytes of one upload, their running CRC-32C and, on request, their SHA-256.

    ``size`` is None while it is unknown. The CRCs at the ends of sent chunks above ``durable`` are kept, so that a
    resume reads the file again only after a restart of the program.
    """

    def __init__(self, name: str, size: int | None, *, sha256: bool) -> None:
        self.name = name
        self.size = size
        self._sha256 = hashlib.sha256() if sha256 else None
        self._hashed = 0
        self._offsets = [0]
        self._crcs = [0]
        self._cancelled = False

    @property
    @abc.abstractmethod
    def end(self) -> int:
        """End of the bytes that :meth:`cut` can read now."""

    @abc.abstractmethod
    def _read(self, offset: int, size: int) -> bytes | memoryview:
        """Read at most ``size`` bytes, none beyond :attr:`end`; the buffer is valid until the next call."""

    @abc.abstractmethod
    def forget(self, durable: int) -> None:
        """Discard bytes and CRCs below ``durable``, which are not needed again. Called from the event loop."""

    def keep(self, window: int) -> None:  # noqa: B027
        """Keep up to ``window`` bytes that are not durable yet."""

    def check_unchanged(self) -> None:  # noqa: B027
        """Raises :class:`FileChanged` if the file was changed after it was opened."""

    def interrupt(self) -> None:
        """Make a running :meth:`crc_at` stop, with :class:`InterruptedError`."""
        self._cancelled = True

    def close(self) -> None:
        """Close the file."""
        self.interrupt()

    @property
    def in_memory(self) -> bool:
        """Whether the whole file is in memory, so that :meth:`cut` does not block."""
        return False

    @property
    def crc(self) -> int:
        """CRC of all bytes read so far."""
        return self._crcs[-1]

    @property
    def digests(self) -> dict[str, str]:
        return {} if self._sha256 is None else {"sha-256": self._sha256.hexdigest()}

    def cut(
        self,
        stream: int,
        start: int,
        budget: int,
        chunk: int,
        restart: bool,
        encode: Encode,
    ) -> Cut:
        """Encode up to ``budget`` bytes from ``start`` on as messages of ``chunk`` bytes each.

        Raises :class:`FileChanged`, :class:`DataLost` and :class:`OSError`.
        """
        crc = self.crc_at(start)
        cut = Cut(start, start, [])
        end = start + budget
        while cut.end < end:
            payload = self._read(cut.end, min(chunk, end - cut.end))
            if not payload:
                raise FileChanged("The file became shorter while it was being sent.")
            flags = Flag.RESTART if restart else Flag.NONE
            header = build_header(
                FrameType.DATA, stream, payload, crc32c, offset=cut.end, flags=flags
            )
            restart = False
            self._hash(cut.end, payload)
            crc = crc32c(payload, crc)
            cut.messages.append((len(payload), encode(header, payload)))
            cut.end += len(payload)
            self._mark(cut.end, crc)
        if cut.end == self.size:
            self.check_unchanged()
        return cut

    def block(self, start: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``start`` on, at least one of those that there are below :attr:`end`.

        Raises :class:`FileChanged`, :class:`DataLost` and :class:`OSError`.
        """
        crc = self.crc_at(start)
        payload = bytes(self._read(start, size))
        if not payload:
            raise FileChanged("The file became shorter while it was being sent.")
        self._hash(start, payload)
        end = start + len(payload)
        self._mark(end, crc32c(payload, crc))
        if end == self.size:
            self.check_unchanged()
        return payload

    def crc_at(self, offset: int) -> int:
        """CRC-32C of the first ``offset`` bytes. Reads from the nearest kept CRC below on.

        Raises :class:`FileChanged` where the file is shorter, :class:`DataLost` and :class:`OSError`.
        """
        index = bisect.bisect_right(self._offsets, offset) - 1
        if index < 0:
            raise DataLost(durable=self._offsets[0], proved=offset)
        position, crc = self._offsets[index], self._crcs[index]
        while position < offset:
            segment = min(offset, position + _MARK_EVERY)
            while position < segment:
                if self._cancelled:
                    raise InterruptedError("the source was closed")
                payload = self._read(position, min(_BLOCK, segment - position))
                if not payload:
                    raise FileChanged(offset=offset)
                self._hash(position, payload)
                crc = crc32c(payload, crc)
                position += len(payload)
            self._mark(position, crc)
        return crc

    def _hash(self, offset: int, payload: Buffer) -> None:
        known = self._hashed - offset
        if known < len(payload):
            if self._sha256 is not None:
                self._sha256.update(memoryview(payload)[known:])
            self._hashed = offset + len(payload)

    def _mark(self, offset: int, crc: int) -> None:
        if offset > self._offsets[-1]:
            self._offsets.append(offset)
            self._crcs.append(crc)

    def _forget_marks(self, durable: int, *, keep: int) -> int:
        """Drop the CRCs below the last one at or below ``durable``, whose offset is returned."""
        index = max(0, bisect.bisect_right(self._offsets, durable) - 1)
        floor = self._offsets[index]
        del self._offsets[keep:index], self._crcs[keep:index]
        return floor


class FileSource(Source):
    """A seekable file. ``path`` is None for a file object, which its caller closes."""

    def __init__(self, file: BinaryIO, name: str, *, path: str | None, sha256: bool) -> None:
        self._file = file
        self._base = file.tell()
        try:
            self.identity: Identity | None = Identity.of(os.fstat(file.fileno()))
        except (AttributeError, OSError):  # not a file of the operating system
            self.identity = None
        size = file.seek(0, os.SEEK_END) - self._base
        super().__init__(name, size, sha256=sha256)
        self.path = path
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._head: bytes | None = None
        if size <= _HEAD:
            file.seek(self._base)
            self._head = file.read(size)
            self.check_unchanged()
            if path is not None:
                file.close()

    @property
    def in_memory(self) -> bool:
        return self._head is not None

    @property
    def end(self) -> int:
        assert self.size is not None
        return self.size

    def forget(self, durable: int) -> None:
        self._forget_marks(durable, keep=1)

    def check_unchanged(self) -> None:
        if self.identity is None or self._file.closed:  # closed after it was read as a whole
            return
        if Identity.of(os.fstat(self._file.fileno())) != self.identity:
            raise FileChanged("The file was changed while it was being sent.")

    def close(self) -> None:
        super().close()
        if self.path is not None:
            with self._lock:
                self._file.close()

    def _read(self, offset: int, size: int) -> bytes | memoryview:
        if self._head is not None:
            return memoryview(self._head)[offset : offset + size]
        with self._lock:
            if self._cancelled:
                raise InterruptedError("the source was closed")
            if len(self._buffer) < size:
                self._buffer = bytearray(size)
            view = memoryview(self._buffer)[:size]
            self._file.seek(self._base + offset)
            count = 0
            # Raw files may read less than asked for, and chunks should be whole.
            while count < size and (read := self._file.readinto(view[count:])):  # type: ignore[attr-defined]
                count += read
            return view[:count]


class StreamSource(Source):
    """A source that can be read only once, for example a pipe, by a thread of its own.

    Bytes that are not durable yet are kept in memory: at most a window and one piece.
    """

    def __init__(self, stream: BinaryIO, name: str, *, sha256: bool, wake: Wake) -> None:
        super().__init__(name, None, sha256=sha256)
        self._capacity = _CAPACITY
        # Available bytes are sent at once: read() of a buffered pipe would wait for the full size.
        self._read_some: Callable[[int], bytes | None] = getattr(stream, "read1", stream.read)
        self._wake = wake
        self._kept: deque[tuple[int, bytes]] = deque()
        self._first = self._end = 0
        self._error: OSError | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._fill, name=f"async-upload {name}", daemon=True).start()

    @property
    def end(self) -> int:
        return self._end

    def forget(self, durable: int) -> None:
        floor = self._forget_marks(durable, keep=0)
        with self._changed:
            while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= floor:
                start, piece = self._kept.popleft()
                self._first = start + len(piece)
            self._changed.notify()

    def keep(self, window: int) -> None:
        self._capacity = max(self._capacity, window)

    def check_unchanged(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        super().close()
        with self._changed:
            self._changed.notify()

    def _read(self, offset: int, size: int) -> memoryview:
        with self._changed:
            for start, piece in self._kept:
                if start <= offset < start + len(piece):
                    return memoryview(piece)[offset - start : offset - start + size]
            if offset < self._first:
                raise DataLost(durable=self._first, proved=offset)
        return memoryview(b"")

    def _fill(self) -> None:
        while not self._cancelled:
            try:
                piece = self._read_some(_PIECE)
                if piece is None:
                    raise BlockingIOError("the stream is in non-blocking mode")
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._error = error if isinstance(error, OSError) else OSError(str(error))
                piece = b""
            with self._changed:
                if piece:
                    self._kept.append((self._end, piece))
                    self._end += len(piece)
                else:
                    self.size = self._end
            self._wake()
            if not piece:
                return
            with self._changed:
                self._changed.wait_for(
                    lambda: self._cancelled or self._end - self._first < self._capacity
                )


def open_source(what: Path | BinaryIO, name: str | None, sha256: bool, wake: Wake) -> Source:
    """Open a source for a path or an open binary file; blocks. ``wake`` is called, in another thread,
    whenever a stream has more to send.

    A path that is not a regular file (a named pipe, ``/dev/stdin``) is a stream. Raises
    :class:`OSError`, and :class:`TypeError` for a text file.
    """
    if isinstance(what, str | os.PathLike):
        path = os.path.abspath(what)
        # File names are bytes, not always valid UTF-8.
        name = name or os.fsencode(os.path.basename(path)).decode(errors="replace")
        file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115  # type: ignore[assignment]
        try:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return FileSource(file, name, path=path, sha256=sha256)
        except BaseException:
            file.close()
            raise
        return StreamSource(file, name, sha256=sha256, wake=wake)
    if isinstance(what.read(0), str):
        raise TypeError("Open the file in binary mode.")
    if name is None:
        given = getattr(what, "name", None)
        name = os.path.basename(given) if isinstance(given, str) and given else "stream"
    if what.seekable():
        return FileSource(what, name, path=None, sha256=sha256)
    return StreamSource(what, name, sha256=sha256, wake=wake)
