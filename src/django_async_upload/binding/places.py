"""Tags of places, of what a page's field is for: see "Which file belongs where" in docs/design.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import SynchronousOnlyOperation
from django.db.models import Model
from django.utils.crypto import salted_hmac

from ..exceptions import AuthenticationRequired
from ..sessions.owners import owner_of_request

if TYPE_CHECKING:
    from django.http import HttpRequest

_request: ContextVar[HttpRequest | None] = ContextVar("async_upload_request", default=None)
LENGTH: Final = 20
"""Characters of a tag."""


@contextmanager
def rendering(request: HttpRequest) -> Iterator[None]:
    """Fields rendered within this context belong to the page that answers the request."""
    before = _request.set(request)
    try:
        yield
    finally:
        _request.reset(before)


def place_of(value: Any) -> str:
    """An opaque tag of what a field's form is for, from the value that the form gives its widget.

    In a model form that value is a ``FieldFile``, which knows its object. A new object, and a form without an object,
    are identified by the URL of their page; "" outside of a request.
    """
    instance = getattr(value, "instance", None)
    if isinstance(instance, Model) and not instance._state.adding:
        return _tag("object", f"{instance._meta.label}:{instance.pk}")
    request = _request.get()
    model = instance._meta.label if isinstance(instance, Model) else ""
    return "" if request is None else _tag("page", f"{model}:{request.get_full_path()}")


def current_owner_tag() -> str:
    """:func:`owner_tag` of the page that is being rendered; "" outside of a request."""
    request = _request.get()
    return "" if request is None else owner_tag(request)


def owner_tag(request: HttpRequest) -> str:
    """An opaque tag of the request's owner, by which a browser keeps its users' uploads apart; "" without an owner.

    In an async view it is "" unless the user has been loaded by ``await request.auser()``.
    """
    try:
        owner = owner_of_request(request, getattr(request, "_acached_user", None))
    except (AuthenticationRequired, SynchronousOnlyOperation, AttributeError):
        return ""  # AttributeError: a request without a user, as without AuthenticationMiddleware
    return _tag("owner", owner.key)


def _tag(kind: str, text: str) -> str:
    return salted_hmac(f"django_async_upload.{kind}", text, algorithm="sha256").hexdigest()[:LENGTH]
