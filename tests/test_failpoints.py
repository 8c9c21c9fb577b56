"""A crash can be tested at every step: each has a failpoint, and a scenario of the crash matrix reaches it."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from .e2e.crashes import SCENARIOS
from .failpoints import Module, callbacks, derived, literals, uncovered, uncovered_in

CALLERS = "its callers have the failpoints"
EACH = "a loop passes one for each"
CLIENT = "a command asks a server: it changes nothing itself"
EXEMPT = {
    "stores/disk.py:_sync": CALLERS,
    "stores/partfile.py:sync": CALLERS,
    "stores/folder.py:sync_names": CALLERS,
    "stores/publication/link.py:sync_names": CALLERS,
    "stores/publication/link.py:sync_link": CALLERS,
    "models.py:transition": CALLERS,
    "models.py:claim": CALLERS,
    "models.py:bind": "in the host's transaction",
    "engine/database.py:_transact": EACH,
    "engine/bus.py:_send_queued": EACH,
    "engine/bus.py:_attend": "an echo, to itself",
    "engine/active.py:_write_queued": "no failpoint is on the way of a chunk",
    "websocket/stream.py": "it queues messages; the sender sends them",
    "websocket/connection.py:_connect": "it refuses an origin, before anything was done for it",
    "admin.py": "what it calls has the failpoints, and what is called after its commits",
    "stores/publication/link.py:withdraw": "the host deleted the row while the file was published: see below",
    "http/exchange.py": "an answer: what it says was committed before, with failpoints there",
    "operations/doctor.py": CLIENT,
    "operations/probe.py": CLIENT,
    "operations/shared.py": CLIENT,
    "operations/workers.py": CLIENT,
}
"""Effects without a failpoint of their own, with the reason.

If a process dies after the host has deleted the row of an upload, and before it has deleted the file that it was just
publishing, the file stays: no row knows it any more.
"""


def test_a_failpoint_is_before_and_after_every_effect() -> None:
    found = {
        f"{effect.path}:{effect.line}: {effect.call} in {effect.function}() has no failpoint {where} it"
        for effect, where in uncovered()
        if not {effect.place, effect.path} & EXEMPT.keys()
    }
    assert not found, "\n".join(sorted(found))


def test_every_exemption_is_needed() -> None:
    needed = {each for effect, _ in uncovered() for each in (effect.place, effect.path)}
    assert EXEMPT.keys() <= needed


def test_what_follows_a_commit_begins_with_a_failpoint() -> None:
    assert callbacks() == []


def test_a_scenario_reaches_every_failpoint() -> None:
    reached = {
        point.partition(":")[0]
        for scenario in SCENARIOS
        for point in (*scenario.points, *scenario.before)
    } - {""}
    assert reached == {*literals(), *derived()}


def test_a_failpoint_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(literals()).items() if count > 1] == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("failpoint('a'); os.link(a, b); failpoint('b')", set()),
        ("failpoint('a'); os.link(a, b)", {"after"}),
        ("os.link(a, b); failpoint('b')", {"before"}),
        ("failpoint('a'); os.link(a, b); os.unlink(a); failpoint('b')", {"before", "after"}),
        ("failpoint('a'); run(os.unlink, a); failpoint('b')", set()),
        ("run(os.unlink, a)", {"before", "after"}),
        ("failpoint('a')\nif a:\n  os.rename(a, b)\nfailpoint('b')", set()),
        ("if a:\n  failpoint('a')\nos.rename(a, b)\nfailpoint('b')", {"before"}),
        ("failpoint('a')\nos.rename(a, b)\nif a:\n  return\nfailpoint('b')", {"after"}),
        ("failpoint('a')\nfor a in b:\n  os.fsync(a)\nfailpoint('b')", {"before", "after"}),
        ("for a in b:\n  failpoint('a')\n  os.fsync(a)\n  failpoint('b')", set()),
        (
            "failpoint('a')\ntry:\n  os.link(a, b)\nexcept OSError:\n  a = b\nfailpoint('b')",
            set(),
        ),
        ("failpoint('a')\ntry:\n  return os.link(a, b)\nfinally:\n  failpoint('b')", set()),
        ("with transaction.atomic():\n  a.save()\n  failpoint('a')\nfailpoint('b')", set()),
        ("failpoint('a')\nwith transaction.atomic():\n  a.save()\nfailpoint('b')", {"before"}),
        ("with transaction.atomic():\n  failpoint('a')", {"after"}),
        ("with transaction.atomic():\n  failpoint('a')\nafter_commit(b, c)", set()),
        ("rows.filter(a=b).update(a=c)", {"before", "after"}),
        ("found.update(a)", set()),
        ("failpoint('a'); part.storage.delete(a); failpoint('b')", set()),
        ("signals.send(a, b)", {"before", "after"}),
    ],
)
def test_what_is_missing_is_found(source: str, missing: set[str]) -> None:
    body = "".join(f"  {line}\n" for line in source.splitlines())
    module = Module("engine/some.py", ast.parse(f"def some():\n{body}"))
    assert {where for _, where in uncovered_in(module)} == missing
