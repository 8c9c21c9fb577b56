"""The fuzz target of ``fuzz_frames``, run on programmes that hypothesis makes up."""

from __future__ import annotations

import random

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from django_async_upload.protocol.frames import FrameType, build_header
from django_async_upload.protocol.server import ServerProtocol, ServerStreamState

from . import fuzz_frames
from .fuzz_frames import ANSWER, DATA, FIELDS, KINDS, OPCODES, RAW, Record
from .vectors import EXAMPLES, FRAMES, TRANSCRIPTS, frame

streams = st.sampled_from(
    [1, 1, 1, 2, 2, 3, 0, 7]
)  # mostly the same few streams, so that much happens on each
json_like = st.text(alphabet='{}[]":,0123456789.eE-+truefalsn\\ud8 ', max_size=60)
likely = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda kind: st.builds(Record, st.just(KINDS.index(kind)), streams, st.just(FIELDS[kind]))
)
records = st.one_of(
    likely,
    st.builds(Record, st.integers(DATA, OPCODES - 1), streams, st.binary(min_size=1, max_size=400)),
    st.builds(Record, st.integers(0, OPCODES - 1), streams, st.binary(max_size=80)),
    st.builds(Record, st.integers(0, len(KINDS) - 1), streams, json_like.map(str.encode)),
)
CREATE, ATTACH, FINISH = (
    Record(KINDS.index(kind), 1, FIELDS[kind])
    for kind in (FrameType.CREATE, FrameType.ATTACH, FrameType.FINISH)
)
ANSWERED, REWOUND = Record(ANSWER, 1, b"\0"), Record(ANSWER, 1, b"\1")
roads = st.sampled_from(
    [
        [],
        [CREATE],
        [CREATE, ANSWERED],
        [CREATE, ANSWERED, REWOUND],
        [CREATE, ANSWERED, FINISH],
        [ATTACH, ANSWERED],
    ]
)
programmes = st.builds(list.__add__, roads, st.lists(records, max_size=40)).map(fuzz_frames.encode)


@settings(max_examples=EXAMPLES, deadline=None)
@given(programmes)
def test_any_programme_ends_in_a_documented_way(programme: bytes) -> None:
    fuzz_frames.run(programme)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    fuzz_frames.parse(data)
    fuzz_frames.run(data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from(FrameType), st.integers(0, 2**32 - 1), st.binary(max_size=64) | json_like)
def test_any_payload_behind_a_right_crc_is_parsed_or_refused(
    kind: FrameType, stream: int, payload: bytes | str
) -> None:
    data = payload if isinstance(payload, bytes) else payload.encode()
    fuzz_frames.parse(build_header(kind, stream, data, crc32c) + data)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_vectors_are_parsed_or_refused(seed: int) -> None:
    """Bits of good and bad frames are flipped, pieces cut out and doubled."""
    chance = random.Random(seed)
    good = [step.encode() for each in TRANSCRIPTS for step in each.steps]
    for original in chance.sample(good + [frame(each) for each in FRAMES["invalid"]], 200):
        data = bytearray(original[:4000])
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(3):
                case 0:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del data[at : at + chance.randrange(8)]
                case 2:
                    data[at:at] = data[at : at + chance.randrange(8)]
        fuzz_frames.parse(bytes(data))
        fuzz_frames.run(fuzz_frames.encode([Record(RAW, 0, bytes(data))]))


def test_the_programmes_reach_every_state_of_a_stream() -> None:
    """Otherwise the fuzzing would prove little."""
    seen: set[ServerStreamState] = set()
    check = fuzz_frames.check

    def look(protocol: ServerProtocol) -> None:
        seen.update(stream.state for stream in protocol._streams.values())
        check(protocol)

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(programmes)
    def explore(programme: bytes) -> None:
        fuzz_frames.run(programme)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz_frames, "check", look)
        explore()
    assert seen == set(ServerStreamState)
