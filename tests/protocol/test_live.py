"""The transcripts that a server with ordinary settings can hold, played against the consumer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from crc32c import crc32c

from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import FrameType
from django_async_upload.sessions import owners
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.tickets import issue_ticket

from .transcripts import (
    Transcript,
    TranscriptFailed,
    pattern,
    run_on_connection,
)
from .vectors import TRANSCRIPTS, named

pytest_plugins = ["tests.fixtures"]

LIVE = [each for each in TRANSCRIPTS if each.live]


class Wire:
    """The bytes below a communicator, HELLO included."""

    def __init__(self, communicator: UploadCommunicator) -> None:
        self._communicator = communicator
        self.before: Callable[[bytes], object] = lambda frame: None
        """Called before a frame of the client is sent."""
        self._greeting: bytes | None = communicator.hello.to_frame(0, crc32c)

    async def send(self, frame: bytes) -> None:
        self.before(frame)
        await self._communicator.send_frame(frame)

    async def receive(self) -> bytes:
        if self._greeting is not None:
            greeting, self._greeting = self._greeting, None
            return greeting
        output = await self._communicator.socket.receive_output(10)
        frame: bytes = output["bytes"]
        return frame

    async def closed(self) -> int:
        while True:
            output = await self._communicator.socket.receive_output(10)
            if output["type"] == "websocket.close":
                code: int = output["code"]
                return code


@pytest.mark.parametrize("transcript", LIVE, ids=named)
async def test_the_consumer_keeps_to_the_transcript(
    connect: Callable[[], UploadCommunicator], media: Path, transcript: Transcript
) -> None:
    async with connect() as communicator:
        said = await run_on_connection(transcript, Wire(communicator))
    completed = {message.stored_as for message in said if hasattr(message, "stored_as")}
    stored = {each.name for each in media.rglob("*") if each.is_file()}
    assert {Path(name).name for name in completed} == stored


async def test_a_ticket_that_runs_out_at_finish_costs_no_byte_and_attach_follows_the_new_one_at_once(
    application: Any, alice: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATTACH is judged by the AUTH right before it, which is not answered yet."""
    (transcript,) = (each for each in TRANSCRIPTS if each.name == "ticket_expired_at_finish")
    (auth,) = (step for step in transcript.steps if step.type is FrameType.AUTH)
    clock = SimpleNamespace(time=time.time)
    monkeypatch.setattr(owners, "time", clock)
    fresh = await sync_to_async(issue_ticket)(alice, max_age=900)

    def expire(frame: bytes) -> None:
        if frame[0] == FrameType.FINISH:
            clock.time = lambda: time.time() + 200

    old = await sync_to_async(issue_ticket)(alice, max_age=100)
    async with UploadCommunicator(application, ticket=old) as communicator:
        wire = Wire(communicator)
        wire.before = expire
        said = await run_on_connection(transcript, wire, {auth.fields["ticket"]: fresh})
    assert isinstance(said[-1], m.Completed)
    assert [each.read_bytes() for each in media.rglob("*") if each.is_file()] == [
        pattern(1, 0, 1000)
    ]


async def test_a_consumer_that_says_something_else_is_noticed(
    connect: Callable[[], UploadCommunicator], media: Path
) -> None:
    (transcript,) = (each for each in LIVE if each.name == "digest_mismatch")
    good = next(each for each in LIVE if each.name == "small_file")
    finish = next(step for step in good.steps if step.type is FrameType.FINISH)
    steps = [finish if step.type is FrameType.FINISH else step for step in transcript.steps]
    async with connect() as communicator:
        with pytest.raises(TranscriptFailed, match="ERROR on stream 1"):
            await run_on_connection(
                Transcript(transcript.name, transcript.about, tuple(steps)), Wire(communicator)
            )
