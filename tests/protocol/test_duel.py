"""The client's half of the protocol against the server's, over a line that delays and damages.

Neither half may report a violation by the other, whichever messages cross; and whatever has happened, once
the line is quiet every upload that no side gave up completes with the bytes that were sent.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field

from crc32c import crc32c
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from django_async_upload.exceptions import CorruptChunks, CorruptFrame
from django_async_upload.protocol import client as c
from django_async_upload.protocol import messages as m
from django_async_upload.protocol import server as s
from django_async_upload.protocol.frames import HEADER_SIZE, FrameType, is_intact

from .transcripts import pattern
from .vectors import EXAMPLES

WINDOW, STREAM_LIMIT, CONNECTION_LIMIT, MAX_STREAMS = 90, 40, 120, 3


def crc(data: bytes) -> str:
    return f"{crc32c(data):08x}"


@dataclass
class Upload:
    """What both ends know of one file."""

    number: int
    size: int
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    part: bytearray = field(default_factory=bytearray)
    durable: int = 0
    outcome: str = ""
    known: bool = False
    """The server has seen its CREATE."""

    @property
    def file(self) -> bytes:
        return pattern(self.number, 0, self.size)

    @property
    def create(self) -> m.Create:
        return m.Create(f"{self.number:032x}", "a.bin", self.size)


@dataclass
class Attachment:
    """The server's shell of one stream."""

    upload: Upload
    limit: int = STREAM_LIMIT
    opening: bool = True
    flows: bool = False
    pausing: bool = False
    proof: m.Proof | None = None
    finish: m.Finish | None = None
    wish: m.Message | None = None
    queue: list[bytes] = field(default_factory=list)


class Duel(RuleBasedStateMachine):
    uploads: list[Upload]

    @initialize(
        sizes=st.lists(st.integers(0, STREAM_LIMIT) | st.integers(0, 200), min_size=1, max_size=4)
    )
    def begin(self, sizes: list[int]) -> None:
        self.uploads = [Upload(number, size) for number, size in enumerate(sizes)]
        self.connect()

    def connect(self) -> None:
        hello = m.Hello(CONNECTION_LIMIT, STREAM_LIMIT, MAX_STREAMS, window=WINDOW)
        self.server, self.client = s.ServerProtocol(hello, crc32c), c.ClientProtocol(crc32c)
        self.up: deque[bytes] = deque()
        self.down = deque([self.server.greeting])
        self.sending: dict[int, Upload] = {}
        self.attached: dict[int, m.Attached] = {}
        self.attachments: dict[int, Attachment] = {}

    # The client -----------------------------------------------------------------------------------

    def client_streams(self, *states: c.ClientStreamState) -> list[int]:
        return [n for n, stream in self.client.streams.items() if stream.state in states]

    @precondition(lambda self: self.client.hello and len(self.client.streams) < MAX_STREAMS)
    @rule(which=st.integers(0, 3), again=st.booleans())
    def open(self, which: int, again: bool) -> None:
        idle = [each for each in self.uploads if each not in self.sending.values()]
        idle = [each for each in idle if not each.outcome]
        if not idle:
            return
        upload = idle[which % len(idle)]
        if upload.known and not again:
            stream, frame = self.client.send_attach(upload.id)
        else:
            stream, frame = self.client.send_create(upload.create)
        self.sending[stream] = upload
        self.up.append(frame)

    @rule(which=st.integers(0, 3), size=st.integers(1, 60), damaged=st.integers(0, 9))
    def send_data(self, which: int, size: int, damaged: int) -> None:
        ready = [n for n in self.client.streams if self.client.credit(n)]
        if not ready:
            return
        stream = ready[which % len(ready)]
        upload, sent = self.sending[stream], self.client.streams[stream].sent
        size = min(size, self.client.credit(stream), upload.size - sent)
        if size:
            payload = upload.file[sent : sent + size]
            frame = self.client.send_data(stream, payload) + payload
            self.up.append(frame if damaged else frame[:-1] + bytes([frame[-1] ^ 1]))

    @rule()
    def send_finish(self) -> None:
        for stream in self.client_streams(
            c.ClientStreamState.CREATING, c.ClientStreamState.SENDING
        ):
            upload, entry = self.sending[stream], self.client.streams[stream]
            if entry.sent == upload.size and not entry.restart:
                finish = m.Finish(upload.size, crc(upload.file))
                self.up.append(self.client.send_finish(stream, finish))

    @rule()
    def send_proof(self) -> None:
        for stream in self.client_streams(c.ClientStreamState.PROVING):
            file, told = self.sending[stream].file, self.attached[stream]
            proof = crc(file[: told.durable]), crc(file[: told.received])
            self.up.append(self.client.send_proof(stream, *proof))

    @rule(which=st.integers(0, 3), cancel=st.booleans())
    def give_up(self, which: int, cancel: bool) -> None:
        frame = FrameType.CANCEL if cancel else FrameType.RELEASE
        able = [n for n, entry in self.client.streams.items() if frame in c.SENDS[entry.state]]
        if able:
            stream = able[which % len(able)]
            send = self.client.send_cancel if cancel else self.client.send_release
            self.up.append(send(stream))

    @precondition(lambda self: self.down)
    @rule()
    def reach_client(self) -> None:
        event = self.client.receive(self.down.popleft())
        self.up.extend(self.client.replies())
        if event is None:
            return
        if isinstance(event.message, m.Attached):
            self.attached[event.stream] = event.message
        if event.stream and event.stream not in self.client.streams:
            del self.sending[event.stream]

    # The server -----------------------------------------------------------------------------------

    @precondition(lambda self: self.up)
    @rule()
    def reach_server(self) -> None:
        frame = self.up.popleft()
        try:
            event = self.server.receive(frame)
        except CorruptFrame:
            assert not is_intact(frame, crc32c)
            self.connect()
            return
        match event:
            case s.Chunk(stream):
                self.attachments[stream].queue.append(frame)
            case s.Control(stream, m.Create(key=key)):
                upload = self.uploads[int(key, 16)]
                self.take_over(stream, upload)
            case s.Control(stream, m.Attach(upload=upload_id)):
                (upload,) = (each for each in self.uploads if each.id == upload_id)
                self.take_over(stream, upload)
            case s.Control(stream, m.Proof() as proof):
                self.attachments[stream].proof = proof
            case s.Control(stream, m.Finish() as finish):
                self.attachments[stream].finish = finish
            case s.Control(stream, m.Paused()):
                attachment = self.attachments[stream]
                attachment.pausing = False
                attachment.limit = 0
            case s.Control(stream, (m.Cancel() | m.Release()) as wish):
                self.attachments[stream].wish = wish
            case s.Broken():
                raise AssertionError(event)

    def take_over(self, stream: int, upload: Upload) -> None:
        self.attachments[stream] = Attachment(upload)

    def say(self, stream: int, message: m.Message) -> None:
        self.down.append(self.server.send(stream, message))

    def close(self, stream: int, message: m.Message, outcome: str = "") -> None:
        self.attachments.pop(stream).upload.outcome = outcome
        self.say(stream, message)

    @rule()
    def answer(self) -> None:
        for stream, at in list(self.attachments.items()):
            upload = at.upload
            if upload.outcome:
                self.close(stream, m.Error("upload_over", "", False), upload.outcome)
            elif at.opening:
                at.opening = False
                if upload.known:
                    at.queue.clear()
                    at.finish = None
                    self.say(
                        stream,
                        m.Attached(upload.id, "a.bin", upload.durable, len(upload.part)),
                    )
                else:
                    upload.known = at.flows = True
                    self.say(stream, m.Created(upload.id, "a.bin", at.limit, 10))
            elif at.wish is not None:
                if isinstance(at.wish, m.Cancel):
                    self.close(stream, m.Cancelled(upload.id), "cancelled")
                else:
                    upload.durable = len(upload.part)
                    self.close(stream, m.Released(upload.durable))
            elif at.proof is not None and not at.flows:
                assert at.proof.durable_crc32c == crc(upload.part[: upload.durable])
                at.flows, at.limit = True, len(upload.part) + 10
                ready = m.Ready(len(upload.part), upload.durable, at.limit, 10)
                self.say(stream, ready)

    @rule()
    def write(self) -> None:
        for stream, at in list(self.attachments.items()):
            if not at.flows:
                continue
            part = at.upload.part
            for frame in at.queue:
                if not is_intact(frame, crc32c):
                    self.rewind(stream, len(part), "corrupt_chunk")
                    break
                part += frame[HEADER_SIZE:]
                assert at.upload.file.startswith(part)
            at.queue.clear()

    def rewind(self, stream: int, offset: int, code: str) -> None:
        at = self.attachments[stream]
        at.queue.clear()
        at.finish = None
        at.limit = max(offset, min(at.limit, at.upload.durable + WINDOW))
        try:
            self.say(stream, m.Rewind(offset, at.upload.durable, at.limit, code))
        except CorruptChunks as error:
            self.close(stream, m.Error(error.code, error.message, False), "failed")

    @rule(ahead=st.integers(0, 60))
    def ack(self, ahead: int) -> None:
        for stream, at in self.attachments.items():
            if at.flows:
                upload = at.upload
                granted = min(len(upload.part) + ahead, upload.durable + WINDOW)
                at.limit = max(at.limit, granted)
                self.say(stream, m.Ack(len(upload.part), upload.durable, at.limit, 10))

    @rule()
    def checkpoint(self) -> None:
        for at in self.attachments.values():
            if at.flows:
                at.upload.durable = len(at.upload.part)

    @rule()
    def lose_what_is_not_durable(self) -> None:
        for stream, at in list(self.attachments.items()):
            upload = at.upload
            if at.flows and not at.wish and upload.durable < len(upload.part):
                del upload.part[upload.durable :]
                self.rewind(stream, upload.durable, "storage_error")

    @rule(which=st.integers(0, 3))
    def pause(self, which: int) -> None:
        able = [n for n, at in self.attachments.items() if at.flows and not at.pausing]
        if able:
            stream = able[which % len(able)]
            self.attachments[stream].pausing = True
            self.say(stream, m.Pause())

    @rule()
    def complete(self) -> None:
        for stream, at in list(self.attachments.items()):
            if at.finish is not None and at.flows and not at.queue and not at.wish:
                upload = at.upload
                assert bytes(upload.part) == upload.file
                assert at.finish.crc32c == crc(upload.part)
                ended = m.Completed(upload.id, "a.bin", upload.size, at.finish.crc32c, "a.bin")
                self.close(stream, ended, "completed")

    @rule()
    def extend_connection(self) -> None:
        self.say(0, m.Limit(self.server.received + CONNECTION_LIMIT))

    # What must hold -------------------------------------------------------------------------------

    @invariant()
    def no_more_is_on_its_way_than_was_allowed(self) -> None:
        if hasattr(self, "server"):
            assert self.client.sent <= self.client.limit <= self.server.limit
            assert self.server.received <= self.client.sent

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        for _ in range(300):
            if all(each.outcome for each in self.uploads):
                break
            if self.client.hello and len(self.client.streams) < MAX_STREAMS:
                self.open(0, False)
            for stream in list(self.client.streams):
                if self.client.credit(stream):
                    self.send_data(list(self.client.streams).index(stream), 200, 1)
            self.send_finish()
            self.send_proof()
            while self.up:
                self.reach_server()
            for step in (self.answer, self.write, self.checkpoint, self.complete):
                step()
            self.ack(60)
            self.extend_connection()
            while self.down:
                self.reach_client()
        assert all(each.outcome for each in self.uploads), "an upload does not get on"
        for each in self.uploads:
            if each.outcome == "completed":
                assert bytes(each.part) == each.file


TestDuel = Duel.TestCase
TestDuel.settings = settings(max_examples=EXAMPLES // 10, stateful_step_count=100, deadline=None)
