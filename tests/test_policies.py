"""Which files are allowed, and the names that they get in a storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.exceptions import (
    FileTooLarge,
    MetadataInvalid,
    NameRefused,
    TypeRefused,
)
from django_async_upload.sessions import policies

EVIL = json.loads((Path(__file__).parent / "vectors/evil_names.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "name",
    ["a.txt", "é ü.pdf", "日本語.txt", ".profile", "a" * 255, "con", "a..b", "-rf", "50% off.txt"],
)
def test_ordinary_names_are_let_in(name: str) -> None:
    policies.check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        " ",
        "a/b",
        "..\\b",
        "nul\0",
        "new\nline",
        "a" * 256,
        "\x7f",
        "gpj.\u202eexe",
        "\ud800",
        "\u0085",
        "\u200b",
        "\u200b.\u00ad",
        "\u3164",
        "\u2800 \u115f\uffa0",
        "\u0301\ufe0f",
        "\U000e0041\U000e0042",
    ],
)
def test_deceiving_and_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(NameRefused):
        policies.check_name(name)


@pytest.mark.parametrize("name", EVIL["refused"])
def test_a_name_that_the_vectors_refuse_is_refused(name: str) -> None:
    with pytest.raises(NameRefused):
        policies.check_name(name)


@pytest.mark.parametrize("name", EVIL["taken"])
def test_a_name_that_the_vectors_take_is_made_safe(name: str, tmp_path: Path) -> None:
    policies.check_name(name)
    stored = policies.storage_name(name)
    assert 0 < len(stored.encode()) <= policies.MAX_NAME
    assert (tmp_path / stored).resolve().parent == tmp_path.resolve()
    assert not stored.startswith(".")
    (tmp_path / stored).write_bytes(b"")
    assert stored.partition(".")[0].lower() not in {"con", "nul", "aux", "prn", "com1", "lpt9"}


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("a b.txt", "a_b.txt"),
        (".profile", "profile"),
        ("con.txt", "_con.txt"),
        ("COM1", "_COM1"),
        ("e\u0301.txt", "\u00e9.txt"),
        ("noextension", "noextension"),
        ("archive.tar.gz", "archive.tar.gz"),
        ("***", "file"),
        ("\U0001f389.txt", "file.txt"),
        ("\U0001f389 \U0001f389.tar.gz", "_.tar.gz"),
        ("\U0001f389.\U0001f389", "file"),
        ("***.jpg", "file.jpg"),
        ("party \U0001f389.png", "party_.png"),
    ],
)
def test_names_in_the_storage(name: str, stored: str) -> None:
    assert policies.storage_name(name) == stored


def test_a_long_name_keeps_its_extension_and_whole_characters() -> None:
    stored = policies.storage_name("ü" * 250 + ".txt")
    assert stored.endswith("ü.txt")
    assert len(stored.encode()) <= policies.MAX_NAME


@pytest.mark.parametrize(
    ("name", "allowed", "let_in"),
    [
        ("a.JPG", ["jpg"], True),
        ("a.jpg", [".jpg"], True),
        ("a.jpg.exe", ["jpg"], False),
        ("jpg", ["jpg"], False),
        ("a", None, True),
        ("a.jpg", [], False),
    ],
)
def test_extensions(name: str, allowed: Any, let_in: bool) -> None:
    _check(let_in, policies.check_extension, name, allowed)


@pytest.mark.parametrize(
    ("declared", "allowed", "let_in"),
    [
        ("image/png", ["image/*"], True),
        ("IMAGE/PNG; charset=x", ["image/png"], True),
        ("imagepng", ["image/*"], False),
        ("", ["image/*"], False),
        ("anything", None, True),
    ],
)
def test_types(declared: str, allowed: Any, let_in: bool) -> None:
    _check(let_in, policies.check_type, declared, allowed)


def _check(let_in: bool, policy: Any, *arguments: Any) -> None:
    if let_in:
        policy(*arguments)
    else:
        with pytest.raises(TypeRefused):
            policy(*arguments)


def test_sizes() -> None:
    policies.check_size(10, 10)
    policies.check_size(None, 10)
    policies.check_size(10, None)
    with pytest.raises(FileTooLarge) as caught:
        policies.check_size(11, 10)
    assert caught.value.facts == {"size": 11, "max_size": 10}


def test_metadata() -> None:
    policies.check_metadata({"a": "x" * 16_000})
    policies.check_metadata({"a": [{}] * 1000, "b": "\\u0000"})
    for metadata in (
        {"a": "x" * 17_000},
        {"a": [{}] * 1100},
        {"a": "\0"},
        {"\\\0": 1},
        {"a": "\ud800"},
        {"a": float("nan")},
    ):
        with pytest.raises(MetadataInvalid):
            policies.check_metadata(metadata)


def test_the_smallest_of_limits() -> None:
    assert policies.smallest(None, 5, 3) == 3
    assert policies.smallest(None, None) is None
