"""How far an upload is, as HTML: ``<async-upload-progress>``, with what it shows until its script has run."""

from __future__ import annotations

import json
from typing import Any

from django.forms.utils import flatatt
from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from . import conf
from .models import STATE_CHOICES, UploadSession
from .sessions.state import ACTIVE, State
from .widgets import TEXTS

BY_BYTES = ACTIVE - {State.VERIFYING, State.FINALIZING}
"""States in which the bytes say how far an upload is."""
_UNITS = ("kilobytes", "megabytes", "gigabytes", "terabytes", "petabytes")


def progress_of(session: UploadSession) -> dict[str, Any]:
    """``text``, ``percent`` (None where unknown), and whether the upload is ``active``."""
    state = session.get_state_display()
    if session.state not in BY_BYTES:
        return {"text": state, "percent": None, "active": session.state in ACTIVE}
    if session.size is None:
        so_far = filesizeformat(session.durable)
        text = _("%(state)s, %(size)s so far") % {"state": state, "size": so_far}
        return {"text": text, "percent": None, "active": True}
    percent = 100 * session.durable // session.size if session.size else 100
    text = _("%(state)s, %(percent)s%%") % {"state": state, "percent": number_format(percent)}
    return {"text": text, "percent": percent, "active": True}


def progress_element(session: UploadSession, url: str | None = None, **attrs: Any) -> SafeString:
    """The element for an upload, watched at the WebSocket ``url`` (None: ``WEBSOCKET_URL``)."""
    shown = progress_of(session)
    bar = ""
    if shown["active"]:
        value = {} if shown["percent"] is None else {"value": shown["percent"]}
        bar = format_html(
            "<progress{}></progress> ", flatatt({"max": 100, "aria-label": session.name, **value})
        )
    return format_html(
        "<async-upload-progress{}>{}<span>{}</span></async-upload-progress>",
        flatatt(
            {
                "upload": session.pk,
                "url": url or conf.uploads().websocket_url,
                "texts": json.dumps(_texts(), ensure_ascii=False),
                **attrs,
            }
        ),
        bar,
        shown["text"],
    )


def _texts() -> dict[str, str]:
    """What the element's script shows, in the language of the page."""
    return {
        **{state: str(name) for state, name in STATE_CHOICES},
        **{unit: str(TEXTS[unit]) for unit in _UNITS},
        "percent": _("%(state)s, %(percent)s%%") % {"state": "{state}", "percent": "{percent}"},
        "soFar": _("%(state)s, %(size)s so far") % {"state": "{state}", "size": "{size}"},
    }
