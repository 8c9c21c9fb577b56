"""Settings: one frozen object over the defaults, and a sentence for each mistake."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_async_upload import conf


def test_defaults_are_valid_and_frozen(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {}
    defaults = conf.uploads()
    assert defaults == conf.UploadSettings()
    assert defaults.durability == "fsync"
    written = {name.upper(): getattr(defaults, name) for name in conf.FIELDS.values()}
    assert conf.problems(written) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        defaults.max_size = 1


def test_a_change_of_settings_is_seen(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"MAX_SIZE": 5}
    assert conf.uploads() is conf.uploads()
    assert conf.uploads().max_size == 5
    settings.ASYNC_UPLOAD = {"MAX_SIZE": None}
    assert conf.uploads().max_size is None


@pytest.mark.parametrize(
    ("configured", "word"),
    [
        ([], "must be a dict"),
        ({"MAX_SIZ": 1}, "no key 'MAX_SIZ'"),
        ({"max_size": 1}, "no key 'max_size'"),
        ({"MAX_SIZE": "1"}, "MAX_SIZE"),
        ({"MAX_SIZE": True}, "MAX_SIZE"),
        ({"ALLOW_ANONYMOUS": 1}, "ALLOW_ANONYMOUS"),
        ({"DURABILITY": "always"}, "choose from"),
        ({"ALLOWED_TYPES": "image/*"}, "ALLOWED_TYPES"),
        ({"THREADS": 0}, "above 0"),
        ({"IDLE_TIMEOUT": -1.0}, "above 0"),
        ({"MEMORY_BUDGET": 1000}, "at least"),
        ({"NUM_PROXIES": -1}, "below 0"),
        ({"UPLOAD_TO": 7}, "UPLOAD_TO"),
    ],
)
def test_what_is_wrong_is_said(settings: Any, configured: Any, word: str) -> None:
    (problem,) = conf.problems(configured)
    assert word in problem
    settings.ASYNC_UPLOAD = configured
    with pytest.raises(ImproperlyConfigured, match="ASYNC_UPLOAD"):
        conf.uploads()


def test_every_problem_is_named() -> None:
    assert len(conf.problems({"A": 1, "THREADS": 0, "DURABILITY": ""})) == 3


@pytest.mark.parametrize(
    "configured",
    [
        {"UPLOAD_TO": lambda session, name: name},
        {"STAGING_ROOT": None},
        {"ALLOWED_TYPES": ["image/*"]},
        {"ALLOWED_EXTENSIONS": ("jpg",)},
        {"EXPIRE_AFTER": 60},
        {"NUM_PROXIES": 0},
        {"NUM_PROXIES": 2},
    ],
)
def test_what_is_right_is_let_be(configured: Any) -> None:
    assert conf.problems(configured) == []


@pytest.mark.parametrize(
    ("upload_to", "is_path"),
    [
        ("uploads/%Y/%m/%d/", False),
        ("uploads", False),
        ("", False),
        ("myproject.uploads.name_it", True),
    ],
)
def test_a_dotted_path_is_told_from_a_prefix(upload_to: str, is_path: bool) -> None:
    assert conf.is_dotted_path(upload_to) is is_path
