"""Puts finished uploads where forms expect files: into ``request.FILES``."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import TooManyFilesSent, ValidationError
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from django.middleware.csrf import get_token
from django.utils.cache import add_never_cache_headers

from .binding.linked import CompletedUpload, RefusedUpload, UploadedBytes
from .binding.places import answering, owner_tag
from .models import Taker
from .notices import notice
from .receipts import MOVED, PREFIX, Wanted, open_receipts, openers, posted_field, usable_receipts
from .sessions.holds import let_go

logger = logging.getLogger("django_async_upload")

MOST: Final = 100
"""Receipts that are looked up for a page that comes back."""
FORM_TYPES: Final = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})


MAX_RECEIPTS: Final = 10_000
"""Of one form. A page's field sends those of a folder's files together."""


class UploadMiddleware:
    """Opens the receipts of a form when its view reads it, and lets go of what the view did not save.

    Belongs behind ``SessionMiddleware`` and ``AuthenticationMiddleware``. It looks at forms that are posted, and at
    nothing else; those without a receipt cost nothing but that. A view may read the body itself, or set upload
    handlers, as without it. Only for an ``async`` view and for REST framework's a form is read before: where these set
    upload handlers, override :meth:`reads`.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]
    ) -> None:
        self.get_response = get_response
        openers.add(type(self))
        self.is_async = iscoroutinefunction(get_response)
        # Django would call a method that is not async in a thread, for every request.
        self.process_view = self._process_view_async if self.is_async else self._process_view
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self._respond_async(request)
        is_done = False
        try:
            with answering(request):
                response = cast("HttpResponse", self.get_response(request))
            is_done = response.status_code < 400
        finally:
            if uploads := opened(request):
                end(uploads, is_done=is_done)
        return response

    async def _respond_async(self, request: HttpRequest) -> HttpResponse:
        is_done = False
        try:
            with answering(request):
                response = await cast("Awaitable[HttpResponse]", self.get_response(request))
            is_done = response.status_code < 400
        finally:
            if uploads := opened(request):
                await sync_to_async(end)(uploads, is_done=is_done)
        return response

    def reads(self, request: HttpRequest, view: Callable[..., Any]) -> bool:
        """Whether the request is a form that may bring receipts."""
        return request.method == "POST" and request.content_type in FORM_TYPES

    def _process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: object, kwargs: object
    ) -> HttpResponse | None:
        if asks_for_token(request):
            return tell_token(request)
        if self.reads(request, view):
            put_uploads_for(request, view)
        return None

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: object, kwargs: object
    ) -> HttpResponse | None:
        if asks_for_token(request):
            return await sync_to_async(tell_token)(request)
        if self.reads(request, view):
            await sync_to_async(put_uploads_for)(request, view)
        return None


def asks_for_token(request: HttpRequest) -> bool:
    """Whether a page asks for a CSRF token, at the address where its form will go.

    By a header, so that no address has to be given away; and no other site's page may send it without leave (CORS).
    """
    return request.method == "GET" and request.headers.get("Async-Upload") == "token"


def tell_token(request: HttpRequest) -> HttpResponse:
    """A CSRF token of the session as it is now, and whose it is: ``django.contrib.auth.login`` has changed both.

    And which receipts of ``Async-Upload-Receipts``, of the first :data:`MOST`, a form could still post.
    """
    asked = request.headers.get("Async-Upload-Receipts", "").split(",")
    known = {
        "csrf": get_token(request),
        "owner": owner_tag(request),
        "usable": usable_receipts(request, asked[:MOST]),
    }
    response = JsonResponse(known)
    add_never_cache_headers(response)
    return response


def put_uploads_for(request: Any, view: Callable[..., Any]) -> None:
    """Have :func:`put_uploads` done once the view reads the form, and leave a request that it does not read as it is.

    ``_load_post_and_files`` is what ``request.POST`` and ``request.FILES`` call, once; it has no public name.
    """
    if hasattr(request, "_post"):  # the CSRF middleware, say, has read it
        put_uploads(request)
    elif iscoroutinefunction(view):  # where it reads the form it must not wait for a database
        put_uploads(request)
        _rewind(request)
    elif hasattr(getattr(view, "cls", None), "parser_classes"):
        put_uploads(request)  # REST framework takes a form that was read, else it reads by itself
    else:
        load = request._load_post_and_files

        def load_and_put() -> None:
            load()
            put_uploads(request)

        request._load_post_and_files = load_and_put


def _rewind(request: Any) -> None:
    """Let a view read the body itself although the form was read; under ASGI all of it is there."""
    if not hasattr(request, "_body") and request._stream.seekable():
        request._stream.seek(0)
        request._read_started = False


def put_uploads(request: HttpRequest) -> None:
    """Put what the receipts of a posted form stand for into ``request.FILES``, under the fields' names.

    Only for fields whose token the form posts beside them. What is refused is for the widget, which shows why: a view
    that looks into ``request.FILES`` by itself meets files only.
    """
    wanted: list[Wanted] = []
    names: list[str] = []
    with suppress(UnreadablePostError):  # the view meets it, where it looks
        for key in request.POST:
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX)
            token = posted_field(request.POST, name)
            if token is None or token.taker != Taker.FORM:
                notice(
                    "receipt without token",
                    logging.WARNING,
                    "Receipts for %r were posted without the token of that field",
                    name,
                )
                continue
            # Many in one value: Django takes no more than DATA_UPLOAD_MAX_NUMBER_FIELDS of them.
            for receipt in filter(None, ",".join(request.POST.getlist(key)).split(",")):
                bare = receipt.removeprefix(MOVED)
                is_moved = bare != receipt
                wanted.append(Wanted(bare, token.name, token.endpoint, token.place, is_moved))
                names.append(name)
    if not wanted:
        request.FILES.__dict__["async_uploads"] = {}
        return
    if len(wanted) > MAX_RECEIPTS:
        raise TooManyFilesSent(f"The form brings more than {MAX_RECEIPTS} receipts of uploads.")
    found: defaultdict[str, list[UploadedBytes]] = defaultdict(list)
    for name, outcome in zip(names, open_receipts(request, wanted), strict=True):
        if isinstance(outcome, ValidationError):
            found[name].append(RefusedUpload(outcome))
        else:
            found[name].append(outcome)
    for name, files in found.items():
        taken = [file for file in files if not isinstance(file, RefusedUpload)]
        if taken:
            # A file that was posted itself was chosen later: a field for one file takes the last.
            request.FILES.setlist(name, [*taken, *request.FILES.getlist(name)])
    request.FILES.__dict__["async_uploads"] = dict(found)


def opened(request: HttpRequest) -> list[CompletedUpload]:
    """The uploads that this request has to itself."""
    uploads: list[CompletedUpload] = request.__dict__.get("async_uploads", [])
    return uploads


def end(uploads: list[CompletedUpload], *, is_done: bool) -> None:
    """A request is over: what it did not save can be posted again."""
    try:
        unsaved = [upload for upload in uploads if upload.end(is_done=is_done)]
        let_go((upload.epoch, upload.session.pk) for upload in unsaved)
    except DatabaseError as error:  # what was answered is answered; the hold ends by itself
        logger.warning("Uploads are held a while longer: %s", error)
