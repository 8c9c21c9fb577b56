"""The tables of the protocol page, read by a program: a codec that knows nothing but the page.

It imports nothing of the package. What it makes of the vectors is what a stranger would make of them, so a vector
that the page does not explain fails here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from crc32c import crc32c

PROTOCOL = (Path(__file__).parents[2] / "docs/reference/protocol.md").read_text("utf-8")


def rows(text: str, *, first: str) -> list[list[str]]:
    """The cells of the table rows whose first cell matches."""
    cells = [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells if re.fullmatch(first, row[0])]


def section(title: str) -> str:
    return PROTOCOL.split(f"\n## {title}\n")[1].split("\n## ")[0]


def number(text: str) -> int:
    """``1,024`` or ``2^48 - 1`` with a typographic minus sign."""
    power = re.fullmatch(r"2\^(\d+) \u2212 1", text)
    return 2 ** int(power[1]) - 1 if power else int(text.replace(",", ""))


FIGURES = {
    row[0]: number(row[1])
    for row in rows(section("Frames"), first="[a-z].*")
    if len(row) == 2 and row[1][0].isdigit()
}
"""The table of figures: what -> how many."""


# Fields -------------------------------------------------------------------------------------------

Check = Callable[[Any], bool]


def _string(limits: str) -> Check:
    patterns = re.findall(r"`([^`]+)`", limits)
    if patterns:
        return lambda value: (
            isinstance(value, str) and any(re.fullmatch(each, value) for each in patterns)
        )
    found = re.fullmatch(r"([\d,]+) to ([\d,]+) characters", limits)
    if found is None:
        assert not limits
        return lambda value: isinstance(value, str)
    least, most = number(found[1]), number(found[2])
    return lambda value: isinstance(value, str) and least <= len(value) <= most


def _integer(limits: str) -> Check:
    least, most = map(number, limits.split(" to "))
    return lambda value: type(value) is int and least <= value <= most


def _number(limits: str) -> Check:
    least, below = map(number, limits.split(" to less than "))
    return lambda value: type(value) in (int, float) and least <= value < below


def _object(limits: str) -> Check:
    pairs = dict(re.findall(r"`([^`]+)`: `([^`]+)`", limits))
    if not pairs:
        return lambda value: isinstance(value, dict)
    return lambda value: (
        isinstance(value, dict)
        and all(
            name in pairs and isinstance(each, str) and re.fullmatch(pairs[name], each)
            for name, each in value.items()
        )
    )


def _list(limits: str) -> Check:
    if limits.startswith("strings"):
        return lambda value: (
            isinstance(value, list) and all(isinstance(each, str) for each in value)
        )
    if found := re.fullmatch(r"up to ([\d,]+) values of `(\w+)`", limits):
        most, field = number(found[1]), found[2]
        return lambda value: (
            isinstance(value, list) and len(value) <= most and all(map(FIELDS[field], value))
        )
    found = re.fullmatch(r"objects with the fields of ([A-Z]+)", limits)
    assert found is not None, limits
    message = found[1]
    return lambda value: (
        isinstance(value, list) and all(_has_fields(each, message) for each in value)
    )


def _has_fields(value: Any, message: str) -> bool:
    return isinstance(value, dict) and all(
        field.check(value[name]) if name in value else field.optional
        for name, field in MESSAGES[message].items()
    )


def _check(kind: str, limits: str) -> Check:
    match kind.partition(",")[0]:
        case "string":
            return _string(limits)
        case "integer":
            return _integer(limits)
        case "number":
            return _number(limits)
        case "boolean":
            return lambda value: isinstance(value, bool)
        case "object":
            return _object(limits)
        case "list":
            return _list(limits)
    raise ValueError(kind)


def _read_fields() -> dict[str, Check]:
    """``field``, or ``field of MESSAGE`` where it is not the same everywhere."""
    checks = {}
    for names, kind, limits in rows(section("Fields"), first="`.*"):
        where = re.search(r" of (.+)", names)
        owners = [f" of {each}" for each in re.split(" and ", where[1])] if where else [""]
        for name in re.findall(r"`(\w+)`", names):
            for owner in owners:
                assert name + owner not in checks
                checks[name + owner] = _check(kind, limits)
    return checks


FIELDS = _read_fields()


# Messages -----------------------------------------------------------------------------------------


class Field(NamedTuple):
    optional: bool
    default: Any
    check: Check


def _read_message(name: str, text: str) -> dict[str, Field]:
    fields = {}
    for each in re.split(r"[;.] ?", text):
        found = re.match(r"`(\w+)`(\??)(?: = `([^`]*)`)?", each.strip())
        if found:
            field, optional, default = found.groups()
            check = FIELDS.get(f"{field} of {name}") or FIELDS[field]
            fields[field] = Field(bool(optional), json.loads(default) if default else None, check)
    return fields


TYPES = {int(row[0], 16): row[1] for row in rows(PROTOCOL, first="0x[0-9a-f]{2}")}
MESSAGES = {
    row[1]: _read_message(row[1], row[3])
    for row in rows(PROTOCOL, first="0x[0-9a-f]{2}")
    if row[1] != "DATA"
}
"""Name of a control message -> its fields."""


# Tables of states ---------------------------------------------------------------------------------


def _read_states(first: str) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The states, and message -> state -> what happens."""
    (table,) = (
        block
        for block in section("When the peer breaks the protocol").split("\n\n")
        if block.startswith(f"| {first} |")
    )
    (head,), body = rows(table, first=first), rows(table, first="[A-Z].*")
    states = head[1:]
    return states, {
        name: dict(zip(states, row[1:], strict=True)) for row in body for name in row[0].split(", ")
    }


SERVER_STATES, SERVER_TABLE = _read_states("server")
CLIENT_STATES, CLIENT_TABLE = _read_states("client")


# A codec ------------------------------------------------------------------------------------------


class Refused(Exception):
    """With the code."""


class Frame(NamedTuple):
    type: str
    flags: int
    offset: int
    stream: int
    payload: bytes
    fields: dict[str, Any]
    """Of a control frame, with the defaults of what was left out."""


def parse(frame: bytes) -> Frame:
    """Raises :class:`Refused` with ``corrupt_frame`` or ``malformed_frame``."""
    header, largest = FIGURES["header, bytes"], FIGURES["largest frame, bytes, header included"]
    if len(frame) < header:
        raise Refused("malformed_frame")
    checked, payload = frame[:12], frame[header:]
    if crc32c(payload, crc32c(checked)) != int.from_bytes(frame[12:16], "big"):
        raise Refused("corrupt_frame")
    kind, flags = TYPES.get(frame[0]), frame[1]
    offset, stream = int.from_bytes(frame[2:8], "big"), int.from_bytes(frame[8:12], "big")
    if kind is None or len(frame) > largest:
        raise Refused("malformed_frame")
    if kind == "DATA":
        if flags > 1 or not 0 < len(payload) <= FIGURES["largest payload of DATA, bytes"]:
            raise Refused("malformed_frame")
        return Frame(kind, flags, offset, stream, payload, {})
    if flags or offset or len(payload) > FIGURES["largest payload of a control frame, bytes"]:
        raise Refused("malformed_frame")
    return Frame(kind, flags, offset, stream, payload, _parse_fields(kind, payload))


def _parse_fields(kind: str, payload: bytes) -> dict[str, Any]:
    try:
        given = json.loads(payload.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        raise Refused("malformed_frame") from None
    most = FIGURES["objects and arrays within each other, the payload itself being the first"]
    if not isinstance(given, dict) or _depth(given) > most:
        raise Refused("malformed_frame")
    values = {}
    for name, field in MESSAGES[kind].items():
        if name in given and not field.check(given[name]):
            raise Refused("malformed_frame")
        if name not in given and not field.optional:
            raise Refused("malformed_frame")
        values[name] = given.get(name, field.default)
    return values


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _depth(value: Any) -> int:
    """Layer by layer: what is refused may be deeper than this program's stack."""
    depth, layer = 0, [value]
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        depth += 1
        layer = [
            each
            for outer in layer
            for each in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth
