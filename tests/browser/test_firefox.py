"""The essentials again, in a real Firefox."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..e2e.proxy import ChaosProxy
from ..e2e.servers import wait_for
from .example import PERSON, Example, sha256
from .firefox import EXECUTABLES, Firefox
from .screen import FILES, LONG, SECONDS, SLOWLY
from .test_documents import FILE, NEW, SAVE, TITLE, stored

pytestmark = pytest.mark.parametrize("kind", ["uvicorn"], indirect=True)


SIGN_IN = f"""fetch("/login/").then((page) => page.text()).then((html) => {{
  const form = new DOMParser().parseFromString(html, "text/html").querySelector("form:has([name=password])");
  const sent = new FormData(form);
  sent.set("username", "{PERSON}");
  sent.set("password", "{PERSON}");
  return fetch("/login/", {{ method: "POST", body: sent }}).then(({{ status }}) => status);
}})"""


@pytest.fixture(scope="module")
def running() -> Iterator[Firefox]:
    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    if executable is None:
        pytest.skip("needs Firefox")
    with Firefox(executable) as firefox:
        yield firefox


@pytest.fixture
def firefox(running: Firefox, proxy: ChaosProxy) -> Firefox:
    """Signed in, on the upload page, behind the proxy."""
    running.goto(f"http://127.0.0.1:{proxy.port}/login/")
    if running.evaluate("!!document.querySelector('[name=password]')"):
        for name in ("username", "password"):
            running.evaluate(f"document.querySelector('[name={name}]').value = '{PERSON}'")
        running.evaluate("document.querySelector('main form').requestSubmit()")
    running.until("!!document.querySelector('async-upload[data-enhanced] #id_files')")
    return running


def row(name: str, state: str) -> str:
    """An expression: the file is in that state."""
    return (
        f"[...document.querySelectorAll('.async-upload-file[data-state={state}]')]"
        f".some((row) => row.textContent.includes({json.dumps(name)}))"
    )


def press(firefox: Firefox, name: str, state: str, action: str) -> None:
    """A button in the row of a file, once the row is in that state."""
    firefox.until(row(name, state))
    selector = json.dumps(f".async-upload-file[data-state={state}] [data-action={action}]")
    firefox.evaluate(f"document.querySelector({selector}).click()")


def open_page(firefox: Firefox, proxy: ChaosProxy, path: str) -> None:
    firefox.goto(f"http://127.0.0.1:{proxy.port}{path}")
    firefox.until("!!document.querySelector('async-upload[data-enhanced]')")


def page_of(firefox: Firefox, proxy: ChaosProxy, title: str) -> str:
    """The path of the form in which a document is changed."""
    firefox.goto(f"http://127.0.0.1:{proxy.port}/documents/")
    links = "[...document.querySelectorAll('main a')]"
    found = f"{links}.find((link) => link.textContent.trim() === {json.dumps(title)})"
    return str(firefox.evaluate(f"new URL({found}.href).pathname"))


def save(firefox: Firefox, title: str | None = None) -> None:
    """Press the button of the form, and wait for the list that it leads to."""
    if title is not None:
        firefox.evaluate(f"document.querySelector({json.dumps(TITLE)}).value = {json.dumps(title)}")
    firefox.evaluate(f"document.querySelector({json.dumps(SAVE)}).click()")
    firefox.until("location.pathname === '/documents/'")


def begin(
    firefox: Firefox, example: Example, proxy: ChaosProxy, path: Path, of: str = FILES
) -> None:
    """Choose a file and wait until some of it is durable; the rest comes slowly."""
    proxy.rate = SLOWLY
    firefox.choose(of, path)
    wait_for(lambda: example.durable(path.name), seconds=SECONDS, what="something durable")


def test_a_large_file_arrives_in_firefox(firefox: Firefox, example: Example, large: Path) -> None:
    path = large.with_name("firefox.bin")
    if not path.exists():
        path.hardlink_to(large)
    firefox.choose(FILES, path)
    firefox.until(row(path.name, "completed"), seconds=LONG)
    assert sha256(example.stored(path.name)) == sha256(large)


def test_firefox_goes_on_after_a_reload(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    begin(firefox, example, proxy, middling)
    durable = example.durable(middling.name)
    firefox.reload()
    firefox.until(row(middling.name, "unfinished"))
    before = len(proxy.sent)
    proxy.rate = None
    firefox.choose(FILES, middling)
    firefox.until(row(middling.name, "completed"))
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert min(each.offset for each in proxy.sent[before:]) >= durable


def test_firefox_waits_for_a_server_that_was_killed(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    begin(firefox, example, proxy, middling)
    example.kill()
    firefox.until(row(middling.name, "offline"))
    before = len(proxy.sent)
    proxy.rate = None
    example.start()
    firefox.until(row(middling.name, "completed"))
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert min(each.offset for each in proxy.sent[before:]) > 0


def test_a_form_waits_in_firefox_and_is_sent(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    firefox.goto(f"http://127.0.0.1:{proxy.port}/documents/new/")
    proxy.rate = SLOWLY
    firefox.evaluate("document.querySelector('#id_title').value = 'By Firefox'")
    firefox.choose("#id_file", middling)
    firefox.until(row(middling.name, "uploading"))
    firefox.evaluate("document.querySelector('main > form').requestSubmit()")
    firefox.until("!document.querySelector('.async-upload-waiting').hidden")
    proxy.rate = None
    firefox.until("location.pathname === '/documents/'")
    assert proxy.data_bytes() == middling.stat().st_size
    assert sha256(stored(example, "By Firefox")) == sha256(middling)


# Reaching the server ------------------------------------------------------------------------------

PLAIN = "!!document.querySelector('.async-upload-zone[data-plain]')"


def test_firefox_waits_for_a_server_that_restarts_when_the_first_file_is_chosen(
    firefox: Firefox, proxy: ChaosProxy, middling: Path
) -> None:
    open_page(firefox, proxy, NEW)
    proxy.refuse()
    firefox.choose(FILE, middling)
    firefox.until(row(middling.name, "offline"))
    time.sleep(3)  # for what must not come
    assert not firefox.evaluate(PLAIN)
    proxy.refuse(False)
    firefox.until(row(middling.name, "completed"))


def test_without_a_websocket_firefox_sends_the_file_with_the_form(
    firefox: Firefox, example: Example, proxy: ChaosProxy, tmp_path: Path
) -> None:
    text = tmp_path / "without a websocket.txt"
    text.write_text("with the form")
    proxy.websockets_allowed = False
    open_page(firefox, proxy, NEW)
    firefox.choose(FILE, text)
    firefox.until(PLAIN, seconds=LONG)
    save(firefox, "Without a WebSocket")
    assert stored(example, "Without a WebSocket").read_text() == "with the form"


def test_firefox_uploads_without_the_second_file_until_it_can_be_loaded(
    firefox: Firefox, proxy: ChaosProxy, middling: Path, tmp_path: Path
) -> None:
    text = tmp_path / "beside it.txt"
    text.write_text("beside it")
    summary = "document.querySelector('.async-upload-summary')"
    proxy.missing = "async-upload-more"
    open_page(firefox, proxy, "/")
    firefox.choose(FILES, middling, text)
    for path in (middling, text):
        firefox.until(row(path.name, "completed"))
    assert firefox.evaluate(f"{summary} === null")
    proxy.missing = ""
    firefox.until(f"{summary}?.textContent.includes('Uploaded: 2 of 2')")


# The right object ---------------------------------------------------------------------------------


def test_firefox_has_a_finished_upload_after_a_reload_and_saves_it_once(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    open_page(firefox, proxy, NEW)
    firefox.choose(FILE, middling)
    firefox.until(row(middling.name, "completed"))
    firefox.reload()
    firefox.until(row(middling.name, "completed"))
    title = f"After a reload of Firefox {middling.name}"
    save(firefox, title)
    assert sha256(stored(example, title)) == sha256(middling)
    assert proxy.data_bytes() == middling.stat().st_size
    open_page(firefox, proxy, NEW)
    time.sleep(0.5)  # for what must not come
    assert firefox.evaluate("document.querySelectorAll('.async-upload-file').length") == 0


def test_what_is_under_way_for_one_object_never_reaches_another_in_firefox(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("as it was")
    titles = [f"Firefox {name} {middling.name}" for name in "AB"]
    for title in titles:
        open_page(firefox, proxy, NEW)
        firefox.choose(FILE, text)
        save(firefox, title)
    pages = [page_of(firefox, proxy, title) for title in titles]
    open_page(firefox, proxy, pages[0])
    begin(firefox, example, proxy, middling, of=FILE)

    open_page(firefox, proxy, pages[1])
    firefox.until(row(middling.name, "elsewhere"))
    save(firefox)
    assert stored(example, titles[1]).read_text() == "as it was"

    proxy.rate = None
    open_page(firefox, proxy, pages[0])
    firefox.until(
        row(middling.name, "unfinished")
    )  # Firefox keeps no handles: the user chooses the file again
    firefox.choose(FILE, middling)
    firefox.until(row(middling.name, "completed"))
    save(firefox)
    assert sha256(stored(example, titles[0])) == sha256(middling)
    assert stored(example, titles[1]).read_text() == "as it was"


def test_a_field_for_one_file_posts_the_one_that_was_chosen_last_in_firefox(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path, tmp_path: Path
) -> None:
    text = tmp_path / "chosen last.txt"
    text.write_text("chosen last")
    open_page(firefox, proxy, NEW)
    begin(firefox, example, proxy, middling, of=FILE)
    proxy.rate = None
    firefox.reload()
    firefox.until(row(middling.name, "unfinished"))
    firefox.choose(FILE, text)
    firefox.until(row(text.name, "completed"))
    save(firefox, f"Chosen last {middling.name}")
    assert stored(example, f"Chosen last {middling.name}").read_text() == "chosen last"


# What a user does -------------------------------------------------------------------------------


def test_a_form_that_waited_for_a_new_login_is_saved_in_firefox(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    open_page(firefox, proxy, NEW)
    title = f"Signed in again in Firefox {middling.name}"
    firefox.evaluate(f"document.querySelector({json.dumps(TITLE)}).value = {json.dumps(title)}")
    begin(firefox, example, proxy, middling, of=FILE)
    firefox.evaluate(f"document.querySelector({json.dumps(SAVE)}).click()")
    firefox.until("!document.querySelector('.async-upload-waiting').hidden")
    example.end_login(firefox.cookie("sessionid"))
    proxy.cut()
    proxy.rate = None
    firefox.until(row(middling.name, "unauthenticated"))
    firefox.evaluate(SIGN_IN)  # as another tab would: cookies are those of all tabs
    press(firefox, middling.name, "unauthenticated", "continue")
    firefox.until("location.pathname === '/documents/'")
    assert sha256(stored(example, title)) == sha256(middling)


def test_what_was_paused_while_the_server_takes_it_stays_paused_in_firefox(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    begin(firefox, example, proxy, middling)
    for state, action in (("uploading", "pause"), ("paused", "resume"), ("queued", "pause")):
        press(firefox, middling.name, state, action)
    wait_for(
        lambda: example.uploads(middling.name)[0]["state"] == "interrupted",
        seconds=SECONDS,
        what="the pause",
    )
    time.sleep(1)  # for what must not come
    proxy.rate = None
    press(firefox, middling.name, "paused", "resume")
    firefox.until(row(middling.name, "completed"))
    assert sha256(example.stored(middling.name)) == sha256(middling)


def test_an_upload_that_is_cancelled_in_firefox_is_gone_on_the_server(
    firefox: Firefox, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    begin(firefox, example, proxy, middling)
    press(firefox, middling.name, "uploading", "cancel")
    firefox.evaluate("document.activeElement.blur()")

    def is_gone() -> bool:
        (upload,) = example.uploads(middling.name)
        return upload["state"] == "cancelled" and not example.has_part(upload)

    wait_for(is_gone, seconds=SECONDS, what="the end of the upload on the server")
