"""What a site and its upload process have to share, as ``upload_doctor --user`` checks it. Needs ``websockets``.

It runs with the settings of the site, on its machine.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.db import router

from ..models import UploadSession
from ..protocol import messages as m
from ..stores.configured import make_store
from .doctor import Finding, Verdict
from .probe import SAMPLE, Target, open_connection, send_sample


@contextmanager
def signed_in(user: Any) -> Iterator[str]:
    """Sign a user in, in the site's session store, for as long as the block runs. Gives the Cookie header."""
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[SESSION_KEY] = user._meta.pk.value_to_string(user)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    try:
        yield f"{settings.SESSION_COOKIE_NAME}={session.session_key}"
    finally:
        session.delete()


async def examine_shared(target: Target, cookie: str) -> AsyncIterator[Finding]:
    """Check that browsers send the session cookie there, and that the upload process shares sessions and files.

    ``cookie`` is that of :func:`signed_in`. Raises what :func:`.probe.open_connection` raises.
    """
    yield find_cookie(target)
    signed = replace(target, cookie=cookie)
    found: list[Finding] = []

    async def look(upload: str) -> None:
        found.append(await sync_to_async(find_sample)(upload))

    async with open_connection(signed, cookie=True) as connection:
        hello = await connection.receive(m.Hello)
        if not (isinstance(hello, m.Hello) and hello.authenticated):
            yield Finding(
                "session",
                Verdict.BAD,
                "The upload process does not know a session of this site.",
                "Start it with the same DJANGO_SETTINGS_MODULE and environment: SECRET_KEY, SESSION_ENGINE, "
                "SESSION_COOKIE_NAME, and the database or cache of the sessions. A cache in the memory of a process is "
                "not shared.",
            )
            return
        yield Finding("session", Verdict.OK, "A session of this site is signed in there.")
        refusal = await send_sample(connection, look)
    if refusal is not None:
        yield Finding("files", Verdict.BAD, f"The sample is refused: {refusal.code}.")
    for each in found:
        yield each


def find_cookie(target: Target) -> Finding:
    """Check that a browser would send the session cookie to the address of the uploads."""
    there, pages = urlsplit(target.url), urlsplit(target.pages)
    host = there.hostname or ""
    path, domain = settings.SESSION_COOKIE_PATH, settings.SESSION_COOKIE_DOMAIN
    problem = ""
    if not _is_below(there.path, path):
        problem = f"SESSION_COOKIE_PATH is {path!r}"
    elif domain and not _is_in(host, domain):
        problem = f"SESSION_COOKIE_DOMAIN is {domain!r}"
    elif not domain and host != pages.hostname:
        problem = f"the pages are at {pages.hostname}, and SESSION_COOKIE_DOMAIN is not set"
    elif settings.SESSION_COOKIE_SECURE and there.scheme == "ws" and host != "localhost":
        problem = "SESSION_COOKIE_SECURE is True, and the address is not encrypted"
    if problem:
        return Finding(
            "cookie",
            Verdict.BAD,
            f"Browsers do not send the session cookie to {target.url}: {problem}.",
            "Uploads of users who are signed in would be refused with authentication_required.",
        )
    return Finding("cookie", Verdict.OK, "Browsers send the session cookie there.")


def _is_below(path: str, folder: str) -> bool:
    """RFC 6265, section 5.1.4."""
    if path == folder:
        return True
    return path.startswith(folder) and (folder.endswith("/") or path[len(folder)] == "/")


def _is_in(host: str, domain: str) -> bool:
    """RFC 6265, section 5.1.3."""
    domain = domain.lstrip(".")
    return host == domain or host.endswith(f".{domain}")


def find_sample(upload: str) -> Finding:
    """Look for a running upload of :data:`.probe.SAMPLE` bytes in the site's own database and folder."""
    rows = UploadSession.objects.using(router.db_for_write(UploadSession))
    row = rows.filter(pk=upload).first()
    if row is None:
        return Finding(
            "files",
            Verdict.BAD,
            "The upload process has another database: the sample is not in this one.",
            "Start it with the same DJANGO_SETTINGS_MODULE and environment.",
        )
    store = make_store()
    if not store.supports_path:
        return Finding("files", Verdict.OK, "The sample is in this database.")
    path = store.path(row.part)
    if not os.path.isfile(path) or os.path.getsize(path) < SAMPLE:
        return Finding(
            "files",
            Verdict.BAD,
            f"The upload process has other files: the sample is not in {os.path.dirname(path)}.",
            "Both processes need the same MEDIA_ROOT and STAGING_ROOT; in containers, one volume with both.",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(
            "files",
            Verdict.BAD,
            f"The upload process runs as another user: this one may not change {path}.",
            "Forms link and rename finished files: run both processes as one user.",
        )
    return Finding("files", Verdict.OK, "The sample is in this database and in this folder.")
