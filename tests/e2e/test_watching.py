"""An upload at one process, and its watcher at another one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_async_upload.protocol import messages

from .hosts import Host, hosting
from .raw import RawConnection
from .redis import Redis, running_redis

MIB = 1024 * 1024
STREAM = 7


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with running_redis(tmp_path) as redis:
        yield redis


@pytest.fixture
def pair(
    template: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Host, Host]]:
    extra = {}
    if getattr(request, "param", "redis") == "redis":
        redis = request.getfixturevalue("redis")
        extra["E2E_LAYER"] = json.dumps(redis.layers()["default"])
    with (
        hosting("uvicorn", template, tmp_path / "host", {}, **extra) as host,
        host.another_server() as another,
    ):
        yield host, another


def hear(
    watcher: RawConnection, upload: str, holds: Callable[[messages.Status], object]
) -> tuple[messages.Status, float]:
    """The standing of an upload of which something holds, and the seconds until it came."""
    began = time.monotonic()
    while True:
        for fields in watcher.expect(messages.Changed, stream=STREAM).standings:
            status = messages.Status.from_fields(fields)
            if status.upload == upload and holds(status):
                return status, time.monotonic() - began


@pytest.mark.parametrize(
    ("pair", "limit"), [("redis", 1.0), ("rows", 4.0)], indirect=["pair"], ids=["redis", "rows"]
)
def test_a_watcher_at_another_process_sees_the_upload_begin_grow_and_end(
    pair: tuple[Host, Host], limit: float
) -> None:
    host, another = pair
    data = os.urandom(2 * MIB)
    with another.connect() as watcher, host.connect() as sender:
        watcher.send(messages.Watch("own"), STREAM)
        assert watcher.expect(messages.Changed, stream=STREAM).standings == []
        time.sleep(1.5)  # the interest in changes has reached the other process
        stream, created = sender.create("watched.bin", len(data))
        seconds = [hear(watcher, created.upload, lambda each: each.state == "uploading")[1]]
        sender.upload(stream, data, stop=MIB)
        grown, waited = hear(
            watcher, created.upload, lambda each: max(each.durable, each.received or 0) == MIB
        )
        seconds.append(waited)
        sender.upload(stream, data, offset=MIB)
        stored_as = sender.finish(stream, data).stored_as
        done, waited = hear(watcher, created.upload, lambda each: each.state == "completed")
        seconds.append(waited)
    assert (grown.size, done.stored_as) == (len(data), stored_as)
    assert max(seconds) < limit, seconds


def test_a_redis_that_is_killed_costs_freshness_only(pair: tuple[Host, Host], redis: Redis) -> None:
    host, another = pair
    with another.connect() as watcher, host.connect() as sender:
        watcher.send(messages.Watch("own"), STREAM)
        watcher.expect(messages.Changed, stream=STREAM)
        redis.kill()
        _, created = sender.create("without redis.bin", MIB)
        _, seconds = hear(watcher, created.upload, lambda each: each.state == "uploading")
        assert seconds < 9
