"""Lower layers never import upper ones, and siblings do not import each other: see docs/design.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "django_async_upload"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# From the bottom up. A line is a layer, a tuple in it is one unit: modules, or packages with all that is in them.
# A unit imports from itself and from the layers below. Imports for type checkers only do not count.
LAYERS: list[list[tuple[str, ...]]] = [
    [("exceptions",), ("__init__",)],
    [("protocol",), ("conf",), ("turns",), ("pace",), ("threads",), ("notices",), ("commits",)],
    [("signals",), ("policies",), ("credit",), ("database",), ("client",)],
    [("stores",), ("tickets",), ("admission",)],
    [("models", "uploaded", "holds", "migrations"), ("owners",)],
    [("leases", "quotas"), ("places",)],
    [("service", "active", "completion", "small", "outbox"), ("cleanup",), ("receipts",)],
    [
        ("consumers", "connection", "streams"),
        ("responses",),
        ("middleware",),
        ("widgets", "forms", "templatetags", "assets"),
    ],
    [("routing",), ("checks",), ("doctor", "probe"), ("admin",), ("rest",)],
    [("apps",), ("management",)],
    [("testing",)],
]

READERS_OF_SETTINGS = {
    "conf",
    "models",  # AUTH_USER_MODEL
    "connection",  # SESSION_ENGINE
    "admission",  # CSRF_TRUSTED_ORIGINS
    "owners",  # AUTHENTICATION_BACKENDS
    "stores.configured",  # MEDIA_ROOT
    "checks",
}

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(SOURCE.rglob("*.py"))
}


def unit_of(module: str) -> tuple[int, int]:
    """Layer and place in it. Raises LookupError for a module that no layer has."""
    for height, layer in enumerate(LAYERS):
        for place, unit in enumerate(layer):
            if module.partition(".")[0] in unit:
                return height, place
    raise LookupError(f"{module} is in no layer: give it a place in LAYERS, and in docs/design.md")


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not is_for_type_checkers(node):
            yield from statements(node)


def imports(module: str) -> Iterator[str]:
    """What a module imports when it runs, as absolute names: ``django.db``, ``django_async_upload.conf``."""
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


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_below_only(module: str) -> None:
    height, place = unit_of(module)
    for name in imports(module):
        imported = own(name)
        if imported is not None and unit_of(imported) != (height, place):
            assert unit_of(imported)[0] < height, f"{module} imports {imported}"


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
    assert third_parties("client") == {"crc32c", "rich", "websockets"}


@pytest.mark.parametrize("module", MODULES)
def test_only_shells_know_channels_and_http(module: str) -> None:
    shells = {"connection", "middleware", "responses", "admin", "routing", "testing"}
    shells |= {"owners", "admission"}  # a type of a request
    if module.partition(".")[0] not in shells:
        known = [name for name in imports(module) if name.startswith(("channels", "django.http"))]
        assert not known


def test_few_modules_read_the_settings() -> None:
    readers = {module for module in MODULES if "django.conf" in set(imports(module))}
    readers = {module for module in readers if not module.startswith("migrations.")}
    assert readers == READERS_OF_SETTINGS


def test_an_import_from_above_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "stores.disk", ast.parse("from ..models import UploadSession"))
    with pytest.raises(AssertionError, match=r"stores\.disk imports models"):
        test_a_module_imports_from_below_only("stores.disk")
    monkeypatch.setitem(MODULES, "stores.disk", ast.parse("def f():\n    from .. import signals"))
    test_a_module_imports_from_below_only("stores.disk")
    monkeypatch.setitem(MODULES, "signals", ast.parse("from . import policies"))
    with pytest.raises(AssertionError, match="signals imports policies"):
        test_a_module_imports_from_below_only("signals")
