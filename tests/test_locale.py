"""Every text that a user reads is translated, in each language that is shipped, and what is shipped is current."""

from __future__ import annotations

import ast
import gettext
import json
import re
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path

import pytest
from django.template.defaultfilters import filesizeformat
from django.test import Client
from django.utils.formats import number_format
from django.utils.translation import override, to_locale
from django.utils.translation.template import templatize

from django_async_upload.models import UploadSession
from django_async_upload.sessions.state import State
from django_async_upload.widgets import TEXTS, AsyncClearableFileInput

SOURCE = Path(__file__).parents[1] / "src/django_async_upload"
UNITS = ["kilobytes", "megabytes", "gigabytes", "terabytes", "petabytes"]
LANGUAGES = ["zh_Hans", "de", "fr", "es"]
FUNCTIONS = {"_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy", "pgettext"}
SAME = {
    "de": {"Uploads", "{size}/s", "{action}: {name}", "{name}: {error}"},
    "fr": {"images", "{size}/s"},
    "es": {"error", "{size}/s", "{action}: {name}", "{name}: {error}"},
    "zh_Hans": set(),
}
"""What is the same in English."""


def catalogue(language: str, suffix: str) -> Path:
    return SOURCE / "locale" / language / "LC_MESSAGES" / f"django.{suffix}"


def read_po(language: str) -> dict[str, str]:
    """Message to translation; the keys are those of a compiled catalogue, the header's is ""."""
    found: dict[str, dict[str, str]] = {}
    keyword, entry = "", {}
    for line in catalogue(language, "po").read_text().splitlines():
        assert not line.startswith("#~"), f"obsolete: {line}"
        if line.startswith("#"):
            assert "fuzzy" not in line, "a translation that was guessed"
            continue
        if line.startswith("msgid "):
            entry = {}
        if word := re.match(r"(msg\w+) ", line):
            keyword, line = word[1], line[word.end() :]
            entry[keyword] = ""
        if line:
            entry[keyword] += ast.literal_eval(line)
        if keyword == "msgstr":
            found[entry["msgid"]] = entry
    return {msgid: entry["msgstr"] for msgid, entry in found.items()}


def translated(language: str) -> dict[str, str]:
    return {msgid: text for msgid, text in read_po(language).items() if msgid}


@cache
def messages() -> set[str]:
    return {*messages_in_code(), *messages_in_templates()}


def messages_in_code() -> Iterator[str]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in FUNCTIONS:
                # What the catalogues are made of: a plain string, with neither context nor plural.
                assert node.func.id == "_", f"{path.name}:{node.lineno}"
                (text,) = node.args
                assert isinstance(text, ast.Constant), f"{path.name}:{node.lineno}"
                yield str(text.value)


def messages_in_templates() -> Iterator[str]:
    for path in SOURCE.rglob("templates/**/*.html"):
        for found in re.findall(r"gettext\((u'(?:[^'\\]|\\.)*')\)", templatize(path.read_text())):
            yield ast.literal_eval(found)


def test_messages_are_found_in_code_and_in_templates() -> None:
    assert {"Choose a file", "uploading", "Cancel uploads?"} <= set(messages_in_code())
    assert {"Uploads concerned: %(count)s", "Home"} <= set(messages_in_templates())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_catalogue_has_every_message_of_the_source_and_no_other(language: str) -> None:
    """``make messages`` puts them there."""
    assert set(translated(language)) == messages()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_translated(language: str) -> None:
    texts = translated(language)
    assert not [msgid for msgid, text in texts.items() if not text.strip()]
    assert {msgid for msgid, text in texts.items() if msgid == text} == SAME[language]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_places_of_its_message(language: str) -> None:
    def places(text: str) -> list[str]:
        return sorted(re.findall(r"%\(\w+\)s|\{\w+\}|%%|%", text))

    for msgid, text in translated(language).items():
        assert places(msgid) == places(text), msgid


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_ends_as_its_message_does(language: str) -> None:
    """A sentence stays a sentence, and a label a label."""
    for msgid, text in translated(language).items():
        for mark, others in ((".", (".", "。")), ("?", ("?", "\uff1f"))):
            assert msgid.endswith(mark) == text.endswith(others), msgid


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_shipped_compiled_is_what_was_written(language: str) -> None:
    with catalogue(language, "mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)._catalog
    assert compiled == read_po(language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_language_is_the_one_of_its_folder(language: str) -> None:
    header = read_po(language)[""]
    assert f"Language: {language}\n" in header
    assert "charset=UTF-8" in header


@pytest.mark.parametrize(
    ("language", "choose", "state"),
    [
        ("zh-hans", "选择文件", "正在上传"),
        ("de", "Datei auswählen", "wird hochgeladen"),
        ("fr", "Choisir un fichier", "en cours"),
        ("es", "Elegir un archivo", "en curso"),
        ("en", "Choose a file", "uploading"),
    ],
)
def test_people_read_their_language(language: str, choose: str, state: str) -> None:
    with override(language):
        assert str(TEXTS["chooseFile"]) == choose
        assert UploadSession(state=State.UPLOADING).get_state_display() == state
        page = str(AsyncClearableFileInput().media)
    texts = re.search(r'<meta name="async-upload-texts" content="([^"]+)"', page)
    assert texts is not None
    sent = json.loads(unescape(texts[1]))
    with override(None):
        same = SAME.get(to_locale(language), {str(text) for text in TEXTS.values()})
        own = {key: str(text) for key, text in TEXTS.items() if key not in UNITS}
        assert {key for key, text in own.items() if sent[key] != text} == {
            key for key, text in own.items() if text not in same
        }


@pytest.mark.parametrize("language", ["en", "de", "fr", "ru", "ar"])
def test_sizes_read_as_django_writes_them(language: str) -> None:
    with override(language):
        for power, unit in enumerate(UNITS, start=1):
            number = number_format(1.5, 1)
            assert str(TEXTS[unit]) % number == filesizeformat(1.5 * 1024**power).replace(
                "\xa0", " "
            )


@pytest.mark.django_db
def test_the_admin_speaks_the_language_too(admin_client: Client) -> None:
    with override("de"):
        page = admin_client.get("/admin/async_upload/uploadsession/").content.decode()
    assert "Ausgewählte Uploads abbrechen" in page
    assert "wird hochgeladen" in page
