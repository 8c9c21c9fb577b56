"""What binding costs with durability "fsync", compared with "os": ``python -m tests.bench.bind``.

See "Binding" in docs/benchmarks.md. Finished uploads on a disk are bound one after another, each in a transaction with
a document of the host's, by both durabilities in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import django

from ..e2e.hosts import environment, manage

DURABILITIES = ("os", "fsync")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bind", description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="bound in each round (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="KiB of each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each durability (%(default)s)")
    parser.add_argument("--directory", default="/var/tmp", help="on a real disk (%(default)s)")
    options = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="async-upload-bind-", dir=options.directory))
    try:
        env = environment(root, {})
        manage(env, "migrate", "--verbosity", "0")
        os.environ.update(env)
        django.setup()
        seconds: dict[str, list[float]] = {each: [] for each in DURABILITIES}
        for number in range(options.rounds + 1):
            for durability in DURABILITIES:
                took = bind(durability, options.files, options.size * 1024)
                if number:  # the first round of each warms up
                    seconds[durability].append(took / options.files)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for durability, found in seconds.items():
        low, high = min(found) * 1e3, max(found) * 1e3
        print(f"{durability}: {statistics.median(found) * 1e3:.2f} ms ({low:.2f} to {high:.2f})")
    ratios = [fsync / plain for plain, fsync in zip(*seconds.values(), strict=True)]
    print(
        f"fsync / os: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"{options.files} files of {options.size} KiB, {options.rounds} rounds"
    )
    return 0


def bind(durability: str, files: int, size: int) -> float:
    """Seconds for binding so many uploads, which were published and synced before."""
    from django.core.files.base import ContentFile
    from django.db import transaction
    from django.test import override_settings

    from django_async_upload.models import UploadSession
    from django_async_upload.sessions.state import State
    from tests.site.models import Document

    sessions = []
    for _ in range(files):
        session = UploadSession(name=f"{uuid.uuid4().hex}.bin", key=uuid.uuid4().hex)
        session.endpoint, session.owner_key, session.state = "default", "user:1", State.COMPLETED
        session.size, session.storage = size, "default"
        content = ContentFile(os.urandom(size))
        session.stored_as = session.get_storage().save(f"in/{session.name}", content)
        sessions.append(session)
    UploadSession.objects.bulk_create(sessions)
    os.sync()
    with override_settings(ASYNC_UPLOAD={"DURABILITY": durability}):
        begun = time.perf_counter()
        for session in sessions:
            with transaction.atomic():
                Document.objects.create(name=session.name, attachment=session.bind())
        return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
