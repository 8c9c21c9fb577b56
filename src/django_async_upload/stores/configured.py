"""The store and the storage of finished files, as configured in the settings."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.utils.module_loading import import_string

from .. import conf
from .base import Store

PRIVATE: Final = "async_upload"
"""Alias of the default storage for finished files."""


class PrivateStorage(FileSystemStorage):
    """The default storage of finished files: a folder beside the staging folder, without a URL.

    It is on the staging folder's file system, so that files are published by a hard link.
    """

    base_url = None  # type: ignore[assignment]  # Django's word for "no URL", which the stubs leave out


def get_storage(alias: str) -> Storage:
    """The storage of that alias in ``STORAGES``, which need not contain :data:`PRIVATE`.

    Raises :class:`InvalidStorageError`, and :class:`ImproperlyConfigured` where no folder is configured.
    """
    if alias == PRIVATE and alias not in storages.backends:
        return _private(f"{_base()}-uploads")
    return storages[alias]


@cache
def _private(location: str) -> Storage:
    return PrivateStorage(location, directory_permissions_mode=0o700)


def _base() -> str:
    """The prefix of the app's own folders: ``STAGING_ROOT``, or else ``MEDIA_ROOT``."""
    folder = conf.uploads().staging_root or settings.MEDIA_ROOT
    if not folder:
        raise ImproperlyConfigured("Set ASYNC_UPLOAD['STAGING_ROOT'] or MEDIA_ROOT.")
    return os.path.abspath(folder)


def staging_root(storage: Storage) -> str:
    """The staging folder: ``STAGING_ROOT``, else one beside the storage's own folder, on the same file system.

    Raises :class:`ImproperlyConfigured` where neither is configured.
    """
    configured = conf.uploads().staging_root
    if configured is not None:
        return os.path.abspath(configured)
    if isinstance(storage, FileSystemStorage) and not isinstance(storage, PrivateStorage):
        return os.path.abspath(storage.location) + "-staging"
    return f"{_base()}-staging"


def make_store() -> Store:
    """Create the configured store. Each service has its own."""
    configured = conf.uploads()
    store_class = import_string(configured.store)
    options: dict[str, Any] = {"durability": configured.durability, "threads": configured.threads}
    if store_class.supports_path:
        options["root"] = staging_root(get_storage(configured.storage))
        options["min_free"] = configured.min_free_space
    store: Store = store_class(**options)
    return store
