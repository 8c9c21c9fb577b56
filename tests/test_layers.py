"""Lower layers never import upper ones, and siblings do not import each other: see docs/design.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "django_async_upload"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# From the bottom up. A module imports from lower layers and from its own folder; nowhere do imports run in a circle,
# those inside functions and those for type checkers included.
LAYERS: list[set[str]] = [
    {"exceptions", "__init__"},
    {"protocol", "conf", "concurrency", "notices", "failpoints", "nodelay"},
    {"signals", "client"},
    {"stores", "tickets", "admission"},
    {"models", "sessions", "migrations"},
    {"engine", "binding"},
    {"operations", "endpoints", "consumers", "websocket", "http", "login", "receipts"},
    {"responses", "assets", "widgets", "forms", "templatetags", "progress"},
    {"routing", "development", "checks", "admin", "admin_widgets", "rest", "health"},
    {"apps", "asgi", "management", "middleware"},
    {"testing"},
]
BESIDE = {
    "models": {"sessions"},
    "sessions": {"models"},
    "consumers": {"endpoints", "websocket", "http"},
    "endpoints": {"login", "receipts"},
    "websocket": {"endpoints", "login", "receipts"},
    "http": {"endpoints", "login", "receipts"},
    "widgets": {"assets"},
    "forms": {"widgets"},
    "templatetags": {"assets", "widgets", "progress"},
    "progress": {"widgets"},
    "rest": {"receipts"},
    "development": {"routing"},
}
"""Neighbours of one layer that may be imported."""
UPWARD = {("models", "binding.linked")}
"""``UploadSession.bind()`` is written where a host looks for it."""

READERS_OF_SETTINGS = {
    "conf",
    "models",  # AUTH_USER_MODEL
    "login",  # SESSION_ENGINE
    "admission",  # CSRF_TRUSTED_ORIGINS
    "sessions.owners",  # AUTHENTICATION_BACKENDS
    "stores.configured",  # MEDIA_ROOT
    "checks",
    "management.commands.upload_doctor",  # ASGI_APPLICATION
    "operations.shared",  # SESSION_...
    "development",  # ASGI_APPLICATION
}

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(SOURCE.rglob("*.py"))
}


def layer_of(module: str) -> int:
    """Raises LookupError for a module that is in no layer."""
    folder = module.partition(".")[0]
    for height, layer in enumerate(LAYERS):
        if folder in layer:
            return height
    raise LookupError(f"{module} is in no layer: give it a place in LAYERS, and in docs/design.md")


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imports(module: str) -> Iterator[str]:
    """What a module imports, as absolute names: ``django.db``, ``django_async_upload.conf``."""
    here = [PACKAGE, *module.split(".")]
    for node in statements(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        base = [*here[: -node.level]] if node.level else []
        base += node.module.split(".") if node.module else []
        name = ".".join(base)
        if is_package(name):
            yield from (f"{name}.{alias.name}" for alias in node.names)
        else:
            yield name


def is_package(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == PACKAGE and SOURCE.joinpath(*parts[1:]).is_dir()


def own(name: str) -> str | None:
    """The module of this package that a name stands for; None for others, and for what __init__ holds."""
    found = name.removeprefix(f"{PACKAGE}.")
    return found if found != name and found != "__version__" else None


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = {own(name) for name in imports(module)} - {None, module}
    return {name for name in found if name is not None and (module, name) not in UPWARD}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_below_only(module: str) -> None:
    folder = module.partition(".")[0]
    for imported in own_imports(module):
        other = imported.partition(".")[0]
        if other != folder and other not in BESIDE.get(folder, ()):
            assert layer_of(imported) < layer_of(module), f"{module} imports {imported}"


def test_imports_run_in_no_circle() -> None:
    TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


def third_parties(layer: str) -> set[str]:
    return {
        name.partition(".")[0]
        for module in MODULES
        if module.partition(".")[0] == layer
        for name in imports(module)
    } - {PACKAGE, *sys.stdlib_module_names}


@pytest.mark.parametrize("layer", ["exceptions", "protocol", "__init__"])
def test_the_protocol_needs_the_standard_library_only(layer: str) -> None:
    assert third_parties(layer) == set()


def test_the_client_needs_neither_django_nor_the_server() -> None:
    assert third_parties("client") == {"crc32c", "h11", "http_sf", "rich", "websockets"}


@pytest.mark.parametrize("module", MODULES)
def test_only_shells_know_channels_and_http(module: str) -> None:
    shells = {"consumers", "middleware", "responses", "admin", "routing", "testing", "admission"}
    shells |= {"development", "health", "sessions", "binding", "receipts"}  # a type of a request
    if module.partition(".")[0] not in shells and module != "engine.layer":
        known = [name for name in imports(module) if name.startswith(("channels", "django.http"))]
        assert not known


def test_few_modules_read_the_settings() -> None:
    readers = {module for module in MODULES if "django.conf" in set(imports(module))}
    readers = {module for module in readers if not module.startswith("migrations.")}
    assert readers == READERS_OF_SETTINGS


def test_engine_stores_and_sessions_know_no_wire_format() -> None:
    for module in MODULES:
        if module.partition(".")[0] in ("engine", "stores", "sessions"):
            assert not {name for name in own_imports(module) if name.startswith("protocol.")}, (
                module
            )


def test_an_import_from_above_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "stores.disk", ast.parse("from ..models import UploadSession"))
    with pytest.raises(AssertionError, match=r"stores\.disk imports models"):
        test_a_module_imports_from_below_only("stores.disk")
    monkeypatch.setitem(MODULES, "stores.base", ast.parse("from ..models import UploadSession"))
    with pytest.raises(CycleError):
        test_imports_run_in_no_circle()
    monkeypatch.setitem(MODULES, "stores.disk", ast.parse("def f():\n    from .. import signals"))
    test_a_module_imports_from_below_only("stores.disk")
    monkeypatch.setitem(
        MODULES, "signals", ast.parse("if TYPE_CHECKING:\n    from . import stores")
    )
    with pytest.raises(AssertionError, match="signals imports stores"):
        test_a_module_imports_from_below_only("signals")


@pytest.mark.parametrize(
    "folder", ["engine", "sessions", "stores", "websocket", "binding", "operations"]
)
def test_the_design_lists_every_module_of_a_folder(folder: str) -> None:
    page = (SOURCE.parents[1] / "docs/design.md").read_text()
    table = page.partition("| folder | module | holds |")[2].partition("\n\n")[0]
    for module in MODULES:
        parts = module.split(".")
        if parts[0] == folder and parts[-1] != "__init__":
            assert f"`{parts[-1]}`" in table, module
