"""The tests on every pair of Python and Django that is supported and here."""

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False  # a skipped session is named in the summary

PAIRS = [
    ("3.11", "5.2"),
    ("3.12", "5.2"),
    ("3.12", "6.0"),
    ("3.12", "6.1"),
    ("3.13", "5.2"),
    ("3.13", "6.0"),
    ("3.13", "6.1"),
    ("3.14", "5.2"),
    ("3.14", "6.0"),
    ("3.14", "6.1"),
]
"""Django 6 needs Python 3.12."""


@nox.session
@nox.parametrize("python,django", PAIRS, ids=[f"python{p}-django{d}" for p, d in PAIRS])
def tests(session: nox.Session, django: str) -> None:
    """Arguments after ``--`` go to pytest."""
    groups = nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test")
    session.install("--editable", ".[client,redis]", *groups, f"django~={django}.0")
    session.run("python", "-m", "pytest", *session.posargs)
