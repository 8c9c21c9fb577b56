"""The widgets: Django's own markup inside, safe attributes outside, and the same rules with and without JavaScript."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django import forms
from django.contrib.staticfiles.management.commands.collectstatic import Command as CollectStatic
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.forms import Media
from django.utils import translation
from django.utils.functional import lazy

from django_async_upload import widgets
from django_async_upload.binding.linked import CompletedUpload, RefusedUpload
from django_async_upload.models import UploadSession
from django_async_upload.receipts import FieldToken, read_field_token, receipt_of
from django_async_upload.sessions.state import State
from django_async_upload.widgets import (
    TEXTS,
    AsyncClearableFileInput,
    AsyncFileInput,
    AsyncMultipleFileInput,
)

from . import javascript_texts
from .models import Album

STATIC = Path(widgets.__file__).parent / "static/django_async_upload"
EVIL = "\"><img src=x onerror=alert(1)><script>'&{{ 7|add:7 }}.pdf"


class Elements(HTMLParser):
    """The tags of a piece of HTML, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for each, attrs in self.tags if each == tag]

    def one(self, tag: str) -> dict[str, str | None]:
        (found,) = self.all(tag)
        return found


def upload(
    name: str = "a.pdf", size: int = 5, endpoint: str = "default", field: str = "doc"
) -> CompletedUpload:
    session = UploadSession(
        name=name,
        size=size,
        endpoint=endpoint,
        state=State.COMPLETED,
        stored_as="x",
        metadata={"field": {"name": field, "max_size": None}},
    )
    return CompletedUpload(session, receipt_of(session), 2)


def element(html: str) -> dict[str, str | None]:
    return Elements(html).one("async-upload")


# Markup -------------------------------------------------------------------------------------------


def test_it_is_a_real_file_input_in_an_element() -> None:
    html = AsyncFileInput(max_size=1000).render("doc", None, {"id": "id_doc", "required": True})
    found = Elements(html)
    assert [tag for tag, _ in found.tags] == ["async-upload", "input"]
    assert found.one("input") == {"type": "file", "name": "doc", "id": "id_doc", "required": None}
    attrs = found.one("async-upload")
    token = attrs.pop("field")
    assert attrs == {"url": "/ws/uploads/", "max-size": "1000"}
    assert read_field_token(token, endpoint="default") == FieldToken("doc", 1000, "")


def test_the_attributes_say_what_the_input_says(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"WEBSOCKET_URL": "wss://uploads.example.com/ws/?a=1&b=2"}
    widget = AsyncMultipleFileInput({"accept": "image/*,.pdf"}, directory=True, endpoint="photos")
    found = Elements(widget.render("rows-3-pics", None, {"disabled": True}))
    attrs = found.one("async-upload")
    token = read_field_token(attrs.pop("field"), endpoint="photos")
    assert token == FieldToken("rows-__prefix__-pics", None, "image/*,.pdf", endpoint="photos")
    assert attrs == {
        "url": "wss://uploads.example.com/ws/?a=1&b=2",
        "accept": "image/*,.pdf",
        "multiple": None,
        "directory": None,
        "disabled": None,
    }
    assert found.one("input") == {
        "type": "file",
        "name": "rows-3-pics",
        "accept": "image/*,.pdf",
        "multiple": None,
        "webkitdirectory": None,
        "disabled": None,
    }


def test_each_endpoint_may_have_an_address_of_its_own() -> None:
    widget = AsyncFileInput(endpoint="films", url="/ws/films/")
    assert Elements(widget.render("film", None)).one("async-upload")["url"] == "/ws/films/"


def test_an_object_that_has_a_file_shows_it_as_django_does() -> None:
    class Stored:
        url = "/media/a%20b.pdf"

        def __str__(self) -> str:
            return EVIL

    django = forms.ClearableFileInput().render("doc", Stored(), {"id": "id_doc"})
    own = AsyncClearableFileInput().render("doc", Stored(), {"id": "id_doc"})
    assert django.strip() in own
    assert "<script" not in own
    assert Elements(own).one("a")["href"] == "/media/a%20b.pdf"
    assert own.index("<async-upload") < own.index("<a href") < own.index("</async-upload>")


@pytest.mark.parametrize("renderer", [forms.renderers.DjangoTemplates, forms.renderers.Jinja2])
@pytest.mark.parametrize("widget", [AsyncFileInput, AsyncClearableFileInput])
def test_every_renderer_of_forms_has_the_template(renderer: Any, widget: Any) -> None:
    own = widget()
    own.value_from_datadict({}, {"doc": upload(EVIL)}, "doc")
    found = Elements(own.render("doc", None, {"id": "id_doc"}, renderer()))
    assert [tag for tag, _ in found.tags] == ["async-upload", "input", "input", "input"]
    assert found.all("input")[0]["id"] == "id_doc"
    assert found.all("input")[1]["data-name"] == EVIL


def test_numbers_are_not_written_as_people_write_them(settings: Any) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    widget = AsyncFileInput(max_size=12_345_678)
    widget.value_from_datadict({}, {"doc": upload(size=1_234_567)}, "doc")
    with translation.override("de"):
        html = widget.render("doc", None)
    assert element(html)["max-size"] == "12345678"
    assert Elements(html).all("input")[1]["data-size"] == "1234567"


@pytest.mark.parametrize("widget", [AsyncFileInput, AsyncClearableFileInput])
def test_what_a_person_named_cannot_break_out(widget: Any) -> None:
    kept = upload(EVIL, field=EVIL)
    own = widget({"accept": f".pdf,{EVIL}", "form": EVIL})
    own.value_from_datadict({}, {EVIL: kept}, EVIL)
    html = own.render(EVIL, None)
    found = Elements(html)
    assert [tag for tag, _ in found.tags] == ["async-upload", "input", "input", "input"]
    _, hidden, token = found.all("input")
    assert (token["name"], token["form"]) == (f"async_upload_field.{EVIL}", EVIL)
    assert hidden == {
        "type": "hidden",
        "name": f"async_upload.{EVIL}",
        "value": kept.receipt,
        "data-name": EVIL,
        "data-size": "5",
        "form": EVIL,
    }
    assert "{{ 7|add:7 }}" in html


def test_nothing_is_inline() -> None:
    html = AsyncFileInput().render("doc", None)
    assert not re.search(
        r"<script(?! src)|<style|\sstyle=|\son\w+=", html + str(AsyncFileInput().media)
    )


# What was posted ----------------------------------------------------------------------------------


def test_an_upload_is_kept_for_the_next_rendering() -> None:
    widget, file = AsyncClearableFileInput(), upload()
    assert widget.value_from_datadict({}, {"doc": file}, "doc") is file
    assert Elements(widget.render("doc", None)).all("input")[1]["value"] == file.receipt
    assert widget.value_from_datadict({}, {}, "doc") is None
    assert len(Elements(widget.render("doc", None)).all("input")) == 1


def test_what_is_bound_or_refused_or_was_posted_as_it_is_cannot_be_kept() -> None:
    bound = upload()
    bound.is_bound = True
    refused = RefusedUpload(ValidationError("No.", code="no"))
    plain = SimpleUploadedFile("a.pdf", b"plain")
    widget = AsyncMultipleFileInput()
    posted = [bound, refused, plain]
    assert widget.value_from_datadict({}, {"doc": posted}, "doc") == posted
    assert len(Elements(widget.render("doc", None)).all("input")) == 1


def test_clearing_is_as_in_django() -> None:
    widget, file = AsyncClearableFileInput(), upload()
    widget.is_required = False
    cleared = {"doc-clear": "on"}
    assert widget.value_from_datadict(cleared, {}, "doc") is False
    contradiction = widget.value_from_datadict(cleared, {"doc": file}, "doc")
    assert contradiction is forms.widgets.FILE_INPUT_CONTRADICTION
    assert "checked" in widget.render("doc", type("Stored", (), {"url": "/a"})())
    assert widget.kept == [file]


def refusal(widget: AsyncFileInput, file: Any) -> str | None:
    value = widget.value_from_datadict({}, {"doc": file}, "doc")
    if not isinstance(value, RefusedUpload):
        return None
    with pytest.raises(ValidationError) as caught:
        forms.FileField().clean(value)
    assert caught.value.messages[0]
    return caught.value.code


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (upload(size=10), None),
        (upload(size=11), "file_too_large"),
        (SimpleUploadedFile("a.pdf", b"x" * 10, "application/pdf"), None),
        (SimpleUploadedFile("a.pdf", b"x" * 11, "application/pdf"), "file_too_large"),
        (upload("a.exe"), "type_refused"),
        (SimpleUploadedFile("a.exe", b"x", "application/x-msdownload"), "type_refused"),
        (upload("A.PDF"), None),
        (upload("a.png"), None),
        (SimpleUploadedFile("scan", b"x", "image/png; q=1"), None),
        (upload(endpoint="photos"), "receipt_invalid"),
    ],
)
def test_the_fields_own_rules_hold_for_uploads_and_plain_files(
    file: Any, expected: str | None
) -> None:
    """A token of another page's field of the same name, or an endpoint's, does not bypass them."""
    widget = AsyncFileInput({"accept": "image/*, .pdf"}, max_size=10)
    assert refusal(widget, file) == expected


# Media --------------------------------------------------------------------------------------------


WIDGETS = (AsyncFileInput, AsyncClearableFileInput, AsyncMultipleFileInput)


def test_the_media_is_one_style_and_one_module() -> None:
    found = Elements(str(sum((each().media for each in WIDGETS), Media())))
    assert found.one("link")["href"] == "/static/django_async_upload/async-upload.min.css"
    script = found.one("script")
    assert script == {"src": "/static/django_async_upload/async-upload.min.js", "type": "module"}


def test_for_debugging_the_media_is_the_modules_as_they_were_written(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"JAVASCRIPT_SOURCES": True}
    found = Elements(str(sum((each().media for each in WIDGETS), Media())))
    assert found.one("link")["href"] == "/static/django_async_upload/widget.css"
    assert found.one("script")["src"] == "/static/django_async_upload/widget.js"


def test_a_widget_of_a_host_adds_its_own_media() -> None:
    class Own(AsyncFileInput):
        class Media:
            js = ["own.js"]

    media = str(Own().media)
    assert "async-upload.min.js" in media
    assert 'src="/static/own.js"' in media


@pytest.fixture
def manifest(settings: Any, tmp_path: Path) -> None:
    settings.STATIC_ROOT = str(tmp_path / "static")
    backend = "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    settings.STORAGES = {**settings.STORAGES, "staticfiles": {"BACKEND": backend}}
    call_command(CollectStatic(), interactive=False, verbosity=0)


def test_the_media_works_with_hashed_names(manifest: None, settings: Any) -> None:
    found = Elements(str(AsyncFileInput().media))
    script = found.one("script")
    name = str(script["src"]).removeprefix("/static/")
    assert re.fullmatch(r"django_async_upload/async-upload\.min\.[0-9a-f]{12}\.js", name)
    path = Path(settings.STATIC_ROOT) / name
    assert script["type"] == "module"
    named = re.search(r"^//# sourceMappingURL=(.+)$", path.read_text(), re.MULTILINE)
    assert named is not None
    mapping = path.parent / named[1]
    assert re.fullmatch(r"async-upload\.min\.js\.[0-9a-f]{12}\.map", mapping.name)
    for source in json.loads(mapping.read_text())["sources"]:
        assert (mapping.parent / source).is_file()


def test_the_bundle_knows_the_hashed_name_of_what_it_loads_later(
    manifest: None, settings: Any
) -> None:
    root = Path(settings.STATIC_ROOT)
    named = json.loads((root / "staticfiles.json").read_text())["paths"]
    bundle = (root / named["django_async_upload/async-upload.min.js"]).read_text()
    more = named["django_async_upload/async-upload-more.min.js"]
    assert more.split(".")[-2] in bundle


def test_the_bundle_names_no_other_file() -> None:
    """Hashed or not, on whatever host: nothing that a storage would have to rewrite."""
    for name in ("async-upload.min.js", "async-upload-more.min.js"):
        script = (STATIC / name).read_text()
        assert not re.search(r"""import\s*\(?\s*["'{*]|from\s*["']""", script)
    assert "url(" not in (STATIC / "async-upload.min.css").read_text()


def test_script_and_style_stay_small_together() -> None:
    """Compressed by gzip; a page that is not cached waits for both."""
    files = [STATIC / f"async-upload.min.{kind}" for kind in ("js", "css")]
    assert sum(len(gzip.compress(each.read_bytes(), 9)) for each in files) <= 35 * 1024


def test_a_size_that_reads_like_its_limit_is_written_to_the_byte() -> None:
    widget = AsyncFileInput(max_size=10 * 1024**2)
    file = SimpleUploadedFile("a.bin", b"")
    file.size = 10 * 1024**2 + 1
    refused = widget.value_from_datadict({}, {"doc": file}, "doc")
    assert isinstance(refused, RefusedUpload)
    (message,) = refused.error.messages
    assert "10,485,761 bytes" in message
    assert "10,485,760 bytes" in message


def test_the_picture_that_an_object_has_is_shown() -> None:
    album = Album(cover="covers/a.png", notes="notes/a.png")
    widget = AsyncClearableFileInput()
    (picture,) = Elements(widget.render("cover", album.cover)).all("img")
    assert picture["src"] == "/media/covers/a.png"
    assert not Elements(widget.render("cover", Album().cover)).all("img")
    assert not Elements(widget.render("notes", album.notes)).all("img")


def test_the_whole_page_is_a_drop_target_where_it_is_asked_for() -> None:
    assert "page-drop" not in element(AsyncFileInput().render("doc", None))
    assert "page-drop" in element(AsyncFileInput(page_drop=True).render("doc", None))


# Texts --------------------------------------------------------------------------------------------


def test_the_texts_are_those_of_the_browser() -> None:
    assert javascript_texts.PAGE.read_text() == javascript_texts.page(), "make messages"


def test_a_page_has_the_texts_once_in_its_own_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXTS, "pause", lazystr_by_language(en="Pause", eo="Paŭzi <\"'&></script>"))
    widgets.page_texts.cache_clear()
    media = AsyncFileInput().media + AsyncMultipleFileInput().media
    for language, expected in (("eo", "Paŭzi <\"'&></script>"), ("en", "Pause")):
        with translation.override(language):
            html = (
                f"{media}{AsyncFileInput().render('a', None)}{AsyncFileInput().render('b', None)}"
            )
        block = Elements(html).one("meta")["content"] or ""
        assert json.loads(block)["pause"] == expected
        assert html.count("Choose a file") == 1
    widgets.page_texts.cache_clear()


def lazystr_by_language(**texts: str) -> Any:
    """As ``gettext_lazy``, with a catalogue of its own."""
    return lazy(lambda: texts.get(translation.get_language() or "en", ""), str)()


def test_the_bundle_knows_which_errors_are_tried_again() -> None:
    protocol = STATIC / "protocol"
    texts = (protocol / "error-texts.js").read_text().partition("const FINAL")[0]
    bundled = (protocol / "bundled-error-texts.js").read_text().partition("/** @type")[0]
    listed = " ".join(re.findall(r'"([\w ]+)"', bundled)).split()
    assert listed == re.findall(r'^  (\w+): "', texts, re.MULTILINE)
