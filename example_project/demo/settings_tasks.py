"""The site with Django's tasks, which the database keeps for ``manage.py db_worker``."""

import django

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

WORK = "demo.tasks"

INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks_db"]
if django.VERSION < (6, 0):
    INSTALLED_APPS += ["django_tasks"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
