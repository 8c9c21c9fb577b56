"""The store that the settings ask for."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.utils.module_loading import import_string

from .. import conf
from .base import Store


def staging_root(storage: Storage) -> str:
    """The folder for unfinished files: as set, else beside the storage's own, on the same file system.

    Raises :class:`ImproperlyConfigured` where neither is known.
    """
    configured = conf.uploads().staging_root
    if configured is not None:
        return os.path.abspath(configured)
    location = storage.location if isinstance(storage, FileSystemStorage) else settings.MEDIA_ROOT
    if not location:
        raise ImproperlyConfigured("Set ASYNC_UPLOAD['STAGING_ROOT'] or MEDIA_ROOT.")
    return os.path.abspath(location) + "-staging"


def make_store() -> Store:
    """A new store as configured; a service has one of its own."""
    configured = conf.uploads()
    store_class = import_string(configured.store)
    options: dict[str, Any] = {"durability": configured.durability, "threads": configured.threads}
    if store_class.supports_path:
        options["root"] = staging_root(storages[configured.storage])
    store: Store = store_class(**options)
    return store
