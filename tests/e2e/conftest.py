"""Which servers, and how a test gets one.

``E2E_SERVERS`` names the servers for every test; without it, a test marked ``one_server`` runs on the first of the four
only.
``E2E_KILLS`` is how often the suite kills a server (40 over all), and ``E2E_SEED`` repeats a run.
``E2E_LONG=1`` lets services fail for a minute each, instead of some seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.site.stacks import task_stacks

from .forks import Forks
from .hosts import Host, hosting, prepare
from .servers import KINDS, RUNNING
from .stage import make_template

NAMED = os.environ.get("E2E_SERVERS")
SERVERS = NAMED.split(",") if NAMED else list(KINDS)
KILLS = int(os.environ.get("E2E_KILLS", "40"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        has_one = not NAMED and metafunc.definition.get_closest_marker("one_server")
        servers = SERVERS[:1] if has_one else SERVERS
        metafunc.parametrize("kind", servers, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show where the servers, and clients in the test's own process, are when a test has failed."""
    report = yield
    if call.when == "call" and report.failed:
        report.sections.append(("Tasks of the test", "\n".join(task_stacks())))
        for server in RUNNING:
            report.sections.append((f"Stacks of {server.kind}", server.stacks()))
    return report


@pytest.fixture(scope="session")
def kind(request: pytest.FixtureRequest) -> str:
    """The server that a test runs on."""
    return str(request.param)


@pytest.fixture
def streams(kind: str) -> None:
    """The server passes the body of a request on as it comes."""
    if kind == "daphne":
        pytest.skip("Daphne receives a body as a whole before it calls the application")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    prepare(root)
    return root


@pytest.fixture(scope="session")
def _shared(kind: str, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp(f"{kind}-shared")
    with hosting(kind, template, root, {}) as host:
        yield host


def tracebacks(log: str) -> list[str]:
    """Tracebacks with a line of the package or of the host in them. A server's own do not count: uvicorn logs one
    for a text message that is not UTF-8."""
    found = re.findall(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+.*", log)
    return [each for each in found if "django_async_upload" in each or "tests/site" in each]


@contextlib.contextmanager
def clean_log(host: Host) -> Iterator[None]:
    """Nothing that happens inside may leave a traceback in the server's log."""
    start = host.server.log_size()
    host.tracebacks_expected = False
    yield
    log = host.server.log(start)
    if not host.tracebacks_expected:
        assert not tracebacks(log), log[-6000:]


@pytest.fixture
def host(_shared: Host) -> Iterator[Host]:
    """A running server that the tests of one kind share: leave it running."""
    assert _shared.server.is_running, "an earlier test ended the shared server"
    with clean_log(_shared):
        yield _shared


@pytest.fixture
def hosts(kind: str, template: Path, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """``hosts(SETTING=..., extra={...})``: a server of the test's own, to be killed and starved."""
    with contextlib.ExitStack() as stack:

        def start(*, extra: dict[str, str] | None = None, **uploads: object) -> Host:
            root = tmp_path / f"host-{random.getrandbits(32):08x}"
            host = stack.enter_context(hosting(kind, template, root, uploads, **(extra or {})))
            stack.enter_context(clean_log(host))
            return host

        yield start


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Randomness whose seed stands in the output of a test that fails."""
    seed = os.environ.get("E2E_SEED") or str(random.randrange(10**9))
    print(f"E2E_SEED={seed}")
    return random.Random(f"{seed}-{request.node.name}")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def crash_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with make_template(tmp_path_factory.mktemp("crash-template")) as root:
        yield root
