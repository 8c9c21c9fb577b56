"""A login that ends during an upload is renewed in another tab, and the form arrives, wherever the token is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from .example import PERSON, Example, prepare, sha256
from .screen import SLOWLY, row, until
from .test_documents import FILE, NEW, SAVE, TITLE, saved, stored

KEPT = {
    "cookie": "",
    "cookie for HTTP only": "CSRF_COOKIE_HTTPONLY = True",
    "session": "CSRF_USE_SESSIONS = True",
}

pytestmark = pytest.mark.parametrize("kind", ["uvicorn"], indirect=True)


@pytest.fixture(scope="session", params=KEPT)
def _example(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    folder = tmp_path_factory.mktemp("login") / "example_project"
    prepare(folder)
    settings = f"from .settings import *  # noqa: F403\n{KEPT[request.param]}\n"
    (folder / "demo/settings_of_test.py").write_text(settings)
    example = Example(kind, folder)
    example.env["DJANGO_SETTINGS_MODULE"] = "demo.settings_of_test"
    try:
        example.start()
        yield example
    finally:
        example.kill()


def test_a_form_that_waited_for_a_new_login_is_saved(
    visit: Callable[..., Any], example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    cookies = example.sign_in()
    page = visit(proxy.port, cookies).new_page()
    page.goto(NEW)
    title = f"Signed in again {middling.name}"
    page.fill(TITLE, title)
    proxy.rate = SLOWLY
    page.set_input_files(FILE, middling)
    until(page, lambda: example.durable(middling.name), "something durable")
    page.click(SAVE)
    page.get_by_text("The form will be sent by itself").first.wait_for()
    example.end_login(cookies["sessionid"])
    proxy.cut()
    proxy.rate = None
    waiting = row(page, middling.name, "unauthenticated")
    with page.context.expect_page() as opened:
        waiting.get_by_role("link", name="Sign in").click()
    other = opened.value
    other.fill("[name=username]", PERSON)
    other.fill("[name=password]", PERSON)
    other.press("[name=password]", "Enter")
    other.wait_for_selector(FILE, state="attached")
    other.close()
    page.bring_to_front()
    waiting.locator('[data-action="continue"]').click()
    saved(page, title)
    assert sha256(stored(example, title)) == sha256(middling)
