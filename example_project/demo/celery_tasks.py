"""The work is handed to Celery's workers."""

from django.conf import settings
from django.db import OperationalError
from django.dispatch import receiver

from django_async_upload.signals import upload_completed

from . import work
from .celery import app


@app.task(
    acks_late=True,  # a task whose worker dies is given to another one
    reject_on_worker_lost=True,  # also where only the process that runs the task dies
    autoretry_for=(OSError, OperationalError),
    retry_backoff=True,  # after 1, 2, 4... seconds, at most
    retry_backoff_max=600,
    max_retries=15,
)
def summarize(upload, event):
    work.summarize(upload, event)


@receiver(upload_completed)
def enqueue(session, event_id, **kwargs):
    """Where the broker cannot be reached it raises, and is called again: the outbox keeps the event."""
    priority = work.priority(session)
    if settings.REDIS:
        priority = 9 - priority  # there, 0 is the most urgent
    summarize.apply_async([str(session.pk), str(event_id)], priority=priority)
