"""HTTP responses as values, and what they tell of an upload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..models import UploadSession
from ..receipts import receipt_of
from ..sessions.state import PUBLISHED


@dataclass(slots=True)
class Response:
    """A response as a whole. The door adds the headers that every response has."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """Latin-1 text."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an upload stands after a request."""

    session: UploadSession
    offset: int
    """Bytes that the client need not send again."""

    @property
    def is_published(self) -> bool:
        return self.session.state in PUBLISHED

    @property
    def result(self) -> Mapping[str, Any]:
        """The fields of COMPLETED for a published upload; before that, those of STATUS."""
        session = self.session
        fields: dict[str, Any] = {
            "upload": str(session.pk),
            "name": session.name,
            "size": session.size,
            "state": session.state,
        }
        if not self.is_published:
            return {**fields, "offset": self.offset}
        return {
            **fields,
            "crc32c": session.crc32c,
            "stored_as": session.stored_as,
            "digests": session.digests,
            "receipt": receipt_of(session),
            "response": session.response or None,
        }


def json_response(status: int, value: Any, content_type: str = "application/json") -> Response:
    """A response with a JSON body."""
    return Response(status, {"Content-Type": content_type}, json.dumps(value).encode())
