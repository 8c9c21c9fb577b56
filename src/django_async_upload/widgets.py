"""The widgets: an ``<input type="file">`` inside an ``<async-upload>``, which enhances it where JavaScript runs.

Any ``FileField`` or ``ImageField`` can have one. The form posts a receipt for each upload; the middleware opens it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Final

from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile
from django.db.models.fields.files import ImageFieldFile
from django.forms import ClearableFileInput, FileInput, Media
from django.forms.utils import flatatt
from django.forms.widgets import FILE_INPUT_CONTRADICTION
from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import get_language, gettext_lazy, override
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext as django_ngettext

from . import conf
from .assets import page_assets
from .binding.linked import CompletedUpload, RefusedUpload
from .binding.places import current_owner_tag, place_of
from .exceptions import TypeRefused
from .models import Taker
from .notices import notice
from .receipts import (
    FIELD_PREFIX,
    MOVED,
    PREFIX,
    FieldToken,
    field_name,
    field_token,
    posted_field,
    receipt_middleware,
    refusal,
)
from .sessions.policies import check_accept

_django = gettext_lazy  # from Django's catalogue: makemessages does not collect them for this app's

TEXTS: Final = {
    # The place to choose, drop and paste
    "chooseFile": _("Choose a file"),
    "chooseFiles": _("Choose files"),
    "chooseFolder": _("Choose a folder"),
    "replaceFile": _("Choose another file"),
    "orDrop": _("or drop it here"),
    "orDropMany": _("or drop them here"),
    "dropNow": _("Drop to upload"),
    "upTo": _("At most {size}"),
    "allowed": _("Allowed: {types}"),
    "images": _("images"),
    "videos": _("videos"),
    "sounds": _("sound recordings"),
    "withForm": _("The file will be sent together with the form."),
    "readingFolder": _("Reading the folder"),
    "alreadyThere": _("This file is there already: {name}"),
    "alreadyThereCount": _("Files that are there already: {count}"),
    # What is known of one file
    "sentOf": _("{sent} of {size}"),
    "left": _("{time} left"),
    "queued": _("Waiting for its turn"),
    "waitRoom": _("The server has no room at the moment."),
    "waitBusy": _("The server is busy."),
    "waitServer": _("The server has a problem."),
    "waitFile": _("The file cannot be read at the moment."),
    "tryingAgain": _("Trying again at {time}."),
    "starting": _("Starting"),
    "paused": _("Paused"),
    "offline": _("Waiting for the network. It will go on by itself."),
    "unauthenticated": _("You have been signed out. Sign in and it will go on by itself."),
    "signIn": _("Sign in in another tab"),
    "verifying": _("Checking the file"),
    "inspecting": _("Inspecting the file"),
    "finalizing": _("Saving the file"),
    "completed": _("Uploaded"),
    "cancelled": _("Cancelled"),
    "unfinished": _("Not finished: {sent} of {size}"),
    "pickAgain": _("Choose the same file again to go on."),
    "elsewhere": _("Not finished, of another page: {sent} of {size}"),
    "elsewhereDone": _("Uploaded on another page, not sent"),
    "sentBefore": _("Uploaded and sent with a form before"),
    "mayContinue": _("Press “{action}” to go on."),
    # Sizes: as Django's filesizeformat names the units
    "kilobytes": _django("%s KB"),
    "megabytes": _django("%s MB"),
    "gigabytes": _django("%s GB"),
    "terabytes": _django("%s TB"),
    "petabytes": _django("%s PB"),
    "perSecond": _("{size}/s"),
    # What a user can do with it
    "pause": _("Pause"),
    "resume": _("Resume"),
    "cancel": _("Cancel"),
    "retry": _("Try again"),
    "undo": _("Undo"),
    "remove": _("Remove"),
    "continue": _("Continue"),
    "useHere": _("Use here"),
    "discard": _("Discard"),
    "actionOn": _("{action}: {name}"),
    # Many files
    "list": _("Files of “{label}”"),
    "uploadedOf": _("Uploaded: {done} of {count}"),
    "failedCount": _("Failed: {count}"),
    "notShown": _("Files that are not shown: {count}"),
    "showMore": _("Show more"),
    "pauseAll": _("Pause all"),
    "resumeAll": _("Resume all"),
    "retryFailed": _("Try failed ones again"),
    "removeFailed": _("Remove failed ones"),
    "removeAll": _("Remove all"),
    # The form waits
    "submitWaiting": _("The form will be sent by itself when everything is uploaded."),
    "submitCancel": _("Do not send it yet"),
    "submitStopped": _(
        "The form was not sent: some files are not uploaded. Try again or remove them."
    ),
    "submitCancelled": _("The form will not be sent by itself."),
    # Said aloud, seldom
    "saidAdded": _("Added: {name}"),
    "saidAddedCount": _("Files added: {count}"),
    "saidPercent": _("{percent} uploaded"),
    "saidCompleted": _("Uploaded: {name}"),
    "saidAllCompleted": _("Everything is uploaded."),
    "saidFailed": _("{name}: {error}"),
    "saidRemoved": _("Removed: {name}"),
    "saidRemovedCount": _("Files removed: {count}"),
    "saidOnline": _("The upload goes on."),
    # What went wrong
    "errorTooLarge": _("This file is too large ({size}). At most {limit} is allowed."),
    "errorTooLargeUnknown": _("This file is too large."),
    "errorTooSmall": _("This file is too small ({size}). At least {limit} is needed."),
    "errorTooMany": _("No more files can be uploaded here than {count}."),
    "errorTotal": _("All files together are too large. At most {limit} is allowed."),
    "errorType": _("This type of file is not allowed here. Allowed: {types}"),
    "errorTypeUnknown": _("This type of file is not allowed here."),
    "errorOneOnly": _("Only one file can be uploaded here."),
    "errorName": _("The name of this file is not allowed. Rename it and choose it again."),
    "errorPermission": _("You are not allowed to upload here."),
    "errorRefused": _("The server refused this file: {message}"),
    "errorQuota": _("You have too many unfinished uploads. Finish or remove some, then try again."),
    "errorBusy": _("The server is busy. Try again later."),
    "errorStorage": _("The server cannot store files at the moment. Try again later."),
    "errorServer": _("The server has a problem. Try again later."),
    "errorUnreachable": _("The upload server cannot be reached."),
    "errorSignIn": _("You have been signed out. Sign in, then try again."),
    "errorTakenOver": _("This upload goes on in another tab, window or device."),
    "errorChanged": _(
        "This file has changed since the upload began. Remove it and choose it again."
    ),
    "errorDamaged": _("This file arrived damaged. Try again."),
    "errorEnded": _("This upload has expired or was cancelled. Try again from the start."),
    "errorUnreadable": _("This file cannot be read. It may have been moved, changed or deleted."),
    "errorFolder": _("This folder cannot be read."),
    "errorOther": _("The upload failed: {message}"),
}
"""The texts of the element. The browser fills in the words in braces. ``english.js`` is generated from this."""


@cache
def page_texts(language: str | None) -> SafeString:
    """A ``<meta>`` with all texts in one language as JSON, once in the head of a page."""
    with override(language):
        texts = {key: str(text) for key, text in TEXTS.items()}
    content = json.dumps(texts, ensure_ascii=False)
    return format_html('<meta name="async-upload-texts" content="{}">', content)


class PageTexts:
    """An asset of forms' ``media``: the texts in the language that is active when it is rendered."""

    def __html__(self) -> str:
        return page_texts(get_language())

    __str__ = __html__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PageTexts)

    def __hash__(self) -> int:
        return hash(PageTexts)


_BYTES: Final = ("%(size)d byte", "%(size)d bytes")
"""The msgids in Django's catalogue."""


def _bytes(size: int) -> str:
    """``10,737,418,240 bytes``, in the active language."""
    text = django_ngettext(*_BYTES, size).replace("%(size)d", "%(size)s")
    return text % {"size": number_format(size, use_l10n=True, force_grouping=True)}


class AsyncFileInput(FileInput):
    """For one file, as Django's ``FileInput``.

    ``endpoint`` names the consumer that receives the uploads, ``url`` is its WebSocket (None: ``WEBSOCKET_URL``),
    ``max_size`` is the largest file in bytes (None: the endpoint's limit), ``min_size`` the smallest. The types that
    are accepted stand in ``attrs={"accept": ...}``. Sizes and types are also checked for files posted without
    JavaScript. ``taker`` is who takes the uploads: the form itself ("form"), or a script's call of an API ("api").
    """

    template_name = "django_async_upload/widgets/file.html"
    input_template_name = "django/forms/widgets/file.html"
    """Django's template that the element wraps."""
    is_used: ClassVar[bool] = False
    """Whether any widget was created, for the system checks."""
    is_for_admin: ClassVar[bool] = False
    """Whether the style has the colors of Django's admin."""

    def __init__(
        self,
        attrs: dict[str, Any] | None = None,
        *,
        endpoint: str = "default",
        url: str | None = None,
        max_size: int | None = None,
        min_size: int | None = None,
        page_drop: bool = False,
        taker: str = Taker.FORM.value,
    ) -> None:
        super().__init__(attrs)
        self.endpoint = endpoint
        self.url = url
        self.max_size = max_size
        self.min_size = min_size
        self.page_drop = page_drop
        self.taker = taker
        self.kept: list[CompletedUpload] = []
        self.posted: FieldToken | None = None
        AsyncFileInput.is_used = True

    @property
    def media(self) -> Media:
        texts: Any = PageTexts()  # any object that has __html__
        return Media(js=[texts]) + page_assets(admin=self.is_for_admin).media

    def value_from_datadict(self, data: Any, files: Any, name: str) -> Any:
        posted = FileInput.value_from_datadict(self, data, files, name)
        several = isinstance(posted, list | tuple)
        brought = [*posted] if several else [posted] if posted else []
        # Receipts in the order in which they were posted, refused ones included; then plain files.
        receipts = getattr(files, "async_uploads", {}).get(name, [])
        if data.get(PREFIX + name) and not receipt_middleware:
            notice(
                "receipt without middleware",
                logging.ERROR,
                "A form posted the receipt of an upload for %r, but no middleware opens receipts. Add UploadMiddleware "
                "to MIDDLEWARE, after AuthenticationMiddleware.",
                name,
            )
        plain = [file for file in brought if not any(file is other for other in receipts)]
        checked = [self._checked(file) for file in [*receipts, *plain]]
        # Django renders a form with errors without the posted files: the widget keeps them for that.
        self.kept = [file for file in checked if isinstance(file, CompletedUpload)]
        self.posted = posted_field(data, name)
        value = super().value_from_datadict(data, files, name)
        if value is False or value is FILE_INPUT_CONTRADICTION:  # to be cleared
            return value
        if several:
            return checked
        return checked[-1] if checked else posted

    def _checked(self, file: Any) -> Any:
        """The file, or a :class:`RefusedUpload` in place of one that this field does not accept."""
        if not isinstance(file, UploadedFile) or isinstance(file, RefusedUpload):
            return file
        if isinstance(file, CompletedUpload) and file.session.endpoint != self.endpoint:
            return RefusedUpload(refusal("receipt_invalid"))
        size = file.size or 0
        if self.max_size is not None and size > self.max_size:
            message = _("This file is too large (%(size)s). At most %(limit)s is allowed.")
            sizes = {"size": filesizeformat(size), "limit": filesizeformat(self.max_size)}
            if sizes["size"] == sizes["limit"]:  # in bytes where both would look the same
                sizes = {"size": _bytes(size), "limit": _bytes(self.max_size)}
            return RefusedUpload(
                ValidationError(message, code="file_too_large", params=sizes), file.name or ""
            )
        if self.min_size is not None and size < self.min_size:
            sizes = {"size": filesizeformat(size), "limit": filesizeformat(self.min_size)}
            too_small = format_lazy(TEXTS["errorTooSmall"], **sizes)
            return RefusedUpload(ValidationError(too_small, code="file_too_small"), file.name or "")
        try:
            check_accept(file.name or "", file.content_type or "", self.attrs.get("accept") or "")
        except TypeRefused:
            error = ValidationError(TEXTS["errorTypeUnknown"], code="type_refused")
            return RefusedUpload(error, file.name or "")
        return file

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context(name, value, attrs)
        own = context["widget"]["attrs"]
        accept = own.get("accept") or None
        place = self.posted.place if self.posted else place_of(value)
        token = field_token(
            name,
            endpoint=self.endpoint,
            max_size=self.max_size,
            accept=accept,
            taker=self.taker,
            place=place,
        )
        hidden = {"form": own.get("form"), "disabled": bool(own.get("disabled"))}
        here = (field_name(name), place)
        kept = [
            {
                "name": PREFIX + name,
                "value": ("" if file.session.made_for == here else MOVED) + file.receipt,
                "data-name": file.name,
                "data-size": str(file.size),
                **hidden,
            }
            for file in self.kept
            if not file.is_bound
        ]
        if kept:
            kept.append({"name": FIELD_PREFIX + name, "value": token, **hidden})
        context["widget"]["async_upload"] = {
            "attrs": flatatt(
                {
                    "url": self.url or conf.uploads().websocket_url,
                    "field": token,
                    "place": place or None,
                    "owner": current_owner_tag() or None,
                    **{
                        name.replace("_", "-"): None if value is None else str(value)
                        for name in ("max_size", "min_size", "max_files", "max_total_size")
                        for value in [getattr(self, name, None)]
                    },
                    "accept": accept,
                    "multiple": bool(own.get("multiple")),
                    "directory": bool(own.get("webkitdirectory")),
                    "page-drop": self.page_drop,
                    "disabled": bool(own.get("disabled")),
                }
            ),
            "input_template": self.input_template_name,
            "kept": [flatatt(each) for each in kept],
        }
        return context


class AsyncClearableFileInput(AsyncFileInput, ClearableFileInput):
    """For one optional file of an object: as Django's ``ClearableFileInput``, which model forms use."""

    input_template_name = "django/forms/widgets/clearable_file_input.html"

    def get_context(self, name: str, value: Any, attrs: dict[str, Any] | None) -> dict[str, Any]:
        context = super().get_context(name, value, attrs)
        if isinstance(value, ImageFieldFile) and self.is_initial(value):
            context["widget"]["async_upload"]["picture"] = value.url
        return context


class AsyncMultipleFileInput(AsyncFileInput):
    """For any number of files, or with ``directory`` for all files of a folder."""

    allow_multiple_selected = True

    def __init__(
        self,
        attrs: dict[str, Any] | None = None,
        *,
        directory: bool = False,
        max_files: int | None = None,
        max_total_size: int | None = None,
        **options: Any,
    ) -> None:
        """``max_files`` limits the number of files, ``max_total_size`` the bytes of all together; None: no limit."""
        attrs = {**(attrs or {}), **({"webkitdirectory": True} if directory else {})}
        super().__init__(attrs, **options)
        self.max_files = max_files
        self.max_total_size = max_total_size

    def selection_error(self, files: Sequence[Any]) -> ValidationError | None:
        """The error for too many files, or too many bytes in all; None where neither. For the field's validation."""
        if self.max_files is not None and len(files) > self.max_files:
            message = format_lazy(TEXTS["errorTooMany"], count=self.max_files)
            return ValidationError(message, code="too_many_files")
        known = [file for file in files if not isinstance(file, RefusedUpload)]
        total = sum(file.size or 0 for file in known)
        if self.max_total_size is not None and total > self.max_total_size:
            message = format_lazy(TEXTS["errorTotal"], limit=filesizeformat(self.max_total_size))
            return ValidationError(message, code="total_too_large")
        return None
