"""The transcripts, run against both halves of the protocol; and the runner, run against broken ones."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import BY_CODE
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import MAX_DEPTH, FrameType, parse_fields, parse_header
from django_async_upload.protocol.server import ACCEPTS
from django_async_upload.websocket.errors import CLOSE_CODES

from .transcripts import (
    Step,
    Transcript,
    TranscriptFailed,
    read,
    run_on_client,
    run_on_server,
)
from .vectors import ENDINGS, FOLDER, TRANSCRIPTS, named

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


@pytest.mark.parametrize("ending", ENDINGS["endings"], ids=named)
def test_an_error_on_stream_0_is_followed_by_its_close_code(ending: dict[str, Any]) -> None:
    code = ending.get("error", {}).get("code")
    if code in BY_CODE:
        assert ending["close"] == close_code(code)


def test_the_vectors_nest_no_deeper_than_the_protocol_and_use_no_key_that_is_not_explained() -> (
    None
):
    spans = re.findall(r"`[^`]+`", (FOLDER / "README.md").read_text("utf-8"))
    explained = set(re.findall(r"\w+", " ".join(spans)))
    for path in sorted(FOLDER.rglob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        assert "README.md#" in content["schema"]
        assert depth(content) < MAX_DEPTH
        assert keys(content) <= explained, path.name


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


def keys(value: Any) -> set[str]:
    """The keys of the vectors' own: what messages and files are made of is theirs."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    inner = (keys(each) for name, each in value.items() if name not in ("fields", "error"))
    return set(value).union(*inner)


def close_code(code: str) -> int:
    return next(CLOSE_CODES[cls] for cls in BY_CODE[code].__mro__ if cls in CLOSE_CODES)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=named)
def test_a_transcript_that_ends_the_connection_names_its_close_code(transcript: Transcript) -> None:
    codes = [step.code for step in transcript.steps if step.outcome == "closed"]
    codes += [
        step.fields["code"]
        for step in transcript.steps
        if step.type is FrameType.ERROR and step.stream == 0
    ]
    closes = {close_code(code) for code in codes if code is not None}
    assert closes == ({transcript.close} if transcript.close else set())


def test_the_proof_of_another_file_is_that_of_the_file_that_is_named() -> None:
    proofs = [step for each in TRANSCRIPTS for step in each.steps if step.file is not None]
    assert proofs
    for step in proofs:
        message = step.message
        assert isinstance(message, m.Proof)
        assert step.file is not None
        crcs = {f"{crc32c(step.file[:size]):08x}" for size in range(0, len(step.file) + 1, 500)}
        assert {message.durable_crc32c, message.received_crc32c} - {None} <= crcs


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
                file.extend(bytes(step.offset - len(file)))  # what an earlier stream sent
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
