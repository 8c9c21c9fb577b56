"""Puts finished uploads where forms expect files: into ``request.FILES``."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ValidationError
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.request import UnreadablePostError

from .receipts import PREFIX, field_name, open_receipts
from .uploaded import CompletedUpload, RefusedUpload, UploadedBytes

logger = logging.getLogger("django_async_upload")

FORM_TYPES: Final = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})


class UploadMiddleware:
    """Opens the receipts of a form before its view runs, and lets go of what the view did not save.

    Belongs behind ``SessionMiddleware`` and ``AuthenticationMiddleware``. It looks at forms that are posted, and at
    nothing else; those without a receipt cost nothing but that. A view that sets upload handlers of its own must
    not have its form read before: override :meth:`reads` for it.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]
    ) -> None:
        self.get_response = get_response
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
            response = cast("HttpResponse", self.get_response(request))
            is_done = response.status_code < 400
        finally:
            if uploads := opened(request):
                let_go(uploads, is_done=is_done)
        return response

    async def _respond_async(self, request: HttpRequest) -> HttpResponse:
        is_done = False
        try:
            response = await cast("Awaitable[HttpResponse]", self.get_response(request))
            is_done = response.status_code < 400
        finally:
            if uploads := opened(request):
                await sync_to_async(let_go)(uploads, is_done=is_done)
        return response

    def reads(self, request: HttpRequest, view: Callable[..., Any]) -> bool:
        """Whether the request is a form that may be read before its view runs."""
        return request.method == "POST" and request.content_type in FORM_TYPES

    def _process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: object, kwargs: object
    ) -> None:
        if self.reads(request, view):
            put_uploads(request)

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: object, kwargs: object
    ) -> None:
        if self.reads(request, view):
            await sync_to_async(put_uploads)(request)


def put_uploads(request: HttpRequest) -> None:
    """Put what the receipts of a posted form stand for into ``request.FILES``, under the fields' names."""
    wanted: list[tuple[str, str]] = []
    with suppress(UnreadablePostError):  # the view meets it, where it looks
        for key in request.POST:
            if key.startswith(PREFIX) and (name := key.removeprefix(PREFIX)):
                # Many in one value: Django takes no more than DATA_UPLOAD_MAX_NUMBER_FIELDS of them.
                receipts = ",".join(request.POST.getlist(key)).split(",")
                wanted += [(receipt, name) for receipt in receipts if receipt]
    if not wanted:
        return
    outcomes = open_receipts(request, [(receipt, field_name(name)) for receipt, name in wanted])
    found: defaultdict[str, list[UploadedBytes]] = defaultdict(list)
    for (_receipt, name), outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, ValidationError):
            found[name].append(RefusedUpload(outcome))
        else:
            found[name].append(outcome)
    for name, files in found.items():
        # A file that was posted itself was chosen later: a field for one file takes the last.
        request.FILES.setlist(name, [*files, *request.FILES.getlist(name)])


def opened(request: HttpRequest) -> list[CompletedUpload]:
    """The uploads that this request has to itself."""
    uploads: list[CompletedUpload] = request.__dict__.get("async_uploads", [])
    return uploads


def let_go(uploads: list[CompletedUpload], *, is_done: bool) -> None:
    for upload in uploads:
        try:
            upload.let_go(is_done=is_done)
        except DatabaseError as error:  # what was answered is answered; the hold ends by itself
            logger.warning("Upload %s is held a while longer: %s", upload.session.pk, error)
