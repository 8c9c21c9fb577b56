"""The command that tries mutants: what it says of one that is noticed, survives, hangs, or cannot be tried."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from .mutants import __main__ as command
from .mutants.laboratory import try_all
from .mutants.mutant import DoesNotApply, Mutant, read_lists

SOURCE = "def double(number):\n    while number > 9:\n        number -= 1\n    return 2 * number\n"
TESTS = """
from django_async_upload.double import double
def test_double():
    assert double(3) == 6
    assert double(10) == 18
"""


def mutant(old: str, new: str, breaks: str = "it", test: str = "double", **options: Any) -> Mutant:
    return Mutant(breaks, "double.py", old, new, [f"tests/test_{test}.py"], **options)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    package = root / "src/django_async_upload"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "double.py").write_text(SOURCE)
    (root / "tests").mkdir()
    (root / "tests/test_double.py").write_text(TESTS)
    (root / "tests/test_nothing.py").write_text("def test_nothing():\n    pass\n")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return root


async def test_it_tells_what_became_of_each_mutant_and_leaves_the_work_tree_alone(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutants = [
        mutant("2 * number", "3 * number", "the result"),
        mutant("2 * number", "number * 2", "nothing"),
        mutant("number -= 1", "number -= 0", "the loop", seconds=3),
        mutant("return 2", "import nothing", "the syntax"),
        mutant("2 * number", "3 * number", "what is not tested", test="nothing"),
    ]
    verdicts = {each.mutant.breaks: each for each in await try_all(repository, mutants, 2)}
    assert {breaks: str(each).split()[0] for breaks, each in verdicts.items()} == {
        "the result": "noticed",
        "nothing": "SURVIVED",
        "the loop": "hung",
        "the syntax": "BROKEN",
        "what is not tested": "SURVIVED",
    }
    assert {breaks for breaks, each in verdicts.items() if each.is_noticed} == {
        "the result",
        "the loop",
    }
    assert verdicts["the result"].run.first_failure == "tests/test_double.py::test_double"
    assert (repository / "src/django_async_upload/double.py").read_text() == SOURCE
    assert "unmutated" in capsys.readouterr().out


async def test_nothing_is_tried_where_a_test_fails_without_any_mutant(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "tests/test_double.py").write_text(TESTS.replace("6", "7"))
    assert await try_all(repository, [mutant("2 * number", "3 * number")], 1) == []
    assert "assert 6 == 7" in capsys.readouterr().out


@pytest.mark.parametrize("old", ["number", "triple"])
def test_a_mutation_applies_where_its_text_is_there_once(old: str) -> None:
    assert mutant("2 * number", "0").apply(SOURCE) == SOURCE.replace("2 * number", "0")
    with pytest.raises(DoesNotApply):
        mutant(old, "0").apply(SOURCE)


def test_a_list_that_does_not_fit_the_source_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Mutant("it is gone", "exceptions.py", "no such line", "", ["tests/test_mutants.py"])
    monkeypatch.setattr(command, "read_lists", lambda: [old])
    assert command.main([]) == 1
    assert "DOES NOT APPLY  exceptions.py: it is gone" in capsys.readouterr().out


def test_each_mutant_applies_to_the_source_as_it_is() -> None:
    assert not list(filter(None, map(command.why_stale, read_lists())))


def test_there_are_many_mutants_and_no_two_are_the_same() -> None:
    mutants = list(read_lists())
    assert len(mutants) >= 80
    assert len({(each.file, each.old, each.new) for each in mutants}) == len(mutants)
