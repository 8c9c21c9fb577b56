"""The IETF's resumable uploads as a translation, from the texts of the drafts: no server, no database."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_async_upload.exceptions import (
    DigestMismatch,
    FileRefused,
    FileTooLarge,
    KeyReused,
    MalformedRequest,
    MediaTypeRefused,
    MetadataInvalid,
    MethodRefused,
    NameRefused,
    NotFound,
    SizeMismatch,
    UploadOver,
    VersionUnsupported,
    WrongOffset,
)
from django_async_upload.http.draft import Draft
from django_async_upload.http.requests import (
    Append,
    Cancel,
    Checksum,
    Create,
    Offset,
    Request,
)
from django_async_upload.http.responses import Standing
from django_async_upload.models import UploadSession
from django_async_upload.sessions.state import State

UPLOAD = uuid.UUID("5f0c1a52-8a51-4d61-9c2e-0d7f4f4f3f10")
VERSIONS = (3, 4, 5, 6, 7, 8, 9, 10)
PARTIAL = "application/partial-upload"
DRAFT = Draft(max_size=1000)


def request(method: str, segment: object = "", **headers: object) -> Request:
    sent = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return Request(method, f"/ws/uploads/{segment}", str(segment), sent)


def versioned(version: int, method: str, segment: object = "", **headers: object) -> Request:
    """A request as a client of that interop version sends it: ``complete`` is a bool."""
    complete = headers.pop("complete", None)
    if complete is not None:
        if version == 3:
            headers["upload_incomplete"] = "?0" if complete else "?1"
        else:
            headers["upload_complete"] = "?1" if complete else "?0"
    if method == "PATCH" and version >= 6:
        headers.setdefault("content_type", PARTIAL)
    return request(method, segment, upload_draft_interop_version=version, **headers)


def standing(offset: int = 40, size: int | None = 100, **values: Any) -> Standing:
    session = UploadSession(id=UPLOAD, name="film.mov", size=size, state=State.UPLOADING)
    for name, value in values.items():
        setattr(session, name, value)
    return Standing(session, offset)


def published() -> Standing:
    return standing(100, state=State.COMPLETED, stored_as="uploads/film.mov", crc=0xE3069283)


def problem_of(response: Any) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/problem+json"
    return json.loads(response.body)  # type: ignore[no-any-return]


# Whose request it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "speaks"),
    [
        (request("POST", upload_complete="?0"), True),
        (request("POST", upload_incomplete="?0"), True),
        (request("POST", upload_draft_interop_version="6"), True),
        (request("PATCH", UPLOAD, content_type=PARTIAL), True),
        (request("HEAD", UPLOAD), True),
        (request("GET", UPLOAD, upload_draft_interop_version="8"), True),
        (request("HEAD", "film.mov"), False),
        (request("GET", UPLOAD), False),
        (request("PUT", "film.mov", content_length=10), False),
        (request("DELETE", UPLOAD), False),
    ],
)
def test_a_request_is_known_by_its_fields(sent: Request, speaks: bool) -> None:
    assert DRAFT.speaks(sent) is speaks


# Creation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_creation_says_whether_it_has_the_whole_file(version: int, method: str) -> None:
    whole = DRAFT.read(versioned(version, method, complete=True, content_length=100))
    part = DRAFT.read(versioned(version, method, complete=False, content_length=100))
    assert isinstance(whole, Create)
    assert isinstance(part, Create)
    assert (whole.completes, whole.new.size) == (True, 100)
    assert (part.completes, part.new.size) == (False, None)


def test_the_length_is_declared_by_its_own_field_or_by_the_body_of_a_whole_file() -> None:
    declared = DRAFT.read(
        request("POST", upload_complete="?0", upload_length=100, content_length=40)
    )
    both = DRAFT.read(request("POST", upload_complete="?1", upload_length=100, content_length=100))
    chunked = DRAFT.read(request("POST", upload_complete="?1", transfer_encoding="chunked"))
    assert isinstance(declared, Create)
    assert isinstance(both, Create)
    assert isinstance(chunked, Create)
    assert [each.new.size for each in (declared, both, chunked)] == [100, 100, None]


def test_lengths_that_contradict_each_other_are_the_drafts_problem() -> None:
    sent = request("POST", upload_complete="?1", upload_length=100, content_length=99)
    with pytest.raises(SizeMismatch) as caught:
        DRAFT.read(sent)
    assert not caught.value.retryable
    response = DRAFT.refuse(sent, None, caught.value, None)
    details = problem_of(response)
    assert response.status == details["status"] == 400
    assert details["type"].endswith("http-problem-types#inconsistent-upload-length")
    assert details["code"] == "size_mismatch"


@pytest.mark.parametrize("value", ["?2", "true", "1", "?1, ?0", ""])
def test_a_value_that_is_no_boolean_counts_as_not_sent(value: str) -> None:
    created = DRAFT.read(request("POST", upload_complete=value, content_length=5))
    assert isinstance(created, Create)
    assert created.completes
    with pytest.raises(MalformedRequest, match="Upload-Complete"):
        DRAFT.read(
            request("PATCH", UPLOAD, upload_complete=value, upload_offset=0, content_type=PARTIAL)
        )


@pytest.mark.parametrize("value", ["-1", "1.0", "ten", "?1", "9999999999999999"])
def test_a_length_that_is_no_number_counts_as_not_sent(value: str) -> None:
    created = DRAFT.read(request("POST", upload_complete="?0", upload_length=value))
    assert isinstance(created, Create)
    assert created.new.size is None


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('inline; filename="file name.jpg"', "file name.jpg"),
        ("inline; filename=\"x.jpg\"; filename*=UTF-8''%e2%82%ac%20rates.jpg", "€ rates.jpg"),
        ('inline; filename="Ã¤.txt"', "ä.txt"),
        ("inline", "film.mov"),
        (None, "film.mov"),
    ],
)
def test_the_name_comes_from_the_disposition_or_from_the_path(
    disposition: str | None, name: str
) -> None:
    headers = {} if disposition is None else {"content_disposition": disposition}
    created = DRAFT.read(request("PUT", "film.mov", upload_complete="?1", **headers))
    assert isinstance(created, Create)
    assert created.new.name == name


def test_a_name_in_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(NameRefused):
        DRAFT.read(
            request("POST", upload_complete="?1", content_disposition="inline; filename*=x''%ff")
        )


def test_metadata_comes_as_json_and_as_that_of_tus() -> None:
    text = base64.b64encode("Größe".encode()).decode()
    created = DRAFT.read(
        request(
            "POST",
            upload_complete="?0",
            upload_metadata=f"title {text}, filename {base64.b64encode(b'a.txt').decode()},"
            f" filetype {base64.b64encode(b'text/plain').decode()}, draft",
            async_upload_metadata='{"taker": "api", "project": {"id": 7}}',
        )
    )
    assert isinstance(created, Create)
    new = created.new
    assert (new.name, new.content_type) == ("a.txt", "text/plain")
    assert new.metadata == {
        "title": "Größe",
        "draft": "",
        "taker": "api",
        "project": {"id": 7},
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"async_upload_metadata": "{"},
        {"async_upload_metadata": "[1]"},
        {"upload_metadata": "title *"},
        {"upload_metadata": "a YQ==,a YQ=="},
        {"upload_metadata": "title /w=="},
    ],
)
def test_metadata_that_cannot_be_read_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(MetadataInvalid):
        DRAFT.read(request("POST", upload_complete="?1", **headers))


def test_the_type_of_a_part_is_not_that_of_the_file() -> None:
    part = DRAFT.read(request("POST", upload_complete="?0", content_type=PARTIAL))
    whole = DRAFT.read(request("POST", upload_complete="?0", content_type="video/quicktime"))
    assert isinstance(part, Create)
    assert isinstance(whole, Create)
    assert (part.new.content_type, whole.new.content_type) == ("", "video/quicktime")


def test_the_key_makes_a_creation_idempotent() -> None:
    key = "0123456789abcdef0123456789abcdef"
    for text in (key, f'"{key}"'):
        created = DRAFT.read(request("POST", upload_complete="?0", idempotency_key=text))
        assert isinstance(created, Create)
        assert created.new.key == key
    first = DRAFT.read(request("POST", upload_complete="?0"))
    second = DRAFT.read(request("POST", upload_complete="?0"))
    assert isinstance(first, Create)
    assert isinstance(second, Create)
    assert len(first.new.key) == 32
    assert first.new.key != second.new.key
    with pytest.raises(MalformedRequest):
        DRAFT.read(request("POST", upload_complete="?0", idempotency_key="mine"))


# Digests (RFC 9530) -------------------------------------------------------------------------------


def field(**digests: bytes) -> str:
    return ", ".join(
        f"{name.replace('_', '-')}=:{base64.b64encode(value).decode()}:"
        for name, value in digests.items()
    )


def test_digests_of_the_file_are_promised_by_its_creation() -> None:
    sha = hashlib.sha256(b"123456789").digest()
    crc = bytes.fromhex("e3069283")
    created = DRAFT.read(
        request(
            "POST", upload_complete="?1", repr_digest=field(sha_256=sha, crc32c=crc, sha_512=b"x")
        )
    )
    assert isinstance(created, Create)
    assert created.digests == {"sha-256": sha.hex(), "crc32c": "e3069283"}
    assert created.new.digest == "sha-256"
    assert created.new.digests == created.digests


def test_a_digest_can_be_promised_before_it_is_known() -> None:
    asked = DRAFT.read(request("POST", upload_complete="?0", want_repr_digest="sha-256=1"))
    refused = DRAFT.read(request("POST", upload_complete="?0", want_repr_digest="sha-256=0"))
    assert isinstance(asked, Create)
    assert isinstance(refused, Create)
    assert (asked.new.digest, refused.new.digest) == ("sha-256", None)


def test_the_strongest_digest_of_a_body_is_compared() -> None:
    digests = field(md5=b"m" * 16, sha_256=b"s" * 32, unknown=b"u")
    append = DRAFT.read(
        versioned(10, "PATCH", UPLOAD, complete=False, upload_offset=0, content_digest=digests)
    )
    assert isinstance(append, Append)
    assert append.checksum == Checksum("sha256", b"s" * 32)
    assert append.digests == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"content_digest": "sha-256"},
        {"content_digest": "sha-256=:AAAA:"},
        {"content_digest": "sha-256=1"},
        {"content_digest": "=="},
        {"repr_digest": "crc32c=:AAAAAAA=:"},
    ],
)
def test_a_digest_that_cannot_be_compared_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(MalformedRequest):
        DRAFT.read(request("POST", upload_complete="?1", **headers))


# The other requests -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_patch_appends_at_its_offset(version: int) -> None:
    part = DRAFT.read(
        versioned(version, "PATCH", UPLOAD, complete=False, upload_offset=40, content_length=10)
    )
    rest = DRAFT.read(
        versioned(version, "PATCH", UPLOAD, complete=True, upload_offset=40, content_length=60)
    )
    assert part == Append(UPLOAD, 40, False)
    assert rest == Append(UPLOAD, 40, True, size=100)


@pytest.mark.parametrize("version", VERSIONS)
def test_from_version_6_on_a_patch_needs_its_media_type(version: int) -> None:
    sent = versioned(
        version, "PATCH", UPLOAD, complete=True, upload_offset=0, content_type="text/plain"
    )
    if version < 6:
        assert isinstance(DRAFT.read(sent), Append)
        return
    with pytest.raises(MediaTypeRefused) as caught:
        DRAFT.read(sent)
    assert DRAFT.refuse(sent, None, caught.value, None).status == 415


@pytest.mark.parametrize(
    ("version", "completes"), [(3, True), (4, False), (5, False), (6, False), (7, None), (10, None)]
)
def test_what_a_patch_means_that_does_not_say_whether_it_completes(
    version: int, completes: bool | None
) -> None:
    sent = versioned(version, "PATCH", UPLOAD, upload_offset=0)
    if completes is None:
        with pytest.raises(MalformedRequest):
            DRAFT.read(sent)
    else:
        append = DRAFT.read(sent)
        assert isinstance(append, Append)
        assert append.completes is completes


@pytest.mark.parametrize("offset", [None, "-1", "x"])
def test_a_patch_needs_an_offset(offset: str | None) -> None:
    headers = {} if offset is None else {"upload_offset": offset}
    with pytest.raises(MalformedRequest, match="Upload-Offset"):
        DRAFT.read(versioned(10, "PATCH", UPLOAD, complete=True, **headers))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_offset_is_read_and_the_upload_cancelled(version: int) -> None:
    assert DRAFT.read(versioned(version, "HEAD", UPLOAD)) == Offset(UPLOAD)
    assert DRAFT.read(versioned(version, "GET", UPLOAD)) == Offset(UPLOAD)
    assert DRAFT.read(versioned(version, "DELETE", UPLOAD)) == Cancel(UPLOAD)


@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
@pytest.mark.parametrize("version", VERSIONS)
def test_up_to_version_6_a_state_does_not_belong_to_these_requests(
    version: int, method: str
) -> None:
    for headers in ({"upload_offset": 4}, {"complete": True}):
        sent = versioned(version, method, UPLOAD, **headers)
        if version > 6:
            DRAFT.read(sent)
            continue
        with pytest.raises(MalformedRequest):
            DRAFT.read(sent)


def test_requests_that_there_are_not() -> None:
    with pytest.raises(MethodRefused) as caught:
        DRAFT.read(request("POST", UPLOAD, upload_complete="?1"))
    sent = request("POST", UPLOAD)
    assert "PATCH" in DRAFT.refuse(sent, None, caught.value, None).headers["Allow"]
    with pytest.raises(NotFound):
        DRAFT.read(versioned(10, "HEAD", "film.mov"))
    with pytest.raises(NotFound):
        DRAFT.read(versioned(10, "PATCH", "no-id", complete=True, upload_offset=0))
    with pytest.raises(MalformedRequest):
        DRAFT.read(versioned(10, "POST", complete=True, upload_offset=0))


def test_a_version_with_upload_tokens_is_refused_and_a_newer_one_is_taken_for_the_latest() -> None:
    sent = versioned(2, "POST", complete=True)
    with pytest.raises(VersionUnsupported) as caught:
        DRAFT.read(sent)
    assert DRAFT.refuse(sent, None, caught.value, None).headers.get("Upload-Complete") is None
    assert isinstance(DRAFT.read(versioned(99, "POST", complete=True)), Create)
    # A client of the final text sends none.
    assert isinstance(DRAFT.read(request("POST", upload_complete="?1")), Create)


# Answers ------------------------------------------------------------------------------------------


def complete_of(headers: dict[str, str], version: int) -> bool:
    """What the answer says of the upload's completeness, in that version's words."""
    if version == 3:
        assert "Upload-Complete" not in headers
        return {"?0": True, "?1": False}[headers["Upload-Incomplete"]]
    assert "Upload-Incomplete" not in headers
    return {"?1": True, "?0": False}[headers["Upload-Complete"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_creation_is_answered_with_where_to_go_on(version: int) -> None:
    sent = versioned(version, "POST", "ä b.mov", complete=False)
    sent = Request(sent.method, "/up load/ä b.mov", "ä b.mov", sent.headers)
    response = DRAFT.answer(sent, DRAFT.read(sent), standing())
    assert response.status == 201
    assert response.headers["Location"] == f"/up%20load/{UPLOAD}"
    assert response.headers["Upload-Offset"] == "40"
    assert response.headers["Upload-Limit"] == "max-size=1000"
    assert not complete_of(response.headers, version)
    assert json.loads(response.body)["upload"] == str(UPLOAD)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_part_is_acknowledged(version: int) -> None:
    sent = versioned(version, "PATCH", UPLOAD, complete=False, upload_offset=0)
    response = DRAFT.answer(sent, DRAFT.read(sent), standing())
    assert response.status == (201 if version <= 6 else 204)
    assert response.headers["Upload-Offset"] == "40"
    assert "Location" not in response.headers
    assert not complete_of(response.headers, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_the_last_answer_is_that_of_the_file(version: int, method: str) -> None:
    segment, headers = (UPLOAD, {"upload_offset": 90}) if method == "PATCH" else ("", {})
    sent = versioned(version, method, segment, complete=True, **headers)
    response = DRAFT.answer(sent, DRAFT.read(sent), published())
    assert response.status == 201
    assert complete_of(response.headers, version)
    result = json.loads(response.body)
    assert result["stored_as"] == "uploads/film.mov"
    assert result["crc32c"] == "e3069283"
    assert result["receipt"]
    assert "Repr-Digest" not in response.headers


def test_the_last_answer_has_the_digests_that_were_asked_for() -> None:
    sent = request("POST", upload_complete="?1", want_repr_digest="crc32c=3, sha-256=1")
    end = standing(
        100, state=State.COMPLETED, crc=0xE3069283, digests={"sha-256": (b"s" * 32).hex()}
    )
    response = DRAFT.answer(sent, DRAFT.read(sent), end)
    crc = bytes.fromhex("e3069283")
    assert response.headers["Repr-Digest"] == field(crc32c=crc, sha_256=b"s" * 32)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_offset_is_told_and_never_cached(version: int) -> None:
    sent = versioned(version, "HEAD", UPLOAD)
    soon = timezone.now() + timedelta(seconds=600)
    response = DRAFT.answer(sent, DRAFT.read(sent), standing(expires_at=soon))
    assert response.status == 204
    assert response.headers["Upload-Offset"] == "40"
    assert response.headers["Upload-Length"] == "100"
    assert response.headers["Cache-Control"] == "no-store"
    assert not complete_of(response.headers, version)
    size, age = response.headers["Upload-Limit"].split(", ")
    assert size == "max-size=1000"
    key, seconds = age.split("=")
    assert key == ("expires" if version <= 6 else "max-age")
    assert 590 <= int(seconds) <= 600
    ended = DRAFT.answer(sent, DRAFT.read(sent), published())
    assert ended.headers["Upload-Offset"] == "100"
    assert complete_of(ended.headers, version)


def test_a_length_that_nobody_knows_is_not_told() -> None:
    sent = versioned(10, "HEAD", UPLOAD)
    response = DRAFT.answer(sent, DRAFT.read(sent), standing(size=None))
    assert "Upload-Length" not in response.headers


def test_a_cancellation_has_nothing_to_tell() -> None:
    sent = versioned(10, "DELETE", UPLOAD)
    response = DRAFT.answer(sent, DRAFT.read(sent), None)
    assert (response.status, response.headers, response.body) == (204, {}, b"")


@pytest.mark.parametrize(("max_size", "limits"), [(1000, "max-size=1000"), (None, "min-size=0")])
def test_options_tell_the_limits(max_size: int | None, limits: str) -> None:
    assert Draft(max_size).abilities == {"Upload-Limit": limits}


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_offset_is_a_conflict_that_tells_the_right_one(version: int) -> None:
    sent = versioned(version, "PATCH", UPLOAD, complete=True, upload_offset=50)
    error = WrongOffset(offset=50, expected=40)
    response = DRAFT.refuse(sent, DRAFT.read(sent), error, standing())
    assert response.status == 409
    assert response.headers["Upload-Offset"] == "40"
    assert not complete_of(response.headers, version)
    details = problem_of(response)
    assert details["type"].endswith("http-problem-types#mismatching-upload-offset")
    assert (details["expected-offset"], details["provided-offset"]) == (40, 50)
    assert (details["code"], details["retryable"]) == ("wrong_offset", True)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_append_to_a_completed_upload_is_refused(version: int) -> None:
    sent = versioned(version, "PATCH", UPLOAD, complete=True, upload_offset=50)
    error = UploadOver(state="completed")
    response = DRAFT.refuse(sent, DRAFT.read(sent), error, published())
    # That the upload is complete is not what this answer is about: section "Completeness".
    assert not complete_of(response.headers, version)
    has_type = problem_of(response)["type"].endswith("#completed-upload")
    assert has_type is (version in (4, 5, 6, 7, 8))


@pytest.mark.parametrize(
    ("error", "complete"),
    [
        (FileRefused(), True),
        (DigestMismatch(algorithm="crc32c", actual="1", expected="2"), True),
        (FileTooLarge(size=2000, max_size=1000), True),
        (NotFound(), False),
        (KeyReused(field="name"), False),
        (WrongOffset(offset=0, expected=4), False),
    ],
)
def test_a_refusal_says_whether_to_resume_can_help(error: Any, complete: bool) -> None:
    sent = versioned(10, "POST", complete=True)
    response = DRAFT.refuse(sent, DRAFT.read(sent), error, None)
    assert complete_of(response.headers, 10) is complete
    assert problem_of(response)["code"] == error.code


def test_a_file_that_is_too_large_is_told_the_limit() -> None:
    sent = versioned(10, "POST", complete=True, content_length=2000)
    error = FileTooLarge(size=2000, max_size=1000)
    response = DRAFT.refuse(sent, DRAFT.read(sent), error, None)
    assert response.status == 413
    assert response.headers["Upload-Limit"] == "max-size=1000"


def test_nothing_is_told_of_an_upload_that_is_none_of_the_clients() -> None:
    sent = versioned(10, "HEAD", UPLOAD)
    response = DRAFT.refuse(sent, DRAFT.read(sent), NotFound(), None)
    assert response.status == 404
    assert not [name for name in response.headers if name.startswith("Upload-")]
