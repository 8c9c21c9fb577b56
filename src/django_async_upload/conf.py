"""The settings of the app: the ``ASYNC_UPLOAD`` dict of a project over the defaults, as one frozen object.

This is the only module that reads ``django.conf.settings``'s ``ASYNC_UPLOAD``. Read a setting as
``conf.uploads().max_size``; the object is built on first use and again after ``setting_changed``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSettings:
    """Every key of ``ASYNC_UPLOAD`` (there in capitals), its default and its meaning."""

    store: str = "django_async_upload.stores.filesystem.FileSystemStore"
    """Dotted path of the store that keeps unfinished uploads."""
    staging_root: str | os.PathLike[str] | None = None
    """Folder of the file-system store. None: ``<location>-staging``, beside the storage's own folder."""
    durability: str = "fsync"
    """What durable bytes survive: with ``fsync`` a crash of the machine, with ``os`` only a crash of the process."""
    storage: str = "async_upload"
    """Alias in ``STORAGES`` of the storage for finished files. The default need not be in ``STORAGES``: it is a folder
    without a URL, ``<STAGING_ROOT>-uploads`` or ``<MEDIA_ROOT>-uploads``."""
    upload_to: str | Callable[..., str] = "uploads/%Y/%m/%d/"
    """As ``FileField.upload_to``: a ``strftime`` prefix, or a callable (or its dotted path) that takes the
    session and the cleaned name and returns the name in the storage."""
    max_size: int | None = 10 * GIB
    """Largest file, bytes. None: no limit."""
    allowed_types: tuple[str, ...] | list[str] | None = None
    """Content types that are accepted as declared, ``image/*`` for a family. None: all."""
    allowed_extensions: tuple[str, ...] | list[str] | None = None
    """File name extensions that are accepted, lower case, without the dot. None: all."""
    allow_anonymous: bool = False
    """Whether visitors who have not signed in may upload. A token in the session's data identifies them."""
    user_max_sessions: int = 10_000
    """Open uploads of one owner, including those created within the last hour that ended unfinished."""
    user_max_bytes: int = 100 * GIB
    """Bytes of one owner's open uploads: declared ones, or received ones where the size is unknown."""
    user_max_connections: int = 32
    """Connections of one owner."""
    address_max_sessions: int = 20_000
    """Open uploads from one address."""
    address_max_bytes: int = 200 * GIB
    """Bytes of the open uploads from one address."""
    address_max_connections: int = 1_024
    """Connections from one address."""
    num_proxies: int = 0
    """Proxies in front of the server that write ``X-Forwarded-For``: the client's address is the entry that the
    first of them wrote. 0: it is the address that the server reports."""
    expire_after: float = 24 * 3600.0
    """Seconds of inactivity after which an unfinished upload expires."""
    ticket_max_age: float = 900.0
    """Seconds for which a ticket is valid by default."""
    receipt_max_age: float = 24 * 3600.0
    """Seconds after completion for which the receipt of an upload is accepted."""
    websocket_url: str = "/ws/uploads/"
    """Address of the consumer for pages: a path, or a URL with the scheme ws or wss."""
    admin_widget: bool = False
    """Whether every file field of the admin gets the upload widget."""
    javascript_sources: bool = False
    """Whether pages load the source modules, one request each, instead of the bundle: for debugging."""
    min_free_space: int = GIB
    """Bytes that uploads leave free on the staging disk. Below that they end in ``storage_full``, while the site's
    database, sessions and logs still have room."""
    idle_timeout: float = 60.0
    """Seconds of silence after which the server closes a connection. Clients send a PING after a third of that."""
    min_rate: int = 0
    """Bytes a second that the client of an upload must send, on average over ``idle_timeout``; the stream of a slower
    one ends in ``too_slow``. 0: any rate will do."""
    memory_budget: int = 64 * MIB
    """Bytes of credit that one process grants at most, all uploads together."""
    max_streams: int = 256
    """Streams, one for each upload, open at once on one connection."""
    receiver_timeout: float = 60.0
    """Seconds that the receivers of one signal, or a hook of an endpoint, may take; after that they count as
    failed."""
    inspect_timeout: float = 600.0
    """Seconds for which an endpoint's ``inspect()`` may neither read further in its file nor return; then it counts
    as failed."""
    telemetry: str = "django_async_upload.engine.telemetry.NoTelemetry"
    """Dotted path of the class that gets counts, durations and gauges; see docs/reference/telemetry.md."""
    threads: int = 8
    """Threads of the store's pool, and of the pool that copies into other storages."""


FIELDS = {field.name.upper(): field.name for field in dataclasses.fields(UploadSettings)}

_CHOICES = {"durability": ("fsync", "os")}
_WEBSOCKET_URL = re.compile(r"(/(?!/)|wss?://[^/\s])[^\s#]*\Z", re.IGNORECASE)
_POSITIVE = {
    "user_max_sessions",
    "user_max_connections",
    "address_max_sessions",
    "address_max_connections",
    "expire_after",
    "ticket_max_age",
    "receipt_max_age",
    "idle_timeout",
    "receiver_timeout",
    "inspect_timeout",
    "max_streams",
    "threads",
}


def is_dotted_path(upload_to: str) -> bool:
    """Whether an ``UPLOAD_TO`` names a callable rather than being a ``strftime`` prefix."""
    return all(part.isidentifier() for part in upload_to.split(".")) and "." in upload_to


def problems(configured: object) -> list[str]:
    """The problems of an ``ASYNC_UPLOAD`` value, a sentence each; the system checks report them."""
    if not isinstance(configured, Mapping):
        return ["ASYNC_UPLOAD must be a dict."]
    found = []
    for key, value in configured.items():
        name = FIELDS.get(key)
        if name is None:
            found.append(
                f"ASYNC_UPLOAD has no key {key!r}; the keys are {', '.join(sorted(FIELDS))}."
            )
        elif not _fits(value, get_type_hints(UploadSettings)[name]):
            hint = UploadSettings.__annotations__[name]
            found.append(f"ASYNC_UPLOAD[{key!r}] is {value!r}; it must be {hint}.")
        elif name in _CHOICES and value not in _CHOICES[name]:
            found.append(f"ASYNC_UPLOAD[{key!r}] is {value!r}; choose from {_CHOICES[name]}.")
        elif name in ("num_proxies", "min_rate") and value < 0:
            found.append(f"ASYNC_UPLOAD[{key!r}] is {value!r}; it must not be below 0.")
        elif name in _POSITIVE and value <= 0:
            found.append(f"ASYNC_UPLOAD[{key!r}] is {value!r}; it must be above 0.")
        elif name == "websocket_url" and not _WEBSOCKET_URL.match(value):
            found.append(
                f"ASYNC_UPLOAD[{key!r}] is {value!r}; it must be a path that begins with one slash, "
                "or a URL that begins with ws:// or wss://."
            )
        elif name == "memory_budget" and value < MIB:
            found.append(f"ASYNC_UPLOAD[{key!r}] is {value!r}; it must be at least {MIB} bytes.")
    return found


def _fits(value: object, hint: Any) -> bool:
    kinds = tuple(get_origin(option) or option for option in get_args(hint) or (hint,))
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


@cache
def uploads() -> UploadSettings:
    """The current settings. Raises :class:`ImproperlyConfigured`, which names every problem."""
    configured = getattr(settings, "ASYNC_UPLOAD", {})
    if found := problems(configured):
        raise ImproperlyConfigured(" ".join(found))
    return UploadSettings(**{FIELDS[key]: value for key, value in configured.items()})


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "ASYNC_UPLOAD":
        uploads.cache_clear()
