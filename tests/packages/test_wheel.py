"""The wheel holds the app and nothing else, and leads an empty environment through the tutorial."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from ..test_docs import TUTORIAL, Reader, blocks
from .conftest import ROOT

pytestmark = pytest.mark.dist

PACKAGE = "django_async_upload"
NEEDED = {
    "py.typed",
    "jinja2/django_async_upload/widgets/file.html",
    "locale/de/LC_MESSAGES/django.mo",
    "management/commands/purge_uploads.py",
    "migrations/0001_initial.py",
    "static/django_async_upload/client.js",
    "static/django_async_upload/widget.css",
    "static/django_async_upload/widget.js",
    "templates/admin/async_upload/uploadsession/confirm.html",
    "templates/django_async_upload/widgets/file.html",
}
"""A file of each kind that is easily left out."""


def tracked(folder: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {each for each in listed.stdout.split("\0") if each}


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("django_resumable_upload-*.whl")
    return found


def test_the_wheel_holds_what_the_package_holds_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {each for each in archive.namelist() if not each.endswith("/")}
    facts = {each for each in held if ".dist-info/" in each}
    package = {each.removeprefix("src/") for each in tracked(f"src/{PACKAGE}")}
    assert held - facts == package
    assert {f"{PACKAGE}/{each}" for each in NEEDED} <= package
    assert {each.partition("/")[2] for each in facts} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_sdist_has_the_package_and_the_documentation_without_the_tests(dist: Path) -> None:
    (path,) = dist.glob("django_resumable_upload-*.tar.gz")
    with tarfile.open(path) as archive:
        held = {each.name.partition("/")[2] for each in archive if each.isfile()}
    assert held >= tracked("src") | tracked("docs") | {"LICENSE", "README.md", "CHANGELOG.md"}
    assert not {each for each in held if each.startswith(("tests/", "example_project/", ".ci/"))}


def test_an_empty_environment_goes_through_the_tutorial_with_the_wheel(
    wheel: Path, tmp_path: Path
) -> None:
    """``check``, ``migrate``, a page with a form, and an upload, by what the tutorial says to install."""
    environment = tmp_path / "environment"
    uv = ROOT / ".venv/bin/uv"
    subprocess.run([uv, "venv", "--quiet", environment], check=True)
    (install,) = re.findall(r"^\$ pip install (.+)$", TUTORIAL.read_text(), re.MULTILINE)
    named = "'django-resumable-upload[client]'"
    assert named in install
    wanted = install.replace(named, f"'django-resumable-upload[client] @ file://{wheel}'")
    subprocess.run(
        f"{uv} pip install --quiet --python {environment}/bin/python {wanted}",
        shell=True,
        check=True,
    )

    (tmp_path / "folder").mkdir()
    with Reader(tmp_path / "folder", programs=environment / "bin") as reader:
        output = "".join(map(reader.follow, blocks(TUTORIAL)))
    assert re.search(r"manage\.py -> incoming/\S+", output), output
    media = reader.folder / "media"
    assert (media / "documents/manage.py").read_bytes() == (
        reader.folder / "manage.py"
    ).read_bytes()
