"""The npm package, from its tarball and built by Vite: the client, React, Vue and Uppy, clicked in a browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..e2e.proxy import ChaosProxy
from ..e2e.servers import ROOT
from .conftest import PATIENCE
from .example import Example, sha256
from .screen import row, until

pytestmark = [
    pytest.mark.xdist_group("frameworks"),
    pytest.mark.timeout(600),
]

HERE = Path(__file__).parent / "frameworks"
RENDERED = ["react", "react-rendered", "vue", "vue-rendered"]
"""Pages of both frameworks; the second of each has come with its content from a server."""

Visit = Callable[..., Any]
one_server = pytest.mark.parametrize("kind", ["uvicorn"], indirect=True, scope="session")


def run(folder: Path, *command: str | Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The applications, with what they need and the package as npm would publish it."""
    folder = tmp_path_factory.mktemp("frameworks") / "apps"
    made = shutil.ignore_patterns("node_modules", "dist*", "package-lock.json")
    shutil.copytree(HERE, folder, ignore=made)
    run(ROOT, "make", "--silent", "npm", f"NPM={folder}")
    (tarball,) = folder.glob("django-resumable-upload-*.tgz")
    tarball.rename(folder / "client.tgz")
    run(folder, "npm", "install", "--silent", "--no-audit", "--no-fund")
    return folder


@pytest.fixture(scope="session")
def apps(installed: Path, _example: Example) -> None:
    """The applications, built, at /apps/ of the site."""
    vite = installed / "node_modules/.bin/vite"
    run(installed, vite, "build")
    run(installed, vite, "build", "--ssr", "src/server.jsx", "--outDir", "dist-server")
    run(installed, "node", "dist-server/server.js")
    (_example.folder / "apps").symlink_to(installed / "dist")


@pytest.fixture
def open_app(visit: Visit, apps: None) -> Callable[[str], Any]:
    """Opens a page of an application. Nothing on it may warn."""

    def open_page(name: str) -> Any:
        page = listened(visit())
        page.goto(f"/apps/{name}.html")
        return page

    return open_page


def listened(context: Any) -> Any:
    """A page whose ``complaints`` are what it warned of and threw."""
    page = context.new_page()
    page.complaints = []

    def said(message: Any) -> None:
        is_icon = message.location["url"].endswith("/favicon.ico")
        if message.type in ("error", "warning") and not is_icon:
            page.complaints.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: page.complaints.append(f"{error}"))
    return page


@pytest.fixture
def dashboard(browser: Any, example: Example, cookies: dict[str, str], apps: None) -> Iterator[Any]:
    """Opens a page with Uppy's Dashboard, whose style has pictures that the site's policy forbids."""
    pages = []

    def open_page(path: str, port: int | None = None) -> Any:
        url = f"http://127.0.0.1:{port or example.port}"
        context = browser.new_context(base_url=url, bypass_csp=True)
        context.set_default_timeout(PATIENCE)
        context.add_cookies([{"name": k, "value": v, "url": url} for k, v in cookies.items()])
        page = listened(context)
        pages.append(page)
        page.goto(path)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert [page.complaints for page in pages] == [[]] * len(pages)


@pytest.fixture
def uppy(dashboard: Callable[..., Any]) -> Any:
    """The page of the package's own plugin."""
    return dashboard("/apps/uppy.html")


def small(tmp_path: Path, name: str) -> Path:
    path = tmp_path / f"{tmp_path.name.strip('_')}-{name}"
    path.write_bytes(name.encode() * 100_000)
    return path


def test_typescript_knows_the_events_the_element_and_the_components(installed: Path) -> None:
    run(installed, installed / "node_modules/.bin/tsc")


@one_server
def test_the_client_reads_in_a_worker_of_the_applications_own_bundle(
    open_app: Callable[[str], Any], example: Example, middling: Path
) -> None:
    page = open_app("client")
    page.set_input_files("input", middling)
    until(page, lambda: page.inner_text("output") == f"{middling.name} is uploaded", "its end")
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert ["/apps/assets/reader-worker" in each.url for each in page.workers] == [True]
    assert page.complaints == []


@one_server
@pytest.mark.parametrize("name", RENDERED)
def test_the_component_is_the_element_and_can_go_and_come_back(
    open_app: Callable[[str], Any], example: Example, tmp_path: Path, name: str
) -> None:
    page = open_app(name)
    first, second = small(tmp_path, "first"), small(tmp_path, "second")
    page.set_input_files("#attachment", first)
    row(page, first.name, "completed")
    page.click("#toggle")
    until(page, lambda: page.locator("#attachment").count() == 0, "the component's end")
    page.click("#toggle")
    page.locator("#attachment").wait_for()
    page.set_input_files("#attachment", second)
    row(page, second.name, "completed")
    assert page.inner_text("#completed") == f"{first.name}, {second.name}"
    assert sha256(example.stored(second.name)) == sha256(second)
    assert page.complaints == []


@one_server
def test_react_may_take_the_input_out_of_the_element_and_put_it_back(
    open_app: Callable[[str], Any], example: Example, tmp_path: Path
) -> None:
    page = open_app("react")
    zone = page.locator("async-upload:has([name=conditional]) .async-upload-zone")
    for _ in range(2):
        zone.wait_for()
        page.click("#conditional")
        zone.wait_for(state="detached")
        assert page.locator("#conditional").count() == 1, "React has not dropped its root"
        page.click("#conditional")
    zone.wait_for()
    file = small(tmp_path, "conditional")
    page.set_input_files("[name=conditional]", file)
    row(page, file.name, "completed")
    assert page.complaints == []


@one_server
@pytest.mark.parametrize("name", RENDERED)
def test_a_list_of_ones_own_shows_each_upload_to_its_receipt(
    open_app: Callable[[str], Any], example: Example, middling: Path, name: str
) -> None:
    page = open_app(name)
    page.set_input_files("#own", middling)
    page.locator("li[data-state=completed] code").wait_for()
    assert page.inner_text("li code").count(":") >= 1
    assert sha256(example.stored(middling.name)) == sha256(middling)
    page.click("li .remove")
    until(page, lambda: page.locator("li").count() == 0, "its removal from the list")
    assert page.complaints == []


@one_server
@pytest.mark.parametrize("name", ["react", "react-rendered"])
def test_a_child_that_comes_and_goes_takes_nothing_with_it(
    open_app: Callable[[str], Any], example: Example, tmp_path: Path, name: str
) -> None:
    page = open_app(name)
    page.locator("async-upload[data-enhanced] [name=conditional]").wait_for()
    page.click("#conditional")
    until(page, lambda: page.locator("[name=conditional]").count() == 0, "the child's end")
    assert page.inner_text("#conditional") == "Open", "React's root is there"
    page.click("#conditional")
    path = small(tmp_path, "conditional")
    page.set_input_files("[name=conditional]", path)
    row(page, path.name, "completed")
    assert sha256(example.stored(path.name)) == sha256(path)
    assert page.complaints == []


@one_server
def test_an_upload_that_is_removed_from_the_list_is_thrown_away(
    open_app: Callable[[str], Any], example: Example, middling: Path
) -> None:
    page = open_app("react")
    page.context.new_cdp_session(page)
    page.set_input_files("#own", middling)
    page.locator("li").wait_for()
    page.click("li .remove")
    until(page, lambda: page.locator("li").count() == 0, "its removal from the list")
    over = {"cancelled", "completed"}
    until(
        page,
        lambda: {each["state"] for each in example.uploads(middling.name)} <= over,
        "its end on the server",
    )


@one_server
def test_a_file_that_uppy_sends_ends_with_a_receipt(
    uppy: Any, example: Example, middling: Path
) -> None:
    page = uppy
    page.locator("input.uppy-Dashboard-input").first.set_input_files(middling)
    page.click(".uppy-StatusBar-actionBtn--upload")
    response = until(
        page, lambda: page.evaluate("uppy.getFiles()[0].response ?? null"), "what the server says"
    )
    assert response["body"]["receipt"]
    assert response["body"]["name"] == middling.name
    assert sha256(example.stored(middling.name)) == sha256(middling)


@one_server
def test_uppy_pauses_goes_on_and_throws_away(uppy: Any, example: Example) -> None:
    page = uppy
    page.evaluate(
        """async () => {
          const parts = Array.from({ length: 64 }, () => crypto.getRandomValues(new Uint8Array(65536)));
          const data = new File(Array(16).fill(parts).flat(), "paused.bin");
          globalThis.id = uppy.addFile({ name: "paused.bin", data });
          uppy.on("upload-progress", (file, { bytesUploaded }) => {
            if (bytesUploaded > 0 && !file.isPaused && !globalThis.wasPaused) {
              globalThis.wasPaused = true;
              uppy.pauseResume(id);
            }
          });
          void uppy.upload();
        }"""
    )
    until(page, lambda: page.evaluate("globalThis.wasPaused ?? false"), "some progress")
    states = lambda: {each["state"] for each in example.uploads("paused.bin")}  # noqa: E731
    if page.evaluate("uppy.getFile(id).isPaused"):
        page.evaluate("uppy.pauseResume(id)")
    until(page, lambda: page.evaluate("uppy.getFile(id).progress.uploadComplete"), "its end")
    assert states() == {"completed"}

    page.evaluate(
        "uppy.addFile({ name: 'removed.bin', data: new File([new Uint8Array(5e7)], 'x') })"
    )
    page.evaluate(
        """() => {
          uppy.on("upload-progress", (file) => file.name === "removed.bin" && uppy.removeFile(file.id));
          void uppy.upload();
        }"""
    )
    until(page, lambda: page.evaluate("uppy.getFiles().length") == 1, "its removal")
    until(
        page,
        lambda: {each["state"] for each in example.uploads("removed.bin")} <= {"cancelled"},
        "its end on the server",
    )


# Uppy with its own client of tus ----------------------------------------------------------------------


def tus_upload(page: Any, file: Path) -> list[list[Any]]:
    """Upload a file; returns the requests."""
    page.locator("input.uppy-Dashboard-input").first.set_input_files(file)
    page.click(".uppy-StatusBar-actionBtn--upload")
    until(page, lambda: page.evaluate("uppy.getFiles()[0].progress.uploadComplete"), "its end")
    requests: list[list[Any]] = page.evaluate("requests")
    return requests


@one_server
@pytest.mark.parametrize(
    ("query", "methods"),
    [
        ("", {"POST": 1, "PATCH": 1}),
        ("?chunk=4194304", {"POST": 1}),
        ("?parallel=3", {"POST": 4, "PATCH": 3}),
    ],
)
def test_uppys_own_tus_uploads_a_file_and_gets_its_receipt(
    dashboard: Callable[..., Any],
    example: Example,
    middling: Path,
    query: str,
    methods: dict[str, int],
) -> None:
    requests = tus_upload(dashboard(f"/apps/tus.html{query}"), middling)
    sent = [method for method, _, _, _ in requests]
    assert {method: sent.count(method) for method in methods} == methods
    assert {status for _, status, _, _ in requests} <= {201, 204}
    assert requests[-1][3], "the receipt"
    assert sha256(example.stored(middling.name)) == sha256(middling)


@one_server
def test_uppys_own_tus_pauses_and_goes_on(dashboard: Callable[..., Any], example: Example) -> None:
    page = dashboard("/apps/tus.html?chunk=2097152")
    page.evaluate(
        """async () => {
          const parts = Array.from({ length: 64 }, () => crypto.getRandomValues(new Uint8Array(65536)));
          const data = new File(Array(8).fill(parts).flat(), "tus-paused.bin");
          globalThis.id = uppy.addFile({ name: "tus-paused.bin", data });
          uppy.on("upload-progress", (file, { bytesUploaded }) => {
            if (bytesUploaded > 4e6 && !file.isPaused && !globalThis.wasPaused) {
              globalThis.wasPaused = true;
              uppy.pauseResume(id);
            }
          });
          void uppy.upload();
        }"""
    )
    until(page, lambda: page.evaluate("globalThis.wasPaused ?? false"), "some progress")
    if page.evaluate("uppy.getFile(id).isPaused"):
        page.evaluate("uppy.pauseResume(id)")
    until(page, lambda: page.evaluate("uppy.getFile(id).progress.uploadComplete"), "its end")
    requests = page.evaluate("requests")
    assert [method for method, _, _, _ in requests].count("POST") == 1
    assert {each["state"] for each in example.uploads("tus-paused.bin")} == {"completed"}


@one_server
def test_uppys_own_tus_loses_nothing_when_the_connection_is_cut(
    dashboard: Callable[..., Any], example: Example, middling: Path, proxy: ChaosProxy
) -> None:
    page = dashboard("/apps/tus.html", proxy.port)
    proxy.cut_after(middling.stat().st_size // 2)
    requests = tus_upload(page, middling)
    # Chromium may send a PATCH again by itself, whose offset is none any more: 409.
    assert [method for method, _, _, _ in requests][-2:] == ["HEAD", "PATCH"]
    assert [method for method, _, _, _ in requests].count("POST") == 1
    assert int(requests[-2][2]) > 0
    assert sha256(example.stored(middling.name)) == sha256(middling)
    page.complaints = [each for each in page.complaints if "Failed to load" not in each]
