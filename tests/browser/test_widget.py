"""The widget in a real Chromium, with uploads that stop where a test wants them to."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import screen
from .screen import SECONDS
from .widget_site import WidgetSite, element, form, texts

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = sync_api.expect

MANY = 'name="file" id="id_file" multiple'
LABEL = '<label for="id_file">Documents:</label>'
SECOND = '<label for="id_two">Second</label>' + element(input_attributes='name="two" id="id_two"')


@pytest.fixture
def site() -> Iterator[WidgetSite]:
    server = WidgetSite()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test where a script fails or the strict policy is broken."""
    context = browser.new_context()
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on(
        "console", lambda line: "Content Security Policy" in line.text and faults.append(line.text)
    )
    tab.set_default_timeout(1000 * SECONDS)
    yield tab
    context.close()
    assert faults == []


def until(page: Any, condition: str) -> None:
    """Waits for JavaScript to be true, from outside: the page's policy forbids what playwright's own way does."""
    screen.until(page, lambda: page.evaluate(f"!!({condition})"), condition)


def show(page: Any, site: WidgetSite, body: str, html: str = 'lang="en"') -> None:
    site.show(body, html)
    page.goto(site.url)
    until(page, "customElements.get('async-upload')")


def a_file(name: str = "a.pdf", size: int = 1000, kind: str = "application/pdf") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": b"x" * size}


def choose(page: Any, *files: dict[str, Any], of: str = "#id_file", refused: int = 0) -> None:
    """Choose files and wait until each is an upload, but for so many that are refused.

    Where taking one needs long, the widget takes the next in another task.
    """
    before = page.evaluate("uploads.length")
    page.set_input_files(of, list(files))
    until(page, f"uploads.length === {before + len(files) - refused}")


def rows(page: Any) -> Any:
    return page.locator(".async-upload-file")


def state(page: Any, index: int = 0) -> str:
    return page.evaluate(f"uploads[{index}].state")


def said(page: Any) -> str:
    return page.locator("[role=status]").first.text_content()


def posted(page: Any, site: WidgetSite) -> list[tuple[str, object]]:
    page.wait_for_url("**/posted")
    assert len(site.posted) == 1
    return site.posted[0]


EMPTY = ("file", ("", 0))
RECEIPT = "async_upload."
RECEIPTS = f"input[type=hidden][name^='{RECEIPT}']"


# What is posted


def test_a_receipt_is_posted_in_place_of_the_file(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes='name="file" id="id_file" required')))
    choose(page, a_file())
    page.evaluate("uploads[0].complete()")
    assert page.evaluate("uploads[0].options.field") == "token"
    page.click("button[name=save]")
    expected = [EMPTY, ("async_upload.file", "receipt of a.pdf"), ("title", ""), ("save", "1")]
    expected.append(("async_upload_field.file", "token"))  # so that the server knows what it is for
    assert sorted(posted(page, site), key=str) == sorted(expected, key=str)


def test_several_files_are_posted_in_order_and_one_replaces_another(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY) + SECOND))
    choose(page, a_file("a"), a_file("b"))
    choose(page, a_file("c"))
    choose(page, a_file("old"), of="#id_two")
    choose(page, a_file("new"), of="#id_two")
    assert page.evaluate("uploads.map((u) => u.state)") == [
        "queued",
        "queued",
        "queued",
        "cancelled",
        "queued",
    ]
    page.evaluate("for (const u of uploads) if (u.state !== 'cancelled') u.complete()")
    page.click("button[name=save]")
    receipts = [(name, value) for name, value in posted(page, site) if name.startswith(RECEIPT)]
    assert receipts == [
        ("async_upload.file", "receipt of a,receipt of b,receipt of c"),
        ("async_upload.two", "receipt of new"),
    ]


def test_a_form_with_errors_comes_back_with_what_was_uploaded(page: Any, site: WidgetSite) -> None:
    kept = '<input type="hidden" name="async_upload.file" value="kept" data-name="kept.pdf" data-size="1536">'
    inner = element(input_attributes=MANY + " required").replace(
        "</async-upload>", kept + "</async-upload>"
    )
    show(page, site, form(LABEL + inner))
    expect(rows(page)).to_contain_text("kept.pdf")
    expect(rows(page)).to_contain_text("Uploaded · 1.5 KB")
    page.click("button[name=save]")
    assert ("async_upload.file", "kept") in posted(page, site)


def test_a_removed_receipt_is_not_posted_and_a_reset_brings_it_back(
    page: Any, site: WidgetSite
) -> None:
    kept = '<input type="hidden" name="async_upload.file" value="kept" data-name="kept.pdf" data-size="1536">'
    inner = element(input_attributes=MANY).replace("</async-upload>", kept + "</async-upload>")
    show(
        page,
        site,
        form(LABEL + inner, '<button name="save">Save</button><button type="reset">Reset</button>'),
    )
    page.get_by_role("button", name="Remove: kept.pdf").click()
    expect(rows(page)).to_have_count(0)
    assert page.locator(RECEIPTS).count() == 0
    choose(page, a_file())
    page.click("button[type=reset]")
    expect(rows(page)).to_contain_text("kept.pdf")
    assert state(page) == "cancelled"
    assert page.locator(RECEIPTS).input_value() == "kept"


# The form waits


def test_a_form_waits_for_its_upload_and_keeps_the_button_that_was_pressed(
    page: Any, site: WidgetSite
) -> None:
    buttons = '<button name="save" value="1">Save</button><button name="go" value="on">Save and go on</button>'
    show(page, site, form(LABEL + element(), buttons))
    choose(page, a_file())
    page.click("button[name=go]")
    expect(page.locator(".async-upload-waiting")).to_be_visible()
    page.evaluate("uploads[0].move(0.5)")
    page.fill("#id_title", "written while it waits")
    assert site.posted == []
    page.evaluate("uploads[0].complete()")
    fields = posted(page, site)
    assert ("go", "on") in fields
    assert "save" not in dict(fields)
    assert ("title", "written while it waits") in fields
    assert ("async_upload.file", "receipt of a.pdf") in fields


def test_enter_and_request_submit_wait_too(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.press("#id_title", "Enter")
    expect(page.locator(".async-upload-waiting")).to_be_visible()
    page.get_by_role("button", name="Do not send it yet").click()
    page.evaluate("document.forms[0].requestSubmit()")
    expect(page.locator(".async-upload-waiting")).to_be_visible()
    page.evaluate("uploads[0].complete()")
    assert ("async_upload.file", "receipt of a.pdf") in posted(page, site)


def test_a_form_waits_for_all_its_fields_also_one_outside_of_it(
    page: Any, site: WidgetSite
) -> None:
    outside = element(input_attributes='name="far" id="id_far" form="form" aria-label="Far"')
    other = (
        '<form id="other">'
        + element(input_attributes='name="x" id="id_x" aria-label="X"')
        + "</form>"
    )
    show(page, site, form(LABEL + element()) + outside + other)
    choose(page, a_file("near"))
    choose(page, a_file("far"), of="#id_far")
    choose(page, a_file("unrelated"), of="#id_x")
    page.click("button[name=save]")
    page.evaluate("uploads[0].complete()")
    page.wait_for_timeout(400)
    assert site.posted == []
    page.on("dialog", lambda dialog: dialog.accept())  # the other form's upload is under way
    page.evaluate("uploads[1].complete()")
    fields = posted(page, site)
    assert ("async_upload.file", "receipt of near") in fields
    assert ("async_upload.far", "receipt of far") in fields


def test_listeners_of_the_page_see_only_the_submit_that_counts(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    page.evaluate("""() => { window.seen = 0; document.forms[0].addEventListener("submit", (event) => {
        event.preventDefault(); window.seen += 1; }); }""")
    choose(page, a_file())
    page.click("button[name=save]")
    assert page.evaluate("seen") == 0
    page.evaluate("uploads[0].complete()")
    until(page, "seen === 1")


def test_a_person_may_take_the_submit_back(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.click("button[name=save]")
    page.get_by_role("button", name="Do not send it yet").click()
    expect(page.locator(".async-upload-waiting")).to_be_hidden()
    page.evaluate("uploads[0].complete()")
    page.wait_for_timeout(500)
    assert site.posted == []


def test_a_failed_file_is_never_left_out_in_silence(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.click("button[name=save]")
    page.evaluate("uploads[0].fail('storage_full', {retryable: true})")
    expect(page.locator(".async-upload-message")).to_contain_text("The form was not sent")
    beside = page.locator("button[name=save] + .async-upload-beside")
    expect(beside).to_contain_text("The form was not sent")
    page.click("button[name=save]")
    expect(beside).to_have_count(1)
    expect(page.get_by_role("button", name="Try again: a.pdf")).to_be_focused()
    expect(page.locator("#id_file")).to_have_attribute("aria-invalid", "true")
    assert site.posted == []
    page.keyboard.press("Enter")
    assert page.evaluate("uploads[0].calls") == ["retry"]
    page.evaluate("uploads[0].complete()")
    expect(beside).to_have_count(0)
    page.click("button[name=save]")
    assert ("async_upload.file", "receipt of a.pdf") in posted(page, site)


def test_sending_the_form_goes_on_with_what_was_paused(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.2)")
    page.get_by_role("button", name="Pause: a.pdf").click()
    page.click("button[name=save]")
    assert page.evaluate("uploads[0].calls") == ["pause", "resume"]
    page.evaluate("uploads[0].complete()")
    posted(page, site)


def test_required_asks_for_a_file_until_there_is_one(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes='name="file" id="id_file" required')))
    page.click("button[name=save]")
    expect(page.locator("#id_file")).to_be_focused()
    choose(page, a_file())
    assert page.evaluate("document.forms[0].checkValidity()")
    expect(page.locator("#id_file")).to_have_attribute("aria-required", "true")
    page.get_by_role("button", name="Cancel: a.pdf").click()
    assert not page.evaluate("document.forms[0].checkValidity()")
    choose(page, a_file())
    page.evaluate("uploads[1].fail('name_refused')")
    until(page, "!document.forms[0].checkValidity()")
    assert site.posted == []


# What is refused


def test_what_the_page_can_see_is_refused_at_once(page: Any, site: WidgetSite) -> None:
    show(
        page,
        site,
        form(
            LABEL
            + element(
                attributes='max-size="2048"', input_attributes=MANY + ' accept=".pdf,image/*"'
            )
        ),
    )
    choose(
        page,
        a_file("large.pdf", 3000),
        a_file("bad.exe", 5, "application/x-x"),
        a_file("good.png", 5, "image/png"),
        refused=2,
    )
    assert page.evaluate("uploads.map((u) => u.name)") == ["good.png"]
    expect(rows(page).nth(0)).to_contain_text(
        "This file is too large (2.9 KB). At most 2.0 KB is allowed."
    )
    expect(rows(page).nth(1)).to_contain_text("not allowed here. Allowed: .pdf, images")
    described = page.locator("#id_file").get_attribute("aria-describedby").split()
    assert "At most 2.0 KB" in " ".join(
        page.locator(f"[id='{one}']").text_content() for one in described
    )
    note = rows(page).nth(0).locator("button:visible").get_attribute("aria-describedby")
    expect(page.locator(f"[id='{note}']")).to_contain_text("too large")
    page.get_by_role("button", name="Remove failed ones").click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#id_file")).to_be_focused()


def test_a_file_that_is_chosen_before_the_script_is_there_is_taken(
    page: Any, site: WidgetSite
) -> None:
    held: list[Any] = []
    page.route("**/widget.js", lambda route: held.append(route))
    site.show(form(LABEL + element()))
    page.goto(site.url, wait_until="commit")
    page.set_input_files("#id_file", a_file())
    screen.until(page, lambda: held, "the request for the script")
    held[0].continue_()
    expect(rows(page)).to_have_count(1)
    assert page.evaluate("document.getElementById('id_file').files.length") == 0


def test_one_field_takes_one_file(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    drop(page, ["a", "b"])
    expect(page.locator(".async-upload-message")).to_have_text(
        "Only one file can be uploaded here."
    )
    assert page.evaluate("uploads.length") == 0


def test_a_disabled_field_takes_nothing(page: Any, site: WidgetSite) -> None:
    show(page, site, form("<fieldset disabled>" + LABEL + element() + "</fieldset>"))
    drop(page, ["a"])
    page.wait_for_timeout(200)
    assert page.evaluate("uploads.length") == 0


# Taking away, and bringing back


def test_an_upload_that_was_taken_away_can_be_brought_back(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    choose(page, a_file("a.bin"), a_file("b.bin"), a_file("c.bin"))
    page.evaluate("uploads.forEach((upload) => upload.move(0.5))")
    page.get_by_role("button", name="Cancel: b.bin").click()
    expect(rows(page)).to_have_count(2)
    until(page, "uploads[1].state === 'paused'")  # nothing is sent while the user decides
    page.get_by_role("button", name="Undo").click()
    expect(rows(page)).to_have_count(3)
    expect(rows(page).nth(1)).to_contain_text("b.bin")
    until(page, "uploads[1].state === 'uploading'")
    assert "cancel" not in page.evaluate("uploads[1].calls")


def test_what_is_not_brought_back_is_cancelled(page: Any, site: WidgetSite) -> None:
    page.clock.install()
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    choose(page, a_file("a.bin"), a_file("b.bin"))
    page.evaluate("uploads.forEach((upload) => upload.move(0.5))")
    page.get_by_role("button", name="Cancel: a.bin").click()
    page.clock.run_for(3000)
    assert page.evaluate("uploads[0].state") == "paused"
    # Another one that is taken away ends the wait for the first.
    page.get_by_role("button", name="Cancel: b.bin").click()
    until(page, "uploads[0].state === 'cancelled'")
    page.mouse.move(0, 0)
    page.clock.run_for(3000)
    assert page.evaluate("uploads[1].state") == "paused"
    page.clock.run_for(3000)
    until(page, "uploads[1].state === 'cancelled'")
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()


def test_a_receipt_that_was_taken_away_is_not_posted_and_comes_back_with_undo(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    choose(page, a_file("a.bin"), a_file("b.bin"))
    page.evaluate("uploads.forEach((upload) => upload.complete())")
    receipts = page.locator('input[name="async_upload.file"]')
    expect(receipts).to_have_count(2)
    page.get_by_role("button", name="Remove all").click()
    expect(receipts).to_have_count(0)
    expect(page.get_by_text("Files removed: 2")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(receipts).to_have_count(2)
    page.get_by_role("button", name="Remove: a.bin").click()
    page.mouse.move(0, 0)
    until(
        page, "uploads[0].calls.includes('discard')"
    )  # not undone: it is deleted on the server, too
    assert not page.evaluate("uploads[1].calls.includes('discard')")


def test_a_form_that_is_reset_deletes_nothing_on_the_server(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    choose(page, a_file("a.bin"))
    page.evaluate("uploads[0].complete()")
    page.evaluate("document.querySelector('form').reset()")
    expect(rows(page)).to_have_count(0)
    page.wait_for_timeout(300)  # what would be announced is announced in the next slices
    assert page.evaluate("uploads[0].calls") == []


def test_a_refused_file_is_taken_away_without_a_word(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(attributes='max-size="10"')))
    choose(page, a_file("a.bin"), refused=1)
    page.get_by_role("button", name="Remove: a.bin").click()
    expect(rows(page)).to_have_count(0)
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()


# Drop, paste, folders

DROP = """([target, names, type]) => {
    const transfer = new DataTransfer();
    for (const name of names) transfer.items.add(new File(["content of " + name], name, {type: "text/plain"}));
    const options = {bubbles: true, cancelable: true};
    const event = type === "paste" ? new ClipboardEvent(type, {...options, clipboardData: transfer})
        : new DragEvent(type, {...options, dataTransfer: transfer});
    return !document.querySelector(target).dispatchEvent(event);
}"""


def drop(
    page: Any, names: list[str], target: str = ".async-upload-zone", kind: str = "drop"
) -> bool:
    """True where the page took the event, so that the browser does not open the file."""
    return page.evaluate(DROP, [target, names, kind])


def test_files_can_be_dropped_and_pasted(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    drop(page, ["a.txt"], kind="dragover")
    expect(page.get_by_text("Drop to upload")).to_be_visible()
    assert drop(page, ["a.txt", "b.txt"])
    until(page, "uploads.length === 2")
    assert drop(page, ["c.png"], "body", "paste")
    until(page, "uploads.length === 3")
    assert not drop(page, ["d.png"], "#id_title", "paste")  # a user who types pastes text there
    assert page.evaluate("uploads.map((u) => u.name)") == ["a.txt", "b.txt", "c.png"]


def test_a_file_that_is_dropped_beside_the_zone_does_not_replace_the_page(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element()))
    assert drop(page, ["a"], "h1", "dragover")
    assert drop(page, ["a"], "h1")
    assert page.evaluate("uploads.length") == 0


def test_a_zone_may_take_what_is_dropped_anywhere_in_the_page(page: Any, site: WidgetSite) -> None:
    page_drop = element(attributes="page-drop", input_attributes=MANY)
    show(page, site, form(SECOND + LABEL + page_drop))
    drop(page, ["a"], "h1", "dragover")
    expect(page.locator(".async-upload-zone[data-over]")).to_have_count(1)
    assert drop(page, ["a"], "h1")
    until(page, "uploads.length === 1")
    expect(page.locator(".async-upload-zone[data-over]")).to_have_count(0)
    assert drop(page, ["b"], "async-upload:has(#id_two) .async-upload-zone")
    until(page, "uploads.length === 2")
    expect(page.locator("async-upload:has(#id_file) .async-upload-file")).to_have_count(1)


def test_zones_show_that_files_are_dragged_until_they_no_longer_are(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(SECOND + LABEL + element(input_attributes=MANY + " disabled")))
    drop(page, ["a"], "h1", "dragover")
    expect(page.locator(".async-upload-zone[data-near]")).to_have_count(1)
    expect(page.locator(".async-upload-zone[data-near]")).to_have_count(0)


def test_no_user_is_told_to_drop_where_nothing_can_be_dragged(
    page: Any, site: WidgetSite, browser: Any
) -> None:
    show(page, site, form(LABEL + element()))
    expect(page.get_by_text("or drop it here")).to_be_visible()
    phone = browser.new_context(has_touch=True, is_mobile=True)
    tab = phone.new_page()
    show(tab, site, form(LABEL + element()))
    expect(tab.get_by_text("Choose a file")).to_be_visible()
    expect(tab.get_by_text("or drop it here")).to_be_hidden()
    phone.close()


def test_a_file_that_is_there_already_is_not_uploaded_twice(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    paths = 'new File(["a"], "a.txt", {lastModified: 5})'
    again = f"""() => {{
        const data = new DataTransfer();
        data.items.add({paths});
        const input = document.querySelector("#id_file");
        input.files = data.files;
        input.dispatchEvent(new Event("change", {{bubbles: true}}));
    }}"""
    page.evaluate(again)
    until(page, "uploads.length === 1")
    page.evaluate(again)
    message = page.locator(".async-upload-message")
    expect(message).to_have_text("This file is there already: a.txt")
    expect(message).to_have_attribute("data-kind", "note")
    assert page.evaluate("uploads.length") == 1
    page.evaluate("uploads[0].fail('busy', {retryable: true})")
    page.evaluate(again)  # a failed one is no reason to refuse it
    until(page, "uploads.length === 2")
    page.get_by_role("button", name="Remove all").click()
    page.evaluate(again)
    until(page, "uploads.length === 3")


def test_a_long_name_loses_its_middle_and_keeps_its_extension(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    page.set_viewport_size({"width": 340, "height": 700})
    choose(page, a_file("a film of the summer holidays that has a name without any end.mov"))
    tail = page.locator(".async-upload-tail")
    expect(tail).to_have_text(re.compile(r"end\.mov$"))
    box, body = tail.bounding_box(), page.locator(".async-upload-body").bounding_box()
    assert box
    assert body
    assert box["x"] + box["width"] <= body["x"] + body["width"] + 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_field_that_has_its_file_offers_another_one_in_one_line(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element()))
    zone = page.locator(".async-upload-zone")
    empty = zone.bounding_box()
    choose(page, a_file())
    expect(page.get_by_text("Choose another file")).to_be_visible()
    filled = zone.bounding_box()
    assert empty
    assert filled
    assert filled["height"] < empty["height"] * 0.7
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Choose a file")).to_be_visible()


def test_a_folder_keeps_its_paths(page: Any, site: WidgetSite, tmp_path: Path) -> None:
    (tmp_path / "photos/inner").mkdir(parents=True)
    (tmp_path / "photos/a.txt").write_text("a")
    (tmp_path / "photos/inner/b.txt").write_text("b")
    show(page, site, form(LABEL + element(attributes="directory", input_attributes=MANY)))
    expect(page.get_by_text("Choose a folder")).to_be_visible()
    page.set_input_files("#id_file", tmp_path / "photos")
    until(page, "uploads.length === 2")
    assert page.evaluate("uploads.map((u) => u.options.metadata.path).sort()") == [
        "photos/a.txt",
        "photos/inner/b.txt",
    ]


def test_an_element_without_a_token_says_who_takes_its_files(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(attributes='taker="api"', input_attributes=MANY)))
    page.set_input_files("#id_file", [a_file("a.txt")])
    until(page, "uploads.length === 1")
    assert page.evaluate("uploads[0].options.metadata") == {"taker": "api"}


# Clones and rows that come and go

ROWS = """<div class="row" id="rows-__prefix__" hidden>{empty}</div><div class="row" id="rows-0">{first}</div>"""
CLONE = """([from, number]) => {
    const row = document.getElementById(from).cloneNode(true);
    row.hidden = false; row.id = "rows-" + number;
    for (const each of row.querySelectorAll("*")) for (const name of ["id", "name", "for"]) {
        const value = each.getAttribute(name);
        if (value) each.setAttribute(name, value.replace(/rows-(__prefix__|\\d+)/, "rows-" + number));
    }
    document.forms[0].prepend(row);
}"""


def inline_rows() -> str:
    def row(number: str) -> str:
        label = f'<label for="id_rows-{number}-file">File</label>'
        return label + element(
            input_attributes=f'name="rows-{number}-file" id="id_rows-{number}-file" required'
        )

    return form(ROWS.format(empty=row("__prefix__"), first=row("0")))


@pytest.mark.parametrize("source", ["rows-__prefix__", "rows-0"])
def test_a_copied_row_is_an_upload_of_its_own(page: Any, site: WidgetSite, source: str) -> None:
    show(page, site, inline_rows())
    assert not page.locator("[id='id_rows-__prefix__-file']").evaluate(
        "input => !!input.parentElement.querySelector('.async-upload-zone')"
    )
    choose(page, a_file("first"), of="#id_rows-0-file")
    page.evaluate("uploads[0].complete()")
    expect(rows(page)).to_contain_text("Uploaded")
    page.evaluate(CLONE, [source, 1])
    expect(page.locator("#rows-1 .async-upload-zone")).to_have_count(1)
    expect(page.locator("#rows-1 .async-upload-file")).to_have_count(0)
    assert page.locator("#id_rows-1-file").get_attribute("required") is not None
    choose(page, a_file("second"), of="#id_rows-1-file")
    page.evaluate("uploads[1].complete()")
    expect(page.locator("#rows-1 .async-upload-file")).to_contain_text("second")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    page.evaluate(
        "document.getElementById('rows-__prefix__').remove()"
    )  # as Django's form ignores it
    page.click("button[name=save]")
    receipts = {
        name: value for name, value in posted(page, site) if name.startswith("async_upload.")
    }
    assert receipts == {
        "async_upload.rows-0-file": "receipt of first",
        "async_upload.rows-1-file": "receipt of second",
    }


def test_a_template_row_comes_to_life_when_it_gets_its_number_in_the_page(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, inline_rows())
    page.evaluate("document.getElementById('rows-__prefix__').hidden = false")
    page.evaluate("document.getElementById('id_rows-__prefix__-file').name = 'rows-7-file'")
    expect(page.locator(".async-upload-zone")).to_have_count(2)


def test_receipts_follow_their_row_when_rows_are_counted_anew(page: Any, site: WidgetSite) -> None:
    show(page, site, inline_rows())
    choose(page, a_file(), of="#id_rows-0-file")
    page.evaluate("uploads[0].complete()")
    page.evaluate("document.getElementById('id_rows-0-file').name = 'rows-4-file'")
    until(page, "document.querySelector('input[type=hidden]').name === 'async_upload.rows-4-file'")


def test_a_row_that_is_taken_away_takes_its_upload_along(page: Any, site: WidgetSite) -> None:
    show(page, site, inline_rows())
    choose(page, a_file(), of="#id_rows-0-file")
    page.evaluate("document.getElementById('rows-0').remove()")
    until(page, "uploads[0].state === 'cancelled'")


def test_a_row_that_is_only_moved_goes_on(page: Any, site: WidgetSite) -> None:
    show(page, site, inline_rows())
    choose(page, a_file(), of="#id_rows-0-file")
    page.evaluate("document.forms[0].append(document.getElementById('rows-0'))")
    page.wait_for_timeout(200)
    assert state(page) == "queued"
    page.evaluate("uploads[0].complete()")
    expect(rows(page)).to_contain_text("Uploaded")


def test_a_page_that_is_exchanged_finds_its_upload_again(page: Any, site: WidgetSite) -> None:
    """As htmx or Turbo do it: the form goes, and comes back as new nodes."""
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.3)")
    page.evaluate("document.querySelector('main').replaceChildren()")
    page.wait_for_timeout(200)
    assert state(page) == "uploading"
    page.evaluate("uploads[0].complete()")
    page.evaluate(
        "body => { const form = new DOMParser().parseFromString(body, 'text/html').querySelector('form');"
        " document.querySelector('main').append(document.adoptNode(form)); }",
        form(LABEL + element()),
    )
    expect(rows(page)).to_contain_text("Uploaded")
    page.click("button[name=save]")
    assert ("async_upload.file", "receipt of a.pdf") in posted(page, site)


# Network, login, WebSocket, earlier pages


def test_waiting_for_the_network_is_not_a_failure(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.4); uploads[0].go('offline')")
    expect(rows(page)).to_contain_text("Waiting for the network. It will go on by itself.")
    expect(page.locator("#id_file")).not_to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "40")
    expect(page.locator("[role=status]")).to_contain_text("Waiting for the network")
    page.evaluate("uploads[0].move(0.5)")
    expect(page.locator("[role=status]")).to_contain_text("The upload goes on.")


def test_who_was_signed_out_signs_in_elsewhere_and_comes_back(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.4); uploads[0].go('unauthenticated')")
    page.evaluate("""() => { window.asked = "waits";
        const login = uploaders[0].options.authenticate(new Error("signed out"));
        login.then((ticket) => { window.asked = String(ticket); }); }""")
    expect(rows(page)).to_contain_text("You have been signed out")
    link = page.get_by_role("link", name="Sign in in another tab")
    assert link.get_attribute("target") == "_blank"
    assert page.evaluate("asked") == "waits"
    page.get_by_role("button", name="Continue: a.pdf").click()
    until(page, "asked === 'undefined'")
    page.evaluate("""() => { window.asked = "waits";
        uploaders[0].options.authenticate(new Error("signed out")).then(() => { window.asked = "came back"; });
        window.dispatchEvent(new Event("focus")); }""")
    until(page, "asked === 'came back'")


def test_without_a_websocket_the_file_is_posted_with_the_form(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes='name="file" id="id_file" required')))
    choose(page, a_file("a.pdf", 1234))
    page.evaluate("uploaders[0].reach(false)")
    expect(page.locator(".async-upload-message")).to_have_text(
        "The file will be sent together with the form."
    )
    expect(page.locator("#id_file")).to_have_css("opacity", "1")
    assert state(page) == "cancelled"
    page.click("button[name=save]")
    assert ("file", ("a.pdf", 1234)) in posted(page, site)


def test_a_field_that_comes_while_no_websocket_gets_through_is_plain_too(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element(input_attributes='name="file" id="id_file"')))
    page.evaluate("uploaders[0].reach(false)")
    page.evaluate(
        "document.querySelector('form').append("
        "document.querySelector('async-upload').cloneNode(true))"
    )
    expect(page.locator("async-upload .async-upload-zone[data-plain]")).to_have_count(2)


def test_when_websockets_get_through_again_the_file_is_uploaded(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element(input_attributes='name="file" id="id_file"')))
    choose(page, a_file("a.pdf", 1234))
    page.evaluate("uploaders[0].reach(false)")
    expect(page.locator("#id_file")).to_have_css("opacity", "1")
    page.evaluate("uploaders[0].reach(true)")
    until(page, "uploads.length === 2 && uploads[1].name === 'a.pdf'")
    expect(page.locator(".async-upload-message")).to_be_hidden()
    assert page.evaluate("document.querySelector('#id_file').files.length") == 0


def test_an_upload_that_waits_says_for_what_and_until_when(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file("a.pdf", 1234))
    page.evaluate("""() => {
        const at = new Date();
        at.setHours(at.getHours() + 1, 42, 0, 0);
        Object.assign(uploads[0], { error: { code: "storage_full", retryable: true }, retryAt: at.getTime() });
        window.expected = new Intl.DateTimeFormat("en", { timeStyle: "short" }).format(at);
        uploads[0].go("waiting");
    }""")
    expect(page.locator(".async-upload-file")).to_contain_text(
        "The server has no room at the moment. Trying again at"
    )
    expect(page.locator(".async-upload-file")).to_contain_text(page.evaluate("expected"))
    page.get_by_role("button", name="Try again: a.pdf").click()
    assert page.evaluate("uploads[0].calls") == ["retry"]


def test_deflate_is_told_to_the_developer_only(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    with page.expect_console_message(lambda line: "deflate" in line.text):
        page.evaluate("uploaders[0].warn('deflate', 'permessage-deflate was negotiated')")
    expect(page.locator(".async-upload-message")).to_be_hidden()
    assert state(page) == "queued"


UNFINISHED = """window.unfinished = [{key: 'old', name: 'film.mp4', size: 4000, sent: 3000, field: 'token',
    place: {key: JSON.stringify(["/", "here", "file"]), field: "file"}, %s}]"""


def test_an_unfinished_upload_is_offered_and_taken_up_by_its_file(
    page: Any, site: WidgetSite
) -> None:
    page.add_init_script(UNFINISHED % "")
    show(
        page,
        site,
        form(LABEL + element(input_attributes='name="file" id="id_file" required') + SECOND),
    )
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("Choose the same file again to go on.")
    assert not page.evaluate("document.forms[0].checkValidity()")
    choose(page, a_file("renamed.mp4", 4000))
    page.evaluate("uploads[0].key = 'old'; uploads[0].move(0.75)")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("renamed.mp4")
    assert page.evaluate("discarded") == []


def test_an_unfinished_upload_goes_on_by_itself_where_its_file_can_be_read(
    page: Any, site: WidgetSite
) -> None:
    page.add_init_script(UNFINISHED % "canContinue: true")
    show(page, site, form(LABEL + element()))
    until(page, "uploads.length === 1")
    page.evaluate("uploads[0].complete()")
    expect(rows(page)).to_contain_text("Uploaded")


def test_an_unfinished_upload_waits_for_a_click_or_is_discarded(
    page: Any, site: WidgetSite
) -> None:
    page.add_init_script(UNFINISHED % "canContinue: true, denied: true")
    show(page, site, form(LABEL + element()))
    expect(page.get_by_role("button", name="Continue: film.mp4")).to_be_visible()
    page.get_by_role("button", name="Discard: film.mp4").click()
    page.mouse.move(0, 0)  # away from "Undo", which waits under the pointer
    expect(rows(page)).to_have_count(0)
    until(page, "discarded[0] === 'old'")


def test_the_page_asks_before_it_is_left_only_while_something_would_be_lost(
    page: Any, site: WidgetSite
) -> None:
    asks = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    show(page, site, form(LABEL + element()))
    assert not page.evaluate(asks)
    choose(page, a_file())
    assert page.evaluate(asks)
    page.evaluate("uploads[0].go('paused')")
    expect(rows(page)).to_contain_text("Paused")
    assert page.evaluate(asks)
    page.evaluate("uploads[0].complete()")
    expect(rows(page)).to_contain_text("Uploaded")
    assert page.evaluate(asks)  # its receipt is not sent
    page.evaluate("addEventListener('submit', (event) => event.preventDefault())")
    page.click("button[name=save]")
    assert not page.evaluate(asks)


# Showing it


WATCH = """() => {
    window.paints = 0;
    const options = {childList: true, characterData: true, subtree: true};
    new MutationObserver(() => { window.paints += 1; }).observe(document.querySelector(".async-upload-line"), options);
}"""
RUN = """async () => {
    const begin = performance.now();
    for (let index = 0; index < 1999; index += 1) {
        uploads[index].move(0.5);
        uploads[index].complete();
        if (index % 20 === 0) await new Promise((resolve) => setTimeout(resolve));
    }
    return performance.now() - begin;
}"""


def test_thousands_of_files_stay_fast(page: Any, site: WidgetSite, tmp_path: Path) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    page.evaluate(WATCH)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number:04}.txt").write_text("x")
    page.set_input_files("#id_file", sorted(folder.iterdir()))
    until(page, "uploads.length === 2000")
    expect(rows(page)).to_have_count(25)
    expect(page.get_by_text("Files that are not shown: 1,975")).to_be_visible()
    page.evaluate("uploads[1999].fail('name_refused')")
    expect(rows(page).last).to_contain_text("1999.txt")
    expect(rows(page)).to_have_count(25)
    page.evaluate("window.paints = 0")
    took = page.evaluate(RUN)
    expect(page.locator(".async-upload-summary")).to_contain_text(
        "Uploaded: 1,999 of 2,000 · Failed: 1"
    )
    assert page.evaluate("paints") <= took / 250 + 4
    assert page.locator(RECEIPTS).count() == 1999
    page.get_by_role("button", name="Show more").click()
    expect(rows(page)).to_have_count(75)


def hold_time(page: Any) -> None:
    """From now on a page's clock and timers advance by ``page.clock.run_for()`` only."""
    page.clock.install(time=0)
    page.clock.pause_at(1)


def test_progress_is_told_to_the_page_and_not_too_often(page: Any, site: WidgetSite) -> None:
    hold_time(page)
    show(page, site, LABEL + element())
    page.evaluate("""() => { window.told = [];
        for (const type of ["progress", "state", "completed", "error"])
            document.addEventListener("async-upload-" + type, ({detail: {upload, result, state}}) =>
                told.push([type, upload === uploads[0], result?.receipt ?? state ?? ""])); }""")
    choose(page, a_file())
    for step in range(1, 101):
        page.evaluate(f"uploads[0].move({step} / 100)")
        page.clock.run_for(10)
    page.evaluate("uploads[0].complete('signed')")
    page.clock.run_for(1000)
    told = page.evaluate("told")
    assert ["completed", True, "signed"] in told
    assert ["state", True, "uploading"] in told
    assert 2 <= sum(event[0] == "progress" for event in told) <= 12


def test_a_screen_reader_reads_few_messages(page: Any, site: WidgetSite) -> None:
    hold_time(page)
    show(page, site, form(LABEL + element()))
    page.evaluate("""() => { window.spoken = [];
        const region = document.querySelector("[role=status]");
        new MutationObserver(() => spoken.push(region.textContent)).observe(region, {childList: true}); }""")
    choose(page, a_file())
    for step in range(1, 151):
        page.evaluate(f"uploads[0].move({step} / 150)")
        page.clock.run_for(15)
    page.evaluate("uploads[0].complete()")
    page.clock.run_for(2000)
    assert page.evaluate("spoken") == ["Added: a.pdf", "Uploaded: a.pdf"]


def test_the_focus_stays_near(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    choose(page, a_file("a"), a_file("b"))
    page.evaluate("uploads[0].move(0.5)")
    page.get_by_role("button", name="Pause: a").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Resume: a")).to_be_focused()
    page.evaluate("uploads[0].complete()")
    expect(page.get_by_role("button", name="Remove: a")).to_be_focused()
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Pause: b")).to_be_focused()
    page.get_by_role("button", name="Cancel: b").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#id_file")).to_be_focused()


def test_a_keyboard_reaches_everything_and_sees_where_it_is(page: Any, site: WidgetSite) -> None:
    # Listening from the beginning: playwright does not wait until the browser knows that it listens.
    page.on("filechooser", lambda chooser: chooser.set_files([a_file()]))
    show(page, site, form(LABEL + element()))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "id_file"
    zone = page.locator(".async-upload-zone")
    assert zone.evaluate("zone => getComputedStyle(zone).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    until(page, "uploads.length === 1")
    page.evaluate("uploads[0].move(0.5)")
    expect(page.get_by_role("button", name="Cancel: a.pdf")).to_be_visible()
    reached = []
    for _ in range(2):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert reached == ["Pause: a.pdf", "Cancel: a.pdf"]


def test_a_click_on_the_label_or_the_zone_opens_the_dialogue(page: Any, site: WidgetSite) -> None:
    opened: list[Any] = []  # from the beginning, too
    page.on("filechooser", lambda chooser: opened.append(chooser))
    show(page, site, form(LABEL + element()))
    for count, target in enumerate(("label", ".async-upload-zone"), 1):
        page.click(target, force=True)  # the input lies over the zone
        screen.until(page, lambda count=count: len(opened) == count, "the dialogue")


def png(width: int, height: int) -> bytes:
    raw = b"".join(b"\0" + b"\xd0\x40\x20" * width for _ in range(height))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def test_an_image_is_shown_small_and_what_only_says_so_is_not(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    image = {"name": "a.png", "mimeType": "image/png", "buffer": png(400, 100)}
    choose(page, a_file("no.png", 50, "image/png"), a_file("x.svg", 50, "image/svg+xml"), image)
    expect(rows(page).nth(2).locator("canvas")).to_be_visible()
    assert rows(page).nth(2).locator("canvas").evaluate(
        "canvas => [canvas.width, canvas.height]"
    ) == [96, 96]
    expect(rows(page).nth(0).locator("canvas")).to_be_hidden()
    expect(rows(page).nth(1).locator("canvas")).to_have_count(0)
    expect(rows(page).nth(1).locator(".async-upload-icon-file")).to_be_visible()


def test_texts_and_numbers_are_those_of_the_page(page: Any, site: WidgetSite) -> None:
    attributes = f"max-size='1572864' texts='{texts()}'"
    show(page, site, form(LABEL + element(attributes=attributes)), 'lang="de"')
    expect(page.locator(".async-upload-zone")).to_contain_text("Datei auswählen")
    expect(page.locator(".async-upload-limits")).to_have_text("At most 1,5 MB")
    choose(page, a_file())
    expect(page.get_by_role("button", name="Anhalten: a.pdf")).to_be_visible()


EVERY_STATE = """() => { const [a, b, c, d, e, f, g, h] = uploads;
    a.move(0.4, {rate: 2e6, remaining: 90}); b.complete(); c.move(0.6); c.go("paused"); d.move(0.3); d.go("offline");
    e.move(0.8); e.go("unauthenticated"); f.move(1); f.go("finishing"); g.fail("storage_full", {retryable: true});
    h.fail("file_changed"); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("html", ['lang="en"', 'lang="ar" dir="rtl"'])
def test_axe_finds_nothing_in_any_state(
    page: Any, site: WidgetSite, scheme: str, html: str
) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": 360, "height": 2400})
    page.add_init_script(UNFINISHED % "canContinue: true, denied: true")
    show(
        page,
        site,
        form(
            LABEL
            + element(attributes='max-size="5000"', input_attributes=MANY + " required")
            + SECOND
        ),
        html,
    )
    files = [a_file(f"{name}.pdf") for name in "abcdefgh"]
    choose(page, *files, a_file("large.pdf", 6000), refused=1)
    page.evaluate(EVERY_STATE)
    expect(rows(page)).to_have_count(10)
    page.click("button[name=save]")
    expect(page.locator(".async-upload-message").first).to_be_visible()
    page.locator(".async-upload-files").first.evaluate(
        "list => list.style.setProperty('max-block-size', 'none')"
    )
    page.add_script_tag(url="/axe.js")
    result = page.evaluate("axe.run()")
    found = [
        (each["id"], [node["html"] for node in each["nodes"]]) for each in result["violations"]
    ]
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_everything_that_can_be_pressed_is_large_enough_for_a_finger(
    page: Any, site: WidgetSite
) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    choose(page, *[a_file(name) for name in "abcdefgh"])
    page.evaluate(EVERY_STATE)
    expect(rows(page).nth(7)).to_contain_text("changed")
    buttons = page.locator("async-upload button:visible").all()
    assert len(buttons) > 12
    for button in [
        *buttons,
        page.locator("#id_file"),
        page.get_by_role("link", name=re.compile("Sign in")),
    ]:
        box = button.bounding_box()
        assert box["height"] >= 44
        assert box["width"] >= 44


def test_the_page_finds_its_input_where_it_put_it_and_may_take_it_away(
    page: Any, site: WidgetSite
) -> None:
    """As React does with a child that is shown under a condition."""
    show(page, site, form(LABEL + element()))
    expect(page.locator(".async-upload-zone")).to_have_count(1)
    page.evaluate("""() => { const input = document.getElementById("id_file");
        window.parent = input.parentNode; parent.removeChild(input); window.input = input; }""")
    expect(page.locator(".async-upload-zone")).to_have_count(0)
    page.evaluate("parent.insertBefore(input, parent.firstChild)")
    expect(page.locator(".async-upload-zone")).to_have_count(1)
    choose(page, a_file())


def test_the_input_lies_over_its_zone(page: Any, site: WidgetSite) -> None:
    inner = element().replace(
        '<input type="file"', 'Currently: <a href="/">a.pdf</a> Change: <input type="file"'
    )
    show(page, site, form(LABEL + inner))
    for _ in range(2):
        until(
            page,
            """(() => { const [a, b] = ["#id_file", ".async-upload-zone"].map((each) =>
            document.querySelector(each).getBoundingClientRect());
            return ["left", "top", "width", "height"].every((each) => Math.abs(a[each] - b[each]) <= 1); })()""",
        )
        choose(page, a_file())  # the zone is another one then


def test_number_total_and_least_size_hold_before_anything_is_sent(
    page: Any, site: WidgetSite
) -> None:
    limits = 'max-files="2" max-total-size="3000" min-size="10"'
    show(page, site, form(LABEL + element(attributes=limits, input_attributes=MANY)))
    choose(page, a_file("small", 9), a_file("a", 2000), a_file("b", 1500), refused=2)
    expect(rows(page).nth(0)).to_contain_text("too small (9 bytes). At least 10 bytes is needed.")
    expect(rows(page).nth(2)).to_contain_text("All files together are too large.")
    choose(page, a_file("c", 900), a_file("d", 20), refused=1)
    expect(rows(page).nth(4)).to_contain_text("No more files can be uploaded here than 2.")
    assert page.evaluate("uploads.map(({ name }) => name)") == ["a", "c"]


def test_a_script_may_refuse_a_file_before_it_is_taken(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    page.evaluate("""addEventListener("async-upload-add", (event) => {
        if (event.detail.file.name === "no.pdf") event.preventDefault(); })""")
    choose(page, a_file("no.pdf"), a_file("yes.pdf"), refused=1)
    expect(rows(page)).to_have_count(1)


def test_a_script_adds_looks_at_and_takes_away_files(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    page.evaluate("window.own = document.querySelector('async-upload')")
    page.evaluate("own.add([new File(['abc'], 'a.txt'), new File(['d'], 'b.txt')])")
    until(page, "own.uploads.length === 2")
    assert page.evaluate("[own.files.map(({ name }) => name), own.busy, own.value]") == [
        ["a.txt", "b.txt"],
        True,
        "",
    ]
    page.evaluate("for (const upload of own.uploads) upload.complete()")
    assert page.evaluate("[own.busy, own.value]") == [False, "receipt of a.txt,receipt of b.txt"]
    page.evaluate("own.clear()")
    expect(rows(page)).to_have_count(0)
    assert page.evaluate("[own.uploads.length, own.value]") == [0, ""]
