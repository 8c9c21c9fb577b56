"""What a user does with a page, and what they see there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..e2e.proxy import ChaosProxy
from ..e2e.servers import wait_for
from .example import Example

AXE = Path(__file__).parents[1] / "js/node_modules/axe-core/axe.min.js"
SECONDS = 60.0
"""How long to wait for what is to come, on a machine that does much else."""
LONG = 200.0
"""The same for hundreds of MiB and for thousands of files."""
SLOWLY = 256 * 1024
"""Bytes a second: whatever a test does in the middle of 24 MiB, it is over before the upload is."""
FILES = "#id_files"


def row(page: Any, name: str, state: str | None = None, *, seconds: float = SECONDS) -> Any:
    """The row of a file; with a state: once it is in it."""
    of_state = f'[data-state="{state}"]' if state else ""
    found = page.locator(f".async-upload-file{of_state}").filter(
        has=page.locator(".async-upload-name").get_by_text(name, exact=True)
    )
    found.wait_for(timeout=seconds * 1000)
    return found


def begin(page: Any, example: Example, proxy: ChaosProxy, path: Path) -> None:
    """Choose a file on the upload page and wait until some of it is durable; the rest comes slowly."""
    proxy.rate = SLOWLY
    page.goto("/")
    page.set_input_files(FILES, path)
    until(page, lambda: example.durable(path.name), "something durable")


def press(row: Any, action: str) -> None:
    """A button of a row: pause, resume, retry, continue, cancel, remove, discard."""
    row.locator(f'button[data-action="{action}"]').click()


def until(page: Any, condition: Callable[[], Any], what: str, *, seconds: float = SECONDS) -> Any:
    """As ``wait_for``, while the page's events are dispatched."""

    def look() -> Any:
        page.wait_for_timeout(20)
        return condition()

    return wait_for(look, seconds=seconds, what=what)


def drop(page: Any, selector: str, *paths: Path) -> None:
    """Drag files or folders from the desktop: the browser itself makes the DataTransfer."""
    box = page.locator(selector).bounding_box()
    devtools = page.context.new_cdp_session(page)
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    carried = {"items": [], "files": [str(each) for each in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, **at, "data": carried})
    devtools.detach()


def axe(page: Any, within: str | None = None) -> list[str]:
    """What axe-core finds wrong with the page, or with what a selector finds in it."""
    page.evaluate(AXE.read_text() + ";0")
    found = page.evaluate(f"axe.run({json.dumps(within) if within else 'document'})")
    return [
        f"{each['id']}: {[node['target'] for node in each['nodes']]}"
        f" {each['nodes'][0].get('failureSummary')}"
        for each in found["violations"]
    ]
