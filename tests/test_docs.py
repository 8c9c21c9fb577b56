"""The documentation says what the source does: its code runs, its tables match, its links lead somewhere."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.cookiejar import CookieJar
from inspect import Signature, isfunction, signature
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from django.core.files import File
from django.core.management import load_command_class
from django.dispatch import Signal
from django.template import engines

from django_async_upload import conf, receipts, signals
from django_async_upload.client import UploadClient
from django_async_upload.endpoints import Endpoint
from django_async_upload.exceptions import FileRefused
from django_async_upload.models import UploadSession, UploadSessionQuerySet
from django_async_upload.rest import UploadField
from django_async_upload.sessions.state import State
from django_async_upload.templatetags import async_upload as tags
from django_async_upload.widgets import (
    AsyncClearableFileInput,
    AsyncFileInput,
    AsyncMultipleFileInput,
)

from . import javascript_reference
from .e2e.servers import free_port, wait_for

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src/django_async_upload"
COMMANDS = [each.stem for each in (SOURCE / "management/commands").glob("[!_]*.py")]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block, with the comment before it: ``<!-- word: argument -->``."""

    language: str
    code: str
    comment: str


def blocks(page: Path) -> list[Block]:
    found = re.finditer(
        r"(?:^<!-- (?P<comment>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
        page.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return [Block(each["language"], each["code"], each["comment"] or "") for each in found]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def rows(page: str, heading: str = "") -> list[list[str]]:
    """The cells of the tables of a page, or of one section of it, without their heads."""
    text = (DOCS / page).read_text()
    if heading:
        text = text.partition(f"\n{heading}\n")[2]
        text = re.split(rf"^#{{1,{heading.count('#')}}} ", text, flags=re.MULTILINE)[0]
    tables = re.findall(r"^\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [
        [cell.strip() for cell in row.strip("|").split(" | ")]
        for table in tables
        for row in table.splitlines()
    ]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Links --------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    pictures = re.findall(r'(?:src|srcset)="([^"]+\.png)"', text)
    for target in re.findall(r"\]\(([^)]+)\)", text) + pictures:
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_what_a_page_installs_is_this_project_and_its_extras_are_quoted() -> None:
    """Brackets are a pattern to zsh; ``django-async-upload`` on the package index is another project."""
    commands = [
        line for page in PAGES for line in re.findall(r"\$ pip (?:un)?install .+", page.read_text())
    ]
    assert len(commands) > 3
    for each in commands:
        assert "django-async-upload" not in each
        assert not re.search(r"(?<![\w'./-])[\w./-]+\[", each), each


def test_every_page_is_on_the_map() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text()))
    assert linked == {str(each.relative_to(DOCS)) for each in DOCS.rglob("*.md")} - {"index.md"}


# Tables -------------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_source_with_their_defaults() -> None:
    documented = {
        names(row[0])[0]: eval(names(row[1])[0])
        for row in rows("reference/settings.md")
        if names(row[0]) and names(row[0])[0].isupper() and len(row) == 3
    }
    defaults = conf.UploadSettings()
    assert documented == {key: getattr(defaults, name) for key, name in conf.FIELDS.items()}


def test_the_system_checks_are_those_of_the_source() -> None:
    pattern = r"async_upload\.[EWI]\d{3}"
    source = "".join(each.read_text() for each in SOURCE.rglob("*.py"))
    documented = [names(row[0])[0] for row in rows("reference/settings.md", "## System checks")]
    assert len(documented) == len(set(documented))
    assert set(documented) == set(re.findall(pattern, source))


def test_the_signals_are_those_of_the_source() -> None:
    documented = {names(row[0])[0] for row in rows("reference/signals.md")}
    assert documented == {name for name, each in vars(signals).items() if isinstance(each, Signal)}


def test_the_fields_and_querysets_are_those_of_the_model() -> None:
    fields = {
        name
        for row in rows("reference/model.md")
        for name in names(row[0])
        if "(" not in name and name != "crc32c"
    }
    assert fields == {each.name for each in UploadSession._meta.fields}
    methods = {
        names(row[0])[0].partition("(")[0] for row in rows("reference/model.md", "## Querysets")
    }
    own = {name for name, each in vars(UploadSessionQuerySet).items() if callable(each)}
    assert methods == {name for name in own if name[0] != "_"} - {"transition"}  # the app's own


def test_the_states_are_those_of_the_table() -> None:
    for page in ("reference/model.md", "reference/protocol.md"):
        text = (DOCS / page).read_text()
        drawn = re.search(r"```\n(created ->.*?)```", text, re.DOTALL)
        assert drawn is not None
        assert set(re.findall(r"[a-z]+", drawn[1])) == set(State)


def test_the_attributes_and_hooks_are_those_of_the_consumer() -> None:
    attributes = {
        names(row[0])[0]: eval(names(row[1])[0])
        for row in rows("reference/consumer.md", "## Attributes")
    }
    hooks = {
        names(row[0])[0].partition("(")[0] for row in rows("reference/consumer.md", "## Hooks")
    }
    own = vars(Endpoint)
    declared = {
        name
        for name, annotation in Endpoint.__annotations__.items()
        if annotation.startswith("ClassVar")
    }
    assert attributes == {name: own[name] for name in declared}
    internal = {"authenticated", "reload_owner", "admit", "new_session", "get_taps"}
    internal |= {"name_of", "is_discardable", "is_watchable", "user_of"}
    public = {name for name, each in own.items() if isfunction(each) and name[0] != "_"}
    assert hooks == public - internal


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_each_of_its_options_is_documented(command: str) -> None:
    text = (DOCS / "reference/commands.md").read_text()
    _, heading, section = text.partition(f"## `{command}`\n")
    assert heading
    section = section.partition("\n## ")[0]
    parser = load_command_class("django_async_upload", command).create_parser("manage.py", command)
    general = {"--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback"}
    general |= {"--no-color", "--force-color", "--skip-checks"}
    options = {flag for each in parser._actions for flag in each.option_strings if flag[:2] == "--"}
    for option in options - general:
        assert option in section, option


def test_no_command_is_documented_that_is_not_there() -> None:
    headings = re.findall(
        r"^## `(.+)`$", (DOCS / "reference/commands.md").read_text(), re.MULTILINE
    )
    assert set(headings) == {*COMMANDS, "async-upload"}


# Forms --------------------------------------------------------------------------------------------


def defaults_of(function: Any, kind: Any) -> dict[str, Any]:
    """The parameters of a kind, with their defaults."""
    found = signature(function).parameters.values()
    return {each.name: each.default for each in found if each.kind == kind}


def test_the_widgets_and_their_arguments_are_those_of_the_source() -> None:
    tables = rows("reference/forms.md", "## Widgets")
    widgets = [AsyncFileInput, AsyncClearableFileInput, AsyncMultipleFileInput]
    found = [names(row[0])[0] for row in tables]
    assert found[:3] == [each.__name__ for each in widgets]
    documented = {names(row[0])[0]: eval(names(row[1])[0]) for row in tables if len(row) == 3}
    kinds = signature(AsyncFileInput).parameters.values()
    assert documented == {each.name: each.default for each in kinds}
    assert "directory" in signature(AsyncMultipleFileInput).parameters
    tag = signature(tags.async_upload).parameters
    assert {"endpoint", "url", "max_size"} <= documented.keys() & tag.keys()


def test_the_codes_of_a_fields_errors_are_those_of_the_source() -> None:
    found = rows("reference/forms.md", "## Widgets")[-8:]
    documented = {name for row in found for name in names(row[0])}
    source = "".join((SOURCE / f"{each}.py").read_text() for each in ("widgets", "receipts"))
    assert documented == set(re.findall(r'code="(\w+)"', source)) | set(receipts.MESSAGES)


def test_receipts_are_made_and_opened_as_documented() -> None:
    for row in rows("reference/forms.md", "## Receipts"):
        name, _, arguments = names(row[0])[0].partition("(")
        real = signature(getattr(receipts, name))
        bare = [each.replace(annotation=Signature.empty) for each in real.parameters.values()]
        assert f"({arguments}".replace('"', "'") == str(Signature(bare))


def test_the_template_tags_are_those_of_the_source() -> None:
    written = [names(row[0])[0] for row in rows("reference/forms.md", "## Template tags")]
    assert {re.findall(r"\w+", each)[0] for each in written} == set(tags.register.tags)
    text = rows("reference/forms.md", "## Template tags")[0][1]
    for argument in set(signature(tags.async_upload).parameters) - {"name", "attrs"}:
        assert f"`{argument}`" in text


def test_the_arguments_of_the_serializers_field_are_those_of_the_source() -> None:
    table = [row for row in rows("how-to/rest-framework.md") if len(row) == 3]
    documented = {
        name: eval(default)
        for row in table
        for name, default in zip(names(row[0]), names(row[1]), strict=True)
    }
    real = signature(UploadField.__init__).parameters.values()
    assert documented == {
        each.name: each.default for each in real if each.kind == each.KEYWORD_ONLY
    }


# JavaScript ---------------------------------------------------------------------------------------

STATIC = SOURCE / "static/django_async_upload"


def test_the_reference_of_javascript_is_as_its_jsdoc() -> None:
    written = javascript_reference.PAGE.read_text()
    assert written == javascript_reference.page(), "make docs-js"


@pytest.mark.parametrize("name", ["upload", "watcher", "uploader"])
def test_the_events_of_a_class_are_those_that_are_dispatched(name: str) -> None:
    told = re.findall(r"@fires (\w+)", (STATIC / f"client/{name}.js").read_text())
    dispatched = {
        path.stem: set(
            re.findall(r'(?:dispatch|Event\(new CustomEvent)\("(\w+)"', path.read_text())
        )
        for path in (STATIC / "client").glob("*.js")
    }
    own = {each: dispatched.pop(each) for each in ("upload", "watcher")}
    assert set(told) == (own.get(name) or set[str]().union(*dispatched.values()))


@pytest.mark.parametrize(
    ("script", "events"),
    [
        ("client/upload.js", "UploadEvents"),
        ("client/uploader.js", "UploaderEvents"),
        ("widget.js", "AsyncUploadEvents"),
    ],
)
def test_the_types_of_the_events_are_those_of_the_source(script: str, events: str) -> None:
    types = (NPM / "events.d.ts").read_text()
    interface = re.search(rf"interface {events} {{\n(.*?)\n}}", types, re.DOTALL)
    assert interface is not None
    typed = set(re.findall(r'^  "?([\w:-]+)"?: CustomEvent', interface[1], re.MULTILINE))
    assert typed == set(re.findall(r"@fires ([\w:-]+)", (STATIC / script).read_text()))


def test_the_events_and_attributes_of_the_element_are_those_of_the_source() -> None:
    about = (STATIC / "widget.js").read_text()
    widget = "".join(each.read_text() for each in sorted((STATIC / "widget").glob("*.js")))
    upload_events = re.search(r"UPLOAD_EVENTS = \[(.*)\]", widget)
    assert upload_events is not None
    fired = set(re.findall(r'"(\w+)"', upload_events[1]))
    fired |= set(re.findall(r'tellPage\("(\w+)"', widget))
    assert set(re.findall(r"@fires async-upload-(\w+)", about)) == fired
    readers = ("dropzone", "field", "limits", "places", "selection", "texts")
    read = "".join((STATIC / f"widget/{name}.js").read_text() for name in readers)
    attributes = re.findall(r'element\.(?:get|has)Attribute\("([\w-]+)"', read)
    # Any element has `style`: it is tidied up where the element leaves the page.
    assert set(re.findall(r"@attribute ([\w-]+)", about)) == set(attributes) - {"style"}


def test_the_css_variables_are_those_of_the_style() -> None:
    css = (STATIC / "widget.css").read_text()
    listed = set(re.findall(r"^ \*   (--[\w-]+) ", css, re.MULTILINE))
    assert listed == set(re.findall(r"var\((--async-upload-[\w-]+), ", css)) - {
        # Set by the element: how far a bar is, and how the input lies over its zone.
        "--async-upload-fraction",
        *(f"--async-upload-{each}" for each in ("left", "top", "width", "height")),
    }


NPM = ROOT / "js"
PACKED = json.loads((NPM / "package.json").read_text())
SCRIPTS = [
    pytest.param(block.code, id=f"{page_id(page)} {index}")
    for page in PAGES
    for index, block in enumerate(blocks(page))
    if block.language == "js"
]


@pytest.mark.parametrize("code", SCRIPTS)
def test_a_script_of_a_page_is_a_module(code: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    done = subprocess.run(
        [node, "--check", "--input-type=module", "-"], input=code, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", SCRIPTS)
def test_what_a_script_of_a_page_imports_is_exported(code: str) -> None:
    imports = re.findall(
        r'import (?:\{ (.+) \} from )?"(django-resumable-upload(?:/[\w.-]+)?)"', code
    )
    for wanted, module in imports:
        entry = entry_of(module)
        if wanted:
            assert exports(entry) >= set(wanted.split(", ")), module


def entry_of(module: str) -> Path:
    """The source of what the npm package, and by an import map a page, calls by this name."""
    entry = PACKED["exports"][module.replace("django-resumable-upload", ".")]
    (found,) = [each / entry for each in (STATIC, NPM) if (each / entry).is_file()]
    return found


def exports(module: Path) -> set[str]:
    source = module.read_text()
    found = re.findall(r"^export (?:class|const|function) (\w+)", source, re.MULTILINE)
    lists = re.findall(r"^export \{ (.+) \} from", source, re.MULTILINE)
    return {*found, *", ".join(lists).split(", ")}


def test_every_entry_of_the_npm_package_is_on_its_page() -> None:
    names = {each.replace(".", "django-resumable-upload", 1) for each in PACKED["exports"]}
    for page in (DOCS / "how-to/npm.md", NPM / "README.md"):
        text = page.read_text()
        assert not {each for each in names if f"`{each}`" not in text}, page


def test_the_oldest_browsers_are_those_that_the_script_is_built_for() -> None:
    built = re.search(r"TARGETS = (\[.+\])", (NPM / "build.mjs").read_text())
    assert built is not None
    table = (DOCS / "reference/browsers.md").read_text().partition("\n\n")[2].partition("\n\n")[0]
    versions = re.findall(r"^\| (\w+).*? \| ([\d.]+) \|", table, re.MULTILINE)
    assert [f"{name.lower()}{version}" for name, version in versions] == json.loads(built[1])


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(block.code, id=f"{page_id(page)} {index}")
        for page in PAGES
        for index, block in enumerate(blocks(page))
        if block.language == "html"
    ],
)
def test_a_template_of_a_page_compiles(code: str) -> None:
    engines["django"].from_string(code)


def test_every_code_of_the_browser_is_documented() -> None:
    source = (STATIC / "protocol/error-texts.js").read_text()
    codes = set(re.findall(r'^  (\w+): "', source, re.MULTILINE))
    assert len(codes) > 40
    text = (DOCS / "reference/errors.md").read_text()
    assert not {each for each in codes if f"`{each}`" not in text}


# Code ---------------------------------------------------------------------------------------------

SCRATCH_SETTINGS = """
from pathlib import Path
SECRET_KEY = "documentation"
INSTALLED_APPS = ["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
                  "django.contrib.sessions", "django_async_upload", "documents"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
MEDIA_ROOT = Path(__file__).parent / "media"
USE_TZ = True
"""
SCRATCH_MODELS = """
from django.db import models
class Document(models.Model):
    owner = models.ForeignKey("auth.User", on_delete=models.CASCADE)
    name = models.CharField(max_length=255)
    attachment = models.FileField(upload_to="documents/")
class Job(models.Model):
    event = models.UUIDField(unique=True)
    upload_id = models.UUIDField()
"""
RUNNER = """
import importlib.util, json, sys, traceback
import django
django.setup()
from django_async_upload import conf
failures = {}
for name, code, needs in json.load(sys.stdin):
    try:
        if needs and importlib.util.find_spec(needs) is None:
            compile(code, name, "exec")
            continue
    except ModuleNotFoundError:
        continue
    names = {"__name__": "block"}
    try:
        exec(compile(code, name, "exec"), names)
        assert not conf.problems(names.get("ASYNC_UPLOAD", {}))
    except Exception:
        failures[name] = traceback.format_exc()
json.dump(failures, sys.stdout)
"""
TUTORIAL = DOCS / "tutorial.md"
ELSEWHERE = {TUTORIAL, DOCS / "reference/client.md"}
"""Pages whose code runs against a server: below, and in tests/client."""
CODE = [
    page
    for page in PAGES
    if page not in ELSEWHERE and any(block.language == "python" for block in blocks(page))
]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every Python block outside the tutorial raised in a project of its own."""
    root = tmp_path_factory.mktemp("scratch")
    (root / "documents").mkdir()
    (root / "documents/__init__.py").touch()
    (root / "documents/models.py").write_text(SCRATCH_MODELS)
    (root / "myproject").mkdir()
    (root / "myproject/stores.py").write_text(
        "from django_async_upload.stores import MemoryStore as MyStore"
    )
    (root / "scratch.py").write_text(SCRATCH_SETTINGS)
    code = [
        (f"{page_id(page)} {index}", block.code, block.comment.partition("needs: ")[2])
        for page in CODE
        for index, block in enumerate(blocks(page))
        if block.language == "python" and not block.comment.startswith("from: ")
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(code),
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "DJANGO_SETTINGS_MODULE": "scratch"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("page", CODE, ids=page_id)
def test_the_code_of_a_page_runs(page: Path, failures: dict[str, str]) -> None:
    own = [text for name, text in failures.items() if name.startswith(f"{page_id(page)} ")]
    assert not own, "\n".join(own)


def test_the_code_of_a_recipe_is_that_of_the_example() -> None:
    """Tests run it there: in tests/e2e, with real workers."""
    recipes = [
        (page, block.comment.removeprefix("from: "), block.code)
        for page in PAGES
        for block in blocks(page)
        if block.comment.startswith("from: ")
    ]
    assert len({path for _page, path, _code in recipes}) > 3
    for page, path, code in recipes:
        assert code in (ROOT / path).read_text(), f"{page_id(page)}: {path}"


def namespace(page: str, index: int) -> dict[str, Any]:
    """The names that a Python block of a page defines."""
    code = [block.code for block in blocks(DOCS / page) if block.language == "python"]
    found: dict[str, Any] = {"__name__": "block"}
    exec(code[index], found)
    return found


@pytest.mark.parametrize(
    ("content", "is_refused"), [(b"\x89PNG\r\n\x1a\n...", False), (b"MZ", True)]
)
def test_the_inspection_of_the_how_to_refuses_what_is_no_picture(
    content: bytes, is_refused: bool
) -> None:
    consumer = namespace("how-to/scan-before-publishing.md", 0)["PictureConsumer"]()
    inspection = consumer.inspect(None, File(io.BytesIO(content)))
    if is_refused:
        with pytest.raises(FileRefused, match="no PNG"):
            asyncio.run(inspection)
    else:
        asyncio.run(inspection)


def test_the_scan_of_the_how_to_speaks_with_clamd(tmp_path: Path) -> None:
    received = io.BytesIO()

    def clamd(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            assert stream.read(10) == b"zINSTREAM\0"
            while size := int.from_bytes(stream.read(4), "big"):
                received.write(stream.read(size))
            connection.sendall(b"stream: OK\0")

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "clamd"))
        listener.listen()
        daemon = threading.Thread(target=clamd, args=(listener,))
        daemon.start()
        verdict = namespace("how-to/scan-before-publishing.md", 1)["verdict_of_clamd"]
        content = os.urandom(3 * 1024 * 1024)
        assert verdict(File(io.BytesIO(content)), str(tmp_path / "clamd")) == "stream: OK"
        daemon.join(10)
    assert received.getvalue() == content


# The tutorial -------------------------------------------------------------------------------------


class Reader:
    """Does what the tutorial says, with the programs of one environment.

    A context manager that stops the server which the tutorial starts.
    """

    def __init__(self, folder: Path, programs: Path = Path(sys.executable).parent) -> None:
        self.port = str(free_port())
        self.folder = folder
        self.server: subprocess.Popen[bytes] | None = None
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DJANGO_", "PYTHON"))
        }
        self.env |= {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(folder / "state"),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(15)

    def follow(self, block: Block) -> str:
        word, _, argument = block.comment.partition(": ")
        if block.language in ("python", "html"):
            assert word in ("file", "append")
            path = self.folder / argument
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code if word == "file" else path.read_text() + block.code)
        elif block.language == "console" and word == "background":
            self._serve(self._commands(block))
        elif block.language == "console" and word != "not run":
            return self._run(self._commands(block))
        return ""

    def _commands(self, block: Block) -> str:
        lines = block.code.splitlines()
        assert all(line.startswith("$ ") for line in lines)
        return "\n".join(line[2:] for line in lines).replace("8000", self.port)

    def _run(self, commands: str) -> str:
        # What one block changes in the shell holds for the next.
        memory = self.folder.parent / "shell"
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{commands}\npwd >{memory}\nexport -p >>{memory}"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        folder, *variables = memory.read_text().splitlines()
        self.folder = Path(folder)
        for name, value in re.findall(
            r'^declare -x (ASYNC_UPLOAD_\w+)="(.*)"$', "\n".join(variables), re.MULTILINE
        ):
            self.env[name] = value
        return done.stdout

    def _serve(self, command: str) -> None:
        self.server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.env
        )

        def answers() -> bool:
            with closing(socket.socket()) as probe:
                return probe.connect_ex(("127.0.0.1", int(self.port))) == 0

        wait_for(answers, seconds=30, what="the tutorial's server")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder = tmp_path / "folder"
    folder.mkdir()
    with Reader(folder) as reader:
        yield reader


@pytest.mark.e2e
def test_the_tutorial_leads_to_a_document(reader: Reader) -> None:
    output = "".join(map(reader.follow, blocks(TUTORIAL)))

    stored_as = re.search(r"manage\.py -> (incoming/\S+)", output)
    assert stored_as, output
    assert "documents/manage.py" in output
    media = reader.folder / "media"
    assert (media / "documents/manage.py").read_bytes() == (
        reader.folder / "manage.py"
    ).read_bytes()
    uploads = reader.folder / "media-uploads"
    assert not (uploads / stored_as[1]).exists(), "the file was handed over, not copied"

    # The form, as the widget's script fills it in.
    url = f"http://127.0.0.1:{reader.port}"
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def ask(path: str, **form: str) -> str:
        encoded = urllib.parse.urlencode(form).encode() if form else None
        with browser.open(url + path, encoded, timeout=30) as answer:
            return str(answer.read().decode())

    def csrf(page: str) -> dict[str, str]:
        return {"csrfmiddlewaretoken": found(r'csrfmiddlewaretoken" value="(\w+)"', page)}

    person = {"username": "demo", "password": "correct-horse"}
    page = ask("/admin/login/?next=/", **csrf(ask("/")), **person)
    assert "customElements" in ask(found(r'<script src="(.+?)" type="module"', page))

    token = found(r' field="(.+?)"', page)

    async def upload() -> str:
        socket = f"ws://127.0.0.1:{reader.port}" + found(r'<async-upload.*? url="(.+?)"', page)
        metadata = {"field": token}
        async with UploadClient(socket, ticket=reader.env["ASYNC_UPLOAD_TICKET"]) as client:
            result = await client.upload(reader.folder / "mysite/urls.py", metadata=metadata)
            return str(result.receipt)

    receipt = {
        "async_upload.attachment": asyncio.run(upload()),
        "async_upload_field.attachment": token,
    }
    assert "<li>addresses: " in ask("/", **csrf(page), **receipt, name="addresses")
    assert (media / "documents/urls.py").read_bytes() == (
        reader.folder / "mysite/urls.py"
    ).read_bytes()


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]
