"""System checks: every misconfiguration that can be seen before the first upload fails on it."""

from __future__ import annotations

import os
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InvalidStorageError, storages
from django.db import connections, router
from django.utils.module_loading import import_string

from . import conf
from .stores.base import Store
from .stores.configured import make_store, staging_root
from .stores.disk import existing_ancestor

FEW_FILES: Final = 4096


@register(Tags.files)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001: a key or value of ``ASYNC_UPLOAD``. What depends on them is looked at only when they are right."""
    configured = getattr(settings, "ASYNC_UPLOAD", {})
    found: list[CheckMessage] = [
        Error(problem, id="async_upload.E001") for problem in conf.problems(configured)
    ]
    if found:
        return found
    return [
        *_check_apps(),
        *_check_upload_to(),
        *_check_storage(),
        *_check_store(),
        *_check_machine(),
    ]


def _check_apps() -> list[CheckMessage]:
    found: list[CheckMessage] = [
        Error(
            f"{app} is not in INSTALLED_APPS.",
            hint="Uploads have owners: the app needs users.",
            id="async_upload.E002",
        )
        for app in ("django.contrib.auth", "django.contrib.contenttypes")
        if not apps.is_installed(app)
    ]
    if not apps.is_installed("django.contrib.sessions"):
        found.append(
            Warning(
                "django.contrib.sessions is not in INSTALLED_APPS.",
                hint="Without it only tickets let anybody upload.",
                id="async_upload.W003",
            )
        )
    return found


def _check_upload_to() -> list[CheckMessage]:
    upload_to = conf.uploads().upload_to
    if not isinstance(upload_to, str) or not conf.is_dotted_path(upload_to):
        return []
    try:
        import_string(upload_to)
    except ImportError as error:
        return [Error(f"ASYNC_UPLOAD['UPLOAD_TO']: {error}.", id="async_upload.E004")]
    return []


def _check_storage() -> list[CheckMessage]:
    alias = conf.uploads().storage
    try:
        storages[alias]
    except InvalidStorageError as error:
        return [
            Error(
                f"ASYNC_UPLOAD['STORAGE'] is {alias!r}: {error}",
                hint="Name an alias of STORAGES.",
                id="async_upload.E005",
            )
        ]
    return []


def _check_store() -> list[CheckMessage]:
    try:
        store_class = import_string(conf.uploads().store)
    except ImportError as error:
        return [Error(f"ASYNC_UPLOAD['STORE']: {error}.", id="async_upload.E006")]
    if not (isinstance(store_class, type) and issubclass(store_class, Store)):
        return [
            Error(
                f"ASYNC_UPLOAD['STORE'] is {conf.uploads().store}, which is no Store.",
                id="async_upload.E006",
            )
        ]
    try:
        store = make_store()
    except (ImproperlyConfigured, InvalidStorageError) as error:
        return [Error(str(error), id="async_upload.E007")]
    return [*store.check(), *(_check_staging() if store_class.supports_path else [])]


def _check_staging() -> list[CheckMessage]:
    """Where the staging folder lies in relation to what is served."""
    storage = storages[conf.uploads().storage]
    root = os.path.realpath(staging_root(storage))
    found: list[CheckMessage] = []
    for name in ("MEDIA_ROOT", "STATIC_ROOT"):
        served = getattr(settings, name, None)
        if served and _is_inside(root, os.path.realpath(served)):
            found.append(
                Error(
                    f"The staging folder lies in {name}: unfinished files could be fetched by URL.",
                    hint="Set ASYNC_UPLOAD['STAGING_ROOT'] to a folder beside it.",
                    id="async_upload.E008",
                )
            )
    if isinstance(storage, FileSystemStorage):
        devices = {
            os.stat(existing_ancestor(path)).st_dev for path in (root, str(storage.location))
        }
        if len(devices) > 1:
            found.append(
                Warning(
                    "The staging folder is on another file system than the storage: every "
                    "finished file is copied.",
                    hint="Set ASYNC_UPLOAD['STAGING_ROOT'] to a folder on the storage's own.",
                    id="async_upload.W009",
                )
            )
    return found


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _check_machine() -> list[CheckMessage]:
    found: list[CheckMessage] = []
    try:
        import resource
    except ImportError:
        return found
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        found.append(
            Info(
                f"This process may open {files} files; each upload in progress needs two.",
                hint=f"Raise the limit (ulimit -n) to {FEW_FILES} or more where many upload at once.",
                id="async_upload.I010",
            )
        )
    return found


@register(Tags.security, deploy=True)
def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """What is fine on a developer's machine only."""
    if conf.problems(getattr(settings, "ASYNC_UPLOAD", {})):
        return []
    found: list[CheckMessage] = []
    if conf.uploads().durability != "fsync":
        found.append(
            Warning(
                "ASYNC_UPLOAD['DURABILITY'] is 'os': what clients were told is durable is lost in a "
                "crash of the machine.",
                hint="Set it to 'fsync'.",
                id="async_upload.W011",
            )
        )
    if conf.uploads().allow_anonymous:
        found.append(
            Warning(
                "ASYNC_UPLOAD['ALLOW_ANONYMOUS'] is True: anybody may fill the disk up to the quotas.",
                id="async_upload.W012",
            )
        )
    return found


@register(Tags.database)
def check_database(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """W013: SQLite settings under which a checkpoint, or a concurrent writer, is lost."""
    from .models import UploadSession

    alias = router.db_for_write(UploadSession)
    if alias not in (databases or ()) or connections[alias].vendor != "sqlite":
        return []
    if conf.problems(getattr(settings, "ASYNC_UPLOAD", {})):
        return []
    with connections[alias].cursor() as cursor:
        journal = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
    found: list[CheckMessage] = []
    if journal not in ("wal", "memory"):
        found.append(
            Warning(
                f"SQLite's journal_mode is {journal}: readers of the site and uploads block each other.",
                hint="OPTIONS: init_command 'PRAGMA journal_mode=WAL', transaction_mode 'IMMEDIATE'.",
                id="async_upload.W013",
            )
        )
    if conf.uploads().durability == "fsync" and synchronous < 2:
        found.append(
            Warning(
                "DURABILITY is 'fsync', but SQLite's synchronous is not FULL: the row that says what "
                "is durable may be lost in a crash of the machine.",
                hint="OPTIONS: init_command 'PRAGMA synchronous=FULL'.",
                id="async_upload.W014",
            )
        )
    return found
