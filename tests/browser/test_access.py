"""Every page for everybody: by the keyboard alone, for a screen reader, light and dark, narrow, from right to left."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from .example import Example
from .screen import SLOWLY, axe, press, row, until
from .test_documents import picture, stored

MIB = 1 << 20

Visit = Callable[..., Any]

BEYOND = """(within) => {
    const isCut = (element) => {
        while ((element = element.parentElement)) {
            if (getComputedStyle(element).overflowX !== "visible") return true;
        }
        return false;
    };
    const isBeyond = (element) => {
        const { left, right, width } = element.getBoundingClientRect();
        return width > 1 && (left < -1 || right > innerWidth + 1);
    };
    const roots = within ? [...document.querySelectorAll(within)] : [document.body];
    return roots
        .flatMap((element) => [element, ...element.querySelectorAll("*")])
        .filter((element) => element.checkVisibility() && isBeyond(element) && !isCut(element))
        .map((element) => element.outerHTML.slice(0, 100));
}"""
"""What can be seen beyond the window's edges."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures of the pages go: to look at, name a folder in BROWSER_PICTURES."""
    folder = Path(os.environ.get("BROWSER_PICTURES", tmp_path / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def pages(
    visit: Visit, proxy: ChaosProxy, tmp_path: Path, middling: Path
) -> Callable[..., Iterator[tuple[str, Any, str | None]]]:
    """``pages(**options of a context)``: each page's name, the page, and the app's part of it (None: all)."""
    image = picture(
        tmp_path / "Ein Bild mit einem ziemlich langen Namen, das jemand hochlädt.png", 90
    )
    text, film = tmp_path / "notes.txt", tmp_path / "film.exe"
    text.write_text("one\ntwo\n")
    film.write_text("not allowed")

    def every(**options: Any) -> Iterator[tuple[str, Any, str | None]]:
        title = f"Jahresbericht {secrets.token_hex(3)}"
        signed_out = visit(proxy.port, {}, **options).new_page()
        signed_out.goto("/login/")
        yield "login", signed_out, None
        page = visit(proxy.port, **options).new_page()
        page.goto("/")
        page.wait_for_selector("async-upload[data-enhanced]")
        yield "upload", page, None
        page.set_input_files("#id_files", [text, image])
        for path in (text, image):
            row(page, path.name, "completed")
        proxy.rate = SLOWLY
        page.set_input_files("#id_files", middling)
        press(row(page, middling.name, "uploading"), "pause")
        row(page, middling.name, "paused")
        page.set_input_files("#id_files", _sparse(tmp_path / "too large.bin"))
        row(page, "too large.bin", "failed")
        again = middling.with_name("under way.bin")
        if not again.exists():
            again.hardlink_to(middling)
        page.set_input_files("#id_files", again)
        # With speed and time left, which are the longest of its texts.
        row(page, again.name, "uploading").filter(has_text=re.compile("·.+·")).wait_for()
        yield "uploading", page, None
        watcher = page.context.new_page()
        watcher.goto("/live/")
        watcher.locator("li", has_text=again.name).first.wait_for()
        yield "live", watcher, None
        watcher.goto("/admin/async_upload/uploadsession/")
        watcher.locator("progress").first.wait_for()
        yield "admin uploads", watcher, ".async-upload"
        proxy.rate = None
        press(row(page, middling.name, "paused"), "cancel")
        row(page, again.name, "completed")
        page.close()
        watcher.goto("/documents/new/")
        watcher.wait_for_selector("async-upload[data-enhanced]")
        yield "form", watcher, None
        watcher.fill("#id_title", title)
        watcher.set_input_files("#id_file", text)
        watcher.set_input_files("#id_cover", film)
        row(watcher, film.name, "refused")
        watcher.get_by_role("main").locator("form > .row button").click()
        watcher.locator(".async-upload-message:visible").wait_for()
        yield "form stopped", watcher, None
        watcher.set_input_files("#id_cover", image)
        watcher.get_by_role("main").locator("form > .row button").click()
        watcher.wait_for_url("**/documents/")
        yield "documents", watcher, None
        watcher.goto("/documents/new/")
        watcher.fill("#id_title", title)
        watcher.set_input_files("#id_file", text)
        watcher.get_by_role("main").locator("form > .row button").click()
        watcher.locator("ul.errorlist").wait_for()
        row(watcher, text.name, "completed")
        yield "form with errors", watcher, None
        watcher.goto("/gallery/")
        yield "gallery", watcher, None
        watcher.goto("/admin/demo/document/add/")
        watcher.set_input_files("#id_file", text)
        row(watcher, text.name, "completed")
        yield "admin form", watcher, "async-upload"

    return every


def _sparse(path: Path) -> Path:
    """A file over the site's limit."""
    with path.open("wb") as file:
        file.truncate(10 * 1024 * MIB + 1)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(
    pages: Callable[..., Any], pictures: Path, scheme: str
) -> None:
    found = []
    # axe-core puts a style into the page, which the policy would forbid.
    for name, page, within in pages(color_scheme=scheme, bypass_csp=True):
        page.screenshot(path=pictures / f"{name}, {scheme}.png", full_page=True)
        found += [f"{name}: {each}" for each in axe(page, within)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("narrow", {"locale": "de", "viewport": {"width": 320, "height": 700}}),
        ("right to left", {"locale": "ar"}),
        ("narrow, right to left", {"locale": "ar", "viewport": {"width": 320, "height": 700}}),
    ],
)
def test_no_page_is_wider_than_its_window(
    pages: Callable[..., Any], pictures: Path, how: str, options: dict[str, Any]
) -> None:
    wide = []
    for name, page, within in pages(**options):
        page.screenshot(path=pictures / f"{name}, {how}.png", full_page=True)
        is_rtl = page.evaluate("document.documentElement.dir") == "rtl"
        assert is_rtl == ("right to left" in how), name
        beyond = page.evaluate(BEYOND, within if within != ".async-upload" else "nothing")
        wide += [f"{name}: {each}" for each in beyond]
    assert not wide, "\n".join(wide)


def test_the_keyboard_alone_uploads_pauses_cancels_and_submits(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path, tmp_path: Path
) -> None:
    text = tmp_path / "by keyboard.txt"
    text.write_text("by the keyboard alone")
    page = visit(proxy.port).new_page()
    choosers: list[Any] = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.goto("/documents/new/")

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                # A file input lies unseen over its zone, which shows the focus.
                zone = "document.activeElement.closest('async-upload')?.querySelector('.async-upload-zone')"
                shown = (
                    f"document.activeElement.type === 'file' && {zone} || document.activeElement"
                )
                assert page.evaluate(f"getComputedStyle({shown}).outlineStyle") != "none"
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    def choose(path: Path) -> None:
        tab_to("#id_file")
        page.keyboard.press("Enter")
        until(page, lambda: choosers, "the dialogue")
        choosers.pop().set_files(path)

    tab_to("#id_title")
    page.keyboard.type("By keyboard")
    proxy.rate = SLOWLY
    choose(middling)
    row(page, middling.name, "uploading")
    tab_to('[data-action="pause"]')
    page.keyboard.press("Enter")
    row(page, middling.name, "paused")
    page.keyboard.press("Space")  # the focus has stayed: it is Resume now
    row(page, middling.name, "uploading")
    tab_to('[data-action="cancel"]')
    page.keyboard.press("Enter")
    page.locator(".async-upload-file").wait_for(state="detached")
    assert page.evaluate("document.activeElement.id") == "id_file"
    proxy.rate = None
    page.keyboard.press("Shift+Tab")
    choose(text)
    row(page, text.name, "completed")
    tab_to("main form > .row button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/documents/")
    assert stored(example, "By keyboard").read_text() == text.read_text()
