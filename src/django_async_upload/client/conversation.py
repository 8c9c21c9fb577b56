"""One upload on one connection, from CREATE to the frame that closes its stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ..exceptions import DataLost, Draining, FileChanged, UploadError, UploadOver
from ..protocol import messages
from ..protocol.client import SENDS, Stream, StreamState
from ..protocol.frames import FrameType
from ..protocol.messages import Message
from .connection import Connection, error_of
from .source import Cut, Source
from .worker import Worker

_AHEAD: Final = 2
"""Cuts that may wait for their turn or be in the making: one is sent while the next is made."""
_CUT_CHUNKS: Final = 4
_CUT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an upload stands. Offsets are bytes from the start of the file."""

    phase: str = "waiting"
    """``waiting``, ``uploading``, then ``verifying``, ``inspecting``, ``finalizing``, ``completed``."""
    done: int = 0
    """Bytes of this phase: while uploading, those that the server has received."""
    total: int | None = None
    """Bytes of this phase when it is over; None for a stream of unknown length."""
    sent: int = 0
    durable: int = 0
    """Bytes that survive a crash of the server."""


class Observer(Protocol):
    """The upload that converses."""

    paused: bool
    cancelled: bool

    @property
    def resumable(self) -> bool:
        """A later program can go on with it."""

    def identified(self, upload: str, *, at_once: bool) -> None: ...

    def went_on(self) -> None: ...

    def abandoned(self) -> None: ...

    def report(self, progress: Progress) -> None: ...


class _Making(NamedTuple):
    cut: asyncio.Future[Cut]
    generation: int
    reserved: int


class Conversation:
    """Run it once with :meth:`run`. ``pipelined``: send data before CREATE is answered."""

    def __init__(
        self,
        connection: Connection,
        upload: Observer,
        source: Source,
        create: messages.Create,
        worker: Worker,
        *,
        pipelined: bool,
    ) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._upload = upload
        self._source = source
        self._create = create
        self._worker = worker
        self._pipelined = pipelined
        self._stream: int | None = None
        self._changed = asyncio.Event()
        self._last: Message | None = None
        self._making: _Making | None = None
        self._proof: asyncio.Future[tuple[int, int | None]] | None = None
        self._queued: list[Cut] = []
        self._made = 0
        self._generation = 0
        self._durable = 0
        self.bytes_sent = 0

    async def run(self) -> messages.Completed:
        """Raises the :class:`UploadError` that ended the stream or the connection, and what reading
        the source raises. The stream is closed, or released, afterwards."""
        try:
            while self._last is None:
                if self._connection.error is not None:
                    raise self._connection.error
                self._changed.clear()
                self._step()
                await self._changed.wait()
        except (FileChanged, DataLost) as reason:
            if isinstance(reason, FileChanged) and self._is_proving:
                self._give_up(FrameType.RELEASE)  # the file that was begun may be found again
            else:
                self._give_up(FrameType.CANCEL)
                self._upload.abandoned()
            raise
        except UploadError:
            raise
        except BaseException:
            self._give_up(FrameType.RELEASE if self._upload.resumable else FrameType.CANCEL)
            self._source.interrupt()
            raise
        finally:
            await self._settle()
        match self._last:
            case messages.Completed() as completed:
                return completed
            case messages.Error() as error:
                raise error_of(error)
        raise UploadOver(state="cancelled")

    def wake(self) -> None:
        self._changed.set()

    @property
    def _is_proving(self) -> bool:
        stream = self._protocol.streams.get(self._stream or 0)
        return stream is not None and stream.state is StreamState.PROVING

    # What the connection tells --------------------------------------------------------------------

    def message_received(self, message: Message) -> None:
        stream = self._protocol.streams.get(self._stream or 0)
        if stream is None:
            self._last = message
        match message:
            case messages.Created(upload=upload):
                finished = stream is not None and stream.state is StreamState.FINISHING
                self._upload.identified(upload, at_once=finished)
            case messages.Attached(upload=upload):
                self._upload.identified(upload, at_once=False)
                self._upload.went_on()
                self._start_from(0)
            case messages.Completed(upload=upload):
                self._upload.identified(upload, at_once=True)
                if not self._pipelined:  # CREATE was answered with the result
                    self._upload.went_on()
            case messages.Ready(offset=offset):
                self._start_from(offset)
                self._pipelined = True
            case messages.Rewind(offset=offset):
                self._start_from(offset)
            case messages.Ack(durable=durable):
                if durable > self._durable:
                    self._durable = durable
                    self._source.forget(durable)
        self._upload.report(self._progress(message, stream))
        self.wake()

    def cut_sent(self, cut: Cut) -> None:
        if cut in self._queued:
            stream = self._protocol.streams.get(self._stream or 0)
            if stream is not None and stream.sent == cut.end:
                self._queued.remove(cut)
                self.bytes_sent += cut.end - cut.start
            elif stream is not None:  # it was void: PAUSE took the credit back
                self._start_from(stream.sent)
        self.wake()

    # ----------------------------------------------------------------------------------------------

    def _progress(self, message: Message, stream: Stream | None) -> Progress:
        size = self._source.size
        match message:
            case messages.Progress(phase=phase, done=done, total=total):
                return Progress(phase, done, total, total, total)
            case messages.Completed(size=total):
                return Progress("completed", total, total, total, total)
        if stream is None:
            return Progress("waiting", 0, size, 0, self._durable)
        return Progress("uploading", stream.received, size, stream.sent, stream.durable)

    def _step(self) -> None:
        """Do what can be done now; whatever changes that wakes :meth:`run`."""
        if self._stream is None:
            if not self._connection.usable:
                raise Draining
            self._stream = self._connection.open_stream(
                self, lambda: self._protocol.send_create(self._create)
            )
            if self._stream is None:
                return
            self._source.keep(self._connection.hello.window)
        stream = self._protocol.streams.get(self._stream)
        if stream is None:
            return
        if self._upload.cancelled:
            if FrameType.CANCEL in SENDS[stream.state]:
                self._connection.send(self._protocol.send_cancel(stream.id))
        elif stream.state is StreamState.PROVING:
            self._prove(stream)
        elif FrameType.DATA in SENDS[stream.state] and (
            self._pipelined or stream.state is StreamState.SENDING
        ):
            self._feed(stream)

    def _prove(self, stream: Stream) -> None:
        """Read the source again as far as the server has it, in a thread, and say so."""
        if self._proof is None:
            durable, received = stream.proved
            self._proof = asyncio.ensure_future(asyncio.to_thread(self._prefix, durable, received))
            self._proof.add_done_callback(lambda _: self.wake())
        elif self._proof.done():
            durable_crc, received_crc = self._proof.result()
            proof = f"{durable_crc:08x}", None if received_crc is None else f"{received_crc:08x}"
            self._connection.send(self._protocol.send_proof(stream.id, *proof))

    def _prefix(self, durable: int, received: int) -> tuple[int, int | None]:
        if durable > self._source.end:
            raise FileChanged(offset=durable)
        durable_crc = self._source.crc_at(durable)
        return durable_crc, self._source.crc_at(received) if received <= self._source.end else None

    def _feed(self, stream: Stream) -> None:
        """Make and send cuts as far as the credit goes, and FINISH behind the last."""
        if self._making is not None and self._making.cut.done():
            self._submit(stream)
        source = self._source
        while (
            self._making is None
            and len(self._queued) < _AHEAD
            and self._made < source.end
            and not self._upload.paused
            and not self._protocol.draining
        ):
            if not self._make(stream):
                break
        if stream.sent == source.size and self._making is None:
            source.check_unchanged()
            finish = messages.Finish(stream.sent, f"{source.crc:08x}", source.digests)
            self._connection.send(self._protocol.send_finish(stream.id, finish))

    def _make(self, stream: Stream) -> bool:
        """Begin the next cut; False while there is no credit."""
        chunk = stream.chunk
        wanted = max(chunk, min(_CUT_CHUNKS * chunk, _CUT_BYTES))
        reserved = self._connection.reserve(
            self,
            stream.id,
            self._made - stream.sent,
            min(wanted, self._source.end - self._made),
        )
        if not reserved:
            return False
        restart = stream.restart and self._made == stream.sent
        arguments = (stream.id, self._made, reserved, chunk, restart, self._connection.encode)
        made: asyncio.Future[Cut]
        if self._source.in_memory:
            made = asyncio.get_running_loop().create_future()
            made.set_result(self._source.cut(*arguments))
        else:
            made = self._worker.run(self._source.cut, *arguments)
            made.add_done_callback(lambda _: self.wake())
        self._making = _Making(made, self._generation, reserved)
        self._made += reserved
        if made.done():
            self._submit(stream)
        return True

    def _submit(self, stream: Stream) -> None:
        assert self._making is not None
        (future, generation, reserved), self._making = self._making, None
        if generation != self._generation:
            self._connection.give_back(reserved)
            return
        cut = future.result()
        self._queued.append(cut)
        self._connection.submit(self, stream.id, stream.rewinds, reserved, cut)

    def _start_from(self, offset: int) -> None:
        """What was made ready is void; go on at ``offset``."""
        self._made = offset
        self._generation += 1
        self._queued.clear()

    def _give_up(self, how: FrameType) -> None:
        """Leave the stream, where that still is to be said."""
        if self._stream is None:
            return
        stream = self._protocol.streams.get(self._stream)
        if stream is not None and self._connection.error is None and how in SENDS[stream.state]:
            cancel = how is FrameType.CANCEL
            send = self._protocol.send_cancel if cancel else self._protocol.send_release
            self._connection.send(send(stream.id))
        self._connection.forget(self._stream)

    async def _settle(self) -> None:
        """Wait for a thread that is still reading the source; give back what it had reserved."""
        jobs = [job for job in (self._making and self._making.cut, self._proof) if job is not None]
        if jobs:
            await asyncio.wait(jobs)
            for job in jobs:
                job.exception()  # it is nobody's any longer
        if self._making is not None:
            self._connection.give_back(self._making.reserved)
