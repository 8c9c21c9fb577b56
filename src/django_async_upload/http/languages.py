"""What a language of the HTTP door has to know. The door decides; a language translates."""

from __future__ import annotations

from typing import Protocol

from ..exceptions import UploadError
from .requests import Question, Request
from .responses import Response, Standing


class Language(Protocol):
    """Reads requests and words answers: plain functions of values, without I/O.

    OPTIONS have no language: the answer has the headers of all.
    """

    @property
    def abilities(self) -> dict[str, str]:
        """Headers that tell in an answer to OPTIONS what the server can do."""

    def speaks(self, request: Request) -> bool:
        """Whether the request is in this language."""

    def read(self, request: Request) -> Question:
        """What the request asks for. Raises :class:`MalformedRequest` and other :class:`UploadError`."""

    def answer(self, request: Request, question: Question, standing: Standing | None) -> Response:
        """The answer to a request that succeeded. ``standing`` is None after a cancellation."""

    def refuse(
        self,
        request: Request,
        question: Question | None,
        error: UploadError,
        standing: Standing | None,
    ) -> Response:
        """The answer to a request that failed. ``question`` is None where the request could not be read, ``standing``
        where no upload is known, or it is none of this client's."""
