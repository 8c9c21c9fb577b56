"""What the client's connection does when the server breaks the protocol: the transcripts that show it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from django_async_upload.client.connection import ClientConnection
from django_async_upload.client.transport import Buffer, Target, Wire, WireListener
from django_async_upload.exceptions import UploadError
from django_async_upload.protocol.frames import FrameType

from ..protocol.transcripts import Transcript, send_as_client
from ..protocol.vectors import TRANSCRIPTS, named

BROKEN = [
    each
    for each in TRANSCRIPTS
    if any(step.sender == "server" and step.outcome == "closed" for step in each.steps)
]


class Line(Wire):
    """Sends nothing, and records how it was closed."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def encode(self, header: bytes, payload: Buffer) -> list[bytes]:
        return [header + bytes(payload)]

    def write(self, pieces: Sequence[bytes]) -> None:
        pass

    def close(self, code: int) -> None:
        self.codes.append(code)

    def abort(self) -> None:
        self.codes.append(1006)


@pytest.mark.parametrize("transcript", BROKEN, ids=named)
async def test_a_server_that_breaks_the_protocol_is_left_with_the_close_code(
    transcript: Transcript,
) -> None:
    line = Line()
    peers: list[WireListener] = []

    async def connect(target: Target, peer: WireListener) -> Wire:
        peers.append(peer)
        return line

    opening = asyncio.ensure_future(ClientConnection.open(connect, Target("ws://test/"), 60.0))
    await asyncio.sleep(0)
    while not peers:
        await asyncio.sleep(0)
    (peer,) = peers
    assert isinstance(peer, ClientConnection)
    for step in transcript.steps:
        if step.sender == "client":
            if step.type not in (FrameType.PAUSED, FrameType.PONG):
                send_as_client(peer.protocol, step)
            continue
        assert not line.codes
        peer.message_received(step.encode())
        if step.type is FrameType.HELLO and step.outcome == "taken":
            await opening
    if not opening.done():
        with pytest.raises(UploadError):
            await opening
    code = next(step.code for step in transcript.steps if step.outcome == "closed")
    assert peer.error is not None
    assert peer.error.code == code
    assert line.codes == [transcript.close]
    assert peer.error.retryable == (code == "corrupt_frame")
    peer.wire_lost(1006, None)


def test_there_are_such_transcripts() -> None:
    assert len(BROKEN) > 15
