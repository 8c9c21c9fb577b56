"""A host project for the end-to-end tests. The environment says where and how it keeps things."""

import json
import os
from pathlib import Path

ROOT = Path(os.environ["E2E_ROOT"])
"""The database and the log of signals."""
DISK = Path(os.environ.get("E2E_DISK", ROOT))
"""Media and staging, which must share a file system."""

SECRET_KEY = "tests only: not a secret, long enough for the signer's taste"
DEBUG = False
ALLOWED_HOSTS = os.environ.get("E2E_HOSTS", "127.0.0.1").split(",")
USE_TZ = True
ROOT_URLCONF = "tests.site.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
    "django_async_upload",
    "tests.site",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_async_upload.middleware.UploadMiddleware",
]
if dsn := os.environ.get("E2E_POSTGRES"):
    DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **json.loads(dsn)}}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ROOT / "db.sqlite3",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": float(os.environ.get("E2E_SQLITE_TIMEOUT", "20")),
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous="
                + os.environ.get("E2E_SQLITE_SYNCHRONOUS", "NORMAL"),
            },
        }
    }
CHANNEL_LAYERS = json.loads(os.environ.get("E2E_LAYERS", "{}"))
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MEDIA_ROOT = DISK / "media"
MEDIA_URL = "/media/"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    # It may overwrite, so that parts are copied into it.
    "copied": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": DISK / "copied", "allow_overwrite": True},
    },
}
if storage := os.environ.get("E2E_STORAGE"):  # on another file system
    BACKEND = "django.core.files.storage.FileSystemStorage"
    STORAGES["async_upload"] = {"BACKEND": BACKEND, "OPTIONS": {"location": storage}}
if layer := os.environ.get("E2E_LAYER"):
    CHANNEL_LAYERS = {"default": json.loads(layer)}
ASYNC_UPLOAD = {
    "STAGING_ROOT": str(DISK / "staging"),
    "UPLOAD_TO": "in/",
    "MIN_FREE_SPACE": 0,
    **json.loads(os.environ.get("E2E_UPLOAD", "{}")),
}
HEARS_STARTED = "E2E_GROUPS" not in os.environ
"""Where a receiver hears of the beginning of each upload, small files are not received in groups."""
CSRF_TRUSTED_ORIGINS = ["https://trusted.example"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"named": {"format": "%(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "named"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
