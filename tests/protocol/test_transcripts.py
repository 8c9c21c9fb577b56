"""The transcripts, run against both halves of the protocol; and the runner, run against broken ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import BY_CODE
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import FrameType, parse_fields, parse_header
from django_async_upload.protocol.server import ACCEPTS
from django_async_upload.testing.transcripts import (
    Step,
    Transcript,
    TranscriptFailed,
    read,
    run_on_client,
    run_on_server,
)

from .vectors import FOLDER, TRANSCRIPTS, named

FOR_SERVERS = [each for each in TRANSCRIPTS if "server" in each.sides]
FOR_CLIENTS = [each for each in TRANSCRIPTS if "client" in each.sides]


@pytest.mark.parametrize("transcript", FOR_SERVERS, ids=named)
def test_the_server_keeps_to_the_transcript(transcript: Transcript) -> None:
    run_on_server(transcript)


@pytest.mark.parametrize("transcript", FOR_CLIENTS, ids=named)
def test_the_client_keeps_to_the_transcript(transcript: Transcript) -> None:
    run_on_client(transcript)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=named)
def test_the_bytes_of_a_transcript_are_those_that_it_describes(transcript: Transcript) -> None:
    for step in transcript.steps:
        if step.frame is None:
            assert step.type is FrameType.DATA
            continue
        header = parse_header(step.frame)
        assert header[:4] == (step.type, 0, 0, step.stream)
        assert parse_fields(step.frame, crc32c) == step.fields
        spelled = dataclasses.replace(step, frame=None, damage=None).encode()
        assert spelled == step.frame


def test_the_transcripts_show_every_message_and_outcome() -> None:
    steps = [step for each in TRANSCRIPTS for step in each.steps]
    assert {step.type for step in steps} == set(FrameType)
    assert {step.outcome for step in steps} == {"taken", "dropped", "broken", "closed"}
    assert {step.code for step in steps} - {None} <= BY_CODE.keys()
    assert {step.sender for step in steps} == {"client", "server"}
    taken = {step.type for each in FOR_SERVERS for step in each.steps if step.sender == "client"}
    assert taken >= ACCEPTS.keys()


def test_what_a_transcript_says_of_a_whole_file_is_true() -> None:
    """FINISH of an upload that completes brings the CRC of the bytes that were sent."""
    for transcript in TRANSCRIPTS:
        if "server" not in transcript.sides:
            continue
        files: dict[int, bytearray] = {}
        finished: dict[int, m.Finish] = {}
        for step in transcript.steps:
            if step.type is FrameType.DATA and step.outcome == "taken" and step.damage is None:
                file = files.setdefault(step.stream, bytearray())
                del file[step.offset :]
                file.extend(bytes(step.offset - len(file)))  # what an earlier stream brought
                file.extend(step.payload)
            elif step.type is FrameType.FINISH and step.outcome == "taken":
                message = step.message
                assert isinstance(message, m.Finish)
                finished[step.stream] = message
            elif step.type is FrameType.COMPLETED and step.stream in finished:
                finish, file = finished[step.stream], files.get(step.stream, bytearray())
                if transcript.name.startswith(("resume", "create_replayed", "ticket_expired")):
                    assert len(file) in (0, finish.size)
                else:
                    assert (finish.size, finish.crc32c) == (len(file), f"{crc32c(file):08x}")


def broken_in_every_step(transcript: Transcript) -> list[Transcript]:
    """Transcripts that say something else in one step."""
    variants = []

    def replace(number: int, step: Step) -> None:
        steps = (*transcript.steps[:number], step, *transcript.steps[number + 1 :])
        variants.append(dataclasses.replace(transcript, steps=steps))

    for number, step in enumerate(transcript.steps[1:], 1):
        if step.sender == "client":
            other = "dropped" if step.outcome == "taken" else "taken"
            replace(number, dataclasses.replace(step, outcome=other, code=None))
            if step.code:
                replace(number, dataclasses.replace(step, code="not_found"))
    return variants


@pytest.mark.parametrize("transcript", FOR_SERVERS, ids=named)
def test_a_wrong_outcome_in_a_transcript_is_noticed(transcript: Transcript) -> None:
    for variant in broken_in_every_step(transcript):
        with pytest.raises(TranscriptFailed):
            run_on_server(variant)


def test_a_client_that_sends_something_else_is_noticed() -> None:
    transcript = read(FOLDER / "transcripts" / "damage_and_rewind.json")
    for number, step in enumerate(transcript.steps):
        if step.type is FrameType.DATA:
            other = dataclasses.replace(step, offset=step.offset + 1)
            steps = (*transcript.steps[:number], other, *transcript.steps[number + 1 :])
            with pytest.raises(TranscriptFailed, match=f"step {number} "):
                run_on_client(dataclasses.replace(transcript, steps=steps))


def test_a_client_that_hears_no_refusal_where_there_is_one_is_noticed() -> None:
    for transcript in FOR_CLIENTS:
        for number, step in enumerate(transcript.steps):
            if step.sender == "server" and step.outcome != "taken":
                other = dataclasses.replace(step, outcome="taken", code=None)
                steps = (*transcript.steps[:number], other, *transcript.steps[number + 1 :])
                with pytest.raises(TranscriptFailed):
                    run_on_client(dataclasses.replace(transcript, steps=steps))


def test_a_file_that_is_no_transcript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"about": "x", "steps": [{"from": "client", "type": "NOTHING", "stream": 1}]}')
    with pytest.raises(KeyError):
        read(path)
