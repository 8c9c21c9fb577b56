"""Work after the commit of a host's transaction, whose errors do not reach the host."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.db import transaction

logger = logging.getLogger("django_async_upload")


def after_commit(using: str, work: Callable[..., object], *args: object) -> None:
    """Call ``work(*args)`` after the commit; at once where there is no transaction.

    An exception of ``work`` is logged: the host's own hooks still run, and its view answers. Django's own
    ``robust=True`` logs the function's name, and raises where a ``partial`` has none.
    """

    def run() -> None:
        try:
            work(*args)
        except Exception:  # of a storage or a receiver of the host's
            logger.exception("After a commit: %s failed", getattr(work, "__qualname__", work))

    transaction.on_commit(run, using=using)
