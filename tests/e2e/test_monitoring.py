"""The example's dashboard: a Prometheus that reads the site answers each of its queries."""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.failpoints import VARIABLE
from django_async_upload.protocol import messages

from .prometheus import Prometheus
from .raw import Closed, RawConnection
from .servers import ROOT, wait_for
from .workers import Site

MONITORING = ROOT / "example_project/monitoring"
ABANDON = "UPDATE async_upload_uploadsession SET updated_at = '2020-01-01 00:00:00' WHERE state = 'finalizing'"
DATA = os.urandom(100_000)


def expressions() -> list[str]:
    """The queries of the dashboard, with the interval that Grafana puts in."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    found = [each["expr"] for panel in dashboard["panels"] for each in panel.get("targets", ())]
    return [each.replace("$__rate_interval", "10m") for each in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("monitoring") / "site", "demo.settings") as site:
        yield site


@pytest.fixture(scope="module")
def prometheus(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with Prometheus(folder, MONITORING / "prometheus.yml", site.server.port) as prometheus:
        yield prometheus


def connect(site: Site) -> RawConnection:
    ticket = site.manage("upload_ticket", "demo").strip()
    connection = RawConnection(site.server.port)
    connection.greet(ticket)
    return connection


def crash_in_publication(site: Site) -> None:
    """Then the server, once it is started again, has a publication to recover."""
    site.server.kill()
    site.server.env[VARIABLE] = "publish.after_files"
    site.server.start()
    with connect(site) as connection, suppress(Closed, OSError):
        stream, _created = connection.create("recovered.bin", len(DATA))
        connection.upload(stream, DATA)
        connection.finish(stream, DATA)
    del site.server.env[VARIABLE]
    site.server.kill()
    site.server.start()


def upload(site: Site, folder: Path) -> None:
    path = folder / f"{uuid.uuid4().hex}.bin"
    path.write_bytes(DATA)
    site.upload(path)


def cause_everything(site: Site, folder: Path) -> None:
    """Once each thing that is counted or timed, but for recoveries."""
    upload(site, folder)
    with connect(site) as older, connect(site) as newer:
        _stream, created = older.create("taken.bin", len(DATA))
        stream, _ready = newer.attach(created.upload, b"")
        newer.send(messages.Cancel(), stream)
        newer.expect(messages.Cancelled, stream=stream)
        stream = newer.next_stream()
        newer.send(messages.Query(str(uuid.uuid4())), stream)
        newer.expect(messages.Error, stream=stream)
        newer.send_message(b"junk")
        newer.error()


def test_prometheus_answers_each_query_of_the_dashboard(
    site: Site, prometheus: Prometheus, tmp_path: Path
) -> None:
    crash_in_publication(site)
    cause_everything(site, tmp_path)
    site.server.rows(ABANDON)
    wait_for(lambda: prometheus.query("async_upload_completion_seconds_count"), what="a look")
    upload(site, tmp_path)  # a quantile needs one since the first look
    silent: dict[str, Any] = {}

    def is_complete() -> bool:
        silent.clear()
        silent.update({each: found for each in expressions() if not (found := answer(each))})
        return not silent

    def answer(expression: str) -> list[float]:
        values = [float(each["value"][1]) for each in prometheus.query(expression)]
        return [each for each in values if not math.isnan(each)]

    with connect(site) as connection:  # the open upload is a gauge's
        connection.create("open.bin", len(DATA))
        with suppress(AssertionError):  # a rate needs two values of a counter
            wait_for(is_complete, seconds=60, what="every query")
        assert not silent
    (up,) = prometheus.query("up")
    assert up["value"][1] == "1"
    assert len(expressions()) > 20


def test_a_query_that_does_not_parse_is_refused(prometheus: Prometheus) -> None:
    with pytest.raises(urllib.error.HTTPError):
        prometheus.query("sum by (state (async_upload_uploads_active)")
