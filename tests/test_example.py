"""The example site does what ``make demo`` promises, from its own first line to Ctrl-C."""

from __future__ import annotations

import hashlib
import http.cookiejar
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from .e2e.redis import running_redis
from .e2e.servers import free_port, wait_for

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[1]


class Demo:
    """A running copy of the example site."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        self.folder = folder
        self.options = options
        self.port = free_port()
        self.log = folder.parent / "log"
        self.env = {**os.environ, "XDG_STATE_HOME": str(folder.parent / "state"), **env}
        self.env.pop("DJANGO_SETTINGS_MODULE", None)
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=folder, env=self.env, stdout=log, stderr=log
            )
        wait_for(self._answers, seconds=90, what="the example site")

    def command(self) -> list[str]:
        return [sys.executable, "manage.py", "demo", "--port", str(self.port), *self.options]

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with suppress(OSError):
            return bool(self.get("/login/"))
        return False

    def get(self, path: str, form: dict[str, str] | None = None) -> str:
        url = f"http://127.0.0.1:{self.port}{path}"
        data = None if form is None else urllib.parse.urlencode(form).encode()
        with self.opener.open(url, data, timeout=60) as answer:
            return str(answer.read().decode())

    def sign_in(self) -> str:
        """As demo, whose password is demo; returns the page that comes then."""
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', self.get("/login/"))
        assert token is not None
        form = {"username": "demo", "password": "demo", "csrfmiddlewaretoken": token[1]}
        return self.get("/login/", form)


@contextmanager
def running(root: Path, *options: str, **env: str) -> Iterator[Demo]:
    folder = root / "example_project"
    # Leaves out the files that the site makes when it is run.
    shutil.copytree(
        ROOT / "example_project",
        folder,
        ignore=shutil.ignore_patterns("db.sqlite3*", "media*", "staticfiles"),
    )
    demo = Demo(folder, *options, **env)
    workers = psutil.Process(demo.process.pid).children(recursive=True)
    try:
        yield demo
    finally:
        demo.process.kill()
        demo.process.wait()
        for each in workers:
            with suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


def upload(demo: Demo, content: bytes) -> None:
    """By the line that it prints."""
    line = re.search(r"^  (\S+async-upload put README\.md .+)$", demo.log.read_text(), re.MULTILINE)
    assert line is not None, demo.log.read_text()
    (demo.folder / "README.md").write_bytes(content)

    done = subprocess.run(
        ["bash", "-c", line[1]], cwd=demo.folder, env=demo.env, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    stored_as = re.search(r"README\.md -> (\S+)", done.stdout)
    assert stored_as is not None, done.stdout
    assert (demo.folder / "media-uploads" / stored_as[1]).read_bytes() == content


@pytest.mark.parametrize("has_redis", [True, False])
def test_two_workers_have_the_redis_that_is_there_between_them(
    tmp_path: Path, has_redis: bool
) -> None:
    with ExitStack() as stack:
        url = f"redis://127.0.0.1:{free_port()}"  # nobody listens
        if has_redis:
            (tmp_path / "redis").mkdir()
            url = stack.enter_context(running_redis(tmp_path / "redis")).url
        demo = stack.enter_context(running(tmp_path, "--workers", "2", REDIS_URL=url))
        between = (
            f"with Redis at {urllib.parse.urlsplit(url).netloc}" if has_redis else "without Redis"
        )
        assert f"The workers:   2, {between}; " in demo.log.read_text()
        upload(demo, os.urandom(1_000_000))
        status = [sys.executable, "manage.py", "upload_status", "--json"]

        def ask() -> dict[str, Any] | None:
            out = subprocess.run(
                status, cwd=demo.folder, env=demo.env, capture_output=True, check=True
            )
            answer: dict[str, Any] = json.loads(out.stdout)
            return answer if len(answer["workers"]) == 2 else None

        answer = wait_for(ask, what="both workers")
        assert answer["scope"] == ("site" if has_redis else "machine")
        assert answer["uploads"] == {"completed": 1}
        with urllib.request.urlopen(f"http://127.0.0.1:{demo.port}/healthz/", timeout=30) as health:
            assert json.load(health)["layer"] == {"available": True} or not has_redis


def test_workers_and_commands_find_the_redis_of_this_machine_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_redis = runpy.run_path(str(ROOT / "example_project/demo/layer.py"))["find_redis"]
    monkeypatch.delenv("REDIS_URL", raising=False)
    with socket.socket() as probe:
        is_there = probe.connect_ex(("127.0.0.1", 6379)) == 0
    assert find_redis() == ("redis://127.0.0.1:6379" if is_there else None)
    with running_redis(tmp_path) as redis:
        monkeypatch.setenv("REDIS_URL", redis.url)
        assert find_redis() == redis.url
        redis.kill()
        assert find_redis() is None
    monkeypatch.setenv("REDIS_URL", "")
    assert find_redis() is None


def test_the_line_that_it_prints_uploads_a_file(demo: Demo) -> None:
    content = b"one\ntwo\n" * 1000
    upload(demo, content)

    demo.sign_in()
    digest = hashlib.sha256(content).hexdigest()
    page = wait_for(lambda: _page_with(demo, digest), what="the work of the receiver")
    assert "completed" in page
    assert "Lines: 2000" in page
    assert "README.md" in demo.get("/gallery/")

    link = re.search(r'href="(/uploads/[^"]+)"', page)
    assert link is not None
    with demo.opener.open(f"http://127.0.0.1:{demo.port}{link[1]}") as download:
        assert download.read() == content
        assert download.headers["Content-Disposition"] == 'attachment; filename="README.md"'
        assert download.headers["Content-Type"] == "application/octet-stream"
        assert download.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_pages_on_gunicorn_and_uploads_beside_them_are_one_site(proxy: str, tmp_path: Path) -> None:
    if shutil.which(proxy, path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip(f"needs {proxy}")
    nobody = f"redis://127.0.0.1:{free_port()}"
    with running(tmp_path, "--sidecar", proxy, REDIS_URL=nobody) as demo:
        content = os.urandom(3_000_000)
        upload(demo, content)
        demo.sign_in()
        digest = hashlib.sha256(content).hexdigest()
        wait_for(lambda: _page_with(demo, digest), what="the work of the receiver")
        children = psutil.Process(demo.process.pid).children(recursive=True)
        programs = {re.sub(r"^.*/", "", each.name()) for each in children}
        assert {proxy, "gunicorn", "uvicorn"} <= programs | {
            word for each in children for word in each.cmdline()
        }
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            demo.get("/ws/nowhere/")
        assert refused.value.read() == b"Only uploads are served here.\n"

        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(30) == 0
        assert not any(each.is_running() for each in children)
        assert "Traceback" not in demo.log.read_text()


def test_the_end_of_one_process_is_the_end_of_all(tmp_path: Path) -> None:
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("needs nginx")
    with running(tmp_path, "--sidecar", "nginx") as demo:
        children = psutil.Process(demo.process.pid).children(recursive=True)
        (uploads,) = (each for each in children if "uvicorn" in each.cmdline())
        uploads.kill()
        assert demo.process.wait(30) == 1
        assert "ended with status -9." in demo.log.read_text()
        assert not any(each.is_running() for each in children)


def _page_with(demo: Demo, text: str) -> str | None:
    page = demo.get("/live/")
    return page if text in page else None


def test_its_pages_ask_no_other_server_and_want_a_login(demo: Demo) -> None:
    demo.opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )
    assert 'name="password"' in demo.get("/"), "no user is signed in"
    paths = ("/documents/", "/documents/new/", "/live/", "/gallery/", "/admin/")
    for page in (demo.get("/login/"), demo.sign_in(), *map(demo.get, paths)):
        assert not re.findall(r'(?:src|href|action)="(?:https?:)?//', page)
        assert not re.search(r"<style|<script(?![^>]* src=)|\son\w+=|\sstyle=", page)
    for path in ("/login/", "/gallery/", "/admin/"):
        with demo.opener.open(f"http://127.0.0.1:{demo.port}{path}") as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_its_metrics_are_those_that_prometheus_and_the_dashboard_ask_for(demo: Demo) -> None:
    upload(demo, bytes(8000))
    config = (demo.folder / "monitoring/prometheus.yml").read_text()
    path = re.search(r"metrics_path: (\S+)", config)
    assert path is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{demo.port}{path[1]}", timeout=30) as answer:
        exported = answer.read().decode()
    found = re.search(r"^async_upload_bytes_received_total (\S+)", exported, re.MULTILINE)
    assert found is not None
    assert float(found[1]) >= 8000
    dashboard = (demo.folder / "monitoring/grafana-dashboard.json").read_text()
    shown = set(re.findall(r"async_upload_\w+", dashboard))
    of_any_upload = {
        f"async_upload_{name}_total" for name in ("bytes_received", "uploads_completed")
    }
    assert of_any_upload <= shown & set(re.findall(r"^(async_upload_\w+)", exported, re.MULTILINE))


def test_its_health_is_there_without_a_login(demo: Demo) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{demo.port}/healthz/", timeout=30) as answer:
        health = json.load(answer)
    assert (health["problems"], health["layer"]) == ([], {"available": True})


def test_what_a_page_asks_for_is_there_and_kept_for_ever(demo: Demo) -> None:
    found = re.findall(r'(?:src|href)="(/static/[^"]+)"', demo.sign_in())
    assert {re.sub(r".*/|\.[0-9a-f]{12}", "", each) for each in found} >= {
        "icon.svg",
        "site.css",
        "async-upload.min.css",
        "async-upload.min.js",
    }
    for each in found:
        with demo.opener.open(f"http://127.0.0.1:{demo.port}{each}") as answer:
            assert "immutable" in answer.headers["Cache-Control"]


def test_a_document_gives_its_file_back_as_a_download_and_not_to_strangers(demo: Demo) -> None:
    demo.sign_in()
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', demo.get("/documents/new/"))
    assert token is not None
    boundary = "a-boundary"
    parts = {
        'name="csrfmiddlewaretoken"': token[1],
        'name="title"': "Survey",
        'name="file"; filename="notes.txt"\r\nContent-Type: text/plain': "<b>notes</b>",
    }
    body = "".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n"
        for head, content in parts.items()
    )
    site = f"http://127.0.0.1:{demo.port}"
    form = urllib.request.Request(
        f"{site}/documents/new/",
        f"{body}--{boundary}--\r\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with demo.opener.open(form) as answer:
        page = answer.read().decode()
    assert "“Survey” was saved." in page

    link = re.search(r'href="(/media/documents/[^"]+)"', page)
    assert link is not None
    with demo.opener.open(site + link[1]) as answer:
        assert answer.read() == b"<b>notes</b>"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="notes.txt"'
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    with urllib.request.urlopen(site + link[1]) as answer:
        assert 'name="password"' in answer.read().decode(), "no user is signed in"


def test_a_port_that_is_taken_is_said(demo: Demo) -> None:
    again = subprocess.run(
        demo.command(), cwd=demo.folder, env=demo.env, capture_output=True, text=True
    )
    assert again.returncode == 1
    assert again.stderr.startswith(f"CommandError: 127.0.0.1:{demo.port} cannot be used")
    assert f"make demo PORT={demo.port + 1}" in again.stderr


def test_ctrl_c_stops_it_cleanly(demo: Demo) -> None:
    demo.process.send_signal(signal.SIGINT)

    assert demo.process.wait(15) in (0, -signal.SIGINT)
    assert "Traceback" not in demo.log.read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", demo.port)) != 0
