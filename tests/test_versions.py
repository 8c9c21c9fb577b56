"""Servers that are too old are found: by the check, by the doctor, and not those that are new enough."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from django_async_upload import checks
from django_async_upload.operations import doctor, versions

ROOT = Path(__file__).parents[1]


def install(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise versions.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions, "version", version)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("uvicorn", "0.52.0", "0.52.1"),
        ("uvicorn", "0.9.1", "0.100.0"),
        ("uvicorn", "0.51", "1.0.0rc1"),
        ("daphne", "4.2.1", "4.2.2"),
        ("daphne", "4.2", "4.10"),
    ],
)
def test_a_server_that_is_too_old_is_found(
    name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, **{name: new})
    assert list(versions.old_servers()) == doctor.find_old_servers() == []

    install(monkeypatch, **{name: old})
    (found,) = doctor.find_old_servers()
    assert found.verdict == "bad"
    assert found.text.startswith(f"{name} {old} is installed: ")
    (warning,) = (each for each in checks.check_settings() if each.id == "async_upload.W034")
    assert warning.msg == found.text
    assert warning.hint == found.advice


def test_no_server_is_no_old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert list(versions.old_servers()) == []


def test_the_groups_want_the_same_versions() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for name, (oldest, _) in versions.OLDEST.items():
        wanted = [
            each
            for group in groups.values()
            for each in group
            if isinstance(each, str) and each.startswith(name + ">")
        ]
        assert wanted == [f"{name}>={oldest}"] * len(wanted) != []
