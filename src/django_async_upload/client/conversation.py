"""One upload on one connection, from CREATE to the frame that closes the stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ..exceptions import DataLost, Draining, FileChanged, UploadError, UploadOver
from ..protocol import messages
from ..protocol.client import SENDS, ClientStreamState, Stream
from ..protocol.frames import FrameType
from ..protocol.messages import Message
from .connection import ClientConnection
from .source import Cut, Source
from .worker import Worker

_AHEAD: Final = 2
"""Cuts that may be queued or in preparation: one is sent while the next is prepared."""
_CUT_CHUNKS: Final = 4
_CUT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an upload. Offsets are bytes from the start of the file."""

    phase: str = "waiting"
    """``waiting``, ``uploading``, then ``verifying``, ``inspecting``, ``finalizing``, ``completed``."""
    done: int = 0
    """Bytes done in this phase: while uploading, those that the server has received."""
    total: int | None = None
    """Bytes of the whole phase; None for a stream of unknown length."""
    sent: int = 0
    durable: int = 0
    """Bytes that survive a crash of the server."""


class ConversationListener(Protocol):
    """Callbacks for the upload."""

    paused: bool
    cancelled: bool

    @property
    def resumable(self) -> bool:
        """Whether a later program can resume it."""

    def identified(self, upload: str, *, all_sent: bool) -> None: ...

    def found_again(self) -> None: ...

    def abandoned(self) -> None: ...

    def report(self, progress: Progress) -> None: ...


class _PendingCut(NamedTuple):
    cut: asyncio.Future[Cut]
    generation: int
    reserved: int


class Conversation:
    """One attempt to send an upload; call :meth:`run` once. ``pipelined``: send data before the answer to CREATE."""

    def __init__(
        self,
        connection: ClientConnection,
        upload: ConversationListener,
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
        self._pending: _PendingCut | None = None
        self._proof: asyncio.Future[tuple[int, int | None]] | None = None
        self._queued: list[Cut] = []
        self._prepared = 0
        self._generation = 0
        self._durable = 0
        self.bytes_sent = 0

    async def run(self) -> messages.Completed:
        """Send the upload and wait for its completion. Raises the :class:`UploadError` that ended the stream or the
        connection, and errors of reading the source. The stream is closed or released when this ends."""
        try:
            while self._last is None:
                if self._connection.error is not None:
                    raise self._connection.error
                self._changed.clear()
                self._step()
                await self._changed.wait()
        except (FileChanged, DataLost) as reason:
            if isinstance(reason, FileChanged) and self._is_proving:
                self._leave_stream(FrameType.RELEASE)  # the user may still have the original file
            else:
                self._leave_stream(FrameType.CANCEL)
                self._upload.abandoned()
            raise
        except UploadError:
            raise
        except BaseException:
            self._leave_stream(FrameType.RELEASE if self._upload.resumable else FrameType.CANCEL)
            self._source.interrupt()
            raise
        finally:
            await self._finish_reading()
        match self._last:
            case messages.Completed() as completed:
                return completed
            case messages.Error() as error:
                raise error.to_exception()
        raise UploadOver(state="cancelled")

    def wake(self) -> None:
        self._changed.set()

    @property
    def _is_proving(self) -> bool:
        stream = self._protocol.streams.get(self._stream or 0)
        return stream is not None and stream.state is ClientStreamState.PROVING

    # For the connection ---------------------------------------------------------------------------

    def message_received(self, message: Message) -> None:
        stream = self._protocol.streams.get(self._stream or 0)
        if stream is None:
            self._last = message
        match message:
            case messages.Created(upload=upload):
                finished = stream is not None and stream.state is ClientStreamState.FINISHING
                self._upload.identified(upload, all_sent=finished)
            case messages.Attached(upload=upload):
                self._upload.identified(upload, all_sent=False)
                self._upload.found_again()
                self._start_from(0)
            case messages.Completed(upload=upload):
                self._upload.identified(upload, all_sent=True)
                if not self._pipelined:  # the answer to CREATE was the result
                    self._upload.found_again()
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
            elif stream is not None:  # void, because PAUSE took the credit back
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
        if stream is None or stream.state is ClientStreamState.PROVING:
            return Progress("waiting", 0, size, 0, self._durable)
        return Progress("uploading", stream.received, size, stream.sent, stream.durable)

    def _step(self) -> None:
        """Take the steps that are possible now; :meth:`run` is woken when others become possible."""
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
        elif stream.state is ClientStreamState.PROVING:
            self._prove(stream)
        elif FrameType.DATA in SENDS[stream.state] and (
            self._pipelined or stream.state is ClientStreamState.SENDING
        ):
            self._send_data(stream)

    def _prove(self, stream: Stream) -> None:
        """Read the prefix that the server has again, in a thread, and send its CRCs in PROOF."""
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

    def _send_data(self, stream: Stream) -> None:
        """Prepare and send cuts within the credit, and FINISH after the last."""
        if self._pending is not None and self._pending.cut.done():
            self._submit(stream)
        source = self._source
        while (
            self._pending is None
            and len(self._queued) < _AHEAD
            and self._prepared < source.end
            and not self._upload.paused
            and not self._protocol.draining
        ):
            if not self._start_cut(stream):
                break
        if stream.sent == source.size and self._pending is None:
            source.check_unchanged()
            finish = messages.Finish(stream.sent, f"{source.crc:08x}", source.digests)
            self._connection.send(self._protocol.send_finish(stream.id, finish))

    def _start_cut(self, stream: Stream) -> bool:
        """Start preparing the next cut; False while there is no credit."""
        chunk = stream.chunk
        wanted = max(chunk, min(_CUT_CHUNKS * chunk, _CUT_BYTES))
        reserved = self._connection.reserve(
            self,
            stream.id,
            self._prepared - stream.sent,
            min(wanted, self._source.end - self._prepared),
        )
        if not reserved:
            return False
        restart = stream.restart and self._prepared == stream.sent
        arguments = (stream.id, self._prepared, reserved, chunk, restart, self._connection.encode)
        prepared: asyncio.Future[Cut]
        if self._source.in_memory:
            prepared = asyncio.get_running_loop().create_future()
            prepared.set_result(self._source.cut(*arguments))
        else:
            prepared = self._worker.run(self._source.cut, *arguments)
            prepared.add_done_callback(lambda _: self.wake())
        self._pending = _PendingCut(prepared, self._generation, reserved)
        self._prepared += reserved
        if prepared.done():
            self._submit(stream)
        return True

    def _submit(self, stream: Stream) -> None:
        assert self._pending is not None
        (future, generation, reserved), self._pending = self._pending, None
        if generation != self._generation:
            self._connection.release(reserved)
            return
        cut = future.result()
        self._queued.append(cut)
        self._connection.submit(self, stream.id, stream.rewinds, reserved, cut)

    def _start_from(self, offset: int) -> None:
        """Discard prepared cuts and continue at ``offset``."""
        self._prepared = offset
        self._generation += 1
        self._queued.clear()

    def _leave_stream(self, how: FrameType) -> None:
        """Send CANCEL or RELEASE, if the stream still allows it, and detach from the stream."""
        if self._stream is None:
            return
        stream = self._protocol.streams.get(self._stream)
        if stream is not None and self._connection.error is None and how in SENDS[stream.state]:
            cancel = how is FrameType.CANCEL
            send = self._protocol.send_cancel if cancel else self._protocol.send_release
            self._connection.send(send(stream.id))
        self._connection.remove_listener(self._stream)

    async def _finish_reading(self) -> None:
        """Wait for a thread that is still reading the source; return the credit reserved for it."""
        jobs = [
            job for job in (self._pending and self._pending.cut, self._proof) if job is not None
        ]
        if jobs:
            await asyncio.wait(jobs)
            for job in jobs:
                job.exception()  # retrieved, so that asyncio does not log it
        if self._pending is not None:
            self._connection.release(self._pending.reserved)
