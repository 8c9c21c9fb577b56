"""Template tags: the upload element without a form field, and its script and style."""

from __future__ import annotations

from typing import Any

from django import template
from django.forms.utils import flatatt
from django.templatetags.static import static
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from ..assets import PROGRESS_SCRIPT, page_assets
from ..models import Taker, UploadSession
from ..progress import progress_element
from ..widgets import AsyncFileInput, AsyncMultipleFileInput, PageTexts

register = template.Library()


@register.simple_tag
def async_upload(
    name: str = "file",
    *,
    endpoint: str = "default",
    url: str | None = None,
    max_size: int | None = None,
    page_drop: bool = False,
    accept: str = "",
    multiple: bool = False,
    directory: bool = False,
    taker: str = Taker.RECEIVER.value,
    **attrs: Any,
) -> SafeString:
    """``{% async_upload "photos" multiple=True accept="image/*" id="photos" %}``: the element and its input.

    Other arguments are attributes of the input. Outside of a form the element uploads and dispatches events, and a
    receiver takes the uploads, or with ``taker="api"`` an API that the page's script calls. Inside of a form pass
    ``taker="form"``.
    """
    attrs = {key.replace("_", "-"): value for key, value in attrs.items()}
    attrs.setdefault("id", f"id_{name}")
    if accept:
        attrs["accept"] = accept
    options: dict[str, Any] = {
        "endpoint": endpoint,
        "url": url,
        "max_size": max_size,
        "page_drop": page_drop,
        "taker": taker,
    }
    if multiple or directory:
        return AsyncMultipleFileInput(attrs, directory=directory, **options).render(name, None)
    return AsyncFileInput(attrs, **options).render(name, None)


@register.simple_tag
def async_upload_progress(
    upload: UploadSession, *, url: str | None = None, **attrs: Any
) -> SafeString:
    """``{% async_upload_progress upload %}``: how far an :class:`UploadSession` is, now and as it goes on.

    ``url`` is the WebSocket of the upload's endpoint (None: ``WEBSOCKET_URL``); other arguments are attributes.
    """
    return progress_element(
        upload, url, **{key.replace("_", "-"): value for key, value in attrs.items()}
    )


@register.simple_tag(takes_context=True)
def async_upload_progress_media(context: template.Context) -> SafeString:
    """The script of ``{% async_upload_progress %}``, with the page's CSP nonce."""
    return format_html(
        '<script src="{}" type="module"{}></script>', static(PROGRESS_SCRIPT), _nonce(context)
    )


def _nonce(context: template.Context) -> SafeString:
    nonce = context.get("csp_nonce") or getattr(context.get("request"), "csp_nonce", None)
    return flatatt({"nonce": str(nonce) if nonce else None})


@register.simple_tag(takes_context=True)
def async_upload_media(context: template.Context) -> SafeString:
    """The style and the script of the element, as in ``{{ form.media }}``.

    With the page's CSP nonce, where it has one: Django's ``csp_nonce``, or ``request.csp_nonce`` of django-csp.
    """
    attrs = _nonce(context)
    assets = page_assets()
    links = format_html_join(
        "",
        '<link href="{}" rel="stylesheet"{}>\n',
        ((static(each), attrs) for each in assets.styles),
    )
    script = static(assets.script)
    return format_html(
        '{}{}\n<script src="{}" type="module"{}></script>', links, PageTexts(), script, attrs
    )
