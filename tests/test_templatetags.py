"""The template tags: an element for a page of its own, and its style and script."""

from __future__ import annotations

from typing import Any

import pytest
from django.template import Context, Template
from django.test import RequestFactory

from django_async_upload.receipts import FieldToken, read_field_token

from .test_widgets import EVIL, Elements


def render(template: str, **context: Any) -> Elements:
    return Elements(Template("{% load async_upload %}" + template).render(Context(context)))


def test_the_element_needs_no_form() -> None:
    found = render("{% async_upload %}")
    assert [tag for tag, _ in found.tags] == ["async-upload", "input"]
    assert found.one("input") == {"type": "file", "name": "file", "id": "id_file"}
    token = found.one("async-upload")["field"]
    assert read_field_token(token, endpoint="default") == FieldToken("file", None, "", "receiver")


def test_its_arguments_are_those_of_the_widget() -> None:
    found = render(
        '{% async_upload "pics" endpoint="photos" url="/ws/photos/" max_size=9 accept="image/*" directory=True '
        'id="p" aria_label=label %}',
        label=EVIL,
    )
    element = found.one("async-upload")
    token = read_field_token(element["field"], endpoint="photos")
    assert token == FieldToken("pics", 9, "image/*", "receiver", endpoint="photos")
    assert (element["max-size"], element["accept"]) == ("9", "image/*")
    assert element["url"] == "/ws/photos/"
    assert {"multiple", "directory"} <= element.keys()
    assert found.one("input") == {
        "type": "file",
        "name": "pics",
        "id": "p",
        "accept": "image/*",
        "aria-label": EVIL,
        "multiple": None,
        "webkitdirectory": None,
    }


def test_the_media_is_a_style_and_a_module() -> None:
    found = render("{% async_upload_media %}")
    assert found.one("link") == {
        "href": "/static/django_async_upload/async-upload.min.css",
        "rel": "stylesheet",
    }
    assert found.one("script") == {
        "src": "/static/django_async_upload/async-upload.min.js",
        "type": "module",
    }


@pytest.mark.parametrize("where", ["context", "request"])
def test_the_media_carries_the_pages_nonce(where: str) -> None:
    request = RequestFactory().get("/")
    context: dict[str, Any] = {"request": request}
    if where == "context":
        context["csp_nonce"] = 'abc"'
    else:
        request.csp_nonce = 'abc"'
    found = render("{% async_upload_media %}", **context)
    assert found.one("script")["nonce"] == found.one("link")["nonce"] == 'abc"'
