"""Middleware that puts finished uploads into ``request.FILES``, where forms expect files."""

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

from . import development
from .binding.linked import CompletedUpload, RefusedUpload, UploadedBytes
from .binding.places import owner_tag, rendering
from .models import Taker
from .notices import notice
from .receipts import (
    MOVED,
    PREFIX,
    PostedReceipt,
    open_receipts,
    posted_field,
    receipt_middleware,
    usable_receipts,
)
from .sessions.holds import release

logger = logging.getLogger("django_async_upload")

MAX_USABLE: Final = 100
"""Receipts that one request for a token may ask about."""
FORM_TYPES: Final = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})


MAX_RECEIPTS: Final = 10_000
"""Receipts that one form may post. A field posts those of all files of a folder."""


class UploadMiddleware:
    """Opens the receipts of a form when its view reads the form, and releases uploads that the view did not save.

    Put it after ``SessionMiddleware`` and ``AuthenticationMiddleware``. It reads posted forms only, and does nothing
    with a form that has no receipts. A view can still read the body itself, or set upload handlers. For async views and
    REST framework's views the middleware reads the form before the view: where such a view sets upload handlers,
    override :meth:`reads`.

    Under ``runserver`` without Daphne it also answers uploads over HTTP: see :mod:`.development`.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]
    ) -> None:
        self.get_response = get_response
        receipt_middleware.add(type(self))
        self.is_async = iscoroutinefunction(get_response)
        # Django would run a sync method in a thread, for every request.
        self.process_view = self._process_view_async if self.is_async else self._process_view
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self._respond_async(request)
        if (answer := development.answer(request)) is not None:
            return answer
        is_done = False
        try:
            with rendering(request):
                response = cast("HttpResponse", self.get_response(request))
            is_done = response.status_code < 400
        finally:
            if uploads := held_uploads(request):
                end_request(uploads, is_done=is_done)
        return response

    async def _respond_async(self, request: HttpRequest) -> HttpResponse:
        is_done = False
        try:
            with rendering(request):
                response = await cast("Awaitable[HttpResponse]", self.get_response(request))
            is_done = response.status_code < 400
        finally:
            if uploads := held_uploads(request):
                await sync_to_async(end_request)(uploads, is_done=is_done)
        return response

    def reads(self, request: HttpRequest, view: Callable[..., Any]) -> bool:
        """Whether the request is a form that may contain receipts."""
        return request.method == "POST" and request.content_type in FORM_TYPES

    def _process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: object, kwargs: object
    ) -> HttpResponse | None:
        if asks_for_token(request):
            return token_response(request)
        if self.reads(request, view):
            put_uploads_for(request, view)
        return None

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: object, kwargs: object
    ) -> HttpResponse | None:
        if asks_for_token(request):
            return await sync_to_async(token_response)(request)
        if self.reads(request, view):
            await sync_to_async(put_uploads_for)(request, view)
        return None


def asks_for_token(request: HttpRequest) -> bool:
    """Whether a page asks for a CSRF token, at the URL that its form posts to.

    It asks by a header: that needs no URL of its own, and pages of other sites cannot send it without CORS permission.
    """
    return request.method == "GET" and request.headers.get("Async-Upload") == "token"


def token_response(request: HttpRequest) -> HttpResponse:
    """The current CSRF token and owner tag of the session, both of which ``django.contrib.auth.login`` changes.

    Also which receipts of the header ``Async-Upload-Receipts``, of the first :data:`MAX_USABLE`, a form could still
    post.
    """
    asked = request.headers.get("Async-Upload-Receipts", "").split(",")
    known = {
        "csrf": get_token(request),
        "owner": owner_tag(request),
        "usable": usable_receipts(request, asked[:MAX_USABLE]),
    }
    response = JsonResponse(known)
    add_never_cache_headers(response)
    return response


def put_uploads_for(request: Any, view: Callable[..., Any]) -> None:
    """Call :func:`put_uploads` when the view reads the form, and leave the request alone where it does not.

    ``request.POST`` and ``request.FILES`` call ``_load_post_and_files``, once; Django has no public hook for that.
    """
    if hasattr(request, "_post"):  # read before, for example by the CSRF middleware
        put_uploads(request)
    elif iscoroutinefunction(view):  # it must not wait for the database when it reads the form
        put_uploads(request)
        _rewind(request)
    elif hasattr(getattr(view, "cls", None), "parser_classes"):
        put_uploads(request)  # REST framework uses a form that was read before it
    else:
        load = request._load_post_and_files

        def load_and_put() -> None:
            load()
            put_uploads(request)

        request._load_post_and_files = load_and_put


def _rewind(request: Any) -> None:
    """Let the view read the body again after the form was read. Under ASGI the whole body is in a seekable file."""
    if not hasattr(request, "_body") and request._stream.seekable():
        request._stream.seek(0)
        request._read_started = False


def put_uploads(request: HttpRequest) -> None:
    """Open the receipts of a posted form and put their files into ``request.FILES``, under the fields' names.

    Only for fields whose token the form posts too. Refused receipts are kept for the widget, which shows the error:
    ``request.FILES`` contains files only.
    """
    wanted: list[PostedReceipt] = []
    names: list[str] = []
    with suppress(UnreadablePostError):  # the view gets this error itself when it reads the form
        for key in request.POST:
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX)
            token = posted_field(request.POST, name)
            if token is None or token.taker != Taker.FORM:
                notice(
                    "receipt without token",
                    logging.WARNING,
                    "Receipts for %r were posted without the token of their field, and ignored",
                    name,
                )
                continue
            # One value holds many receipts, since Django limits values to DATA_UPLOAD_MAX_NUMBER_FIELDS.
            for receipt in filter(None, ",".join(request.POST.getlist(key)).split(",")):
                bare = receipt.removeprefix(MOVED)
                is_moved = bare != receipt
                wanted.append(
                    PostedReceipt(bare, token.name, token.endpoint, token.place, is_moved)
                )
                names.append(name)
    if not wanted:
        request.FILES.__dict__["async_uploads"] = {}
        return
    if len(wanted) > MAX_RECEIPTS:
        raise TooManyFilesSent(f"The form has more than {MAX_RECEIPTS} receipts of uploads.")
    found: defaultdict[str, list[UploadedBytes]] = defaultdict(list)
    for name, outcome in zip(names, open_receipts(request, wanted), strict=True):
        if isinstance(outcome, ValidationError):
            found[name].append(RefusedUpload(outcome))
        else:
            found[name].append(outcome)
    for name, files in found.items():
        taken = [file for file in files if not isinstance(file, RefusedUpload)]
        if taken:
            # A plain file was chosen after the uploads, and a field for one file takes the last.
            request.FILES.setlist(name, [*taken, *request.FILES.getlist(name)])
    request.FILES.__dict__["async_uploads"] = dict(found)


def held_uploads(request: HttpRequest) -> list[CompletedUpload]:
    """The uploads that this request holds."""
    uploads: list[CompletedUpload] = request.__dict__.get("async_uploads", [])
    return uploads


def end_request(uploads: list[CompletedUpload], *, is_done: bool) -> None:
    """End a request: release the uploads that it did not save, so that they can be posted again."""
    try:
        unsaved = [upload for upload in uploads if upload.end_request(is_done=is_done)]
        release((upload.epoch, upload.session.pk) for upload in unsaved)
    except DatabaseError as error:  # the response is sent already; the holds expire by themselves
        logger.warning(
            "Uploads could not be released; their holds expire in two minutes: %s", error
        )
