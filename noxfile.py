"""The tests on every pair of Python and Django that is supported and here."""

import tarfile

import nox

nox.options.sessions = ["tests"]
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


@nox.session
@nox.parametrize("django", ["5.2", "6.1"], ids=["django5.2", "django6.1"])
def django_suite(session: nox.Session, django: str) -> None:
    """Django's own tests, without and with this app. Arguments after ``--`` are labels of its ``runtests.py``."""
    session.install("--editable", ".", "jinja2", "pillow", "pip", "tblib", f"django~={django}.0")
    ask = "import django; print(django.__version__)"
    version = str(session.run("python", "-c", ask, silent=True)).strip()
    folder = session.create_tmp()
    sdist = ("--no-deps", "--no-binary", "django", f"django=={version}", "--dest", folder)
    session.run("python", "-m", "pip", "download", "--quiet", *sdist)
    with tarfile.open(f"{folder}/django-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    tests = f"{folder}/django-{version}/tests"
    session.run("python", "-m", "tests.django_suite", tests, *session.posargs)
