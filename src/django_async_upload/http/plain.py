"""Whole files by PUT or POST, as curl sends them, and how an upload stands, for everybody."""

from __future__ import annotations

import secrets
from typing import Final

from ..exceptions import MethodRefused, NotFound, UploadError
from ..sessions.values import NewUpload
from .problems import problem
from .requests import Cancel, Create, Look, Question, Request
from .responses import Response, Standing, json_response

METHODS: Final = "OPTIONS, GET, HEAD, POST, PUT, DELETE"
FORMS: Final = ("multipart/form-data", "application/x-www-form-urlencoded")
"""What a form's POST has: its body is no file."""


class Plain:
    """``curl -T film.mov -H "Authorization: Bearer $TICKET" https://site.example/ws/uploads/film.mov``"""

    abilities: Final[dict[str, str]] = {}

    def speaks(self, request: Request) -> bool:
        return True

    def read(self, request: Request) -> Question:
        upload = request.upload
        match request.method:
            case "GET" | "HEAD" if upload is not None:
                return Look(upload)
            case "DELETE" if upload is not None:
                return Cancel(upload)
            case "POST" | "PUT" if upload is None:
                return _create(request)
            case "GET" | "HEAD" | "DELETE" if request.segment:
                raise NotFound
        raise MethodRefused(method=request.method)

    def answer(self, request: Request, question: Question, standing: Standing | None) -> Response:
        if standing is None:
            return Response(204)
        status = 201 if isinstance(question, Create) else 200
        return json_response(status, standing.result)

    def refuse(
        self,
        request: Request,
        question: Question | None,
        error: UploadError,
        standing: Standing | None,
    ) -> Response:
        response = problem(error)
        if isinstance(error, MethodRefused):
            response.headers["Allow"] = METHODS
        return response


def _create(request: Request) -> Create:
    # curl -d sends a form; what it holds is no file by itself.
    is_form = request.media_type in FORMS
    new = NewUpload(
        key=secrets.token_hex(16),
        name=request.segment or "upload",
        size=request.length,
        content_type="" if is_form else request.headers.get("content-type", ""),
    )
    return Create(new, completes=True)
