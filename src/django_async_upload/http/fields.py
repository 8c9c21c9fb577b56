"""Structured fields (RFC 9651) of requests, as plain values. Those that cannot be parsed count as not sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import http_sf


def boolean(headers: Mapping[str, str], name: str) -> bool | None:
    value = _item(headers, name)
    return value if isinstance(value, bool) else None


def number(headers: Mapping[str, str], name: str) -> int | None:
    """An Integer that is not negative."""
    value = _item(headers, name)
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_number else None


def dictionary(headers: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """The values by key, without their parameters."""
    parsed = _parse(headers, name, "dictionary")
    return None if parsed is None else {key: member[0] for key, member in parsed.items()}


def _item(headers: Mapping[str, str], name: str) -> Any:
    parsed = _parse(headers, name, "item")
    return None if parsed is None else parsed[0]


def _parse(headers: Mapping[str, str], name: str, kind: str) -> Any:
    text = headers.get(name)
    if text is None:
        return None
    try:
        return http_sf.parse(text.encode("latin-1"), tltype=kind)
    except http_sf.StructuredFieldError:
        return None
