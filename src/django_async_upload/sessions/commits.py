"""Callbacks after the commit of a host's transaction, whose errors do not reach the host."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.db import transaction

logger = logging.getLogger("django_async_upload")


def after_commit(using: str, work: Callable[..., object], *args: object) -> None:
    """Call ``work(*args)`` after the commit, or at once where there is no transaction.

    An exception of ``work`` is logged: the host's own hooks still run, and its view still responds. Not by Django's
    ``robust=True``, which raises where it logs a ``partial``, which has no name.
    """

    def run() -> None:
        try:
            work(*args)
        except Exception:  # raised by the host's storage or receiver
            logger.exception("%s failed after a commit", getattr(work, "__qualname__", work))

    transaction.on_commit(run, using=using)
