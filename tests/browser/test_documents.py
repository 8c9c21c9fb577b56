"""Forms with files: one of the site's own, and the admin's with its inline."""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from .example import Example, sha256
from .screen import LONG, SLOWLY, begin, press, row

MIB = 1 << 20
NEW = "/documents/new/"
FILE, COVER, TITLE, SAVE = "#id_file", "#id_cover", "#id_title", "main form > .row button"

Visit = Callable[..., Any]
_numbers = itertools.count(1)


@pytest.fixture
def title(kind: str) -> str:
    """One that no other document has."""
    return f"Document {next(_numbers)}"


def picture(path: Path, shade: int = 128) -> Path:
    """A small grey PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([shade]) * 64) * 48)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def stored(example: Example, title: str, field: str = "file") -> Path:
    """The file of the document of that title."""
    (found,) = example.rows("SELECT file, cover FROM demo_document WHERE title = ?", title)
    return example.media / found[field]


def fill_in(page: Any, title: str, file: Path, cover: Path | None = None) -> None:
    """The form of a new document."""
    page.goto(NEW)
    page.fill(TITLE, title)
    page.set_input_files(FILE, file)
    if cover is not None:
        page.set_input_files(COVER, cover)


def saved(page: Any, title: str) -> None:
    """Wait for the list, to which a saved form leads."""
    page.wait_for_url("**/documents/")
    page.get_by_role("link", name=title, exact=True).wait_for()


def test_a_form_waits_and_one_with_errors_keeps_what_was_uploaded(
    visit: Visit,
    example: Example,
    proxy: ChaosProxy,
    middling: Path,
    tmp_path: Path,
    title: str,
) -> None:
    first = tmp_path / "first.txt"
    first.write_text("takes the title")
    cover = picture(tmp_path / f"{tmp_path.name}.png")
    page = visit(proxy.port).new_page()
    fill_in(page, title, first)
    page.click(SAVE)
    saved(page, title)

    before, posted = proxy.data_bytes(), proxy.bytes_up
    proxy.rate = SLOWLY
    fill_in(page, title, middling, cover)  # a title that is taken, which only the server knows
    page.click(SAVE)
    page.get_by_text("The form will be sent by itself").first.wait_for()
    proxy.rate = None
    page.get_by_text("already exists").wait_for()
    row(page, middling.name, "completed")
    row(page, cover.name, "completed")
    assert page.input_value(TITLE) == title
    assert [each["state"] for each in example.uploads(middling.name)] == ["completed"]

    page.fill(TITLE, f"{title}, better")
    page.click(SAVE)
    saved(page, f"{title}, better")
    size = middling.stat().st_size + cover.stat().st_size
    assert proxy.data_bytes() - before == size  # once
    assert proxy.bytes_up - posted < size + MIB  # and no form contained a file
    assert [each["state"] for each in example.uploads(middling.name)] == ["bound"]
    assert sha256(stored(example, f"{title}, better")) == sha256(middling)
    assert stored(example, f"{title}, better", "cover").read_bytes() == cover.read_bytes()


@pytest.mark.parametrize("what", ["type", "size"])
def test_a_forbidden_file_stops_the_form_until_it_is_taken_away(
    visit: Visit, example: Example, tmp_path: Path, title: str, what: str
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / {"type": "bad.exe", "size": "bad.bin"}[what]
    good.write_text("good")
    with bad.open("wb") as file:
        file.truncate(400 * MIB + 1 if what == "size" else 10)
    page = visit().new_page()
    fill_in(page, title, bad)
    refused = row(page, bad.name, "refused")
    said = {"type": "This type of file is not allowed", "size": "This file is too large"}[what]
    assert said in refused.inner_text()
    page.set_input_files(COVER, bad)  # so that the required file is not the only mistake
    page.locator(".async-upload-file", has_text=bad.name).nth(1).wait_for()
    page.set_input_files(FILE, good)
    page.click(SAVE)
    page.get_by_text("The form was not sent").first.wait_for()
    assert page.url.endswith(NEW)
    press(row(page, bad.name, "refused"), "remove")
    page.click(SAVE)
    saved(page, title)
    assert stored(example, title).read_text() == "good"
    assert example.uploads(bad.name) == []


def test_what_only_says_that_it_is_a_picture_is_an_error_of_its_field(
    visit: Visit, example: Example, tmp_path: Path, title: str
) -> None:
    text, fake = tmp_path / "text.txt", tmp_path / "fake.png"
    for path in (text, fake):
        path.write_text(f"{path.name}: no picture")
    page = visit().new_page()
    fill_in(page, title, text, fake)
    page.click(SAVE)
    field = page.locator("div:has(> async-upload #id_cover), div:has(> #id_cover_error)").last
    field.get_by_text("either not an image or a corrupted image").wait_for()
    row(page, text.name, "completed")
    assert example.rows("SELECT 1 FROM demo_document WHERE title = ?", title) == []
    page.set_input_files(COVER, picture(tmp_path / "real.png"))
    page.click(SAVE)
    saved(page, title)
    assert stored(example, title).read_text() == text.read_text()


def test_a_file_is_replaced_and_a_cover_cleared(
    visit: Visit, example: Example, tmp_path: Path, title: str
) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    for path in (first, second):
        path.write_text(f"{path.name} of {title}")
    page = visit().new_page()
    fill_in(page, title, first, picture(tmp_path / "cover.png"))
    page.click(SAVE)
    saved(page, title)
    page.get_by_role("link", name=title, exact=True).click()
    page.set_input_files(FILE, second)
    page.check("[name=cover-clear]")
    page.click(SAVE)
    saved(page, title)
    assert stored(example, title).read_text() == second.read_text()
    assert stored(example, title, "cover") == example.media


@pytest.mark.parametrize("lacking", ["JavaScript", "WebSockets"])
def test_a_form_is_an_ordinary_one_without(
    visit: Visit, example: Example, proxy: ChaosProxy, tmp_path: Path, title: str, lacking: str
) -> None:
    text, cover = tmp_path / f"plain {title}.txt", picture(tmp_path / "plain.png")
    text.write_text(f"without {lacking}")
    proxy.websockets_allowed = lacking != "WebSockets"
    page = visit(proxy.port, java_script_enabled=lacking != "JavaScript").new_page()
    fill_in(page, title, text, cover)
    if lacking == "WebSockets":
        said = page.get_by_text("The file will be sent together with the form").first
        said.wait_for(timeout=LONG * 1000)  # half a minute, and HTTP has to be seen to work
    page.click(SAVE)
    saved(page, title)
    assert stored(example, title).read_text() == f"without {lacking}"
    assert stored(example, title, "cover").read_bytes() == cover.read_bytes()
    assert example.uploads(text.name) == []


def test_a_form_that_waits_when_no_websocket_gets_through_is_sent_with_its_file(
    visit: Visit, example: Example, proxy: ChaosProxy, tmp_path: Path, title: str
) -> None:
    text = tmp_path / "waits.txt"
    text.write_text(f"waits: {title}")
    proxy.websockets_allowed = False
    page = visit(proxy.port).new_page()
    fill_in(page, title, text)
    page.click(SAVE)
    page.wait_for_url("**/documents/", timeout=LONG * 1000)
    saved(page, title)
    assert stored(example, title).read_text() == text.read_text()


def test_the_admin_and_its_inline_upload_too(
    visit: Visit, example: Example, proxy: ChaosProxy, tmp_path: Path, title: str
) -> None:
    text = tmp_path / f"admin {title}.txt"
    text.write_text(f"by the admin: {title}")
    images = [picture(tmp_path / f"{shade}.png", shade) for shade in (10, 20, 30)]
    page = visit(proxy.port).new_page()
    page.goto("/admin/demo/document/add/")
    page.fill(TITLE, title)
    page.set_input_files(FILE, text)
    page.set_input_files("#id_photos-0-image", images[0])
    row(page, images[0].name, "completed")
    for number in (1, 2):
        page.locator(".add-row a, .add-row button").click()
        page.set_input_files(f"#id_photos-{number}-image", images[number])
    page.click("[name=_save]")  # which waits, too
    page.get_by_text("was added successfully").wait_for()
    assert proxy.data_bytes() == sum(each.stat().st_size for each in (text, *images))
    assert stored(example, title).read_text() == text.read_text()
    assert [each["state"] for each in example.uploads(text.name)] == ["bound"]
    photos = example.rows(
        "SELECT image FROM demo_photo JOIN demo_document ON document_id = demo_document.id"
        " WHERE title = ? ORDER BY demo_photo.id",
        title,
    )
    assert [(example.media / each["image"]).read_bytes() for each in photos] == [
        each.read_bytes() for each in images
    ]


def test_the_admin_shows_an_upload_as_it_goes_on_and_cancels_it(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    begin(page, example, proxy, middling)
    admin = visit().new_page()
    admin.goto(f"/admin/async_upload/uploadsession/?q={middling.name}")
    bar = admin.locator("progress")
    bar.wait_for()
    before = float(bar.get_attribute("value") or 0)
    admin.wait_for_function(
        "(before) => document.querySelector('progress')?.value > before", arg=before
    )
    admin.check("tbody input[type=checkbox]")
    admin.select_option("[name=action]", "cancel")
    admin.get_by_role("button", name=re.compile("^(Go|Run)$")).click()
    admin.locator("#content form [type=submit]").click()
    admin.get_by_text("Uploads cancelled: 1").wait_for()
    row(page, middling.name, "failed")
    assert example.uploads(middling.name)[0]["state"] == "cancelled"
