"""The browser client beside slices of 32 MiB over HTTP, to a server that is 100 ms away and accepts everything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.e2e.proxy import ChaosProxy

from .chromium import Chromium
from .contest import compete
from .loads import MIB, random_source
from .rows import Row
from .servers import Site

ONE_WAY = 0.05
"""Seconds."""
STEP = 32 * MIB


def rows(
    browser: Chromium, site: Site, durability: str, directory: Path, size: int, repetitions: int
) -> list[Row]:
    """``size`` of the file in bytes."""
    source = random_source(directory, "far.bin", size)
    with ChaosProxy(site.port) as proxy:
        proxy.delay = ONE_WAY
        address = f"127.0.0.1:{proxy.port}"
        contestants: dict[str, tuple[str, dict[str, Any]]] = {
            "this": ("ours", {"url": f"ws://{address}/ws/uploads/", "ticket": site.ticket}),
            "slices": ("slices", {"url": f"http://{address}/files/", "step": STEP}),
        }

        def measure(name: str) -> float:
            contestant, options = contestants[name]
            with browser.open(f"http://{address}/bench/page.html") as page:
                page.choose("input", source.path)
                done = page.evaluate(f"measure({json.dumps(contestant)}, {json.dumps(options)})")
            landed = [path for path in site.files.rglob("*") if path.is_file()]
            if sum(path.stat().st_size for path in landed) != size:
                raise RuntimeError(f"{name}: not what was sent: {landed}")
            for path in landed:
                path.unlink()
            os.sync()
            return float(done["size"] / done["seconds"])

        title = f"one file of {size // MIB} MiB in Chromium, 100 ms away"
        figures = compete(
            {"this": lambda: measure("this"), "slices": lambda: measure("slices")},
            repetitions,
            title,
        )
    return [
        Row(
            "100 ms away: this client / XMLHttpRequest, slices of 32 MiB",
            "uvicorn",
            durability,
            0.8,
            "MB/s",
            figures["this"],
            figures["slices"],
        )
    ]
