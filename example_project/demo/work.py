"""What this site does with a finished upload. A receiver calls it, or a worker to which a receiver hands it."""

import hashlib

from django.db import transaction
from django.db.models import F

from django_async_upload.exceptions import AlreadyBound, NotCompleted
from django_async_upload.models import UploadSession

from .models import Summary, Total

SMALL = 1024 * 1024
"""Bytes."""


def priority(session):
    """How urgent an upload is, from 0 to 9: small files do not wait behind large ones."""
    return 9 if session.size <= SMALL else 0


def summarize(upload, event):
    """Count the lines of an upload, take its SHA-256, and add it to its owner's total: once for each event.

    It may be called several times with one event, even at the same time.
    """
    if Summary.objects.filter(event=event).exists():
        return
    try:
        session = UploadSession.objects.get(pk=upload)
        found = _read(session)
    except (UploadSession.DoesNotExist, AlreadyBound, NotCompleted):
        return  # it was deleted, or a form was faster: the file is a document's now
    with transaction.atomic():
        defaults = {"upload": session, **found}
        _summary, is_first = Summary.objects.get_or_create(event=event, defaults=defaults)
        if is_first and session.owner_id is not None:
            total, _ = Total.objects.get_or_create(owner_id=session.owner_id)
            total.files, total.bytes = F("files") + 1, F("bytes") + session.size
            total.save()


def _read(session):
    digest, lines, is_text = hashlib.sha256(), 0, True
    try:
        with session.file as file:
            for piece in file.chunks(1024 * 1024):
                digest.update(piece)
                lines += piece.count(b"\n")
                is_text = is_text and b"\0" not in piece
    except FileNotFoundError:
        session.refresh_from_db()
        _ = session.file  # raises what became of it meanwhile
        raise
    return {"sha256": digest.hexdigest(), "lines": lines if is_text else None}
