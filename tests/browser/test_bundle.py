"""The script that a page loads is its own Worker, and finds its second file, on any host and under any policy."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .conftest import PATIENCE
from .example import Example, sha256
from .screen import FILES, press, row, until
from .test_documents import SAVE, fill_in, saved, stored

pytestmark = pytest.mark.parametrize("kind", ["uvicorn"], indirect=True, scope="session")

NAME = r"/static/django_async_upload/async-upload\.min\.[0-9a-f]{12}\."
MORE = r"/static/django_async_upload/async-upload-more\.min\.[0-9a-f]{12}\.js$"
PICTURE = Path(__file__).parents[2] / "docs/pictures/form-light.png"
DIGEST = """async () => {
  const { Uploader } = await import(document.querySelector("script[src*=async-upload]").src);
  const uploader = new Uploader({ url: "/ws/uploads/", remember: false });
  const upload = uploader.add(new Blob([new Uint8Array(1 << 20)]), { name: "digest", digest: "sha-256" });
  return (await upload.result).digests;
}"""


class Host(http.server.SimpleHTTPRequestHandler):
    """Static files of another origin, as a CDN serves them."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def cdn(example: Example) -> Iterator[str]:
    """Its origin."""
    handler = partial(Host, directory=str(example.folder / "cdn"))
    (example.folder / "cdn").mkdir(exist_ok=True)
    static = example.folder / "cdn/static"
    if not static.exists():
        static.symlink_to(example.folder / "staticfiles")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Delivery(NamedTuple):
    """How the page gets its script. ``{cdn}`` in a policy is the other origin."""

    policy: str
    elsewhere: bool = False
    nonce: str = ""
    reads_in: str | None = NAME
    """What the address of the Worker is like; None where the page itself has to read."""


ELSEWHERE = "default-src 'self'; script-src {cdn}; style-src 'self' {cdn}; "
DELIVERIES = {
    "the page's own origin": Delivery("default-src 'self'"),
    "nonces only": Delivery(
        "default-src 'none'; script-src 'nonce-n1'; style-src 'self'; connect-src 'self'; "
        "worker-src 'self'; img-src 'self'",
        nonce="n1",
    ),
    "nonces, and what they load": Delivery(
        "default-src 'self'; script-src 'nonce-n1' 'strict-dynamic'; worker-src 'self'", nonce="n1"
    ),
    "no Worker allowed": Delivery("default-src 'self'; worker-src 'none'", reads_in=None),
    "another origin": Delivery(ELSEWHERE + "worker-src blob: {cdn}", True, reads_in="^blob:"),
    "another origin, no blobs": Delivery(ELSEWHERE, True, reads_in=None),
}


@pytest.fixture(params=DELIVERIES.values(), ids=list(DELIVERIES))
def delivery(request: pytest.FixtureRequest) -> Delivery:
    found: Delivery = request.param
    return found


@pytest.fixture
def page(
    browser: Any, example: Example, cookies: dict[str, str], delivery: Delivery, cdn: str
) -> Iterator[Any]:
    context = browser.new_context(base_url=example.url)
    context.set_default_timeout(PATIENCE)
    # A page that the test fulfils has no address: Chromium asks before it may send requests to this machine.
    context.grant_permissions(["local-network-access"])
    context.add_cookies([{"name": k, "value": v, "url": example.url} for k, v in cookies.items()])

    def deliver(route: Any) -> None:
        answer = route.fetch()
        html = answer.text()
        if delivery.elsewhere:
            html = html.replace(
                '="/static/django_async_upload', f'="{cdn}/static/django_async_upload'
            )
        if delivery.nonce:
            html = html.replace("<script ", f'<script nonce="{delivery.nonce}" ')
        policy = delivery.policy.replace("{cdn}", cdn)
        headers = {**answer.headers, "content-security-policy": policy}
        route.fulfill(response=answer, body=html, headers=headers)

    context.route(f"{example.url}/", deliver)
    yield context.new_page()
    context.close()


def test_a_page_reads_in_its_own_script_where_it_may(
    page: Any, example: Example, delivery: Delivery, middling: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/")
    page.set_input_files(FILES, middling)
    row(page, middling.name, "completed")
    assert sha256(example.stored(middling.name)) == sha256(middling)
    own = {each for each in asked if re.search(NAME + "(js|css)$", each)}
    assert len(own) == 2
    workers = [each.url for each in page.workers]
    if delivery.reads_in is None:
        assert workers == []
    else:
        assert len(workers) == 1
        assert re.search(delivery.reads_in, workers[0]), workers


def test_a_page_loads_the_second_file_with_its_first_upload(page: Any, delivery: Delivery) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/")
    page.locator("async-upload[data-enhanced]").first.wait_for()
    page.wait_for_load_state("networkidle")
    own = [each for each in asked if "django_async_upload" in each]
    assert len(own) == 2
    assert all(re.search(NAME + "(js|css)$", each) for each in own)
    page.set_input_files(FILES, [PICTURE, Path(__file__)])
    page.locator(".async-upload-summary").get_by_text("Uploaded: 2 of 2").wait_for()
    assert len({each for each in asked if re.search(MORE, each)}) == 1
    if delivery.reads_in is not None:
        page.locator(".async-upload-picture canvas:not([hidden])").wait_for()
    if not delivery.nonce:
        found = page.evaluate(DIGEST)
        assert found == {"sha-256": hashlib.sha256(bytes(1 << 20)).hexdigest()}


def test_files_are_uploaded_without_the_second_file_until_it_can_be_loaded(
    visit: Callable[..., Any], example: Example, middling: Path
) -> None:
    """As in a page that is open while a deploy removes the files of the previous version."""
    page = visit().new_page()
    asked: list[str] = []

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(status=404)

    page.route(re.compile("async-upload-more"), refuse)
    page.goto("/")
    page.set_input_files(FILES, [middling, Path(__file__)])
    row(page, middling.name, "completed")
    other = row(page, Path(__file__).name, "completed")
    assert "Uploaded" in other.inner_text()
    assert sha256(example.stored(middling.name)) == sha256(middling)
    assert page.locator(".async-upload-summary").count() == 0
    press(other, "remove")
    other.wait_for(state="detached")
    until(page, lambda: len(asked) > 1, "another attempt")

    page.unroute(re.compile("async-upload-more"))
    page.set_input_files(FILES, PICTURE)
    page.locator(".async-upload-summary").get_by_text("Uploaded: 2 of 2").wait_for()
    row(page, PICTURE.name).locator("canvas:not([hidden])").wait_for()


def test_a_form_is_saved_without_the_second_file(
    visit: Callable[..., Any], example: Example, middling: Path
) -> None:
    page = visit().new_page()
    page.route(re.compile("async-upload-more"), lambda route: route.abort())
    fill_in(page, "Saved without extras", middling)
    page.click(SAVE)
    saved(page, "Saved without extras")
    assert sha256(stored(example, "Saved without extras")) == sha256(middling)


def test_a_script_of_the_page_has_the_client_from_the_same_file_by_an_import_map(
    visit: Callable[..., Any], example: Example
) -> None:
    page = visit().new_page()
    page.goto("/")
    address = page.get_attribute("script[src*=async-upload]", "src")
    mapped = page.context.new_page()

    def serve(route: Any) -> None:
        route.fulfill(
            content_type="text/html",
            body=f"""<!doctype html><title>Mapped</title>
              <script type="importmap">{{"imports": {{"django-resumable-upload": "{address}"}}}}</script>
              <script type="module" src="{address}"></script>
              <script type="module">
                import {{ AsyncUploadElement, Uploader }} from "django-resumable-upload";
                const same = customElements.get("async-upload") === AsyncUploadElement;
                document.title = `${{same}} ${{typeof Uploader}}`;
              </script>""",
        )

    mapped.route("**/mapped/", serve)
    mapped.goto("/mapped/")
    until(mapped, lambda: mapped.title() == "true function", "the client under its mapped name")
