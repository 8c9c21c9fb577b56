"""A language for tests: headers say outright what a request asks for."""

from __future__ import annotations

import secrets
from typing import Final

from django_async_upload.exceptions import UploadError
from django_async_upload.http.problems import problem
from django_async_upload.http.requests import (
    Append,
    Cancel,
    Checksum,
    Create,
    Look,
    Offset,
    Question,
    Request,
)
from django_async_upload.http.responses import Response, Standing, json_response
from django_async_upload.sessions.values import NewUpload


class Spoken:
    abilities: Final[dict[str, str]] = {}

    def speaks(self, request: Request) -> bool:
        return "x-ask" in request.headers

    def read(self, request: Request) -> Question:
        headers = request.headers
        upload = request.upload
        completes = {"yes": True, "no": False, None: None}[headers.get("x-completes")]
        checksum = None
        if "x-checksum" in headers:
            algorithm, digest = headers["x-checksum"].split()
            checksum = Checksum(algorithm, bytes.fromhex(digest))
        digests = {"crc32c": headers["x-crc32c"]} if "x-crc32c" in headers else {}
        if headers["x-ask"] == "create":
            new = NewUpload(
                key=headers.get("x-key") or secrets.token_hex(16),
                name=headers.get("x-name", "a.bin"),
                size=request.number("x-size"),
            )
            return Create(new, bool(completes), "x-key" in headers, checksum, digests)
        assert upload is not None
        match headers["x-ask"]:
            case "append":
                offset = request.number("x-offset")
                assert offset is not None
                return Append(upload, offset, completes, None, checksum, digests)
            case "offset":
                return Offset(upload)
            case "look":
                return Look(upload)
            case "cancel":
                return Cancel(upload)
        raise AssertionError(headers["x-ask"])

    def answer(self, request: Request, question: Question, standing: Standing | None) -> Response:
        if standing is None:
            return Response(204)
        return json_response(200, {**standing.result, "offset": standing.offset})

    def refuse(
        self,
        request: Request,
        question: Question | None,
        error: UploadError,
        standing: Standing | None,
    ) -> Response:
        return problem(error, at=None if standing is None else standing.offset)
