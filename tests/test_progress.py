"""``<async-upload-progress>``, as the server renders it."""

from __future__ import annotations

import html
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from django.template import Context, Template
from django.utils import translation

from django_async_upload.models import STATE_CHOICES, UploadSession
from django_async_upload.progress import progress_of

LOAD = "{% load async_upload %}"


def render(template: str, **context: Any) -> str:
    return Template(LOAD + template).render(Context(context))


def attributes(text: str) -> dict[str, str]:
    tag = re.search(r"<async-upload-progress ([^>]*)>", text)
    assert tag is not None
    found = re.findall(r'([\w-]+)="([^"]*)"', tag[1])
    return {name: html.unescape(value) for name, value in found}


def test_an_upload_under_way_has_a_bar_and_is_watched_at_its_endpoint() -> None:
    upload = UploadSession(name='a"b.bin', size=8, durable=4, state="uploading")
    text = render('{% async_upload_progress upload url="/ws/films/" class="big" %}', upload=upload)
    found = attributes(text)
    assert (found["upload"], found["url"], found["class"]) == (
        str(upload.pk),
        "/ws/films/",
        "big",
    )
    assert '<progress aria-label="a&quot;b.bin" max="100" value="50"></progress>' in text
    assert text.endswith("<span>uploading, 50%</span></async-upload-progress>")


def test_one_that_is_over_has_none() -> None:
    upload = UploadSession(name="a.bin", size=8, durable=8, state="completed")
    text = render("{% async_upload_progress upload %}", upload=upload)
    assert "<progress" not in text
    assert "<span>completed</span>" in text
    assert attributes(text)["url"] == "/ws/uploads/"


@pytest.mark.parametrize("language", ["en", "de", "es", "fr", "zh-hans"])
def test_its_texts_are_those_of_the_page_and_have_the_places_of_the_script(language: str) -> None:
    upload = UploadSession(name="a.bin", size=8, durable=4, state="uploading")
    with translation.override(language):
        texts = json.loads(attributes(render("{% async_upload_progress u %}", u=upload))["texts"])
        states = {state: str(name) for state, name in STATE_CHOICES}
        shown = progress_of(upload)["text"]
    assert {state: texts[state] for state in states} == states
    assert texts["percent"].format(state=texts["uploading"], percent=50) == shown
    assert "{size}" in texts["soFar"]
    assert "%s" in texts["kilobytes"]


def test_the_script_has_the_nonce_of_the_page() -> None:
    request = SimpleNamespace(csp_nonce="n0nce")
    text = render("{% async_upload_progress_media %}", request=request)
    assert re.search(r'src="[^"]*async-upload-progress[^"]*" type="module" nonce="n0nce"', text)
