"""A host project in one file: the app's endpoint, an ordinary upload form, and an empty consumer to compare it with.

``python -m tests.bench.site`` makes the database and prints a ticket, or so many tickets of a user each as its argument
says; an ASGI server serves ``application``. Where it keeps things, and how durable they are, is said by
``BENCH_DIRECTORY``, ``BENCH_DURABILITY`` and ``BENCH_SYNC``; which class counts, by ``BENCH_TELEMETRY``.
"""

# ruff: noqa: E402  (models can be written down only after the settings)

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings

ROOT = os.environ["BENCH_DIRECTORY"]
SYNC = int(os.environ.get("BENCH_SYNC", "0"))
"""Bytes after which the form's files are made durable; 0 is never."""

settings.configure(
    SECRET_KEY="for measurements only: not a secret, long enough for the signer's taste",
    ALLOWED_HOSTS=["127.0.0.1", "10.99.0.2"],  # the second one is the far end of `link`
    USE_TZ=True,
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "channels",
        "django_async_upload",
    ],
    # None: sessions and users would only slow the form down.
    MIDDLEWARE=[],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{ROOT}/db.sqlite3",
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    MEDIA_ROOT=f"{ROOT}/files",
    # On the storage's file system, so that Django moves its temporary files by renaming.
    FILE_UPLOAD_TEMP_DIR=f"{ROOT}/tmp",
    FILE_UPLOAD_HANDLERS=(
        [f"{__name__}.SyncedUploadHandler"]
        if SYNC
        else [
            "django.core.files.uploadhandler.MemoryFileUploadHandler",
            "django.core.files.uploadhandler.TemporaryFileUploadHandler",
        ]
    ),
    ASYNC_UPLOAD={
        "STAGING_ROOT": f"{ROOT}/staging",
        "STORAGE": "default",  # where the other sites of a contest put their files, too
        "UPLOAD_TO": "in/",
        "DURABILITY": os.environ.get("BENCH_DURABILITY", "os"),
        # Unknown to an older checkout, whose site is without it.
        **({"TELEMETRY": os.environ["BENCH_TELEMETRY"]} if "BENCH_TELEMETRY" in os.environ else {}),
        "USER_MAX_CONNECTIONS": 2_000,
        "ADDRESS_MAX_CONNECTIONS": 2_000,
        "TICKET_MAX_AGE": 24 * 3600.0,
    },
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    },
)
django.setup()

from django import forms
from django.core.asgi import get_asgi_application
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.core.management import call_command
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.static import serve

import django_async_upload
from django_async_upload.routing import upload_application

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.core.files.uploadedfile import UploadedFile

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]


class Document(models.Model):
    """What the form saves: a row and its file."""

    file = models.FileField(upload_to="in/")
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "bench"

    def __str__(self) -> str:
        return str(self.file)


class DocumentForm(forms.ModelForm):
    class Meta:
        model = Document
        fields = ["file"]


class SyncedUploadHandler(TemporaryFileUploadHandler):
    """The stock handler, its file made durable every ``SYNC`` bytes and at the end."""

    unsynced = 0

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        super().receive_data_chunk(raw_data, start)
        self.unsynced += len(raw_data)
        if self.unsynced >= SYNC:
            self._sync()

    def file_complete(self, file_size: int) -> UploadedFile | None:
        self._sync()
        return super().file_complete(file_size)

    def _sync(self) -> None:
        self.file.flush()
        os.fdatasync(self.file.fileno())
        self.unsynced = 0


def post(request: HttpRequest) -> HttpResponse:
    form = DocumentForm(request.POST, request.FILES)
    if not form.is_valid():
        return HttpResponse(form.errors.as_json(), status=400)
    name = form.save().file.name
    return HttpResponse(name, status=201, headers={"Content-Length": str(len(name))})


async def counts(request: HttpRequest) -> JsonResponse:
    """What the process that answers has, beside what the system knows of it."""
    gc.collect()
    return JsonResponse({"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())})


# The page of `tests.bench.browser`, and what it loads.
PAGES = {
    "bench": Path(__file__).parent,
    "static": Path(django_async_upload.__file__).parent / "static",
    "npm": Path(os.environ.get("BENCH_NPM", "")),
}
urlpatterns: list[Any] = [
    path("files/", post),
    path("counts/", counts),
    *(path(f"{name}/<path:path>", serve, {"document_root": root}) for name, root in PAGES.items()),
]
uploads = upload_application(get_asgi_application())


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    empty = scope["type"] == "websocket" and scope["path"] == "/empty/"
    await (drop if empty else uploads)(scope, receive, send)


async def drop(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """The least that a consumer can do: each text message is answered with the bytes that came before it."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    count = 0
    while (message := await receive())["type"] == "websocket.receive":
        if data := message.get("bytes"):
            count += len(data)
        else:
            await send({"type": "websocket.send", "bytes": str(count).encode()})


def prepare(users: int) -> list[str]:
    """Make tables and users; return a ticket of each."""
    from django.contrib.auth.models import User

    from django_async_upload.tickets import issue_ticket

    os.mkdir(f"{ROOT}/tmp")
    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(Document)
    with transaction.atomic():
        people = [User.objects.create_user(f"bench{number}") for number in range(users)]
    return [issue_ticket(each) for each in people]


if __name__ == "__main__":
    print("\n".join(prepare(int((*sys.argv, 1)[1]))))
