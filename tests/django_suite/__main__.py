"""``python -m tests.django_suite TESTS [LABELS...]``: run Django's tests without and with this app, and compare.

TESTS is the folder ``tests`` of the installed Django's sdist; labels are those of its ``runtests.py``, by default
:data:`LABELS`. Exits with 1 where a test fails with the app only and is not in ``expected.toml``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LABELS = (
    *("file_uploads", "file_storage", "forms_tests", "model_forms", "model_formsets"),
    *("inline_formsets", "middleware", "csrf_tests", "sessions_tests", "asgi", "handlers"),
    *("wsgi", "requests_tests", "generic_views", "auth_tests", "check_framework"),
)
"""What the app touches; the modules ``admin_*`` are added."""
PROCESSES = os.environ.get("DJANGO_SUITE_PROCESSES", str(os.cpu_count()))


def run(tests: Path, way: str, labels: list[str]) -> dict[str, Any]:
    """What ``run.py`` writes down. Raises SystemExit where the tests could not be run at all."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, str(HERE / "run.py"), str(tests), str(report), way, PROCESSES]
        done = subprocess.run(
            [*command, *labels], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if not report.exists():
            sys.exit(f"{way}:\n{done.stdout[-5000:]}")
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def main(folder: str, *labels: str) -> int:
    tests = Path(folder).resolve()
    chosen = list(labels) or [*LABELS, *sorted(each.name for each in tests.glob("admin_*"))]
    plain, with_app = (run(tests, way, chosen) for way in ("plain", "app"))
    if not plain["ran"] == with_app["ran"] > 0:
        sys.exit(f"{plain['ran']} tests ran without the app, and {with_app['ran']} with it.")
    reasons = tomllib.loads((HERE / "expected.toml").read_text())
    expected = {name for table in reasons.values() for name in table}
    only = {name: text for name, text in with_app["failed"].items() if name not in plain["failed"]}
    wrong = {name: text for name, text in only.items() if name not in expected}
    for name, text in wrong.items():
        print(f"--- only with the app: {name}\n{text}")
    print(
        f"{with_app['ran']} tests of Django: {len(plain['failed'])} fail without the app, and with it "
        f"{len(only) - len(wrong)} by the widget's HTML or the app's checks, as expected, and {len(wrong)} more."
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
