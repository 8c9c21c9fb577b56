"""The frames of the vectors, built and parsed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.exceptions import UploadError
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.client import ClientProtocol
from django_async_upload.protocol.frames import (
    HEADER_SIZE,
    MAX_CONTROL,
    MAX_FRAME,
    FrameType,
    build_control,
    build_data,
    is_intact,
    parse_fields,
    parse_header,
)
from django_async_upload.protocol.server import ServerProtocol

from .transcripts import pattern
from .vectors import FRAMES, frame, named, with_header


@pytest.mark.parametrize("vector", FRAMES["crc32c"], ids=named)
def test_the_crc_is_castagnolis(vector: dict[str, Any]) -> None:
    data = vector["text"].encode() if "text" in vector else bytes.fromhex(vector["hex"])
    assert f"{crc32c(data):08x}" == vector["crc32c"]
    assert f"{crc32c(data[3:], crc32c(data[:3])):08x}" == vector["crc32c"]


@pytest.mark.parametrize("vector", FRAMES["patterns"], ids=str)
def test_a_pattern_is_the_same_file_from_wherever_it_is_read(vector: dict[str, Any]) -> None:
    data = pattern(vector["pattern"], vector["start"], vector["stop"])
    assert len(data) == vector["stop"] - vector["start"]
    assert f"{crc32c(data):08x}" == vector["crc32c"]
    assert data.hex() == vector.get("hex", data.hex())
    assert all(
        byte == (vector["pattern"] + vector["start"] + position) % 251
        for position, byte in enumerate(data)
    )


@pytest.mark.parametrize("vector", FRAMES["data"], ids=str)
def test_a_data_frame_is_built_and_parsed(vector: dict[str, Any]) -> None:
    payload, written = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["frame"])
    stream, offset, flags = vector["stream"], vector["offset"], vector["flags"]
    assert build_data(stream, offset, payload, crc32c, restart=bool(flags)) == written
    for parsed in (written, memoryview(written)):
        header = parse_header(parsed)
        assert header[:4] == (FrameType.DATA, flags, offset, stream)
        assert is_intact(parsed, crc32c)
    assert written[HEADER_SIZE:] == payload


@pytest.mark.parametrize("vector", FRAMES["control"], ids=named)
def test_a_control_frame_is_built(vector: dict[str, Any]) -> None:
    kind = FrameType[vector["type"]]
    built = build_control(kind, vector["stream"], vector["fields"], crc32c)
    assert built.hex() == vector["frame"]


@pytest.mark.parametrize("vector", FRAMES["control"] + FRAMES["spellings"], ids=named)
def test_a_control_frame_is_parsed_and_says_the_same_when_it_is_built_again(
    vector: dict[str, Any],
) -> None:
    written = bytes.fromhex(vector["frame"])
    header = parse_header(written)
    assert (header.type.name, header.stream) == (vector["type"], vector["stream"])
    message = m.parse_message(header.type, parse_fields(written, crc32c))
    for name, value in vector["fields"].items():
        assert getattr(message, name) == value
    again = message.to_frame(header.stream, crc32c)
    assert m.parse_message(header.type, parse_fields(again, crc32c)) == message


def test_there_is_a_vector_for_every_message() -> None:
    names = {vector["type"] for vector in FRAMES["control"] + FRAMES["data"]}
    assert names == {kind.name for kind in FrameType}


def parse_whole(written: bytes) -> None:
    """Everything that is checked of a frame before its stream is looked up."""
    header = parse_header(written)
    if header.type is not FrameType.DATA:
        m.parse_message(header.type, parse_fields(written, crc32c))


@pytest.mark.parametrize("vector", FRAMES["invalid"], ids=named)
def test_an_invalid_frame_is_refused_by_both_sides(vector: dict[str, Any]) -> None:
    written = frame(vector)
    with pytest.raises(UploadError) as refusal:
        parse_whole(written)
    assert refusal.value.code in (vector["code"], "malformed_frame")
    from_client = written[:1] < b"\x80"
    if from_client:
        server = ServerProtocol(m.Hello(2**40, 2**40, 8), crc32c)
        with pytest.raises(UploadError) as refusal:
            server.receive(written)
        assert refusal.value.code == vector["code"]
    if not from_client or vector["code"] == "corrupt_frame":
        client = ClientProtocol(crc32c)
        if written[0] != FrameType.HELLO:
            client.receive(m.Hello(2**40, 2**40, 8).to_frame(0, crc32c))
        with pytest.raises(UploadError) as refusal:
            client.receive(written)
        assert refusal.value.code == vector["code"]


@pytest.mark.parametrize(
    "fields",
    [
        {"retry_after": math.nan},
        {"retry_after": math.inf},
        {"server": "\ud800"},
        {"server": "x" * MAX_CONTROL},
    ],
    ids=lambda fields: ascii(fields)[:30],
)
def test_what_no_receiver_could_parse_is_not_built(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        build_control(FrameType.ERROR, 0, fields, crc32c)


def test_the_largest_frames_are_good() -> None:
    largest = build_data(1, 0, bytes(MAX_FRAME - 4096), crc32c)
    assert parse_header(largest).type is FrameType.DATA
    spaces = with_header("PING", 0, b"{" + b" " * (MAX_CONTROL - 2) + b"}")
    assert parse_fields(spaces, crc32c) == {}


def test_a_flipped_bit_anywhere_in_a_frame_is_seen() -> None:
    written = build_data(1, 1000, b"hello, world", crc32c)
    for bit in range(len(written) * 8):
        damaged = bytearray(written)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not is_intact(damaged, crc32c)
