"""The work is handed to Django's tasks, and done by ``manage.py db_worker``."""

from datetime import timedelta

from django.db import OperationalError
from django.dispatch import receiver
from django.utils import timezone

try:
    from django.tasks import task
except ImportError:  # before Django 6
    from django_tasks import task

from django_async_upload.signals import upload_completed

from . import work

ATTEMPTS = 15
LONGEST_PAUSE = 600
"""Seconds."""


@task
def summarize(upload, event, attempt=1):
    try:
        work.summarize(upload, event)
    except (OSError, OperationalError):
        if attempt == ATTEMPTS:
            raise
        pause = timedelta(seconds=min(2 ** (attempt - 1), LONGEST_PAUSE))
        later = summarize.using(run_after=timezone.now() + pause)
        later.enqueue(upload, event, attempt + 1)


@receiver(upload_completed)
def enqueue(session, event_id, **kwargs):
    urgent = summarize.using(priority=work.priority(session))
    urgent.enqueue(str(session.pk), str(event_id))
