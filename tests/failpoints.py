"""The failpoints of the source, and the effects in it that have none: found by reading the source.

An effect is what a crash must not tear from what follows: a commit, sync, link, unlink, rename, hint or send. In each
function a failpoint has to come directly before it and directly after it, on every way through the function. Commits of
the database's thread, and hints, have theirs in one place, with names made there: :func:`derived`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parents[1] / "src" / "django_async_upload"
ELSEWHERE: Final = ("client", "testing", "migrations")
"""Folders that no server runs."""

SYSTEM: Final = re.compile(r"os\.(link|unlink|rename|replace|remove|rmdir|symlink|fsync)")
"""Also where it is an argument, to be called in a thread."""
CALLS: Final = re.compile(
    r"(.*\.)?(fdatasync|sync_file|sync_directory|sync_names|sync_link)"
    r"|self\._file\.sync"
    r"|(.*\.)?(storage|get_storage\(\))\.(save|delete)"
    r"|signals\.(send|send_and_wait)"
    r"|self\.(send|_send)"
    r"|writer\.write"
)
ROWS: Final = re.compile(r".*\.(transition|bulk_create|bulk_update)")
COMMITS: Final = re.compile(r"transaction\.atomic\(.*\)")
AFTER_COMMIT: Final = re.compile(r"after_commit|transaction\.on_commit")
"""What these are given begins with a failpoint: see :func:`callbacks`."""

BY_THE_DATABASE: Final = (
    "sessions/rows.py",
    "sessions/slots.py",
    "sessions/answers.py",
    "sessions/quotas.py",
    "engine/outbox.py",
)
"""Modules whose functions are run by the database's thread, which has the failpoints."""


@dataclass(frozen=True)
class Effect:
    path: str
    function: str
    call: str
    line: int

    @property
    def place(self) -> str:
        """What an exemption names: no line, since that changes."""
        return f"{self.path}:{self.function}"


@dataclass(frozen=True)
class Module:
    path: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def functions(self) -> dict[str, ast.FunctionDef]:
        """Those of the module itself, by name."""
        return {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}

    def nodes(self, kind: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kind))


@cache
def modules() -> list[Module]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.split("/")[0] not in ELSEWHERE:
            found.append(Module(name, ast.parse(path.read_text())))
    return found


# The names of failpoints ---------------------------------------------------------------------------


def literals() -> list[str]:
    """The names that the source has as texts."""
    return [
        str(ast.literal_eval(call.args[0]))
        for module in modules()
        for call in _calls(module, "failpoint")
        if not isinstance(call.args[0], ast.JoinedStr)
    ]


def derived() -> set[str]:
    """The names that are made while it runs: of what the database's thread commits, and of hints."""
    every = modules()
    by_name = {module.name: module for module in every if "/" in module.path}
    found = set()
    for module in every:
        aliases = _aliases(module)
        for call in _calls(module, "call", "call_many", "_call"):
            function = call.args[0] if call.args else None
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                where, name = aliases.get(function.value.id, ""), function.attr
            elif isinstance(function, ast.Name):
                where, name = aliases.get(function.id, module.name), function.id
            else:
                continue
            if where in by_name and _writes(by_name[where], name):
                found |= {f"{where}.{name}.before_commit", f"{where}.{name}.after_commit"}
        for call in _calls(module, "publish"):
            if kind := _text(module, call.args[0]):
                found |= {f"{kind}.before_hint", f"{kind}.after_hint"}
    return found


def _calls(module: Module, *names: str) -> Iterator[ast.Call]:
    for call in module.nodes(ast.Call):
        assert isinstance(call, ast.Call)
        if _dotted(call.func).rpartition(".")[2] in names:
            yield call


def _dotted(node: ast.expr) -> str:
    """The text of names with dots, and of calls between them without their arguments."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{_dotted(node.value)}.{node.attr}"
        case ast.Call():
            return f"{_dotted(node.func)}()"
    return "?"


def _aliases(module: Module) -> dict[str, str]:
    """Imported name -> the module that it is, or that it comes from."""
    found = {}
    for node in module.nodes(ast.ImportFrom):
        assert isinstance(node, ast.ImportFrom)
        for each in node.names:
            is_module = (SOURCE / "sessions" / f"{each.name}.py").is_file()
            source = each.name if is_module else (node.module or "").rpartition(".")[2]
            found[each.asname or each.name] = source
    return found


def _writes(module: Module, name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function of the module changes rows, itself or by another function of the module."""
    function = module.functions.get(name)
    if function is None or name in seen:
        return False
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if _changes_rows(node) or _dotted(node.func).endswith(".claim"):
                return True
            if isinstance(node.func, ast.Name) and _writes(module, node.func.id, seen | {name}):
                return True
    return False


def _changes_rows(call: ast.Call) -> bool:
    name = _dotted(call.func)
    if name.endswith(".update"):  # not that of a dict or a set
        return bool(call.keywords) and not call.args
    return bool(ROWS.fullmatch(name)) or (name.endswith(".delete") and not call.args)


def _text(module: Module, node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return str(node.value)
    for assigned in module.tree.body:
        if isinstance(assigned, ast.Assign) and isinstance(node, ast.Name):
            names, values = assigned.targets[0], assigned.value
            if isinstance(names, ast.Tuple) and isinstance(values, ast.Tuple):
                for target, value in zip(names.elts, values.elts, strict=True):
                    if ast.unparse(target) == node.id:
                        return str(ast.literal_eval(value))
    return None


# Effects without failpoints ------------------------------------------------------------------------

State = frozenset[Effect | str]
"""What may have come last: an effect, ``failpoint``, or ``nothing`` since the function began."""
FAILPOINT: Final[State] = frozenset({"failpoint"})
NOTHING: Final[State] = frozenset({"nothing"})


@cache
def uncovered() -> list[tuple[Effect, str]]:
    """Effects without a failpoint, with what is missing: ``before`` or ``after``."""
    return [each for module in modules() for each in uncovered_in(module)]


def uncovered_in(module: Module) -> list[tuple[Effect, str]]:
    """Those of one module."""
    found = []
    for function in _functions(module):
        found += _Walk(module, *function).run()
    return found


def _functions(
    module: Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


@dataclass
class _Walk:
    """Every way through one function."""

    module: Module
    name: str
    function: ast.FunctionDef | ast.AsyncFunctionDef
    missing: dict[tuple[Effect, str], None] = field(default_factory=dict)
    _returned: list[State] = field(default_factory=list)
    _in_transaction: int = 0

    def run(self) -> list[tuple[Effect, str]]:
        end = self._block(self.function.body, NOTHING)
        for state in (end, *self._returned):
            self._followed(state)
        return list(self.missing)

    def _followed(self, state: State) -> None:
        for last in state:
            if isinstance(last, Effect):
                self.missing[last, "after"] = None

    def _block(self, statements: Iterable[ast.stmt], state: State) -> State:
        for each in statements:
            state = self._statement(each, state)
        return state

    def _statement(self, node: ast.stmt, state: State) -> State:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return state
            case ast.If():
                state = self._expression(node.test, state)
                return self._block(node.body, state) | self._block(node.orelse, state)
            case ast.For() | ast.AsyncFor() | ast.While():
                over = node.test if isinstance(node, ast.While) else node.iter
                state = self._expression(over, state)
                once = self._block(node.body, state)
                again = self._block(node.body, state | once)
                return self._block(node.orelse, state | again)
            case ast.With() | ast.AsyncWith():
                return self._with(node, state)
            case ast.Try():
                return self._try(node, state)
            case ast.Return():
                state = self._expression(node.value, state)
                self._returned.append(state)
                return frozenset()
            case ast.Raise():  # what was done is undone, or was not done
                return frozenset()
        return self._expression(node, state)

    def _with(self, node: ast.With | ast.AsyncWith, state: State) -> State:
        managers = [ast.unparse(item.context_expr) for item in node.items]
        for item in node.items:
            state = self._expression(item.context_expr, state)
        if not any(map(COMMITS.fullmatch, managers)):
            return self._block(node.body, state)
        self._in_transaction += 1
        state = self._block(node.body, frozenset({"nothing"}))
        self._in_transaction -= 1
        # A way on which nothing was changed needs no failpoint.
        return self._effect("commit", node.end_lineno or node.lineno, state or FAILPOINT)

    def _try(self, node: ast.Try, state: State) -> State:
        outer, self._returned = self._returned, []
        end = self._block(node.body, state)
        end = self._block(node.orelse, end)
        for handler in node.handlers:
            end |= self._block(handler.body, FAILPOINT)  # no crash: the effect failed
        returned, self._returned = self._returned, outer
        if not node.finalbody:
            self._returned += returned
            return end
        if returned:
            self._returned.append(self._block(node.finalbody, frozenset().union(*returned)))
        return self._block(node.finalbody, end) if end else end

    def _expression(self, node: ast.AST | None, state: State) -> State:
        if node is None or isinstance(node, ast.Lambda):
            return state
        for child in ast.iter_child_nodes(node):
            state = self._expression(child, state)
        if isinstance(node, ast.Call):
            return self._call(node, state)
        if isinstance(node, ast.Attribute) and SYSTEM.fullmatch(_dotted(node)):
            return self._effect(_dotted(node), node.lineno, state)
        return state

    def _call(self, node: ast.Call, state: State) -> State:
        name = _dotted(node.func)
        if name == "failpoint":
            return FAILPOINT
        if AFTER_COMMIT.fullmatch(name):
            return FAILPOINT
        is_of_rows = _changes_rows(node) and self.module.path not in BY_THE_DATABASE
        if CALLS.fullmatch(name) or (is_of_rows and not self._in_transaction):
            return self._effect(name, node.lineno, state)
        return state

    def _effect(self, call: str, line: int, state: State) -> State:
        effect = Effect(self.module.path, self.name, call, line)
        self._followed(state)
        if state - FAILPOINT:
            self.missing[effect, "before"] = None
        return frozenset({effect})


def callbacks() -> list[str]:
    """What is called after a commit, and does not begin with a failpoint."""
    found = []
    for module in modules():
        every = dict(_functions(module))
        for call in _calls(module, "after_commit"):
            name = ast.unparse(call.args[1]).rpartition(".")[2]
            if name in every and "failpoint(" not in ast.unparse(_first(every[name])):
                found.append(f"{module.path}:{name}")
    return found


def _first(function: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
    has_docstring = ast.get_docstring(function) is not None
    return function.body[1 if has_docstring else 0]
