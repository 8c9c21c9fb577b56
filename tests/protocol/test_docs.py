"""The tables of the reference say what the source says."""

from __future__ import annotations

import ast
import dataclasses
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from django_async_upload.client.connection import CLOSE_CODES as client_close_codes
from django_async_upload.exceptions import (
    BY_CODE,
    BindError,
    ConnectionLost,
    ConnectionRefused,
    ProtocolViolation,
    UploadError,
)
from django_async_upload.http.problems import status_of
from django_async_upload.protocol import frames
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.client import RECEIVES
from django_async_upload.protocol.frames import FrameType
from django_async_upload.protocol.messages import Message
from django_async_upload.protocol.server import MAX_REWINDS, Broken, ServerProtocol
from django_async_upload.websocket.errors import CLOSE_CODES

from . import page
from .page import PROTOCOL, rows

DOCS = Path(__file__).parents[2] / "docs/reference"
SOURCE = Path(__file__).parents[2] / "src/django_async_upload"
ERRORS = (DOCS / "errors.md").read_text("utf-8")
CLASSES = list(m._BY_TYPE.values())
ID = "5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0"


# Errors -------------------------------------------------------------------------------------------

ERROR_ROWS = {row[0].strip("`"): row for row in rows(ERRORS, first="`[a-z_]+`")}


def test_every_error_is_documented_once() -> None:
    assert len(rows(ERRORS, first="`[a-z_]+`")) == len(ERROR_ROWS)
    assert ERROR_ROWS.keys() == BY_CODE.keys()


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_an_error_is_documented_as_it_is(code: str) -> None:
    cls, (_, name, retry, where, when, _, _) = BY_CODE[code], ERROR_ROWS[code]
    assert name == f"`{cls.__name__}`"
    assert retry.partition(",")[0] == ("yes" if cls.retryable else "no")
    assert when
    if statuses := re.findall(r"request (\d+)", where):  # it is of HTTP only
        assert statuses == [str(status_of(cls()))]
        return
    closes = re.findall(r"connection (\d+)", where)
    nearest = next(CLOSE_CODES[each] for each in cls.__mro__ if each in CLOSE_CODES)
    if issubclass(cls, ProtocolViolation | ConnectionRefused):
        assert closes == [str(nearest)]
    else:
        assert closes in ([], [str(nearest)])
        own = cls is UploadError or issubclass(cls, BindError | ConnectionLost)
        assert ("stream" in where) != own


def test_the_facts_of_an_error_are_documented() -> None:
    """Those that its message is made of, and those that it is raised with anywhere in the package."""
    classes = {cls.__name__: cls for cls in BY_CODE.values()}
    raised = {
        code: {name for _, name, _, _ in string.Formatter().parse(cls.template) if name}
        for code, cls in BY_CODE.items()
    }
    for path in SOURCE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                cls = classes.get(call.func.id)
                if cls is not None:
                    raised[cls.code] |= {each.arg for each in call.keywords if each.arg}
    for code, names in raised.items():
        documented = re.findall(r"`(\w+)`", ERROR_ROWS[code][5])
        assert names - {"retry_after"} <= set(documented), code


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
    schema = page.MESSAGES[cls.frame_type.name]
    fields = {each.name: each for each in dataclasses.fields(cls)}
    assert schema.keys() == fields.keys()
    for name, documented in schema.items():
        each = fields[name]
        has_default = (each.default, each.default_factory) != (
            dataclasses.MISSING,
            dataclasses.MISSING,
        )
        assert documented.optional == has_default, name
        if has_default:
            default = (
                each.default
                if each.default_factory is dataclasses.MISSING
                else each.default_factory()
            )
            assert documented.default == default, name


PROBES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 1.0, 0.5, -0.5, 1e9, 999_999_999.5, 10**9),
    *(limit + step for limit in (frames.MAX_CHUNK, frames.MAX_OFFSET) for step in (0, 1)),
    *("", "a", "\n", "sha-256", "SHA-256", "md5", ID, ID.upper(), ID.replace("-", "")),
    *(digit * length for digit in "0f" for length in (7, 8, 9, 31, 32, 33, 63, 64, 65)),
    *("F" * 8, "g" * 32, "0" * 8 + "\n"),
    *("x" * (limit + step) for limit in (255, 1024, 4096, 8192) for step in (0, 1)),
    *([], ["sha-256"], ["x"], [1], {}, {"a": 1}, {"sha-256": "0" * 64}, {"sha-256": "0" * 63}),
    *({"sha-256": None}, {"md5": "0" * 32}),
    *("uploads", "own", "all", "own "),
    *([ID], [ID.upper()], [ID] * 1000, [ID] * 1001),
    *([{}], [None], [{"upload": ID, "state": "created", "name": "a", "durable": 0}]),
    *([{"upload": ID, "state": "created", "name": "", "durable": 0}],),
]
"""Values at the edges of all ranges, and of all types."""


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_field_has_the_range_that_is_documented(cls: type[Message]) -> None:
    for name, (accepts, _) in m._schema(cls).items():
        rule = m._RULES.get(name, lambda value: True)
        for probe in PROBES:
            taken = accepts(probe) and bool(rule(probe))
            documented = bool(page.MESSAGES[cls.frame_type.name][name].check(probe))
            assert taken == documented, (name, probe)


def test_the_figures_are_those_of_the_source() -> None:
    assert page.FIGURES == {
        "header, bytes": frames.HEADER_SIZE,
        "largest frame, bytes, header included": frames.MAX_FRAME,
        "largest payload of DATA, bytes": frames.MAX_CHUNK,
        "largest payload of a control frame, bytes": frames.MAX_CONTROL,
        "objects and arrays within each other, the payload itself being the first": frames.MAX_DEPTH,
        "largest integer, and largest offset": frames.MAX_OFFSET,
        "largest stream id": frames.MAX_STREAM,
        "rewinds to one offset": MAX_REWINDS,
    }
    assert f"`{frames.SUBPROTOCOL}`" in PROTOCOL


# Close codes --------------------------------------------------------------------------------------


def test_a_client_stays_away_where_the_table_of_close_codes_says_no() -> None:
    section = PROTOCOL.split("## Close codes")[1].split("\n## ")[0]
    away = {
        int(code)
        for codes, _, back in rows(section, first=r"\d{4}.*")
        for code in codes.split(",")
        if back and not back.startswith("yes")
    }
    assert away == client_close_codes.keys()
    assert set(CLOSE_CODES.values()) <= set(map(int, re.findall(r"\b4\d{3}\b", section)))


# When the peer breaks the protocol ----------------------------------------------------------------


@pytest.mark.parametrize("state", page.SERVER_STATES)
@pytest.mark.parametrize("name", page.SERVER_TABLE)
def test_a_server_does_with_a_message_what_the_table_says(name: str, state: str) -> None:
    cell = page.SERVER_TABLE[name][state]
    assert outcome(name, state) == cell.partition(" ")[0].strip("`,")
    if name == "CANCEL" and state == "never opened":
        assert outcome(name, state, m.Cancel()) == "unknown_stream"
    if name == "DATA" and state == "rewound":
        assert outcome(name, state, restart=True) == "ok"


def outcome(name: str, state: str, message: Message | None = None, *, restart: bool = False) -> str:
    """What a server in which stream 1 is in ``state`` does with a message."""
    server, end = server_in(state)
    if name == "PAUSED" and server.is_open(1) and state not in ("asking", "watching", "ending"):
        server.send(1, m.Pause())
    if name == "DATA":
        frame = frames.build_data(1, 0 if restart else end, b"x", crc32c, restart=restart)
    else:
        frame = (message or FROM_CLIENT[name](end)).to_frame(1, crc32c)
    try:
        event = server.receive(frame)
    except UploadError as error:
        return error.code
    if isinstance(event, Broken):
        return event.error.code
    return "drop" if event is None else "ok"


FROM_CLIENT: dict[str, Callable[[int], Message]] = {
    "CREATE": lambda end: m.Create("0" * 32, "a"),
    "ATTACH": lambda end: m.Attach(ID),
    "QUERY": lambda end: m.Query(ID),
    "WATCH": lambda end: m.Watch("own"),
    "CANCEL": lambda end: m.Cancel(ID),
    "PROOF": lambda end: m.Proof("00000000"),
    "FINISH": lambda end: m.Finish(end, "00000000"),
    "RELEASE": lambda end: m.Release(),
    "PAUSED": m.Paused,
}


def server_in(state: str) -> tuple[ServerProtocol, int]:
    """A server whose stream 1 is in a state of the table, and where the data that came ends."""
    server = ServerProtocol(m.Hello(1000, 1000, 8), crc32c)

    def hear(message: Message) -> None:
        server.receive(message.to_frame(1, crc32c))

    if state == "never opened":
        return server, 0
    if state in ("asking", "watching"):
        hear(m.Query(ID) if state == "asking" else m.Watch("own"))
        return server, 0
    if state in ("attaching", "proving"):
        hear(m.Attach(ID))
        if state == "proving":
            server.send(1, m.Attached(ID, "a", 0, 0))
        return server, 0
    hear(m.Create("0" * 32, "a"))
    if state == "creating":
        return server, 0
    server.send(1, m.Created(ID, "a", 1000, 10))
    server.receive(frames.build_data(1, 0, b"0123456789", crc32c))
    match state:
        case "rewound":
            server.send(1, m.Rewind(0, 0, 1000, "corrupt_chunk"))
        case "finishing":
            hear(m.Finish(10, "00000000"))
        case "ending" | "closed":
            hear(m.Cancel())
            if state == "closed":
                server.send(1, m.Cancelled(ID))
        case _:
            assert state == "open"
    return server, 10


def test_a_client_takes_the_messages_that_the_table_says() -> None:
    states = {state.name.lower(): allowed for state, allowed in RECEIVES.items()}
    assert states.pop("creating_finished").keys() == states["creating"].keys()
    documented = {
        state: {name for name, row in page.CLIENT_TABLE.items() if row[state] == "ok"}
        for state in page.CLIENT_STATES
    }
    assert documented == {
        state: {kind.name for kind in allowed} for state, allowed in states.items()
    }
