"""The language of tus, from its specification: what requests ask for, and how answers are worded."""

from __future__ import annotations

import json
import re
import uuid
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from django_async_upload.exceptions import (
    Busy,
    ByteQuotaExceeded,
    ContentMismatch,
    Draining,
    FileTooLarge,
    IdleTimeout,
    InternalError,
    Joined,
    MalformedRequest,
    MediaTypeRefused,
    MetadataInvalid,
    MethodRefused,
    NotFound,
    OriginRefused,
    PartsRefused,
    SizeExceeded,
    StorageFull,
    TakenOver,
    TooSlow,
    UploadError,
    UploadOver,
    VersionUnsupported,
    WrongOffset,
)
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
from django_async_upload.http.responses import Standing
from django_async_upload.http.tus import Tus
from django_async_upload.models import UploadSession
from django_async_upload.sessions.state import State

TUS = Tus(1 << 30)
ID = uuid.UUID("24e533e0-2ec3-bc40-c387-f1a0e460e216")
OTHER = uuid.UUID("17f44dbe-1c4b-ace0-e18a-b850cf2b3a83")
MEDIA_TYPE = "application/offset+octet-stream"


def request(method: str, segment: str | uuid.UUID = "", **headers: Any) -> Request:
    """A request of tus 1.0.0; a header that is None is not sent."""
    sent = {"tus-resumable": "1.0.0"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"/ws/uploads/{segment}"
    known = {name: str(value) for name, value in sent.items() if value is not None}
    return Request(method, path, str(segment), known)


def post(**headers: Any) -> Create:
    question = TUS.read(request("POST", **{"content_length": 0, **headers}))
    assert isinstance(question, Create)
    return question


def patch(**headers: Any) -> Append:
    defaults = {"content_type": MEDIA_TYPE, "upload_offset": 70, "content_length": 30}
    question = TUS.read(request("PATCH", ID, **{**defaults, **headers}))
    assert isinstance(question, Append)
    return question


def metadata(**pairs: str) -> str:
    return ",".join(f"{key} {b64encode(text.encode()).decode()}" for key, text in pairs.items())


def standing(offset: int = 70, **fields: Any) -> Standing:
    session = UploadSession(
        **{
            "id": ID,
            "name": "film.mov",
            "size": 100,
            "state": State.UPLOADING,
            "expires_at": datetime(2014, 6, 25, 16, tzinfo=UTC),
            **fields,
        }
    )
    return Standing(session, offset)


def published(**fields: Any) -> Standing:
    kept = {"state": State.COMPLETED, "expires_at": None, "stored_as": "up loads/ä.mov", "size": 3}
    return standing(3, **{**kept, **fields})


def answer(asked: Request, of: Standing | None = None) -> Any:
    return TUS.answer(asked, TUS.read(asked), of)


def refused(
    error: UploadError, asked: Request | None = None, of: Standing | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, problem details and headers."""
    asked = asked or request("PATCH", ID, content_type=MEDIA_TYPE, upload_offset=70)
    question: Question | None = None
    with suppress(UploadError):
        question = TUS.read(asked)
    response = TUS.refuse(asked, question, error, of)
    assert response.headers["Tus-Resumable"] == "1.0.0"
    return response.status, json.loads(response.body) if response.body else {}, response.headers


# Whose request it is --------------------------------------------------------------------------------


def test_a_request_with_the_version_or_the_media_type_of_tus_is_in_this_language() -> None:
    assert TUS.speaks(request("HEAD", ID))
    assert TUS.speaks(request("PATCH", ID, tus_resumable=None, content_type=MEDIA_TYPE))
    assert not TUS.speaks(request("HEAD", ID, tus_resumable=None))
    assert not TUS.speaks(request("PATCH", ID, tus_resumable=None, upload_offset=1))


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0", ""])
def test_another_version_is_refused_with_the_one_that_is_spoken(version: str | None) -> None:
    asked = request("PATCH", ID, content_type=MEDIA_TYPE, upload_offset=0, tus_resumable=version)
    with pytest.raises(VersionUnsupported) as error:
        TUS.read(asked)
    status, problem, headers = refused(error.value, asked)
    assert (status, headers["Tus-Version"]) == (412, "1.0.0")
    assert problem["tusd"] == "ERR_UNSUPPORTED_VERSION"


def test_options_tell_versions_extensions_and_limits() -> None:
    headers = TUS.abilities
    assert headers["Tus-Version"] == "1.0.0"
    assert headers["Tus-Max-Size"] == "1073741824"
    assert set(headers["Tus-Extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "expiration",
        "checksum",
        "termination",
        "concatenation",
    }
    assert headers["Tus-Checksum-Algorithm"].split(",")[0] == "sha1"  # every server has it
    assert "Tus-Max-Size" not in Tus(None).abilities


@pytest.mark.parametrize(
    ("method", "question"), [("HEAD", Offset(ID)), ("GET", Look(ID)), ("DELETE", Cancel(ID))]
)
def test_an_upload_is_asked_for_by_its_url(method: str, question: Question) -> None:
    assert TUS.read(request(method, ID)) == question


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("segment", ["24e533e02ec3bc40c387f1a0e460e216", str(ID).upper(), "a"])
def test_what_is_no_id_names_no_upload(method: str, segment: str) -> None:
    with pytest.raises(NotFound):
        TUS.read(request(method, segment))


@pytest.mark.parametrize(
    ("method", "segment"), [("PUT", ID), ("POST", ID), ("HEAD", ""), ("DELETE", "")]
)
def test_other_methods_are_refused(method: str, segment: Any) -> None:
    with pytest.raises(MethodRefused) as error:
        TUS.read(request(method, segment))
    status, _, headers = refused(error.value, request(method, segment))
    assert status == 405
    assert "PATCH" in headers["Allow"]


def test_a_header_overrides_the_method() -> None:
    scope = {
        "method": "POST",
        "path": f"/ws/uploads/{ID}",
        "headers": [(b"x-http-method-override", b"PATCH")],
    }
    assert Request.of(scope, str(ID)).method == "PATCH"


# Creation -------------------------------------------------------------------------------------------


def test_a_post_creates_an_upload() -> None:
    create = post(
        upload_length=100,
        upload_metadata="filename d29ybGRfZG9taW5hdGlvbl9wbGFuLnBkZg==,is_confidential",
    )
    assert create.new.name == "world_domination_plan.pdf"
    assert create.new.size == 100
    assert create.new.metadata == {"filename": "world_domination_plan.pdf", "is_confidential": ""}
    assert re.fullmatch("[0-9a-f]{32}", create.new.key)
    assert create.completes is None
    assert not create.parts
    assert not create.new.is_partial


def test_each_post_has_a_key_of_its_own() -> None:
    assert post(upload_length=1).new.key != post(upload_length=1).new.key


def test_a_post_whose_body_is_the_file_completes_it() -> None:
    assert post(upload_length=100, content_length=100, content_type=MEDIA_TYPE).completes
    assert post(upload_length=0).completes
    assert post(upload_length=100, content_length=99, content_type=MEDIA_TYPE).completes is None
    chunked = {"content_length": None, "transfer_encoding": "chunked", "content_type": MEDIA_TYPE}
    assert post(upload_length=100, **chunked).completes is None


@pytest.mark.parametrize(
    "headers",
    [
        {"content_length": 5},
        {"content_length": 5, "content_type": "text/plain"},
        {"content_length": None, "transfer_encoding": "chunked"},
    ],
)
def test_a_body_of_another_type_is_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(MediaTypeRefused):
        post(upload_length=100, **headers)


def test_the_length_may_come_later() -> None:
    assert post(upload_defer_length=1).new.size is None
    assert patch(upload_length=100).size == 100


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"upload_defer_length": 2},
        {"upload_defer_length": 1, "upload_length": 5},
        {"upload_length": -1},
        {"upload_length": "5.0"},
        {"upload_length": "1e3"},
        {"upload_length": "9" * 19},
        {"upload_length": 5, "upload_concat": "whole"},
        {"upload_length": 5, "upload_concat": "partial;/a"},
    ],
)
def test_a_post_that_contradicts_the_specification_is_malformed(headers: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest):
        post(**headers)


@pytest.mark.parametrize(
    ("sent", "name", "content_type"),
    [
        ({"filename": "a.mov", "filetype": "video/quicktime"}, "a.mov", "video/quicktime"),
        ({"name": "a.mov", "type": "video/quicktime"}, "a.mov", "video/quicktime"),  # Uppy
        ({"name": "b", "filename": "a.mov", "relativePath": "c/b"}, "a.mov", ""),
        ({"filename": "", "name": "b"}, "b", ""),
        ({}, "file", ""),
    ],
)
def test_the_metadata_name_the_file_and_its_type(
    sent: dict[str, str], name: str, content_type: str
) -> None:
    new = post(upload_length=1, upload_metadata=metadata(**sent)).new
    assert (new.name, new.content_type, new.metadata) == (name, content_type, sent)


def test_metadata_are_unicode() -> None:
    assert post(
        upload_length=1, upload_metadata=metadata(filename="Übung 1, 映画.mov")
    ).new.name == ("Übung 1, 映画.mov")


@pytest.mark.parametrize(
    "header",
    [
        "filename Zm9v,filename YmFy",
        "filename Zm9v,",
        ",",
        "filename Zm9",
        "filename Z m9v",
        "filename Zm9v\u00e4",
        "filename _w==",
        "filename /w==",  # no UTF-8
        f"filetype {b64encode(b'a' * 256).decode()}",
    ],
)
def test_metadata_that_cannot_be_read_are_refused(header: str) -> None:
    with pytest.raises(MetadataInvalid):
        post(upload_length=1, upload_metadata=header)


def test_the_answer_to_a_creation_has_the_url_and_the_offset() -> None:
    asked = request("POST", upload_length=100, content_length=0)
    response = answer(asked, standing(0))
    assert response.status == 201
    assert response.headers == {
        "Location": f"/ws/uploads/{ID}",
        "Upload-Offset": "0",
        "Upload-Expires": "Wed, 25 Jun 2014 16:00:00 GMT",
        "Tus-Resumable": "1.0.0",
    }


@pytest.mark.parametrize(
    ("path", "segment", "base"),
    [
        ("/ws/uploads/", "", "/ws/uploads"),
        ("/prefix/ws/uploads/", "", "/prefix/ws/uploads"),
        ("/ä b?#/uploads/", "", "/%C3%A4%20b%3F%23/uploads"),
        ("/", "", ""),
    ],
)
def test_the_url_is_below_that_of_the_request(path: str, segment: str, base: str) -> None:
    headers = {"tus-resumable": "1.0.0", "upload-length": "1", "content-length": "0"}
    response = answer(Request("POST", path, segment, headers), standing(0))
    assert response.headers["Location"] == f"{base}/{ID}"


# PATCH ----------------------------------------------------------------------------------------------


def test_a_patch_appends() -> None:
    assert patch() == Append(ID, 70, completes=None)
    assert patch(content_type=f"{MEDIA_TYPE.title()}; a=b").offset == 70


def test_a_patch_of_another_type_is_refused() -> None:
    with pytest.raises(MediaTypeRefused) as error:
        patch(content_type="application/octet-stream")
    status, problem, _ = refused(error.value)
    assert (status, problem["tusd"]) == (415, "ERR_INVALID_CONTENT_TYPE")


@pytest.mark.parametrize("offset", [None, "", "-1", "0x10", "1, 1"])
def test_a_patch_without_an_offset_is_malformed(offset: str | None) -> None:
    with pytest.raises(MalformedRequest):
        patch(upload_offset=offset)


def test_the_answer_to_a_patch_has_the_new_offset() -> None:
    asked = request("PATCH", ID, content_type=MEDIA_TYPE, upload_offset=70)
    response = answer(asked, standing(100))
    assert (response.status, response.body) == (204, b"")
    assert response.headers["Upload-Offset"] == "100"
    assert response.headers["Upload-Expires"] == "Wed, 25 Jun 2014 16:00:00 GMT"
    assert "Upload-Receipt" not in response.headers


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["PATCH", "HEAD", "POST"])
def test_the_last_answer_has_the_receipt_the_name_and_the_apps_own_answer(method: str) -> None:
    segment: Any = "" if method == "POST" else ID
    headers = {"content_type": MEDIA_TYPE, "upload_offset": 0, "upload_length": 3}
    of = published(response={"id": 5, "title": "Ä"})
    response = answer(request(method, segment, **headers), of)
    assert response.headers["Upload-Receipt"] == of.result["receipt"]
    assert response.headers["Upload-Stored-As"] == "up%20loads/%C3%A4.mov"
    assert json.loads(response.headers["Upload-Response"]) == {"id": 5, "title": "Ä"}
    assert all(text.isascii() and "\n" not in text for text in response.headers.values())
    assert "Upload-Expires" not in response.headers


@pytest.mark.django_db
@pytest.mark.parametrize("response", [None, {}, {"text": "x" * 4085}])
def test_no_answer_and_a_long_one_are_in_no_header(response: Any) -> None:
    of = published(response=response)
    assert "Upload-Response" not in answer(request("HEAD", ID), of).headers
    assert json.loads(answer(request("GET", ID), of).body)["response"] == (response or None)


@pytest.mark.django_db
def test_a_patch_of_a_completed_upload_that_appends_nothing_gets_the_last_answer_again() -> None:
    of = published()
    headers = {"content_type": MEDIA_TYPE, "content_length": 0}
    response = answer(request("PATCH", ID, upload_offset=3, **headers), of)
    assert (response.status, response.headers["Upload-Offset"]) == (204, "3")
    assert "Upload-Receipt" in response.headers
    headers["content_length"] = 1
    beyond = answer(request("PATCH", ID, upload_offset=3, **headers), of)
    assert (beyond.status, json.loads(beyond.body)["code"]) == (413, "size_exceeded")
    asked = request("PATCH", ID, upload_offset=2, **headers)
    status, problem, _ = refused(UploadOver(state=State.COMPLETED), asked, of)
    assert (status, problem["tusd"]) == (409, "ERR_MISMATCHED_OFFSET")


# Checksums ------------------------------------------------------------------------------------------


def test_a_body_has_a_checksum() -> None:
    checksum = "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="
    expected = Checksum("sha1", bytes.fromhex("2aae6c35c94fcfb415dbe95f408b9ce91ee846ed"))
    assert patch(upload_checksum=checksum).checksum == expected
    headers = {"upload_length": 11, "content_length": 11, "content_type": MEDIA_TYPE}
    assert post(upload_checksum=checksum, **headers).checksum == expected


@pytest.mark.parametrize("checksum", ["crc64 AAAA", "SHA1 AAAA", "sha1", "sha1 A", "sha1 *", ""])
def test_a_checksum_that_cannot_be_checked_is_malformed(checksum: str) -> None:
    with pytest.raises(MalformedRequest):
        patch(upload_checksum=checksum)


def test_a_body_with_another_checksum_has_a_status_of_its_own() -> None:
    assert refused(ContentMismatch(algorithm="sha1"))[0] == 460


# HEAD -----------------------------------------------------------------------------------------------


def test_head_tells_where_to_continue() -> None:
    sent = {"filename": "film.mov", "is_confidential": "", "field": {"name": "film"}, "n": 5}
    response = answer(request("HEAD", ID), standing(metadata=sent))
    assert (response.status, response.body) == (200, b"")
    assert response.headers == {
        "Upload-Offset": "70",
        "Upload-Length": "100",
        "Upload-Expires": "Wed, 25 Jun 2014 16:00:00 GMT",
        "Upload-Metadata": "filename ZmlsbS5tb3Y=,is_confidential",
        "Cache-Control": "no-store",
        "Tus-Resumable": "1.0.0",
    }


def test_head_tells_the_metadata_as_the_client_gave_them() -> None:
    header = metadata(name="film.mov", type="video/quicktime", relativePath="a/b", empty="")
    new = post(upload_length=1, upload_metadata=header).new
    of = standing(name=new.name, content_type=new.content_type, metadata=new.metadata)
    assert answer(request("HEAD", ID), of).headers["Upload-Metadata"] == header.strip()


def test_head_names_the_file_of_another_door_and_breaks_no_header() -> None:
    of = standing(
        content_type="video/quicktime", metadata={"a,b": "c", "d e": "f", "ä": "g", "h\r\ni": "j"}
    )
    found = answer(request("HEAD", ID), of).headers["Upload-Metadata"]
    assert found == metadata(filename="film.mov", filetype="video/quicktime")


def test_head_says_that_the_length_is_not_known() -> None:
    headers = answer(request("HEAD", ID), standing(size=None)).headers
    assert headers["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in headers


# Concatenation --------------------------------------------------------------------------------------


def test_a_partial_upload_is_created() -> None:
    create = post(upload_length=5, upload_concat="partial")
    assert create.new.is_partial
    assert create.new.name == "file"


def test_a_final_upload_consists_of_partial_ones_in_their_order() -> None:
    urls = f"https://tus.example.org/files/{OTHER} /ws/uploads/{ID} {OTHER}"
    create = post(upload_concat=f"final;{urls}", upload_metadata=metadata(filename="film.mov"))
    assert create.parts == (OTHER, ID, OTHER)
    assert (create.new.size, create.new.name, create.new.is_partial) == (None, "film.mov", False)


def test_a_final_upload_has_no_length_and_no_body() -> None:
    with pytest.raises(MalformedRequest):
        post(upload_concat=f"final;/{ID}", upload_length=5)
    with pytest.raises(MalformedRequest):
        post(upload_concat=f"final;/{ID}", content_length=5)


@pytest.mark.parametrize("url", ["/files/a", "https://[/", f"/{ID}/", str(ID).upper()])
def test_a_final_upload_of_what_is_no_upload_is_refused(url: str) -> None:
    with pytest.raises(PartsRefused) as error:
        post(upload_concat=f"final;{url}")
    status, problem, _ = refused(error.value)
    assert (status, problem["tusd"]) == (400, "ERR_INVALID_CONCAT")


def test_a_part_that_is_not_finished_has_tusds_code_for_it() -> None:
    error = PartsRefused(reason="it is not finished", part=ID, unfinished=True)
    assert refused(error)[1]["tusd"] == "ERR_UPLOAD_NOT_FINISHED"


@pytest.mark.django_db
def test_head_tells_what_belongs_together() -> None:
    partial = answer(request("HEAD", ID), standing(is_partial=True)).headers
    assert partial["Upload-Concat"] == "partial"
    assert partial["Upload-Offset"] == "70"
    final = answer(request("HEAD", ID), published(parts=[str(OTHER), str(ID)])).headers
    assert final["Upload-Concat"] == f"final;/ws/uploads/{OTHER} /ws/uploads/{ID}"
    assert final["Upload-Offset"] == final["Upload-Length"] == "3"


def test_head_of_a_part_that_was_concatenated_says_that_it_is_complete() -> None:
    joined = Joined(upload=OTHER, size=5)
    status, _, headers = refused(joined, request("HEAD", ID))
    assert status == 200
    assert (headers["Upload-Offset"], headers["Upload-Length"]) == ("5", "5")
    assert (headers["Upload-Concat"], headers["Cache-Control"]) == ("partial", "no-store")
    assert refused(joined)[0] == 410


@pytest.mark.django_db
def test_a_final_upload_cannot_be_changed() -> None:
    asked = request("PATCH", ID, content_type=MEDIA_TYPE, upload_offset=3, content_length=0)
    of = published(parts=[str(OTHER)])
    for response in (
        answer(asked, of),
        TUS.refuse(asked, TUS.read(asked), UploadOver(state=State.COMPLETED), of),
    ):
        assert response.status == 403
        assert json.loads(response.body)["tusd"] == "ERR_MODIFY_FINAL"


# Termination, and errors ----------------------------------------------------------------------------


def test_a_cancelled_upload_is_gone() -> None:
    response = answer(request("DELETE", ID))
    assert (response.status, response.headers) == (204, {"Tus-Resumable": "1.0.0"})
    assert refused(UploadOver(state=State.CANCELLED), request("HEAD", ID))[0] == 410


@pytest.mark.parametrize(
    ("error", "status", "tusd"),
    [
        (NotFound(), 404, "ERR_UPLOAD_NOT_FOUND"),
        (UploadOver(state=State.EXPIRED), 410, None),
        (WrongOffset(offset=1, expected=2), 409, "ERR_MISMATCHED_OFFSET"),
        (SizeExceeded(end=2, size=1), 413, "ERR_UPLOAD_SIZE_EXCEEDED"),
        (FileTooLarge(size=2, max_size=1), 413, "ERR_MAX_SIZE_EXCEEDED"),
        (TakenOver(), 400, "ERR_UPLOAD_INTERRUPTED"),
        (IdleTimeout(seconds=5), 500, "ERR_READ_TIMEOUT"),
        (TooSlow(min_rate=5), 500, "ERR_READ_TIMEOUT"),
        (Draining(retry_after=1), 503, "ERR_SERVER_SHUTDOWN"),
        (OriginRefused(origin="https://other.example"), 403, "ERR_ORIGIN_NOT_ALLOWED"),
        (InternalError(), 500, "ERR_INTERNAL_SERVER_ERROR"),
        (Busy(retry_after=1.5), 503, None),
        (StorageFull(), 507, None),
        (ByteQuotaExceeded(max_bytes=5, open_bytes=5), 429, "ERR_UPLOAD_REJECTED"),
    ],
)
def test_an_error_has_a_status_our_code_and_tusds(
    error: UploadError, status: int, tusd: str | None
) -> None:
    found, problem, headers = refused(error)
    assert (found, problem["status"], problem.get("tusd")) == (status, status, tusd)
    assert problem["code"] == error.code
    assert headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("error", [IdleTimeout(seconds=5), TooSlow(min_rate=1), Busy(), Draining()])
def test_what_may_succeed_later_has_a_status_that_clients_try_again(error: UploadError) -> None:
    status = refused(error)[0]
    assert status in (409, 423) or status >= 500
