"""What browsers and networks do to a page: WebSockets that fail, Workers and databases that die, files that change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..e2e.proxy import ChaosProxy
from .example import Example, sha256
from .screen import FILES, LONG, begin, press, row, until
from .test_documents import FILE, NEW

Visit = Callable[..., Any]

PLAIN = ".async-upload-zone[data-plain]"


def open_form(page: Any) -> None:
    page.goto(NEW)
    page.wait_for_selector("async-upload[data-enhanced]")


# Reaching the server ------------------------------------------------------------------------------


def test_a_server_that_restarts_when_the_first_file_is_chosen_is_waited_for(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    open_form(page)
    proxy.refuse()
    page.set_input_files(FILE, middling)
    row(page, middling.name, "offline")
    page.wait_for_timeout(5000)  # for what must not come
    assert page.locator(PLAIN).count() == 0
    proxy.refuse(False)
    row(page, middling.name, "completed")


def test_a_page_that_is_offline_waits_for_the_network(
    visit: Visit, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    open_form(page)
    page.context.set_offline(True)
    page.set_input_files(FILE, middling)
    waiting = row(page, middling.name, "offline")
    page.wait_for_timeout(5000)  # for what must not come
    assert page.locator(PLAIN).count() == 0
    assert "Waiting for the network" in waiting.inner_text()
    page.context.set_offline(False)
    row(page, middling.name, "completed")


def test_where_websockets_get_through_again_the_file_is_uploaded_after_all(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    proxy.websockets_allowed = False
    page = visit(proxy.port).new_page()
    open_form(page)
    page.set_input_files(FILE, middling)
    page.locator(PLAIN).first.wait_for(timeout=LONG * 1000)
    proxy.websockets_allowed = True
    row(page, middling.name, "completed", seconds=LONG)
    assert page.locator(PLAIN).count() == 0
    assert [each["state"] for each in example.uploads(middling.name)] == ["completed"]


# Files that change --------------------------------------------------------------------------------


def test_a_file_whose_time_changes_is_not_cancelled_and_goes_on_when_it_is_chosen_again(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    begin(page, example, proxy, middling)
    os.utime(middling)
    proxy.rate = None
    failed = row(page, middling.name, "failed", seconds=LONG)
    assert "cannot be read" in failed.inner_text()
    assert example.uploads(middling.name)[0]["state"] == "interrupted"
    connection = proxy.connections
    page.set_input_files(FILES, middling)
    row(page, middling.name, "completed")
    assert len(example.uploads(middling.name)) == 1
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert proxy.connections - connection <= 1


def test_a_file_that_is_gone_for_a_moment_goes_on_by_itself(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    begin(page, example, proxy, middling)
    away = middling.rename(middling.with_name("away.bin"))
    proxy.rate = None
    waiting = row(page, middling.name, "waiting")
    assert "Trying again at" in waiting.inner_text()
    away.rename(middling)
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)


# Services of the browser that die -----------------------------------------------------------------


def test_a_worker_that_dies_is_replaced(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    begin(page, example, proxy, middling)
    page.workers[0].evaluate("self.close()")
    proxy.rate = None
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)


def test_a_database_whose_transactions_never_end_costs_no_upload(
    visit: Visit, example: Example, middling: Path
) -> None:
    page = visit().new_page()
    page.add_init_script(
        "const begin = IDBDatabase.prototype.transaction;"
        "IDBDatabase.prototype.transaction = function (...of) {"
        " return Object.defineProperty(begin.apply(this, of), 'oncomplete', { set() {} }); };"
    )
    page.goto("/")
    page.set_input_files(FILES, middling)
    row(page, middling.name, "completed")


def test_what_was_paused_while_the_server_takes_it_stays_paused(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    begin(page, example, proxy, middling)
    press(row(page, middling.name, "uploading"), "pause")
    press(row(page, middling.name, "paused"), "resume")
    press(row(page, middling.name).filter(has=page.locator('[data-action="pause"]')), "pause")
    until(page, lambda: example.uploads(middling.name)[0]["state"] == "interrupted", "the pause")
    page.wait_for_timeout(1000)  # for what must not come
    row(page, middling.name, "paused")
