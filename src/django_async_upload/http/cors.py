"""Headers that let pages of trusted origins read answers (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from typing import Any, Final

from ..admission import origin_is_trusted, origins
from .requests import Request
from .responses import Response

METHODS: Final = "HEAD, GET, POST, PUT, PATCH, DELETE"
PREFLIGHT_SECONDS: Final = 86_400
"""For which a browser remembers the answer to a preflight."""


def is_preflight(request: Request) -> bool:
    """Whether a browser asks if a page of another origin may send the request."""
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


def cors_headers(scope: dict[str, Any], request: Request, response: Response) -> dict[str, str]:
    """The headers to add to an answer; only Vary, which caches need, where no page of a trusted origin asked."""
    headers = {"Vary": "Origin"}
    sent = origins(scope)
    if not sent or not origin_is_trusted(scope):
        return headers
    headers["Access-Control-Allow-Origin"] = sent[0]
    headers["Access-Control-Allow-Credentials"] = "true"
    if is_preflight(request):
        asked = request.headers.get("access-control-request-headers", "")
        headers["Access-Control-Allow-Methods"] = METHODS
        headers["Access-Control-Allow-Headers"] = asked
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        headers["Access-Control-Expose-Headers"] = ", ".join(response.headers)
    return headers
