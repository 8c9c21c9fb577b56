"""How much service one user's attack leaves to another user, on each server: ``python -m tests.bench.attacks``.

Each attack meets a server process of its own, on the loopback interface. Another user uploads 64 MiB and begins
uploads there, and in turn on a server that is not attacked; the table says how fast. It ends by itself, with 1
where the other user was starved.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from django_async_upload.protocol import messages as m
from tests.e2e.hosts import Host, hosting, manage, prepare
from tests.e2e.raw import Closed, Failed
from tests.e2e.servers import KINDS, ROOT

from .attackers import ATTACKS, KIB, MIB

SIZE = 64 * MIB
SMALL_DISK = 768 * MIB
MIN_FREE = 128 * MIB
LEAST_SPEED = 0.5
"""Of the speed alone."""
LONGEST_ANSWER = 1.0
"""Seconds."""
SETTLED = 20.0
"""Seconds that an attack may take to be in place."""

MANY_ROWS = """
from django.contrib.auth.models import User
from django_async_upload.models import UploadSession
from django_async_upload.sessions import rows
user = User.objects.get(username="demo")
UploadSession.objects.bulk_create([
    UploadSession(key=f"{n:032x}", endpoint="default", owner=user, owner_key=f"user:{user.pk}",
        address="127.0.0.1", name="a.bin", size=1000, expires_at=rows.expiry())
    for n in range(9900)
])
"""


@dataclass
class Figures:
    """What the other user got: MiB/s, and seconds of each answer to CREATE and of each small file."""

    speeds: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds) if self.speeds else 0.0


def measure(host: Host, figures: Figures, data: bytes) -> None:
    """Begin uploads, send small files, and upload ``data`` once, as the other user."""
    try:
        with host.connect(host.ticket("other")) as bob:
            for _ in range(5):
                began = time.monotonic()
                stream, _created = bob.create("b.bin", 100 * KIB)
                figures.answers.append(time.monotonic() - began)
                bob.send(m.Cancel(), stream)
                bob.expect(m.Cancelled, stream=stream)
                began = time.monotonic()
                stream = bob.next_stream()
                bob.send(m.Create(os.urandom(16).hex(), "small.bin", 1000), stream)
                bob.send_data(stream, 0, data[:1000])
                bob.finish(stream, data[:1000])
                figures.small.append(time.monotonic() - began)
            began = time.monotonic()
            stream, _created = bob.create("large.bin", len(data))
            figures.answers.append(time.monotonic() - began)
            bob.upload(stream, data)
            bob.finish(stream, data)
            figures.speeds.append(len(data) / MIB / (time.monotonic() - began))
    except Failed as failed:
        figures.errors.append(failed.error.code)
    except (Closed, TimeoutError, OSError) as error:
        figures.errors.append(repr(error))


@contextlib.contextmanager
def attacking(name: str, host: Host) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.bench.attackers", name, str(host.port), host.ticket()]
    # Niced: what the attacker computes on this machine, another one would.
    attacker = subprocess.Popen(
        ["nice", "-n", "19", *command], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert attacker.stdout is not None
        os.set_blocking(attacker.stdout.fileno(), False)
        deadline = time.monotonic() + SETTLED
        while b"ready" not in (attacker.stdout.read() or b"") and time.monotonic() < deadline:
            if attacker.poll() is not None:
                raise RuntimeError(f"the attacker ended with {attacker.returncode}")
            time.sleep(0.05)
        yield attacker
    finally:
        attacker.kill()
        attacker.wait()


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[str]:
    """A tmpfs; yields why there is none, or "" ."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(path)]
    if os.geteuid() != 0:
        yield "not root, so no small disk can be mounted"
        return
    done = subprocess.run(mount, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        yield f"no small disk: {done.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)


def run(kind: str, name: str, template: Path, root: Path, rounds: int) -> bool:
    """One attack on one server: prints a line of the table, and returns whether the other user was well.

    A second server, which is not attacked, says what the user gets alone: the two take turns, and the attacked one
    and its attacker are stopped meanwhile, so that what else the machine does falls on both.
    """
    alone, attacked = Figures(), Figures()
    folders = root / "alone", root / "attacked"
    root.mkdir()
    with contextlib.ExitStack() as stack:
        settings: dict[str, object] = {}
        if name == "X3":
            settings["MIN_FREE_SPACE"] = MIN_FREE
            for folder in folders:
                if why := stack.enter_context(small_disk(folder)):
                    print(f"| {kind} | {name} | skipped: {why} | | | | | |", flush=True)
                    return True
        peace, host = (
            stack.enter_context(hosting(kind, template, folder, settings)) for folder in folders
        )
        if name == "X24":
            manage(host.server.env, "shell", "--command", MANY_ROWS)
        data = os.urandom(SIZE)
        attacker = stack.enter_context(attacking(name, host))
        for _ in range(rounds):
            attacker.send_signal(signal.SIGSTOP)
            host.server.stop()
            measure(peace, alone, data)
            host.server.cont()
            attacker.send_signal(signal.SIGCONT)
            time.sleep(1.0)
            measure(host, attacked, data)
        notes = list(attacked.errors)
        if name == "X3":
            room = os.statvfs(folders[1])
            notes.append(f"{room.f_bavail * room.f_frsize // MIB} MiB left free")
    ratio = attacked.speed / alone.speed if alone.speed else 0.0
    longest = max(attacked.answers, default=float("inf"))
    is_well = not attacked.errors and ratio >= LEAST_SPEED and longest < LONGEST_ANSWER
    print(
        f"| {kind} | {name} | {alone.speed:.0f} | {attacked.speed:.0f} | **{ratio:.2f}** "
        f"| {longest * 1000:.0f} ms | {max(attacked.small, default=0) * 1000:.0f} ms "
        f"| {'yes' if is_well else 'NO'} {', '.join(notes)} |",
        flush=True,
    )
    return is_well


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attacks", description=__doc__)
    parser.add_argument("--servers", default=",".join(KINDS))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--rounds", type=int, default=3, help="uploads of 64 MiB, each way")
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk")
    options = parser.parse_args(arguments)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # stops the servers and unmounts the disks, too
    directory = Path(tempfile.mkdtemp(prefix="async-upload-attacks-", dir=options.directory))
    try:
        template = directory / "template"
        template.mkdir()
        prepare(template)
        print(
            "| server | attack | MiB/s alone | attacked | ratio | slowest CREATE | slowest small file | well |"
        )
        print("|---|---|---|---|---|---|---|---|")
        well = [
            run(kind, name, template, directory / f"{kind}-{name}", options.rounds)
            for kind in options.servers.split(",")
            for name in options.attacks.split(",")
        ]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
