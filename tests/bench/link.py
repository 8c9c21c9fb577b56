"""A link between two network namespaces: so many bits a second, a delay, loss, and cuts. It needs root and Linux.

``python -m tests.bench.link`` makes the namespaces ``NEAR`` and ``FAR`` and carries packets between their TUN devices
until its input ends. Each line of input is JSON and changes the link, or is empty; each is answered with the bytes that
were sent into it so far, to the far side and back.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from .servers import CHECKOUT, die_with_parent

NEAR, FAR = "async-upload-near", "async-upload-far"
NEAR_ADDRESS, FAR_ADDRESS = "10.99.0.1", "10.99.0.2"
MTU = 1500
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


@dataclass
class Way:
    """One direction. ``queue`` holds the packets on their way, with the time at which each arrives."""

    source: int
    target: int
    sent: int = 0
    """Bytes that entered it."""
    free: float = 0.0
    """The time at which the packets before have left."""
    queue: deque[tuple[float, bytes]] = field(default_factory=deque)


@dataclass
class Shape:
    rate: float = 100e6
    """Bits a second, each way."""
    delay: float = 0.05
    """Seconds, each way."""
    loss: float = 0.0
    """The part of the packets that is lost, each way."""
    is_cut: bool = False
    """Whether nothing arrives."""
    waits: float = 0.3
    """Seconds for which a packet may wait for those before it; later ones are dropped."""


class Carrier:
    """Moves the packets."""

    def __init__(self, near: int, far: int) -> None:
        self.shape = Shape()
        self.ways = Way(near, far), Way(far, near)
        self.selector = selectors.DefaultSelector()
        for way in self.ways:
            os.set_blocking(way.source, False)
            self.selector.register(way.source, selectors.EVENT_READ, way)
        self.selector.register(0, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            due = min((way.queue[0][0] for way in self.ways if way.queue), default=None)
            wait = None if due is None else max(0.0, due - time.perf_counter())
            for key, _events in self.selector.select(wait):
                if key.data is not None:
                    self._take(key.data)
                elif not self._obey(sys.stdin.readline()):
                    return
            now = time.perf_counter()
            for way in self.ways:
                while way.queue and way.queue[0][0] <= now:
                    with suppress(OSError):  # the device's own queue is full
                        os.write(way.target, way.queue.popleft()[1])

    def _take(self, way: Way) -> None:
        shape = self.shape
        for _ in range(64):
            try:
                packet = os.read(way.source, 65536)
            except BlockingIOError:
                return
            way.sent += len(packet)
            now = time.perf_counter()
            starts = max(now, way.free)
            if shape.is_cut or random.random() < shape.loss or starts - now > shape.waits:
                continue
            way.free = starts + len(packet) * 8 / shape.rate
            way.queue.append((way.free + shape.delay, packet))

    def _obey(self, line: str) -> bool:
        if not line:
            return False
        for name, value in json.loads(line).items():
            setattr(self.shape, name, value)
        if self.shape.is_cut:
            for way in self.ways:
                way.queue.clear()
        print(json.dumps([way.sent for way in self.ways]), flush=True)
        return True


class Link:
    """The process of a link."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def change(self, **shape: Any) -> tuple[int, int]:
        """Change the link; returns the bytes that have been sent into it, to the far side and back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(shape), file=self.process.stdin, flush=True)
        there, back = json.loads(self.process.stdout.readline())
        return there, back

    def cut(self, seconds: float) -> None:
        """Nothing arrives for so long, and every connection is lost, as when a phone changes its network."""
        self.change(is_cut=True)
        for namespace in (NEAR, FAR):
            inside(namespace, "ss", "-K", "dst", f"{NEAR_ADDRESS}/24", check=False)
        time.sleep(seconds)
        self.change(is_cut=False)


@contextmanager
def linked() -> Iterator[Link]:
    """A link, and this process on its near side."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.link"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("no network namespaces or TUN devices can be made here")
        with open(f"/run/netns/{NEAR}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        yield Link(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def inside(namespace: str, *command: str, check: bool = True) -> None:
    _run("ip", "netns", "exec", namespace, *command, check=check)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, timeout=20)


def _device(name: str, namespace: str, address: str) -> int:
    """A TUN device in a namespace of its own; returns the descriptor of its packets."""
    _run("ip", "netns", "add", namespace)
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    _run("ip", "link", "set", name, "netns", namespace)
    inside(namespace, "ip", "address", "add", f"{address}/24", "dev", name)
    inside(namespace, "ip", "link", "set", name, "mtu", str(MTU), "up")
    inside(namespace, "ip", "link", "set", "lo", "up")
    return device


def main() -> int:
    for namespace in (NEAR, FAR):  # left by a run that was killed
        _run("ip", "netns", "delete", namespace, check=False)
    try:
        near = _device("async-near", NEAR, NEAR_ADDRESS)
        far = _device("async-far", FAR, FAR_ADDRESS)
        print("ready", flush=True)
        Carrier(near, far).run()
    finally:
        for namespace in (NEAR, FAR):
            _run("ip", "netns", "delete", namespace, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
