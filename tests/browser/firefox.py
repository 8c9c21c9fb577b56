"""A real Firefox over WebDriver BiDi, as Debian ships it.

Playwright asks it for a command that the ESR does not know (``emulation.setMediaFeaturesOverride``), and Debian has
no geckodriver. But Firefox itself listens for BiDi, and what these tests need of that is little.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from ..e2e.servers import wait_for
from .screen import SECONDS

EXECUTABLES = ("firefox-esr", "firefox")
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.disable_beforeunload": True,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """A browser with a fresh profile and one tab; gone, with its files, when its ``with`` block is left."""

    def __init__(self, executable: str) -> None:
        self.executable = executable
        self._numbers = itertools.count(1)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Firefox:
        self._folder = tempfile.TemporaryDirectory(
            prefix="async-upload-firefox-", ignore_cleanup_errors=True
        )
        folder = Path(self._folder.name)
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in PREFERENCES.items()]
        (folder / "user.js").write_text("\n".join(lines))
        log = folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(self.executable, "--headless", "--no-remote", "--profile", str(folder)),
                    *("--remote-debugging-port", "0", "about:blank"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            listening = wait_for(
                # The whole line: the log may be read while it is written.
                lambda: re.search(
                    r"BiDi listening on (ws://\S+)\n", log.read_text(errors="replace")
                ),
                seconds=120,
                what="Firefox",
            )
            self._connection: ClientConnection = self._open.enter_context(
                connect(f"{listening[1]}/session", max_size=None, compression=None, open_timeout=60)
            )
            self.call("session.new", capabilities={})
            (tab,) = wait_for(
                lambda: self.call("browsingContext.getTree")["contexts"],
                seconds=SECONDS,
                what="Firefox's tab",
            )
            self.tab = str(tab["context"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self._open.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command. Raises :class:`RuntimeError` when Firefox refuses it."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                if answer["type"] == "error":
                    raise RuntimeError(f"{method}: {answer['message']}")
                return dict(answer["result"])

    def goto(self, url: str) -> None:
        self.call("browsingContext.navigate", context=self.tab, url=url, wait="complete")

    def reload(self) -> None:
        self.call("browsingContext.reload", context=self.tab, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression: a text, number, truth value or null. Raises :class:`RuntimeError`."""
        said = self._evaluate(expression)
        return said.get("value")

    def until(self, expression: str, *, seconds: float = SECONDS) -> None:
        """Wait until a JavaScript expression is true, on this page or the one that follows."""

        def is_true() -> Any:
            # While one page replaces another there is no page to evaluate it in.
            with contextlib.suppress(RuntimeError):
                return self.evaluate(expression)

        wait_for(is_true, seconds=seconds, what=expression)

    def cookie(self, name: str) -> str:
        """The value of a cookie of this page, also one that is HttpOnly."""
        found = self.call(
            "storage.getCookies",
            filter={"name": name},
            partition={"type": "context", "context": self.tab},
        )
        (cookie,) = found["cookies"]
        return str(cookie["value"]["value"])

    def choose(self, selector: str, *paths: Path) -> None:
        """Put files into a file input, as a user does with the dialogue."""
        found = self._evaluate(f"document.querySelector({json.dumps(selector)})")
        files = [str(path) for path in paths]
        element = {"sharedId": found["sharedId"]}
        self.call("input.setFiles", context=self.tab, element=element, files=files)

    def _evaluate(self, expression: str) -> dict[str, Any]:
        said = self.call(
            "script.evaluate",
            expression=expression,
            target={"context": self.tab},
            awaitPromise=True,
        )
        if said["type"] == "exception":
            raise RuntimeError(said["exceptionDetails"]["text"])
        return dict(said["result"])
