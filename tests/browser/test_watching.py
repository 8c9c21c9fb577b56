"""Pages that follow uploads which they do not send: the element, the list of the admin, the live page."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from .example import Example
from .screen import begin, until

Visit = Callable[..., Any]
LIST = "/admin/async_upload/uploadsession/"
SHOTS = os.environ.get("ASYNC_UPLOAD_SCREENSHOTS")
"""A folder for pictures of the pages."""

SHOW = """async (uploads) => {
    document.querySelector("main").innerHTML = uploads
        .map((upload) => `<p><async-upload-progress upload="${upload}"></async-upload-progress></p>`)
        .join("");
    await import("/static/django_async_upload/async-upload-progress.min.js");
}"""
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def upload(visit: Visit, example: Example, proxy: ChaosProxy, middling: Path) -> str:
    """The id of an upload that goes on slowly."""
    begin(visit(proxy.port).new_page(), example, proxy, middling)
    return str(example.uploads(middling.name)[0]["id"])


def dashed(upload: str) -> str:
    text = upload.replace("-", "")
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def look(page: Any, name: str) -> None:
    """Take pictures, where somebody wants to see them: light, dark, and on a phone."""
    if not SHOTS:
        return
    size = page.viewport_size
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=f"{SHOTS}/{name}-{scheme}.png")
    page.set_viewport_size({"width": 360, "height": 640})
    page.screenshot(path=f"{SHOTS}/{name}-360.png")
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=None)


def moves(page: Any, bar: Any) -> None:
    before = float(bar.get_attribute("value") or 0)
    until(page, lambda: float(bar.get_attribute("value") or 0) > before, "more progress")


def test_the_element_follows_an_upload_to_its_end(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path, upload: str
) -> None:
    page = visit().new_page()
    sockets: list[Any] = []
    page.on("websocket", lambda socket: sockets.append(socket))
    page.goto("/gallery/")
    page.evaluate(SHOW, [dashed(upload), UNKNOWN])
    bar = page.get_by_role("progressbar", name=middling.name)
    bar.wait_for()
    page.get_by_text("\u2013").wait_for()
    moves(page, bar)
    assert len(sockets) == 1, "both elements share it"
    look(page, "element")
    proxy.rate = None
    page.locator("async-upload-progress[data-state=completed]", has_text="completed").wait_for()
    assert bar.count() == 0
    until(page, sockets[0].is_closed, "the end of the WebSocket")


def test_the_admin_is_told_and_does_not_ask(
    visit: Visit, middling: Path, proxy: ChaosProxy, upload: str
) -> None:
    page = visit().new_page()
    asked: list[str] = []
    page.on("request", lambda request: "/progress/?" in request.url and asked.append(request.url))
    page.goto(f"{LIST}?q={middling.name}")
    bar = page.get_by_role("progressbar", name=middling.name)
    page.wait_for_function("() => document.querySelector('async-upload-progress').isLive")
    moves(page, bar)
    look(page, "admin")
    page.wait_for_timeout(2_500)
    assert asked == []
    proxy.rate = None
    page.locator(".async-upload", has_text="completed").wait_for()


def test_the_admin_asks_where_no_websocket_gets_through(
    visit: Visit, middling: Path, upload: str
) -> None:
    context = visit()
    context.add_init_script("WebSocket = class { constructor() { throw new Error('blocked'); } };")
    page = context.new_page()
    page.goto(f"{LIST}?q={middling.name}")
    moves(page, page.get_by_role("progressbar", name=middling.name))


def test_the_live_page_asks_only_when_it_is_told_of_a_change(
    visit: Visit, proxy: ChaosProxy, middling: Path, upload: str
) -> None:
    page = visit().new_page()
    asked: list[str] = []
    page.on("request", lambda request: "/live/list/" in request.url and asked.append(request.url))
    page.goto("/live/")
    item = page.locator("li", has_text=middling.name)
    moves(page, item.locator("progress"))
    look(page, "live")
    proxy.rate = None
    item.locator(".state.completed").wait_for()
    page.wait_for_timeout(2_000)
    before = len(asked)
    page.wait_for_timeout(2_000)
    assert len(asked) == before
