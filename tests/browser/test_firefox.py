"""The essentials again, in a real Firefox."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..e2e.proxy import ChaosProxy
from ..e2e.servers import wait_for
from .example import PERSON, Example, sha256
from .firefox import EXECUTABLES, Firefox
from .screen import FILES, LONG, SECONDS, SLOWLY
from .test_documents import stored

pytestmark = pytest.mark.parametrize("kind", ["uvicorn"], indirect=True)


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


def begin(firefox: Firefox, example: Example, proxy: ChaosProxy, path: Path) -> None:
    """Choose a file and wait until some of it is durable; the rest comes slowly."""
    proxy.rate = SLOWLY
    firefox.choose(FILES, path)
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
