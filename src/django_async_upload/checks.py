"""System checks: every misconfiguration that can be detected before an upload fails because of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InvalidStorageError, Storage
from django.db import connections, router
from django.utils.module_loading import import_string

from . import conf
from .consumers import UploadConsumer
from .operations.versions import old_servers
from .stores.base import Store
from .stores.configured import PrivateStorage, get_storage, make_store, staging_root
from .stores.disk import existing_ancestor
from .stores.publication.names import overwrites
from .widgets import AsyncFileInput

FEW_FILES: Final = 4096
UPLOAD_MIDDLEWARE: Final = "django_async_upload.middleware.UploadMiddleware"
_WHO_IS_THERE: Final = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)


@register(Tags.files)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001: a key or value of ``ASYNC_UPLOAD``. The checks that depend on them run only when all are valid."""
    configured = getattr(settings, "ASYNC_UPLOAD", {})
    found: list[CheckMessage] = [
        Error(problem, id="async_upload.E001") for problem in conf.problems(configured)
    ]
    if found:
        return found
    return [
        *_check_apps(),
        *_check_upload_to(),
        *_check_telemetry(),
        *_check_storage(),
        *_check_published_files(),
        *_check_store(),
        *_check_machine(),
        *_check_servers(),
        *_check_middleware(),
        *_check_widgets(),
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
                hint="Without it, only clients with a ticket can upload.",
                id="async_upload.W003",
            )
        )
    return found


def _check_middleware() -> list[CheckMessage]:
    """Check that the middleware comes after those that authenticate the request."""
    names = list(settings.MIDDLEWARE)
    if UPLOAD_MIDDLEWARE not in names:
        return []
    before = names[: names.index(UPLOAD_MIDDLEWARE)]
    return [
        Error(
            f"{UPLOAD_MIDDLEWARE} is in MIDDLEWARE before, or without, {needed}.",
            hint="Put it behind: it has to know whose uploads a form may post.",
            id="async_upload.E015",
        )
        for needed in _WHO_IS_THERE
        if not any(_is_subclass(name, needed) for name in before)
    ]


def _is_subclass(name: str, needed: str) -> bool:
    """Whether a middleware is the needed one, or a host's subclass of it."""
    try:
        found = import_string(name)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, import_string(needed))


def _check_widgets() -> list[CheckMessage]:
    """Check what a page with the widget needs. Nothing where no form has it: then only programs upload."""
    with suppress(Exception):  # another check reports errors of the URLconf
        import_module(settings.ROOT_URLCONF)  # it imports the forms
    found: list[CheckMessage] = []
    has_middleware = any(_is_subclass(name, UPLOAD_MIDDLEWARE) for name in settings.MIDDLEWARE)
    rest = sys.modules.get("django_async_upload.rest")  # imported where REST framework is installed
    if rest is not None and rest.UploadField.is_used and not has_middleware:
        found.append(
            Warning(
                "A serializer has an UploadField, but UploadMiddleware is not in MIDDLEWARE: a receipt that a "
                "request did not use is refused for two minutes, because nothing releases it when the request ends.",
                hint=f"Add {UPLOAD_MIDDLEWARE!r} behind AuthenticationMiddleware.",
                id="async_upload.W025",
            )
        )
    if not AsyncFileInput.is_used:
        return found
    if not has_middleware:
        found.append(
            Error(
                "A form has the upload widget, but UploadMiddleware is not in MIDDLEWARE: "
                "the form would not receive the files.",
                hint=f"Add {UPLOAD_MIDDLEWARE!r} behind AuthenticationMiddleware.",
                id="async_upload.E016",
            )
        )
    if not apps.is_installed("django.contrib.staticfiles"):
        found.append(
            Warning(
                "A form has the upload widget, but django.contrib.staticfiles is not in INSTALLED_APPS.",
                hint="Without it the widget's script is not served, and the widget is a plain file input.",
                id="async_upload.W017",
            )
        )
    return found


def _check_telemetry() -> list[CheckMessage]:
    try:
        telemetry = import_string(conf.uploads().telemetry)()
    except Exception as error:  # a class of the host's
        return [Error(f"ASYNC_UPLOAD['TELEMETRY']: {error}.", id="async_upload.E026")]
    missing = [
        each for each in ("count", "time", "gauge") if not callable(getattr(telemetry, each, None))
    ]
    if missing:
        problem = f"ASYNC_UPLOAD['TELEMETRY'] has no method {missing[0]}()."
        return [Error(problem, id="async_upload.E026")]
    return []


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
        storage = get_storage(alias)
    except InvalidStorageError as error:
        return [
            Error(
                f"ASYNC_UPLOAD['STORAGE'] is {alias!r}: {error}",
                hint="Name an alias of STORAGES.",
                id="async_upload.E005",
            )
        ]
    except ImproperlyConfigured:
        return []  # E007 reports it
    if overwrites(storage):
        return [
            Warning(
                f"The storage {alias!r} overwrites files of the same name.",
                hint="Uploads are safe, because their names contain their ids. Other files in this storage are not. "
                "Set its option file_overwrite (S3) or allow_overwrite to False.",
                id="async_upload.W030",
            )
        ]
    return []


def _check_published_files() -> list[CheckMessage]:
    """E022: finished files could not be written."""
    with suppress(InvalidStorageError, ImproperlyConfigured):  # E005, E007
        for wanted in _destinations(get_storage(conf.uploads().storage)):
            folder = existing_ancestor(wanted)
            if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
                return [
                    Error(
                        f"Finished files cannot be written: {folder} is not a folder that this user may write to.",
                        hint=f"Create {wanted} for the user that the server runs as, or check whether its file system "
                        "is mounted read-only.",
                        id="async_upload.E022",
                    )
                ]
    return []


def _destinations(storage: Storage) -> list[str]:
    """The folders that finished files are written to, the host's own last."""
    found = [os.path.abspath(storage.location)] if isinstance(storage, FileSystemStorage) else []
    if isinstance(storage, PrivateStorage) and settings.MEDIA_ROOT:
        found.append(os.path.abspath(settings.MEDIA_ROOT))
    return found


def _check_store() -> list[CheckMessage]:
    try:
        store_class = import_string(conf.uploads().store)
    except ImportError as error:
        return [Error(f"ASYNC_UPLOAD['STORE']: {error}.", id="async_upload.E006")]
    if not (isinstance(store_class, type) and issubclass(store_class, Store)):
        return [
            Error(
                f"ASYNC_UPLOAD['STORE'] is {conf.uploads().store}, which is not a Store.",
                id="async_upload.E006",
            )
        ]
    try:
        store = make_store()
    except (ImproperlyConfigured, InvalidStorageError) as error:
        return [Error(str(error), id="async_upload.E007")]
    return [*store.check(), *(_check_staging() if store_class.supports_path else [])]


def _check_staging() -> list[CheckMessage]:
    """Check that the staging folder is not served by URL, and that links from it into the storage work."""
    storage = get_storage(conf.uploads().storage)
    root = os.path.realpath(staging_root(storage))
    found: list[CheckMessage] = []
    for name in ("MEDIA_ROOT", "STATIC_ROOT"):
        served = getattr(settings, name, None)
        if served and _is_inside(root, os.path.realpath(served)):
            found.append(
                Error(
                    f"The staging folder is inside {name}: unfinished files could be fetched by URL.",
                    hint="Set ASYNC_UPLOAD['STAGING_ROOT'] to a folder beside it.",
                    id="async_upload.E008",
                )
            )
    if folders := _destinations(storage):
        devices = {os.stat(existing_ancestor(path)).st_dev for path in (root, *folders)}
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


def _check_servers() -> list[CheckMessage]:
    return [
        Warning(
            f"{old.name} {old.version} is installed: {old.reason}.",
            hint=f"Install {old.name} {old.oldest} or newer.",
            id="async_upload.W034",
        )
        for old in old_servers()
    ]


@register(Tags.security, deploy=True)
def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """Check for settings that are fine only on a developer's machine."""
    if conf.problems(getattr(settings, "ASYNC_UPLOAD", {})):
        return []
    found: list[CheckMessage] = []
    if conf.uploads().durability != "fsync":
        found.append(
            Warning(
                "ASYNC_UPLOAD['DURABILITY'] is 'os': bytes acknowledged as durable are lost in a "
                "crash of the machine.",
                hint="Set it to 'fsync'.",
                id="async_upload.W011",
            )
        )
    if conf.uploads().websocket_url.lower().startswith("ws:"):
        found.append(
            Warning(
                "ASYNC_UPLOAD['WEBSOCKET_URL'] begins with ws://: browsers do not open it from a page "
                "served by HTTPS, and others on the network can read uploads.",
                hint="Use wss://, or a path.",
                id="async_upload.W018",
            )
        )
    if not conf.uploads().num_proxies:
        found.append(
            Info(
                "ASYNC_UPLOAD['NUM_PROXIES'] is 0: the client's address is the one that the ASGI server reports.",
                hint="Behind a proxy this may be the proxy's address, and then all clients share one quota. Set it to "
                "the number of proxies that write X-Forwarded-For, and check the address that upload_doctor reports.",
                id="async_upload.I024",
            )
        )
    if conf.uploads().allow_anonymous:
        found.append(
            Warning(
                "ASYNC_UPLOAD['ALLOW_ANONYMOUS'] is True: every visitor can fill the disk up to the quotas.",
                id="async_upload.W012",
            )
        )
    return [*found, *_check_published()]


def _check_published() -> list[CheckMessage]:
    """W031: finished files that can be fetched from the site before the host has checked them."""
    with suppress(Exception):  # the server reports errors of the application
        import_string(getattr(settings, "ASGI_APPLICATION", ""))  # it imports the consumers
    found: list[CheckMessage] = []
    consumers: list[type[UploadConsumer]] = [UploadConsumer, *_subclasses(UploadConsumer)]
    for consumer in consumers:
        alias = consumer.storage or conf.uploads().storage
        with suppress(ImproperlyConfigured, InvalidStorageError):  # other checks report it
            if _has_urls(get_storage(alias)):
                found.append(
                    Warning(
                        f"{consumer.__name__} publishes uploads in the storage {alias!r}, whose files have URLs: "
                        "every uploaded file can be fetched from your site.",
                        hint="Leave STORAGE out: then finished files are private until an object of yours takes them. "
                        "Or serve that storage from another domain.",
                        id="async_upload.W031",
                    )
                )
    return found


def _subclasses(cls: type[UploadConsumer]) -> Iterator[type[UploadConsumer]]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


def _has_urls(storage: Storage) -> bool:
    """Whether every visitor can fetch files of the storage: below ``MEDIA_URL``, or from S3 without a signature."""
    if getattr(storage, "base_url", None) not in (None, "", "/"):
        return True
    if getattr(storage, "querystring_auth", True) is False:
        return True
    if not isinstance(storage, FileSystemStorage) or not settings.MEDIA_ROOT:
        return False
    served = os.path.realpath(settings.MEDIA_ROOT)
    return settings.MEDIA_URL not in ("", "/") and _is_inside(
        os.path.realpath(storage.location), served
    )


@register(Tags.database)
def check_database(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check for missing tables, and the settings of SQLite and MariaDB."""
    from .models import UploadSession

    alias = router.db_for_write(UploadSession)
    if alias not in (databases or ()):
        return []
    found: list[CheckMessage] = []
    if UploadSession._meta.db_table not in connections[alias].introspection.table_names():
        found.append(
            Warning(  # not an error, which would stop migrate from running
                f"The database {alias!r} has no tables of this app.",
                hint="Run manage.py migrate.",
                id="async_upload.W023",
            )
        )
    own = {"sqlite": _check_sqlite, "mysql": _check_mariadb}.get(connections[alias].vendor)
    return found if own is None else [*found, *own(alias)]


def _check_mariadb(alias: str) -> list[CheckMessage]:
    """Check for an isolation in which a row is not read as it is now, and for text that cannot be stored."""
    connection = connections[alias]
    if not getattr(connection, "mysql_is_mariadb", False):
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@tx_isolation, @@character_set_database")
        isolation, charset = cursor.fetchone()
    found: list[CheckMessage] = []
    if isolation != "READ-COMMITTED":
        found.append(
            Warning(
                f"The database's transactions are {isolation}: quotas may be exceeded, and an upload that two "
                "processes change at once ends in an error.",
                hint="OPTIONS: isolation_level 'read committed', which is Django's default.",
                id="async_upload.W032",
            )
        )
    if charset != "utf8mb4":
        found.append(
            Warning(
                f"The database's character set is {charset}: file names with other characters are refused.",
                hint="ALTER DATABASE ... CHARACTER SET utf8mb4, before the tables are made.",
                id="async_upload.W033",
            )
        )
    return found


def _check_sqlite(alias: str) -> list[CheckMessage]:
    """Check for settings of SQLite that lose checkpoints or block concurrent writers."""
    if conf.problems(getattr(settings, "ASYNC_UPLOAD", {})):
        return []
    with connections[alias].cursor() as cursor:
        journal = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
    found: list[CheckMessage] = []
    if journal not in ("wal", "memory"):
        found.append(
            Warning(
                f"SQLite's journal_mode is {journal}: the site's readers and uploads block each other.",
                hint="OPTIONS: init_command 'PRAGMA journal_mode=WAL', transaction_mode 'IMMEDIATE'.",
                id="async_upload.W013",
            )
        )
    if conf.uploads().durability == "fsync" and synchronous < 2:
        found.append(
            Warning(
                "DURABILITY is 'fsync', but SQLite's synchronous is not FULL: the row that records what "
                "is durable may be lost in a crash of the machine.",
                hint="OPTIONS: init_command 'PRAGMA synchronous=FULL'.",
                id="async_upload.W014",
            )
        )
    return found
