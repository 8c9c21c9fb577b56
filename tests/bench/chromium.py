"""A real Chromium, driven over its DevTools protocol with nothing switched on that watches the network.

Playwright and Selenium listen to the Network domain: Chromium then copies every frame that a page sends over a
WebSocket into a message for the debugger, which halves the speed of what is to be measured.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from websockets.sync.client import connect

from .servers import die_with_parent

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--enable-precise-memory-info", "--remote-debugging-port=0"),
)
START_TIMEOUT = 30.0


class PageError(Exception):
    """A script in the page threw."""


class Chromium:
    """A browser with a fresh profile; gone, with its files, when its ``with`` block is left."""

    def __init__(self, executable: str) -> None:
        self.executable = executable

    @staticmethod
    def find() -> str | None:
        """The path of Chromium or Chrome, or None."""
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        return next(filter(None, map(shutil.which, names)), None)

    def version(self) -> str:
        said = subprocess.run([self.executable, "--version"], capture_output=True, text=True)
        return said.stdout.strip()

    def __enter__(self) -> Chromium:
        self._profile = Path(tempfile.mkdtemp(prefix="async-upload-chromium-"))
        self.process = subprocess.Popen(
            [self.executable, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        try:
            self._connection = connect(self._address(), max_size=None, compression=None)
        except BaseException:
            self.__exit__()
            raise
        self._ids = itertools.count(1)
        return self

    def __exit__(self, *unused: object) -> None:
        family = [self.process.pid, *(each.pid for each in self._children())]
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in family[1:]:
            try:
                psutil.Process(pid).wait(5)
            except (psutil.NoSuchProcess, psutil.TimeoutExpired):
                continue
        shutil.rmtree(self._profile, ignore_errors=True)

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def memory(self) -> int:
        """Bytes of memory of the browser and all its processes; shared pages count once (PSS)."""
        total = 0
        for process in [psutil.Process(self.process.pid), *self._children()]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return total

    def _address(self) -> str:
        port_file = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            lines = port_file.read_text().split() if port_file.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.executable} did not start")
            time.sleep(0.05)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of one command. Raises :class:`RuntimeError` when Chromium refuses it."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> Page:
        """A new page, when its scripts have run."""
        return Page(self, url)


class Page:
    """A page in a process of its own; closed when its ``with`` block is left."""

    def __init__(self, browser: Chromium, url: str) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        self.go(url)

    def go(self, url: str) -> None:
        """To another page; returns when its scripts have run."""
        self.evaluate("globalThis.ready = false")
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + START_TIMEOUT
        while not self.evaluate("globalThis.ready === true"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} was not ready in time")
            time.sleep(0.02)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *unused: object) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's too. Raises :class:`PageError`."""
        said = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in said:
            details = said["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return said["result"].get("value")

    def choose(self, selector: str, path: Path) -> None:
        """Put a file into a file input, as a user does with the dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
