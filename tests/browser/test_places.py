"""Which field of which page a file belongs to: what resumes by itself, what is asked for, what is never shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .test_widget import (
    LABEL,
    MANY,
    a_file,
    choose,
    page,
    posted,
    rows,
    show,
    site,
    state,
    until,
)
from .widget_site import WidgetSite, element, form

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = sync_api.expect
__all__ = ["page", "site"]  # fixtures

OTHER = "/other/"
ASKS = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"
RECEIPTS = "input[type=hidden][name^='async_upload.']"


def place(path: str = "/", of: str = "here", name: str = "file") -> dict[str, str]:
    return {
        "key": json.dumps([path, of, name], separators=(",", ":")),
        "field": name,
        "page": f"{OTHER}?x=1",
        "title": "The other page",
    }


def left(page: Any, *uploads: dict[str, Any]) -> None:
    """The unfinished uploads of earlier pages, newest first."""
    known = [
        {"key": f"old-{number}", "name": f"{number}.pdf", "size": 4000, "sent": 3000, **each}
        for number, each in enumerate(uploads)
    ]
    page.add_init_script(f"window.unfinished = {json.dumps(known)}")


FINISHED = {"isFinished": True, "canContinue": True, "receipt": "signed", "field": "token"}
READABLE = {"canContinue": True, "field": "token"}


@pytest.mark.parametrize(
    "where",
    [
        place(path=OTHER),
        place(of="another object"),
        place(name="other") | {"field": "file"},
    ],
    ids=["page", "object", "row"],
)
def test_what_was_begun_elsewhere_is_listed_apart_and_taken_by_a_click_only(
    page: Any, site: WidgetSite, where: dict[str, str]
) -> None:
    where["page"] = site.url + "other/?x=1"
    left(page, {**READABLE, "place": where, "field": "token of another place"})
    show(page, site, form(LABEL + element()))
    expect(rows(page)).to_contain_text("Not finished, of another page: 2.9 KB of 3.9 KB")
    link = page.get_by_role("link", name="The other page")
    assert link.get_attribute("href") == f"{site.url}other/?x=1"
    page.wait_for_timeout(300)  # for what must not come
    assert page.evaluate("uploads.length") == 0
    assert page.evaluate("document.querySelector('#id_file').required") is False
    page.get_by_role("button", name="Use here: 0.pdf").click()
    until(page, "uploads.length === 1")
    page.evaluate("uploads[0].complete('signed')")
    page.click("button[name=save]")
    assert ("async_upload.file", "moved:signed") in posted(page, site)


def test_another_kind_of_field_shows_nothing_of_it(page: Any, site: WidgetSite) -> None:
    left(page, {**READABLE, "place": place(path=OTHER, name="cover")})
    show(page, site, form(LABEL + element()))
    page.wait_for_timeout(300)
    expect(rows(page)).to_have_count(0)


def test_what_a_page_remembers_that_is_no_address_of_the_site_is_no_link(
    page: Any, site: WidgetSite
) -> None:
    where = place(path=OTHER) | {"page": "javascript:alert(1)"}
    left(page, {**READABLE, "place": where})
    show(page, site, form(LABEL + element()))
    expect(rows(page)).to_have_count(1)
    assert page.locator(".async-upload-file a:visible").count() == 0


def test_each_row_of_a_formset_gets_its_own_back(page: Any, site: WidgetSite) -> None:
    name = "rows-{}-file"
    fields = "".join(
        element(input_attributes=f'name="{name.format(n)}" id="id_{n}" aria-label="{n}"')
        for n in range(3)
    )
    left(
        page,
        *[
            {**READABLE, "name": f"of row {n}", "place": place(name=name.format(n))}
            for n in (2, 1)  # the newest comes first
        ],
    )
    show(page, site, form(fields))
    until(page, "uploads.length === 2")
    for number, expected in enumerate(["", "of row 1", "of row 2"]):
        found = page.locator(f"async-upload:has(#id_{number}) .async-upload-name")
        assert "".join(found.all_text_contents()) == expected


def test_a_row_that_is_added_later_takes_back_what_another_has_listed(
    page: Any, site: WidgetSite
) -> None:
    where = place(name="rows-1-file") | {"field": "rows-__prefix__-file"}
    left(page, {**READABLE, "name": "of row 1", "place": where})
    row = element(input_attributes='name="rows-0-file" id="id_0" aria-label="0"')
    show(page, site, form(row))
    expect(rows(page)).to_have_count(1)
    page.evaluate(
        "row => document.forms[0].insertAdjacentHTML('beforeend', row)", row.replace("0", "1")
    )
    expect(page.locator("async-upload:has(#id_1) .async-upload-file")).to_have_count(1)
    expect(page.locator("async-upload:has(#id_0) .async-upload-file")).to_have_count(0)
    until(page, "uploads.length === 1")


# What is finished ---------------------------------------------------------------------------------


def test_a_finished_upload_comes_back_with_the_page_and_is_posted(
    page: Any, site: WidgetSite
) -> None:
    left(page, {**FINISHED, "place": place()})
    show(page, site, form(LABEL + element()))
    expect(rows(page)).to_contain_text("Uploaded · 3.9 KB")
    assert page.evaluate(ASKS)
    page.click("button[name=save]")
    assert ("async_upload.file", "signed") in posted(page, site)


def test_one_that_was_taken_or_has_run_out_is_forgotten(page: Any, site: WidgetSite) -> None:
    site.token = {"csrf": "x", "owner": "me", "usable": ["good"]}
    left(
        page,
        {**FINISHED, "place": place(), "receipt": "bad"},
        {**FINISHED, "place": place(), "receipt": "good", "name": "good.pdf"},
    )
    show(page, site, form(LABEL + element(input_attributes=MANY)))
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("good.pdf")
    assert site.asked[0]["Async-Upload-Receipts"] == "bad,good"
    until(page, "forgotten.join() === 'old-0'")


def test_one_that_went_out_with_a_form_is_not_posted_again_without_a_click(
    page: Any, site: WidgetSite
) -> None:
    left(page, {**FINISHED, "place": place()})
    show(page, site, form(LABEL + element()))
    expect(rows(page)).to_contain_text("Uploaded · 3.9 KB")
    page.click("button[name=save]")
    assert ("async_upload.file", "signed") in posted(page, site)
    page.goto(site.url)
    expect(rows(page)).to_contain_text("Uploaded and sent with a form before")
    assert page.locator(RECEIPTS).count() == 0
    page.get_by_role("button", name="Use here: 0.pdf").click()
    expect(page.locator(RECEIPTS)).to_have_value("signed")


def test_one_that_a_form_with_errors_brings_is_there_once(page: Any, site: WidgetSite) -> None:
    kept = (
        '<input type="hidden" name="async_upload.file" value="signed" data-name="a" data-size="9">'
    )
    left(page, {**FINISHED, "place": place()})
    inner = element().replace("</async-upload>", kept + "</async-upload>")
    show(page, site, form(LABEL + inner))
    page.wait_for_timeout(300)
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Remove: a").click()
    page.mouse.move(0, 0)  # away from "Undo", which waits under the pointer
    until(page, "forgotten.join() === 'old-0'")


def test_one_that_the_person_removes_is_forgotten(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].complete()")
    page.get_by_role("button", name="Remove: a.pdf").click()
    page.mouse.move(0, 0)
    until(page, "forgotten.join() === uploads[0].key")


def test_outside_of_a_form_nothing_waits_to_be_posted(page: Any, site: WidgetSite) -> None:
    show(page, site, LABEL + element())
    choose(page, a_file())
    page.evaluate("uploads[0].complete()")
    expect(rows(page)).to_contain_text("Uploaded")
    until(page, "forgotten.join() === uploads[0].key")
    assert not page.evaluate(ASKS)


# Whose it is --------------------------------------------------------------------------------------


def test_nothing_of_another_person_is_shown_or_kept(page: Any, site: WidgetSite) -> None:
    left(page, {**READABLE, "place": place(), "owner": "alice", "name": "alices papers.pdf"})
    show(page, site, form(LABEL + element()))
    until(page, "window.keptOwner === 'me'")
    expect(rows(page)).to_have_count(0)
    choose(page, a_file())
    assert page.evaluate("[uploads[0].options.owner, uploads[0].options.remember]") == ["me", True]


def test_without_an_owner_nothing_is_remembered(page: Any, site: WidgetSite) -> None:
    left(page, {**READABLE, "place": place(), "owner": ""})
    show(page, site, form(LABEL + element().replace('owner="me"', "")))
    choose(page, a_file())
    assert page.evaluate("uploads[0].options.remember") is False
    expect(rows(page)).to_have_count(1)


# One file in a field for one ----------------------------------------------------------------------


def test_a_field_for_one_file_never_posts_two(page: Any, site: WidgetSite) -> None:
    left(page, {"place": place(), "field": "token", "canContinue": True, "denied": True})
    show(page, site, form(LABEL + element()))
    expect(page.get_by_role("button", name="Continue: 0.pdf")).to_be_visible()
    choose(page, a_file("new.pdf"))
    page.evaluate("uploads[0].complete()")
    page.evaluate("delete window.unfinished[0].denied")
    page.evaluate(
        "Object.assign(uploaders[0], {remembered: async () => []})"
    )  # asked once: the row keeps what it needs to resume
    page.get_by_role("button", name="Continue: 0.pdf").click()
    until(page, "uploads.length === 2")
    page.evaluate("uploads[1].complete()")
    page.click("button[name=save]")
    assert ("async_upload.file", "receipt of 0.pdf") in posted(page, site)


def test_a_file_that_is_chosen_while_an_old_one_is_looked_for_stays(
    page: Any, site: WidgetSite
) -> None:
    left(page, {**READABLE, "place": place()})
    page.add_init_script("window.unfinished[0].wait = new Promise((go) => { window.goOn = go; });")
    show(page, site, form(LABEL + element()))
    expect(rows(page)).to_have_count(1)
    choose(page, a_file("new.pdf"))
    page.evaluate("goOn()")
    until(page, "uploads.length === 2")
    until(page, "uploads[1].state === 'cancelled'")
    assert state(page, 0) == "queued"
