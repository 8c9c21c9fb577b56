"""A page without a form: what networks, servers and people do to an upload, and how it still arrives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from .example import PERSON, Example, sha256
from .screen import FILES, LONG, SLOWLY, begin, drop, press, row, until

MIB = 1 << 20
FOLDER = "#id_folder"
REMEMBERED = """async () => {
    const { Uploader } = await import("/static/django_async_upload/client.js");
    const owner = document.querySelector("async-upload").getAttribute("owner");
    return (await new Uploader({ url: "/ws/uploads/", owner }).remembered()).map(({ name }) => name);
}"""
"""The names of the uploads that a later page could resume."""

Visit = Callable[..., Any]


@pytest.fixture
def page(visit: Visit, example: Example, proxy: ChaosProxy, middling: Path) -> Any:
    """The upload page behind the proxy, in the middle of ``middling``."""
    page = visit(proxy.port).new_page()
    begin(page, example, proxy, middling)
    return page


def first_offset(proxy: ChaosProxy, after: int) -> int:
    """The smallest offset of what was sent on connections later than that one."""
    return min(each.offset for each in proxy.sent if each.connection > after)


def test_a_large_file_arrives_as_it_is(visit: Visit, example: Example, large: Path) -> None:
    page = visit().new_page()
    page.goto("/")
    page.set_input_files(FILES, large)
    row(page, large.name, "completed", seconds=LONG)
    assert sha256(example.stored(large.name)) == sha256(large)


def test_collected_garbage_takes_no_read_with_it(
    visit: Visit, proxy: ChaosProxy, large: Path
) -> None:
    page = visit(proxy.port).new_page()
    page.goto("/")
    proxy.rate = SLOWLY
    page.set_input_files(FILES, large)
    until(page, lambda: page.workers, "a Worker that reads")
    page.workers[0].evaluate("void setInterval(() => gc({execution: 'async', type: 'major'}), 1)")
    proxy.rate = None
    row(page, large.name, "completed", seconds=LONG)


@pytest.mark.parametrize("how", ["reload", "closed tab"])
def test_a_later_page_goes_on_with_the_file_under_whatever_name(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path, how: str
) -> None:
    durable = example.durable(middling.name)
    if how == "reload":
        page.reload()
    else:
        page.close()
        page = page.context.new_page()
        page.goto("/")
    unfinished = row(page, middling.name, "unfinished")
    assert "of 24" in unfinished.inner_text()
    before = len(proxy.sent)
    proxy.rate = None
    renamed = middling.rename(middling.with_name(f"renamed-{middling.name}"))
    page.set_input_files(FILES, renamed)
    row(page, renamed.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(renamed)
    assert len(example.uploads(middling.name)) == 1
    assert example.uploads(renamed.name) == []
    assert min(each.offset for each in proxy.sent[before:]) >= durable


def test_a_file_that_was_changed_meanwhile_begins_anew(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    until(page, lambda: example.durable(middling.name) > 128 * 1024, "more than its beginning")
    page.reload()
    row(page, middling.name, "unfinished")
    proxy.rate = None
    with middling.open(
        "r+b"
    ) as file:  # differs neither in size nor at its ends, but in what the server has
        file.seek(96 * 1024)
        file.write(b"changed meanwhile")
    page.set_input_files(FILES, middling)
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)
    page.reload()
    row(page, middling.name, "unfinished")  # if the right file is found


def test_a_file_whose_handle_is_kept_goes_on_by_itself(
    visit: Visit, example: Example, proxy: ChaosProxy
) -> None:
    page = visit(proxy.port).new_page()
    page.goto("/")
    proxy.rate = SLOWLY
    page.evaluate(
        """async (size) => {
            const { Uploader } = await import("/static/django_async_upload/client.js");
            const root = await navigator.storage.getDirectory();
            const handle = await root.getFileHandle("kept.bin", { create: true });
            const file = await handle.createWritable();
            const piece = new Uint8Array(65536);
            for (let at = 0; at < size; at += piece.length) {
                crypto.getRandomValues(piece);
                await file.write(piece);
            }
            await file.close();
            const { placeOf } = await import("/static/django_async_upload/widget/places.js");
            const element = document.querySelector("async-upload");
            const [field, owner] = ["field", "owner"].map((name) => element.getAttribute(name));
            const place = placeOf(location.pathname, element, element.querySelector("input[type=file]"));
            new Uploader({ url: "/ws/uploads/", field, owner }).add(handle, { place });
        }""",
        24 * MIB,
    )
    durable = until(page, lambda: example.durable("kept.bin"), "something durable")
    connection = proxy.sent[-1].connection
    page.reload()
    proxy.rate = None
    row(page, "kept.bin", "completed")
    assert len(example.uploads("kept.bin")) == 1
    assert example.stored("kept.bin").stat().st_size == 24 * MIB
    assert first_offset(proxy, connection) >= durable


def test_a_dropped_file_goes_on_by_itself_after_a_reload(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    page.goto("/")
    proxy.rate = SLOWLY
    drop(page, "async-upload:has(#id_files)", middling)
    durable = until(page, lambda: example.durable(middling.name), "something durable")
    connection = proxy.sent[-1].connection
    page.reload()
    proxy.rate = None
    row(page, middling.name, "completed")
    assert len(example.uploads(middling.name)) == 1
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert first_offset(proxy, connection) >= durable


def test_five_seconds_without_a_network_cost_no_byte(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    proxy.refuse()
    page.context.set_offline(True)
    proxy.cut()  # a WebSocket that is open already does not always notice
    row(page, middling.name, "offline")
    page.wait_for_timeout(5000)
    row(page, middling.name, "offline")
    received = example.uploads(middling.name)[0]["durable"]
    assert received < middling.stat().st_size
    before = len(proxy.sent)
    proxy.rate = None
    proxy.refuse(False)
    page.context.set_offline(False)
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert proxy.sent[before].offset >= received


def test_a_server_that_is_killed_and_comes_back_gets_the_rest(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    example.kill()
    row(page, middling.name, "offline")
    before = len(proxy.sent)
    proxy.rate = None
    example.start()
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert min(each.offset for each in proxy.sent[before:]) > 0


@pytest.mark.parametrize("noticed", ["in the middle", "at the end"])
def test_a_login_that_expired_is_renewed_in_another_tab(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path, noticed: str
) -> None:
    cookies = example.sign_in()
    page = visit(proxy.port, cookies).new_page()
    # Without the check every half minute: coming back to the tab has to be enough.
    page.add_init_script(
        "const { setInterval: every } = window;"
        "window.setInterval = (run, ms) => (ms < 30_000 ? every(run, ms) : 0);"
    )
    begin(page, example, proxy, middling)
    example.end_login(cookies["sessionid"])
    if noticed == "in the middle":
        proxy.cut()
    proxy.rate = None
    waiting = row(page, middling.name, "unauthenticated")
    before = len(proxy.sent)
    # A page of Playwright's believes that it always has the focus.
    page.context.new_cdp_session(page).send(
        "Emulation.setFocusEmulationEnabled", {"enabled": False}
    )
    with page.context.expect_page() as opened:
        waiting.get_by_role("link").click()
    other = opened.value
    other.fill("[name=username]", PERSON)
    other.fill("[name=password]", PERSON)
    other.press("[name=password]", "Enter")
    other.wait_for_selector(FILES, state="attached")
    other.close()
    page.bring_to_front()
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)
    if noticed == "in the middle":
        assert proxy.sent[before].offset > 0


def test_a_cancelled_upload_is_gone_here_and_there(
    page: Any, example: Example, middling: Path
) -> None:
    assert example.has_part(example.uploads(middling.name)[0])
    press(row(page, middling.name, "uploading"), "cancel")
    page.locator(".async-upload-file").wait_for(state="detached")
    # It can be undone while the pointer is on "Undo".
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")

    def is_gone() -> bool:
        (upload,) = example.uploads(middling.name)
        return upload["state"] == "cancelled" and not example.has_part(upload)

    until(page, is_gone, "the end of the upload on the server")
    until(page, lambda: page.evaluate(REMEMBERED) == [], "the end of what is remembered")
    page.reload()
    page.wait_for_selector("async-upload[data-enhanced]")
    assert page.evaluate(REMEMBERED) == []
    page.wait_for_timeout(500)  # for what must not come
    assert page.locator(".async-upload-file").count() == 0


def test_a_paused_upload_stands_still_until_it_goes_on(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    press(row(page, middling.name, "uploading"), "pause")
    paused = row(page, middling.name, "paused")
    until(page, lambda: example.uploads(middling.name)[0]["state"] == "interrupted", "the pause")
    before = proxy.data_bytes()
    page.wait_for_timeout(500)
    assert proxy.data_bytes() == before < middling.stat().st_size
    proxy.rate = None
    press(paused, "resume")
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)


def test_a_file_over_the_limit_is_refused_and_says_why(
    visit: Visit, example: Example, proxy: ChaosProxy, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(10 * 1024 * MIB + 1)
    page = visit(proxy.port).new_page()
    page.goto("/")
    page.set_input_files(FILES, huge)
    refused = row(page, huge.name, "failed")
    assert "too large" in refused.inner_text()
    assert refused.locator('[data-action="retry"]:visible').count() == 0
    assert example.uploads(huge.name) == []


@pytest.mark.parametrize("size", [48 * 1024, 2 * MIB], ids=["one chunk", "many chunks"])
def test_a_first_chunk_that_arrives_damaged_is_sent_again(
    visit: Visit, example: Example, proxy: ChaosProxy, tmp_path: Path, size: int
) -> None:
    path = tmp_path / f"damaged-{size}.bin"
    path.write_bytes(bytes(i * 7 % 251 for i in range(size)))
    page = visit(proxy.port).new_page()
    page.goto("/")
    proxy.flip_payload(after=8000)  # behind CREATE, within the first chunk
    page.set_input_files(FILES, path)
    row(page, path.name, "completed")
    assert not proxy.pending_flips
    assert [each.offset for each in proxy.sent].count(0) == 2
    assert sha256(example.stored(path.name)) == sha256(path)


def test_two_thousand_small_files_all_arrive(
    visit: Visit, example: Example, tmp_path: Path
) -> None:
    paths = [tmp_path / f"small-{number:04}.txt" for number in range(2000)]
    for path in paths:
        path.write_text(path.name * 20)
    page = visit().new_page()
    page.goto("/")
    page.set_input_files(FILES, paths)
    page.get_by_text("Uploaded: 2,000 of 2,000").wait_for(timeout=1000 * LONG)
    found = example.rows(
        "SELECT name, stored_as FROM async_upload_uploadsession"
        " WHERE name LIKE 'small-%' AND state = 'completed'"
    )
    assert sorted(each["name"] for each in found) == [path.name for path in paths]
    for each in found:
        assert (example.finished / each["stored_as"]).read_text() == each["name"] * 20
    assert page.locator(".async-upload-file").count() <= 50


def test_two_tabs_with_the_same_file_do_not_fight(
    page: Any, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    second = page.context.new_page()
    second.goto("/")
    second.set_input_files(FILES, middling)
    row(second, middling.name, "uploading")
    assert second.locator('[data-state="unfinished"]').count() == 0
    proxy.rate = None
    for tab in (second, page):
        row(tab, middling.name, "completed")
    rows = example.uploads(middling.name)
    assert [each["state"] for each in rows] == ["completed", "completed"]
    for each in rows:
        assert sha256(example.finished / each["stored_as"]) == sha256(middling)
    assert proxy.data_bytes() == 2 * middling.stat().st_size  # nothing twice


@pytest.mark.parametrize("how", ["chosen", "dropped"])
def test_a_folder_brings_all_that_is_in_it(
    visit: Visit, example: Example, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / f"folder-{how}"
    paths = [folder / each for each in ("one.txt", "in/two.txt", "in/deep/three.txt")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{how} {path.name}")
    page = visit().new_page()
    page.goto("/")
    if how == "chosen":
        page.set_input_files(FOLDER, folder)
    else:
        drop(page, "async-upload:has(#id_files)", folder)
    for path in paths:
        row(page, path.name, "completed")
        stored = example.uploads(path.name)[-1]
        assert (example.finished / stored["stored_as"]).read_text() == f"{how} {path.name}"
        assert f'"{path.relative_to(tmp_path)}"' in stored["metadata"]


def test_files_that_are_dropped_arrive(visit: Visit, example: Example, tmp_path: Path) -> None:
    paths = [tmp_path / "dropped one.txt", tmp_path / "dropped two.txt"]
    for path in paths:
        path.write_text(f"this is {path.name}")
    page = visit().new_page()
    page.goto("/")
    drop(page, "async-upload:has(#id_files)", *paths)
    for path in paths:
        row(page, path.name, "completed")
        assert example.stored(path.name).read_text() == f"this is {path.name}"


def test_a_picture_that_is_pasted_arrives(visit: Visit, example: Example) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"]).new_page()
    page.goto("/")
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(40, 30);
            canvas.getContext("2d").fillRect(5, 5, 20, 20);
            const image = await canvas.convertToBlob({ type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
        }"""
    )
    page.focus(FILES)
    page.keyboard.press("Control+V")
    row(page, "image.png", "completed")
    assert example.stored("image.png").read_bytes().startswith(b"\x89PNG")


def test_another_browser_watches_the_progress(
    visit: Visit, example: Example, proxy: ChaosProxy, middling: Path
) -> None:
    page = visit(proxy.port).new_page()
    watcher = visit().new_page()
    watcher.goto("/live/")
    begin(page, example, proxy, middling)
    bar = watcher.locator("li", has_text=middling.name).locator("progress")
    bar.wait_for()
    seen = float(bar.get_attribute("value"))
    until(watcher, lambda: float(bar.get_attribute("value")) > seen, "more progress")
    proxy.rate = None
    watcher.locator("li", has_text=middling.name).locator(".state.completed").wait_for()
