"""Receipts, signed proofs that an upload completed, which a form posts in place of the file. And field tokens.

A receipt names the upload; when it is opened, the database says whose it is, what it was created for and whether it can
still be used. A field token goes the other way: a page gives it to the client, which sends it with the upload, so that
the server knows from the beginning what the page's field accepts.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from django.core import signing
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from . import conf
from .binding.linked import CompletedUpload
from .exceptions import AuthenticationRequired, MetadataInvalid
from .models import Taker, UploadSession
from .sessions.holds import hold, upload_database
from .sessions.owners import owner_of_request
from .sessions.state import State

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
    from django.http import HttpRequest

logger = logging.getLogger("django_async_upload")

PREFIX: Final = "async_upload."
"""Prefix of the name of the hidden input that posts receipts, before the field's HTML name."""
FIELD_PREFIX: Final = "async_upload_field."
"""Prefix of the name of the hidden input that posts the field's token beside them."""
MOVED: Final = "moved:"
"""Prefix of a posted receipt whose file the user moved here from another page."""
receipt_middleware: Final[set[type]] = set()
"""Middleware classes of this process that open receipts; without any, no form receives its uploads."""
MAX_FIELD_NAME: Final = 255

MESSAGES: Final = {
    "receipt_invalid": _("This uploaded file cannot be used here. Please choose the file again."),
    "receipt_misplaced": _("This file was uploaded for another page. Please choose it again here."),
    "receipt_expired": _("This file was uploaded too long ago. Please choose it again."),
    "receipt_used": _("This uploaded file has been submitted already. Please choose it again."),
}
"""Messages for the user, by the code of the :class:`ValidationError`."""


def refusal(code: str) -> ValidationError:
    return ValidationError(MESSAGES[code], code=code)


# Field tokens -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldToken:
    """What a page's field accepts."""

    name: str
    """The result of :func:`field_name`."""
    max_size: int | None
    """Bytes; None: the endpoint's limit."""
    accept: str
    """The ``accept`` attribute of the ``<input type="file">``; "" accepts anything."""
    taker: str = Taker.FORM.value
    """Who takes uploads of this field: a value of :class:`Taker`."""
    place: str = ""
    """What the field's form is for, a result of :func:`~.binding.places.place_of`."""
    endpoint: str = "default"


def field_name(html_name: str) -> str:
    """The name of a field in any row of its formset: ``items-3-file`` is ``items-__prefix__-file``."""
    return re.sub(r"(?<=-)\d+(?=-)", "__prefix__", html_name)


def field_token(
    name: str,
    *,
    endpoint: str = "default",
    max_size: int | None = None,
    accept: str | None = None,
    taker: str = Taker.FORM.value,
    place: str = "",
) -> str:
    """A signed token for the field of that HTML name. The client sends it as ``field`` of an upload's metadata.

    It grants no permission, and never expires. ``taker`` is who takes the finished upload: "form", "api" or "receiver".
    ``place`` is any text that identifies the object of this form: the form refuses uploads with another place.
    """
    if len(name) > MAX_FIELD_NAME:
        raise ValueError(f"The name of an upload field has at most {MAX_FIELD_NAME} characters.")
    if taker not in Taker.values:
        raise ValueError(f"taker is {taker!r}; choose from {Taker.values}.")
    facts = [field_name(name), endpoint, max_size, accept or "", taker, place]
    return _signer("field").sign_object(facts)


def read_field_token(token: object, *, endpoint: str | None = None) -> FieldToken:
    """Verify a field token. Raises :class:`MetadataInvalid`, also for a token of another endpoint (None: any)."""
    try:
        if not isinstance(token, str):
            raise ValueError
        name, where, max_size, accept, taker, place = _signer("field").unsign_object(token)
    except (signing.BadSignature, ValueError) as error:
        raise MetadataInvalid(reason="the field token is not valid") from error
    if endpoint not in (None, where):
        raise MetadataInvalid(reason="the field token is for another endpoint")
    return FieldToken(name, max_size, accept, taker, place, where)


def posted_field(data: Any, html_name: str) -> FieldToken | None:
    """The valid token that a form posted for its field of that name, or None. ``data`` is ``request.POST``."""
    try:
        token = read_field_token(data.get(FIELD_PREFIX + html_name))
    except MetadataInvalid:
        return None
    return token if token.name == field_name(html_name) else None


# Receipts -----------------------------------------------------------------------------------------


def receipt_of(session: UploadSession) -> str:
    """The receipt of a completed upload, always the same for the same upload."""
    return _signer("receipt").sign(session.pk.hex)


def open_receipt(
    request: HttpRequest,
    receipt: object,
    *,
    field: str = "",
    endpoint: str | None = "default",
    user: AbstractBaseUser | AnonymousUser | None = None,
) -> CompletedUpload:
    """Open a receipt: return the finished file. Synchronous.

    ``field`` is the name in the upload's field token ("": it had none), ``endpoint`` the consumer's (None: any),
    and ``user`` the owner, where that is not ``request.user`` or the session's visitor.

    The request holds the upload for two minutes at most: no other request can open the receipt meanwhile.
    :class:`~.middleware.UploadMiddleware` releases uploads that no model saved when the request ends. Raises a
    :class:`ValidationError` whose code is one of :data:`MESSAGES`, the same code for another owner's upload and for one
    that does not exist.
    """
    wanted = PostedReceipt(receipt, field, endpoint)
    opened = open_receipts(request, [wanted], user=user)[0]
    if isinstance(opened, ValidationError):
        raise opened
    return opened


@dataclass(frozen=True, slots=True)
class PostedReceipt:
    """A posted receipt, and the field that it was posted for."""

    receipt: object
    field: str = ""
    """The name in the upload's field token; "": it had none."""
    endpoint: str | None = "default"
    """None: any."""
    place: str | None = None
    """The place in the upload's field token; None: any."""
    is_moved: bool = False
    """Whether the user moved it here from another field or place."""


def open_receipts(
    request: HttpRequest,
    wanted: Sequence[PostedReceipt],
    *,
    user: AbstractBaseUser | AnonymousUser | None = None,
) -> list[CompletedUpload | ValidationError]:
    """:func:`open_receipt` for many: a file or an error for each, in order."""
    pks = [_read(each.receipt) for each in wanted]
    found = _own(request, {pk for pk in pks if pk}, user)
    outcomes: list[CompletedUpload | ValidationError] = []
    usable: dict[uuid.UUID, CompletedUpload] = {}
    for each, pk in zip(wanted, pks, strict=True):
        session = found.get(pk) if pk else None
        if session is None:
            outcomes.append(refusal("receipt_invalid"))
        elif code := _refusal_code(session, each):
            outcomes.append(refusal(code))
        elif session.pk in usable:
            outcomes.append(refusal("receipt_used"))  # posted twice
        else:
            usable[session.pk] = CompletedUpload(session, str(each.receipt), session.epoch + 1)
            outcomes.append(usable[session.pk])
    held = hold(upload.session for upload in usable.values()) if usable else set()
    request.__dict__.setdefault("async_uploads", []).extend(usable[pk] for pk in held)
    return [
        refusal("receipt_used")
        if isinstance(each, CompletedUpload) and each.session.pk not in held
        else each
        for each in outcomes
    ]


def usable_receipts(request: HttpRequest, receipts: Sequence[str]) -> list[str]:
    """The receipts that a form could still post: of this owner's uploads, completed, not too old and not bound."""
    pks = {receipt: pk for receipt in receipts if (pk := _read(receipt))}
    found = _own(request, set(pks.values()), None)
    return [
        receipt
        for receipt, pk in pks.items()
        if pk in found
        and not _refusal_code(found[pk], PostedReceipt(receipt, endpoint=None, is_moved=True))
    ]


def _read(receipt: object) -> uuid.UUID | None:
    try:
        return uuid.UUID(_signer("receipt").unsign(receipt)) if isinstance(receipt, str) else None
    except (signing.BadSignature, ValueError):
        return None


def _own(request: HttpRequest, pks: set[uuid.UUID], user: Any) -> dict[uuid.UUID, UploadSession]:
    """The uploads among these that belong to the user or visitor of the request."""
    if not pks:
        return {}
    try:
        owner = owner_of_request(request, user)
    except AuthenticationRequired:
        return {}
    return UploadSession.objects.using(upload_database()).filter(owner_key=owner.key).in_bulk(pks)


def _refusal_code(session: UploadSession, wanted: PostedReceipt) -> str | None:
    now = timezone.now()
    if session.taker == Taker.RECEIVER:
        logger.warning(
            "The receipt of upload %s was posted, but the upload was created for a receiver: pass taker='form' or "
            "taker='api' where it is uploaded",
            session.pk,
        )
        return "receipt_invalid"
    if wanted.endpoint not in (None, session.endpoint) or not session.is_completed:
        return "receipt_invalid"
    if not wanted.is_moved:
        if session.field_name != wanted.field:
            return "receipt_invalid"
        if wanted.place not in (None, session.field_place):
            return "receipt_misplaced"
    if session.state == State.BOUND or (session.expires_at and session.expires_at > now):
        return "receipt_used"
    max_age = timedelta(seconds=conf.uploads().receipt_max_age)
    if (session.completed_at or session.updated_at) < now - max_age:
        return "receipt_expired"
    return None


def _signer(kind: str) -> signing.Signer:
    return signing.Signer(salt=f"django_async_upload.{kind}")
