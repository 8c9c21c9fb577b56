"""Machines of one site, as network namespaces: each with an address, a host name and a boot id of its own.

They share a folder, and reach the services of this machine, and it them, over a link of their own that can be cut.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from .servers import Server

NET = int(ip_address("198.18.0.0"))
"""The first of 2 ** 17 addresses for measurements, which no network uses (RFC 2544)."""
MOST = 2**15
"""Links with four addresses each."""
BOOT = "/proc/sys/kernel/random/boot_id"
ENTER = f'echo "$0" > /proc/sys/kernel/hostname && mount --bind "$1" {BOOT} && shift && exec "$@"'


class Machine:
    """One of them, of a number; ``gateway`` is the address of this machine at the other end of its link."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = name = f"e2e-{os.getpid()}-{number}"
        first = NET + 4 * ((2 * os.getpid() + number) % MOST)
        self.gateway, self.address = str(ip_address(first + 1)), str(ip_address(first + 2))
        self._near = f"up-{os.getpid()}-{number}"
        boot = folder / f"{name}.boot"
        boot.write_text(f"{uuid.uuid4()}\n")
        self.inside = (
            *("ip", "netns", "exec", name, "unshare", "--uts", "--mount"),
            *("sh", "-c", ENTER, name, str(boot)),
        )

    def build(self) -> None:
        """Raises :class:`CalledProcessError` where that is not allowed."""
        far = "eth0"
        self.remove()  # of a run that was killed
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", self._near, "type", "veth", "peer", far, "netns", self.name)
        _run("ip", "address", "add", f"{self.gateway}/30", "dev", self._near)
        _run("ip", "link", "set", self._near, "up")
        there = ("ip", "-n", self.name)
        _run(*there, "address", "add", f"{self.address}/30", "dev", far)
        _run(*there, "link", "set", far, "up")
        _run(*there, "link", "set", "lo", "up")

    def remove(self) -> None:
        for command in (("netns", "delete", self.name), ("link", "delete", self._near)):
            with contextlib.suppress(subprocess.CalledProcessError, OSError):
                _run("ip", *command)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """Nothing arrives from it or at it, and nobody is told."""
        _run("ip", "link", "set", self._near, "down")
        try:
            yield
        finally:
            _run("ip", "link", "set", self._near, "up")


class MachineServer(Server):
    """A server on a machine."""

    def __init__(self, machine: Machine, env: Mapping[str, str], log: Path) -> None:
        super().__init__("uvicorn", env, log)
        self.address = machine.address
        self.inside = machine.inside


@contextlib.contextmanager
def machines(folder: Path, count: int) -> Iterator[Sequence[Machine]]:
    """Machines that are gone at the end; skips where they cannot be made."""
    with contextlib.ExitStack() as stack:
        made = [Machine(number, folder) for number in range(count)]
        try:
            for each in made:
                stack.callback(each.remove)
                each.build()
                _run(*each.inside, "true")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            pytest.skip(f"needs to make network namespaces: {reason}")
        yield made


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
