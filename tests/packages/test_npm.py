"""The npm package holds the client, its entries and types, and nothing of the pages that Django serves."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from django_async_upload import __version__

from .conftest import ROOT

pytestmark = pytest.mark.dist


def test_the_npm_package_is_of_the_same_version_and_has_types_for_each_entry(
    tmp_path: Path,
) -> None:
    subprocess.run(["make", "--silent", "npm", f"NPM={tmp_path}"], cwd=ROOT, check=True)
    (tarball,) = tmp_path.glob(f"django-resumable-upload-{__version__}.tgz")
    with tarfile.open(tarball) as archive:
        held = {each.name.removeprefix("package/") for each in archive if each.isfile()}
        packed = archive.extractfile("package/package.json")
        assert packed is not None
        facts = json.load(packed)
    assert facts["version"] == __version__
    assert not {"private", "devDependencies", "scripts"} & set(facts)
    for entry in facts["exports"].values():
        wanted = [entry] if entry.endswith(".css") else [entry, entry.replace(".js", ".d.ts")]
        assert {each.removeprefix("./") for each in wanted} <= held
    assert {"README.md", "LICENSE", "file/reading.js"} <= held
    assert not {each for each in held if ".min." in each or "bundle" in each or "admin" in each}
