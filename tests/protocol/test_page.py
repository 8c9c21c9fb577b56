"""The vectors, read by a codec that was made of the page alone: whatever a stranger could not know fails here."""

from __future__ import annotations

import re
from typing import Any

import pytest

from . import page
from .vectors import FRAMES, TRANSCRIPTS, frame, named


@pytest.mark.parametrize("vector", FRAMES["data"], ids=str)
def test_a_data_frame_is_as_the_page_says(vector: dict[str, Any]) -> None:
    read = page.parse(bytes.fromhex(vector["frame"]))
    assert read.type == "DATA"
    assert read.payload.hex() == vector["payload"]
    place = (read.stream, read.offset, read.flags)
    assert place == (vector["stream"], vector["offset"], vector["flags"])


@pytest.mark.parametrize("vector", FRAMES["control"] + FRAMES["spellings"], ids=named)
def test_a_control_frame_is_as_the_page_says(vector: dict[str, Any]) -> None:
    read = page.parse(bytes.fromhex(vector["frame"]))
    assert (read.type, read.stream) == (vector["type"], vector["stream"])
    for name, value in vector["fields"].items():
        assert read.fields[name] == value


@pytest.mark.parametrize("vector", FRAMES["invalid"], ids=named)
def test_an_invalid_frame_is_refused_by_the_page(vector: dict[str, Any]) -> None:
    with pytest.raises(page.Refused, match=vector["code"]):
        page.parse(frame(vector))


def test_every_frame_of_the_transcripts_is_one_of_the_page() -> None:
    for transcript in TRANSCRIPTS:
        for step in transcript.steps:
            written = step.encode()
            if step.damage is not None:
                with pytest.raises(page.Refused, match="corrupt_frame"):
                    page.parse(written)
            elif step.code != "malformed_frame":
                read = page.parse(written)
                assert (read.type, read.stream) == (step.type.name, step.stream)


def test_the_frames_on_the_page_are_frames() -> None:
    blocks = re.findall(r"```\n((?:[0-9a-f]{2} )+.*?)```", page.PROTOCOL, re.DOTALL)
    assert len(blocks) == 2
    pattern = re.compile(r"(?:[0-9a-f]{2} ?)+(?= |$)")
    read = []
    for block in blocks:
        found = [pattern.match(line) for line in block.splitlines()]
        read.append(page.parse(bytes.fromhex("".join(each[0] for each in found if each))))
    data, finish = read
    assert data.payload == b"hello, world"
    assert finish.fields["size"] == len(data.payload)
