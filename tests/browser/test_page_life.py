"""What pages do with forms besides sending them: swaps, visits, "Back", buttons that save nothing, scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import FLAGS
from .screen import SECONDS
from .test_places import ASKS, RECEIPTS
from .test_widget import LABEL, a_file, choose, page, posted, rows, show, site, state, until
from .widget_site import WidgetSite, element, form

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = sync_api.expect
__all__ = ["page", "site"]  # fixtures

SWAP = """([html, before]) => {
    const fresh = new DOMParser().parseFromString(html, "text/html").querySelector("form");
    const old = document.querySelector("form");
    if (before) { old.before(document.adoptNode(fresh)); old.remove(); }
    else old.replaceWith(document.adoptNode(fresh));
}"""


def swap(page: Any, html: str, *, before: bool = False) -> None:
    """Put another form in the place of the page's, in one task; ``before``: the new one first, as htmx does."""
    page.evaluate(SWAP, [html, before])


# Swaps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
def test_a_form_that_takes_anothers_place_in_one_task_takes_its_uploads(
    page: Any, site: WidgetSite, before: bool
) -> None:
    html = form(LABEL + element())
    show(page, site, html)
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.3)")
    for _ in range(2):
        swap(page, html, before=before)
        expect(rows(page)).to_contain_text("a.pdf")
        assert page.evaluate(ASKS)
    assert state(page) == "uploading"
    page.evaluate("uploads[0].complete()")
    page.click("button[name=save]")
    assert ("async_upload.file", "receipt of a.pdf") in posted(page, site)


def test_a_form_that_comes_after_one_that_was_sent_is_empty(page: Any, site: WidgetSite) -> None:
    html = form(LABEL + element())
    show(page, site, html)
    page.evaluate("addEventListener('submit', (event) => event.preventDefault())")
    for number in range(3):
        choose(page, a_file(f"{number}.pdf"))
        page.evaluate(f"uploads[{number}].complete()")
        expect(page.locator(RECEIPTS)).to_have_value(f"receipt of {number}.pdf")
        page.click("button[name=save]")
        swap(page, html)
        expect(page.locator(".async-upload-zone")).to_be_visible()
        expect(rows(page)).to_have_count(0)
    assert not page.evaluate(ASKS)


def test_the_page_asks_while_an_upload_runs_whose_form_is_gone(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.3)")
    page.evaluate("document.querySelector('form').remove()")
    page.wait_for_timeout(100)
    assert page.evaluate(ASKS)
    page.evaluate("uploads[0].complete()")
    until(page, f"!({ASKS})")


def test_several_rows_find_their_own_uploads_again(page: Any, site: WidgetSite) -> None:
    html = form(
        "".join(
            element(input_attributes=f'name="r-{n}-f" id="id_{n}" aria-label="{n}"')
            for n in range(3)
        )
    )
    show(page, site, html)
    for number in range(3):
        choose(page, a_file(f"{number}.pdf"), of=f"#id_{number}")
    swap(page, html)
    for number in range(3):
        found = page.locator(f"async-upload:has(#id_{number}) .async-upload-name")
        expect(found).to_have_text(f"{number}.pdf")


def test_a_form_in_another_place_takes_nothing(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    swap(page, form(LABEL + element().replace('place="here"', 'place="of B"')))
    expect(page.locator(".async-upload-zone")).to_be_visible()
    expect(rows(page)).to_have_count(0)
    assert state(page) == "queued"


# Buttons and scripts ------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", ["formnovalidate", "data-async-upload-ignore"])
@pytest.mark.parametrize("how", ["refused", "under way"])
def test_a_button_that_saves_nothing_waits_for_nothing(
    page: Any, site: WidgetSite, attributes: str, how: str
) -> None:
    buttons = (
        f'<button name="save">Save</button><button name="back" value="1" {attributes}>Back</button>'
    )
    show(page, site, form(LABEL + element(attributes='max-size="2000"'), buttons))
    page.on("dialog", lambda dialog: dialog.accept())
    if how == "refused":
        choose(page, a_file(size=3000), refused=1)
        expect(rows(page)).to_have_count(1)
    else:
        choose(page, a_file())
    page.click("button[name=back]")
    assert ("back", "1") in posted(page, site)


@pytest.mark.parametrize("where", ["form", "button"])
def test_a_dialogue_closes_whatever_is_uploaded(page: Any, site: WidgetSite, where: str) -> None:
    of_form, of_button = ('method="dialog"', "") if where == "form" else ("", 'formmethod="dialog"')
    show(
        page,
        site,
        f"<dialog open><form {of_form}>{LABEL}{element()}<button {of_button}>Close</button></form></dialog>",
    )
    choose(page, a_file())
    page.get_by_role("button", name="Close").click()
    until(page, "!document.querySelector('dialog').open")


def test_scripts_of_the_page_find_the_files_in_the_input(page: Any, site: WidgetSite) -> None:
    show(page, site, form(LABEL + element()))
    page.evaluate("""() => { window.saw = [];
        const see = (event) => saw.push(event.target.files.length);
        document.getElementById("id_file").addEventListener("change", see);
        document.addEventListener("change", see); }""")
    choose(page, a_file())
    assert page.evaluate("saw") == [1, 1]
    until(page, "!document.getElementById('id_file').files.length")  # it is not posted as well


# A new login --------------------------------------------------------------------------------------


TOKEN = '<input type="hidden" name="csrfmiddlewaretoken" value="old">'


def test_a_form_that_has_waited_is_sent_with_a_fresh_csrf_token(
    page: Any, site: WidgetSite
) -> None:
    site.token = {"csrf": "new", "owner": "me"}
    show(page, site, form(TOKEN + LABEL + element()))
    choose(page, a_file())
    page.click("button[name=save]")
    page.evaluate("uploads[0].complete()")
    assert ("csrfmiddlewaretoken", "new") in posted(page, site)


def test_a_form_is_sent_once_however_often_its_button_is_pressed_meanwhile(
    page: Any, site: WidgetSite
) -> None:
    site.token = {"csrf": "new", "owner": "me"}
    show(page, site, form(TOKEN + LABEL + element()))
    held: list[Any] = []
    page.route(
        "**/posted",
        lambda route: held.append(route) if route.request.method == "GET" else route.continue_(),
    )
    choose(page, a_file())
    page.click("button[name=save]")
    page.evaluate("uploads[0].complete()")
    from . import screen

    screen.until(page, lambda: held, "the question for a token")
    page.click("button[name=save]")
    held[0].continue_()
    assert ("csrfmiddlewaretoken", "new") in posted(page, site)


def test_a_form_whose_login_has_ended_gets_a_token_though_nothing_is_under_way(
    page: Any, site: WidgetSite
) -> None:
    site.token = {"csrf": "new", "owner": "me"}
    show(page, site, form(TOKEN + LABEL + element()))
    choose(page, a_file())
    page.evaluate("void uploaders[0].options.authenticate(new Error('signed out'))")
    page.evaluate("uploads[0].complete()")
    page.click("button[name=save]")
    assert ("csrfmiddlewaretoken", "new") in posted(page, site)


def test_without_an_answer_the_form_is_sent_as_it_is(page: Any, site: WidgetSite) -> None:
    show(page, site, form(TOKEN + LABEL + element()))
    choose(page, a_file())
    page.click("button[name=save]")
    page.evaluate("uploads[0].complete()")
    assert ("csrfmiddlewaretoken", "old") in posted(page, site)


# The browser's own cache of pages -----------------------------------------------------------------


@pytest.fixture(scope="module")
def remembering(browser: Any) -> Iterator[Any]:
    """A Chromium that keeps pages for "Back"."""
    chromium = browser.browser_type.launch(
        executable_path="/usr/bin/chromium",
        args=FLAGS,
        ignore_default_args=["--disable-back-forward-cache"],
    )
    yield chromium
    chromium.close()


@pytest.mark.parametrize("usable", [[], ["receipt of a.pdf"]], ids=["taken", "not taken"])
def test_a_page_that_comes_back_posts_nothing_twice(
    remembering: Any, site: WidgetSite, usable: list[str]
) -> None:
    context = remembering.new_context()
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    page.add_init_script(
        "addEventListener('pageshow', (event) => { window.back = event.persisted; })"
    )
    site.token = {"csrf": "x", "owner": "me", "usable": usable}
    show(page, site, form(LABEL + element()))
    choose(page, a_file())
    page.evaluate("uploads[0].complete()")
    expect(rows(page)).to_contain_text("Uploaded")
    page.click("button[name=save]")
    page.wait_for_url("**/posted")
    page.go_back(wait_until="commit")  # a page that was kept is not loaded
    until(page, "window.back !== undefined")
    assert page.evaluate("window.back"), "the browser has kept the page"
    expect(page.locator(RECEIPTS)).to_have_count(len(usable))
    expect(rows(page)).to_have_count(len(usable))
    context.close()


# Libraries ----------------------------------------------------------------------------------------


def htmx_page(attributes: str = "") -> str:
    return form(LABEL + element()).replace(
        "<form ",
        f'<form hx-post="/posted" hx-swap="outerHTML" hx-encoding="multipart/form-data" {attributes} ',
    )


@pytest.fixture
def htmx(page: Any, site: WidgetSite) -> Any:
    """A page whose form htmx sends and replaces by the answer."""
    config = """<meta name="htmx-config" content='{"includeIndicatorStyles": false, "allowEval": false}'>"""
    site.show(htmx_page(), head=f'{config}<script src="/htmx.js" defer></script>')
    page.goto(site.url)
    until(page, "customElements.get('async-upload') && window.htmx")
    return page


def test_htmx_sends_a_form_when_all_is_uploaded_and_the_next_one_is_empty(
    htmx: Any, site: WidgetSite
) -> None:
    from . import screen

    site.answer = htmx_page()
    for number in range(3):
        choose(htmx, a_file(f"{number}.pdf"))
        htmx.click("button[name=save]")
        htmx.wait_for_timeout(200)
        assert len(site.posted) == number
        htmx.evaluate(f"uploads[{number}].complete()")
        screen.until(htmx, lambda number=number: len(site.posted) == number + 1, "the form")
        assert ("async_upload.file", f"receipt of {number}.pdf") in site.posted[number]
        expect(rows(htmx)).to_have_count(0)
        assert not htmx.evaluate(ASKS)


def test_htmx_shows_a_form_with_errors_and_its_uploads(htmx: Any, site: WidgetSite) -> None:
    kept = (
        '<input type="hidden" name="async_upload.file" value="receipt of a.pdf" data-name="a.pdf"'
        ' data-size="1000"></async-upload>'
    )
    site.answer = htmx_page().replace("</async-upload>", kept)
    choose(htmx, a_file())
    htmx.evaluate("uploads[0].complete()")
    htmx.click("button[name=save]")
    until(htmx, "!document.querySelector('.htmx-request') && document.querySelector('[data-name]')")
    expect(rows(htmx)).to_have_count(1)
    htmx.click("button[name=save]")
    from . import screen

    screen.until(htmx, lambda: len(site.posted) == 2, "the form again")
    assert ("async_upload.file", "receipt of a.pdf") in site.posted[1]


def test_htmx_swaps_a_form_under_a_running_upload(htmx: Any, site: WidgetSite) -> None:
    choose(htmx, a_file())
    htmx.evaluate("uploads[0].move(0.3)")
    htmx.evaluate(
        "html => htmx.swap('form', html, {swapStyle: 'outerHTML'})", htmx_page('data-new="1"')
    )
    until(htmx, "document.querySelector('form[data-new]')")
    expect(rows(htmx)).to_contain_text("a.pdf")
    assert state(htmx) == "uploading"


@pytest.fixture
def free(browser: Any) -> Iterator[Any]:
    """A page whose faults are its own: Turbo brings a style that the strict policy of the others forbids."""
    context = browser.new_context()
    tab = context.new_page()
    tab.set_default_timeout(1000 * SECONDS)
    yield tab
    context.close()


def test_turbo_visits_leave_uploads_running_and_find_them_again(
    free: Any, site: WidgetSite
) -> None:
    page = free
    head = '<script src="/turbo.js" defer></script>'
    site.show(form(LABEL + element()) + '<a href="/two/">Two</a>', head=head)
    site.show('<a href="/">One</a>', at="/two/", head=head, title="Two")
    page.goto(site.url)
    until(page, "customElements.get('async-upload') && window.Turbo")
    choose(page, a_file())
    page.evaluate("uploads[0].move(0.3)")
    page.get_by_role("link", name="Two").click()
    until(page, "document.title === 'Two' && !document.querySelector('form')")
    assert state(page) == "uploading"
    assert page.evaluate(ASKS)
    page.get_by_role("link", name="One").click()
    expect(rows(page)).to_contain_text("a.pdf")
    page.evaluate("uploads[0].complete()")
    expect(page.locator(RECEIPTS)).to_have_value("receipt of a.pdf")
    page.get_by_role("link", name="Two").click()
    until(page, "document.title === 'Two' && !document.querySelector('form')")
    page.go_back()  # Turbo shows a copy of the page that it has kept
    expect(rows(page)).to_have_count(1)
    expect(page.locator(RECEIPTS)).to_have_count(1)
