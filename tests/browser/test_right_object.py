"""On a real server: each file is saved into the object it was chosen for, and none is lost before its form was sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from .example import Example, sha256
from .screen import SLOWLY, drop, row, until
from .test_documents import FILE, NEW, SAVE, TITLE, fill_in, saved, stored

Visit = Callable[..., Any]
pytestmark = pytest.mark.parametrize("kind", ["uvicorn"], indirect=True)


@pytest.fixture
def page(visit: Visit, proxy: ChaosProxy) -> Any:
    page = visit(proxy.port).new_page()
    page.on("dialog", lambda dialog: dialog.accept())  # the page asks before it is left
    return page


def test_a_finished_upload_is_there_after_a_reload_and_saved_once(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page.goto(NEW)
    page.set_input_files(FILE, middling)
    row(page, middling.name, "completed")
    page.reload()
    row(page, middling.name, "completed")
    title = f"After a reload {middling.name}"
    page.fill(TITLE, title)
    page.click(SAVE)
    saved(page, title)
    assert sha256(stored(example, title)) == sha256(middling)
    assert proxy.data_bytes() == middling.stat().st_size
    page.goto(NEW)
    page.wait_for_selector("async-upload[data-enhanced]")
    page.wait_for_timeout(500)  # for what must not come
    assert page.locator(".async-upload-file").count() == 0


def test_what_is_under_way_for_one_object_never_reaches_another(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("as it was")
    titles = [f"{name} {middling.name}" for name in "AB"]
    for title in titles:
        fill_in(page, title, text)
        page.click(SAVE)
        saved(page, title)
    page.get_by_role("link", name=titles[0], exact=True).click()
    page.wait_for_selector("async-upload[data-enhanced]")
    proxy.rate = SLOWLY
    drop(page, f"async-upload:has({FILE}) .async-upload-zone", middling)
    until(page, lambda: example.durable(middling.name), "something durable")

    page.goto("/documents/")
    page.get_by_role("link", name=titles[1], exact=True).click()
    row(page, middling.name, "elsewhere")
    page.click(SAVE)
    saved(page, titles[1])
    assert stored(example, titles[1]).read_text() == "as it was"

    proxy.rate = None
    page.get_by_role("link", name=titles[0], exact=True).click()
    row(page, middling.name, "completed")  # by itself: it was created here
    page.click(SAVE)
    saved(page, titles[0])
    assert sha256(stored(example, titles[0])) == sha256(middling)
    assert stored(example, titles[1]).read_text() == "as it was"
