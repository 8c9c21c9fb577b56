"""The tables of the reference say what the source says."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from pathlib import Path

import pytest
from crc32c import crc32c

from django_async_upload.consumers import CLOSE_CODES
from django_async_upload.exceptions import (
    BY_CODE,
    BindError,
    ConnectionLost,
    ConnectionRefused,
    ProtocolViolation,
    UploadError,
)
from django_async_upload.protocol import frames, messages
from django_async_upload.protocol.frames import Flag, FrameType
from django_async_upload.protocol.messages import Hello, Message
from django_async_upload.protocol.server import MAX_REWINDS

DOCS = Path(__file__).parents[2] / "docs/reference"
PROTOCOL = (DOCS / "protocol.md").read_text("utf-8")
ERRORS = (DOCS / "errors.md").read_text("utf-8")
CLASSES = list(messages._BY_TYPE.values())


def rows(text: str, *, first: str) -> list[list[str]]:
    """The cells of the table rows whose first cell matches."""
    cells = [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if re.fullmatch(first, row[0])]


# Errors -------------------------------------------------------------------------------------------

ERROR_ROWS = {row[0].strip("`"): row for row in rows(ERRORS, first="`[a-z_]+`")}


def test_every_error_is_documented_once() -> None:
    assert len(rows(ERRORS, first="`[a-z_]+`")) == len(ERROR_ROWS)
    assert ERROR_ROWS.keys() == BY_CODE.keys()


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_an_error_is_documented_as_it_is(code: str) -> None:
    cls, (_, name, retry, where, when, _) = BY_CODE[code], ERROR_ROWS[code]
    assert name == f"`{cls.__name__}`"
    assert retry == ("yes" if cls.retryable else "no")
    assert when
    closes = re.findall(r"connection (\d+)", where)
    if issubclass(cls, ProtocolViolation | ConnectionRefused):
        nearest = next(CLOSE_CODES[each] for each in cls.__mro__ if each in CLOSE_CODES)
        assert closes == [str(nearest)]
    else:
        assert not closes
        own = cls is UploadError or issubclass(cls, BindError | ConnectionLost)
        assert ("stream" in where) != own


def test_an_error_stands_below_its_base_class() -> None:
    for section in ERRORS.split("\n## ")[1:]:
        base = re.search(r"^Children of `(\w+)`", section, re.MULTILINE)
        if base is not None:
            for code in (row[0].strip("`") for row in rows(section, first="`[a-z_]+`")):
                assert base[1] in {each.__name__ for each in BY_CODE[code].__mro__}


def test_the_tree_at_the_top_of_the_exceptions_is_the_tree() -> None:
    from django_async_upload import exceptions

    assert exceptions.__doc__ is not None
    drawn = {}
    for line in exceptions.__doc__.splitlines():
        found = re.match(r"[│ ]*[├└]── (\w+) +(\w+)?(.*)", line)
        if found:
            drawn[found[1]] = (line.index(found[1]) // 4, found[2], "retryable" in found[3])
    for cls in BY_CODE.values():
        if cls is UploadError:
            continue
        depth, code, retryable = drawn.pop(cls.__name__)
        assert depth == len(cls.__mro__) - len(UploadError.__mro__)
        if depth == 2 or cls is ConnectionLost:
            assert (code, retryable) == (cls.code, cls.retryable)
    assert not drawn


def test_codes_that_the_protocol_names_exist() -> None:
    words = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PROTOCOL))
    fields = {each.name for cls in CLASSES for each in dataclasses.fields(cls)}
    assert words - fields - BY_CODE.keys() == {"corrupt_chunk"}
    assert {str(code) for code in CLOSE_CODES.values()} <= set(
        re.findall(r"\b[14]\d{3}\b", PROTOCOL.split("## Close codes")[1])
    )


# Messages -----------------------------------------------------------------------------------------

MESSAGE_ROWS = rows(PROTOCOL, first="0x[0-9a-f]{2}")


def test_every_message_is_documented_once_with_its_number() -> None:
    documented = [(int(row[0], 16), row[1]) for row in MESSAGE_ROWS]
    assert documented == [(kind.value, kind.name) for kind in FrameType]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_message_has_the_fields_that_are_documented(cls: type[Message]) -> None:
    (row,) = (row for row in MESSAGE_ROWS if row[1] == cls.frame_type.name)
    where, text = row[2], row[3]
    documented = dict(re.findall(r"`([a-z_0-9]+)`(\??):", text))
    fields = {each.name: each for each in dataclasses.fields(cls)}
    assert documented.keys() == fields.keys()
    hints = typing.get_type_hints(cls)
    for name, mark in documented.items():
        may_be_none = types.NoneType in typing.get_args(hints[name])
        # What a server leaves out has a default that the client knows: it is not marked.
        from_server = cls.frame_type >= FrameType.HELLO
        assert bool(mark) == (may_be_none if from_server else has_default(fields[name])), name
    assert where.startswith(("0", "id", "new id"))


def has_default(field: dataclasses.Field[object]) -> bool:
    return (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


def test_the_defaults_that_a_server_may_leave_out_are_documented() -> None:
    text = PROTOCOL.split("A field of the server with a default")[1].split("\n\n")[0]
    documented = {
        name: json.loads(re.sub(r"(?<=\d),(?=\d)", "", value.strip("`")))
        for name, value in re.findall(r"`(\w+)`\s(`[^`]*`|true|[\d,]*\d)", text)
    }
    shortest = Hello(connection_limit=0, stream_limit=0, max_streams=1).to_fields()
    defaults = {
        each.name: shortest[each.name]
        for each in dataclasses.fields(Hello)
        if has_default(each) and each.default is not None
    }
    assert documented == defaults


@pytest.mark.parametrize(
    "sentence",
    [
        f"`{frames.SUBPROTOCOL}`",
        f"one JSON object in UTF-8 of at most {frames.MAX_CONTROL:,} bytes",
        f"A frame has at most {frames.MAX_FRAME:,} bytes",
        f"`0x{Flag.RESTART:02x}` RESTART",
        f"a header of {frames.HEADER_SIZE} bytes",
        f"nested\nat most {frames.MAX_DEPTH} deep",
        f'(`"123456789"` gives `{crc32c(b"123456789"):08x}`)',
        "After eight rewinds to one offset",
        "integers are 0 to 2^48 − 1",  # noqa: RUF001
        "1 to 1,024 characters",
        "at most 8,192 characters",
    ],
)
def test_a_figure_of_the_specification_is_that_of_the_source(sentence: str) -> None:
    assert sentence in PROTOCOL
    assert frames.MAX_OFFSET == 2**48 - 1
    assert messages.DIGESTS == {"sha-256": 64}
    assert MAX_REWINDS == 8
