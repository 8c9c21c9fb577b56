"""The smallest real site with uploads. What the app needs is marked; the rest is any Django site."""

import warnings
from pathlib import Path

from .layer import find_redis

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "public, and therefore good for a demonstration on one machine only"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
USE_TZ = True
TIME_ZONE = "UTC"

INSTALLED_APPS = [
    "demo",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_async_upload",  # uploads
]
MIDDLEWARE = [
    "demo.middleware.ContentSecurityPolicyMiddleware",
    "django.middleware.security.SecurityMiddleware",  # sends X-Content-Type-Options: nosniff
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django_async_upload.middleware.UploadMiddleware",  # uploads: puts them into request.FILES
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "demo.urls"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "upload"
LOGOUT_REDIRECT_URL = "login"

# Arabic, to see the site from right to left. The app has no Arabic texts: the project adds them.
LANGUAGES = [(code, code) for code in ("en", "zh-hans", "de", "fr", "es", "ar")]
LOCALE_PATHS = [BASE_DIR / "locale"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        # Uploads: pages may read while an upload is written down, writers queue instead of failing,
        # and what a client was told is durable survives a power cut.
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Uploads: Redis carries hints and progress between workers, and what commands ask them. Without it all works, later.
if REDIS_URL := find_redis():
    LAYER = {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }
else:
    LAYER = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
CHANNEL_LAYERS = {"default": LAYER}

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
MEDIA_URL = "media/"  # a view, which looks who asks
# Beside it: media-staging has unfinished uploads, and media-uploads those that no document has yet.
MEDIA_ROOT = BASE_DIR / "media"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
# WhiteNoise is not async: a static file is read whole before it is sent. These are small.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume synchronous iterators")

WORK = "demo.receivers"  # what is done with finished uploads; settings_celery and settings_tasks have others

ASYNC_UPLOAD = {  # uploads
    "UPLOAD_TO": "uploads/%Y/%m/%d/",
    "ADMIN_WIDGET": True,
    "TELEMETRY": "django_async_upload.engine.prometheus.PrometheusTelemetry",
}
