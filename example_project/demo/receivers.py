"""The work is done in the server's own process, which suits work of seconds."""

from django.dispatch import receiver

from django_async_upload.signals import upload_completed

from . import work


@receiver(upload_completed)
def summarize(session, event_id, **kwargs):
    work.summarize(session.pk, event_id)
