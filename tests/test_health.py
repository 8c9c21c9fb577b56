"""The view that tells load balancers and monitoring how a process is."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.db import OperationalError, ProgrammingError
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils import timezone

from django_async_upload import health, notices
from django_async_upload.engine import drain
from django_async_upload.engine.outbox import Backlog
from django_async_upload.health import healthz
from django_async_upload.models import CompletionEvent
from django_async_upload.sessions.owners import Owner
from django_async_upload.stores.configured import make_store

from .e2e.redis import running_redis
from .fixtures import new_key, publish

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)  # the view reads in another thread

urlpatterns = [path("healthz/", healthz)]


@pytest.fixture(autouse=True)
def site(settings: Any, media: Path) -> None:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    notices.forget()


def get(method: str = "get") -> tuple[int, dict[str, Any]]:
    answer: HttpResponse = getattr(Client(), method)("/healthz/")
    assert "no-store" in answer["Cache-Control"]
    return answer.status_code, json.loads(answer.content or "{}")


def test_a_process_that_can_take_uploads_says_so(staging: Path) -> None:
    status, answer = get()
    free = answer["store"].pop("free_bytes")
    assert (status, answer) == (
        200,
        {
            "status": "ok",
            "problems": [],
            "warnings": [],
            "draining": False,
            "store": {"writable": True},
            "database": {"available": True},
            "layer": {"available": True},
            "outbox": {"waiting": 0, "age": 0.0, "attempts": 0, "dead": 0},
        },
    )
    assert free == pytest.approx(_free(staging), rel=0.1)
    assert list(staging.iterdir()) == []  # the part that it made


def _free(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


async def test_it_answers_on_an_asgi_server_too(uploads: Any) -> None:
    answer = await AsyncClient().get("/healthz/")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert answer.json()["layer"] == {"available": True}


def test_only_reading_is_allowed() -> None:
    assert Client().post("/healthz/").status_code == 405
    assert Client().head("/healthz/").status_code == 200


def test_a_staging_folder_that_cannot_be_written_is_a_problem(staging: Path) -> None:
    staging.write_text("in the way of the folder")
    status, answer = get()
    assert status == 503
    assert answer["status"] == "unavailable"
    assert answer["problems"] == ["storage_error"]
    assert answer["store"] == {"writable": False, "free_bytes": None}
    assert answer["database"] == {"available": True}
    assert str(staging) not in json.dumps(answer)


def test_a_full_disk_is_a_problem_and_shows_its_free_bytes(settings: Any, staging: Path) -> None:
    settings.ASYNC_UPLOAD = {"MIN_FREE_SPACE": 10**18}
    status, answer = get()
    assert (status, answer["problems"]) == (503, ["storage_full"])
    assert answer["store"]["writable"] is False
    assert answer["store"]["free_bytes"] > 0
    assert list(staging.iterdir()) == []


def test_a_store_that_fails_or_hangs_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(health, "make_store", fail)
    assert get()[1]["problems"] == ["storage_error"]
    assert "ZeroDivisionError" in caplog.text

    woken, calls = threading.Event(), []

    def hang() -> Any:
        calls.append(1)
        woken.wait()
        return make_store()

    monkeypatch.setattr(health, "make_store", hang)
    monkeypatch.setattr(health, "SECONDS", 0.1)
    for _ in range(3):
        status, answer = get()
        assert (status, answer["problems"]) == (503, ["storage_error"])
    assert "did not answer" in caplog.text
    assert len(calls) == 1
    woken.set()
    monkeypatch.setattr(health, "SECONDS", 5)
    health._store.start().result(5)
    calls.clear()
    assert get()[0] == 200
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OperationalError("connection refused"), "database_unavailable"),
        (OperationalError("no such table: async_upload_completionevent"), "database_not_migrated"),
        (ProgrammingError("no such table"), "database_not_migrated"),
    ],
)
def test_a_database_without_an_answer_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def fail(items: Any) -> Any:
        raise error

    monkeypatch.setattr(health, "backlogs", fail)
    status, answer = get()
    assert (status, answer["problems"]) == (503, [code])
    assert answer["database"] == {"available": False}
    assert answer["outbox"] is None
    assert answer["store"]["writable"]


def test_a_database_that_hangs_is_a_problem_for_every_request_and_holds_one_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    woken, calls = threading.Event(), []

    def hang(items: Any) -> Any:
        calls.append(1)
        woken.wait()
        return [Backlog(0, 0.0, 0, 0)]

    monkeypatch.setattr(health, "backlogs", hang)
    monkeypatch.setattr(health, "SECONDS", 0.1)
    for _ in range(3):
        status, answer = get()
        assert (status, answer["problems"]) == (503, ["database_unavailable"])
        assert answer["store"]["writable"]
    assert "The database did not answer" in caplog.text
    assert len(calls) == 1
    woken.set()
    monkeypatch.setattr(health, "SECONDS", 5)
    health._outbox.start().result(5)
    assert get()[0] == 200


def test_a_draining_process_gets_no_new_clients() -> None:
    drain._draining[:] = [1.0]
    try:
        status, answer = get()
    finally:
        drain.undrain()
    assert (status, answer["problems"], answer["draining"]) == (503, ["draining"], True)
    assert get()[0] == 200


def test_dead_events_are_a_warning(owner: Owner) -> None:
    for fields in ({"given_up_at": timezone.now(), "attempts": 20}, {"attempts": 2}):
        CompletionEvent.objects.create(session=publish(owner, name=new_key()), **fields)
    status, answer = get()
    assert (status, answer["status"], answer["warnings"]) == (200, "warning", ["outbox_dead"])
    age = answer["outbox"].pop("age")
    assert 0 < age < 60
    assert answer["outbox"] == {"waiting": 1, "attempts": 2, "dead": 1}


class Silent:
    """A layer whose server is away."""

    extensions = ("groups",)

    async def group_send(self, group: str, message: Any) -> None:
        raise ConnectionError("refused by redis://:secret@example.com")


def test_a_layer_without_an_answer_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "get_channel_layer", Silent)
    status, answer = get()
    assert (status, answer["warnings"]) == (200, ["layer_unavailable"])
    assert answer["layer"] == {"available": False}
    assert "secret" not in json.dumps(answer)
    assert "does not answer" in caplog.text


@pytest.mark.parametrize("layer", [RedisPubSubChannelLayer, RedisChannelLayer])
def test_a_redis_that_answers_is_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layer: Any
) -> None:
    with running_redis(tmp_path) as redis:
        monkeypatch.setattr(health, "get_channel_layer", lambda: layer(hosts=[redis.url]))
        assert get()[1]["layer"] == {"available": True}
        redis.kill()
        assert get()[1]["layer"] == {"available": False}


@pytest.mark.parametrize("layer", [None, SimpleNamespace(extensions=())])
def test_a_site_without_a_layer_is_well(monkeypatch: pytest.MonkeyPatch, layer: Any) -> None:
    monkeypatch.setattr(health, "get_channel_layer", lambda: layer)
    status, answer = get()
    assert (status, answer["status"], answer["layer"]) == (200, "ok", None)


def test_the_view_opens_no_transaction_of_its_own() -> None:
    assert "default" in healthz._non_atomic_requests  # type: ignore[attr-defined]
