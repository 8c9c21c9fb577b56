"""What is built for the package indexes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout, built as ``make dist`` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    uv = ROOT / ".venv/bin/uv"
    subprocess.run([uv, "build", "--quiet", "--out-dir", folder], cwd=ROOT, check=True)
    return folder
