"""Receipts and field tokens: who may use which upload for what, and what an attacker gets."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core import signing
from django.core.exceptions import ValidationError
from django.db import connection
from django.http import HttpRequest
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_async_upload import receipts
from django_async_upload.exceptions import (
    AlreadyBound,
    FileTooLarge,
    MetadataInvalid,
    TypeRefused,
    UploadError,
)
from django_async_upload.middleware import end_request
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.receipts import (
    FieldToken,
    PostedReceipt,
    field_name,
    field_token,
    open_receipt,
    open_receipts,
    read_field_token,
    receipt_of,
)
from django_async_upload.sessions.owners import SESSION_TOKEN, Owner
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import crc, new_key, publish, row

pytest_plugins = ["tests.fixtures"]

FOR_FILE = {"field": {"name": "file", "max_size": None}}


def request_of(user: Any, **session: Any) -> HttpRequest:
    request = HttpRequest()
    request.user = user
    request.session = SessionStore()
    for key, value in session.items():
        request.session[key] = value
    return request


def code_of(request: HttpRequest, receipt: object, **asked: Any) -> str | None:
    """What opening a receipt is refused with."""
    with pytest.raises(ValidationError) as caught:
        open_receipt(request, receipt, **asked)
    assert caught.value.messages[0]
    return caught.value.code


# Who may ------------------------------------------------------------------------------------------


@pytest.fixture
def session(owner: Owner, media: Path) -> UploadSession:
    return publish(owner, b"hello", metadata=FOR_FILE)


def test_the_owner_opens_it_for_its_field(alice: Any, session: UploadSession) -> None:
    upload = open_receipt(request_of(alice), receipt_of(session), field="file")
    assert (upload.name, upload.size, upload.read()) == ("a.bin", 5, b"hello")
    assert upload.session == session
    assert upload.receipt == receipt_of(session)


def test_another_owners_upload_is_as_one_that_does_not_exist(
    alice: Any, bob: Any, session: UploadSession
) -> None:
    of_nothing = signing.Signer(salt="django_async_upload.receipt").sign(uuid.uuid4().hex)
    assert code_of(request_of(bob), receipt_of(session), field="file") == "receipt_invalid"
    assert code_of(request_of(alice), of_nothing, field="file") == "receipt_invalid"
    anonymous = request_of(AnonymousUser())
    assert code_of(anonymous, receipt_of(session), field="file") == "receipt_invalid"


@pytest.mark.parametrize(
    "forge",
    [
        lambda session: session.pk.hex,
        lambda session: f"{uuid.uuid4().hex}:{receipt_of(session).partition(':')[2]}",
        lambda session: receipt_of(session)[:-1] + "-",  # never the last character of 32 bytes
        lambda session: signing.Signer(salt="another").sign(session.pk.hex),
        lambda session: signing.Signer(salt="django_async_upload.receipt").sign("no uuid"),
        lambda session: field_token("file"),
        lambda session: "",
        lambda session: "\0" * 5000,
        lambda session: {"a": 1},
        lambda session: None,
    ],
)
def test_what_the_server_did_not_sign_is_refused(
    alice: Any, session: UploadSession, forge: Callable[[UploadSession], object]
) -> None:
    assert code_of(request_of(alice), forge(session), field="file") == "receipt_invalid"


@pytest.mark.parametrize(
    "asked",
    [{"field": "other"}, {"field": ""}, {"field": "file", "endpoint": "photos"}],
)
def test_it_is_good_for_its_own_field_and_endpoint_only(
    alice: Any, session: UploadSession, asked: dict[str, str]
) -> None:
    assert code_of(request_of(alice), receipt_of(session), **asked) == "receipt_invalid"


def test_an_upload_that_was_made_for_no_field_fits_none(
    alice: Any, owner: Owner, media: Path
) -> None:
    session = publish(owner)
    assert code_of(request_of(alice), receipt_of(session), field="file") == "receipt_invalid"
    assert open_receipt(request_of(alice), receipt_of(session)).session == session


@pytest.mark.parametrize("state", [each for each in State if each not in ("completed", "bound")])
def test_what_is_not_completed_is_refused(
    alice: Any, owner: Owner, media: Path, state: State
) -> None:
    session = publish(owner, state=state)
    assert code_of(request_of(alice), receipt_of(session)) == "receipt_invalid"


def test_what_is_bound_is_refused(alice: Any, owner: Owner, media: Path) -> None:
    session = publish(owner, state=State.BOUND)
    assert code_of(request_of(alice), receipt_of(session)) == "receipt_used"


def test_an_old_one_is_refused_whenever_it_was_told(
    alice: Any, owner: Owner, media: Path, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {"RECEIPT_MAX_AGE": 60.0}
    session = publish(owner, completed_at=timezone.now() - timedelta(seconds=61))
    assert code_of(request_of(alice), receipt_of(session)) == "receipt_expired"
    session = publish(owner, completed_at=timezone.now() - timedelta(seconds=50))
    assert open_receipt(request_of(alice), receipt_of(session))


def test_one_whose_user_is_no_longer_active_is_refused(alice: Any, session: UploadSession) -> None:
    alice.is_active = False
    assert code_of(request_of(alice), receipt_of(session), field="file") == "receipt_invalid"


# Visitors -----------------------------------------------------------------------------------------


@pytest.fixture
def visitors(settings: Any, media: Path, db: None) -> UploadSession:
    settings.ASYNC_UPLOAD = {"ALLOW_ANONYMOUS": True}
    return publish(Owner("visitor:token", AnonymousUser()))


def test_a_visitor_is_known_by_the_token_in_the_session(visitors: UploadSession) -> None:
    same = request_of(AnonymousUser(), **{SESSION_TOKEN: "token"})
    other = request_of(AnonymousUser(), **{SESSION_TOKEN: "another"})
    assert code_of(other, receipt_of(visitors)) == "receipt_invalid"
    assert code_of(request_of(AnonymousUser()), receipt_of(visitors)) == "receipt_invalid"
    assert open_receipt(same, receipt_of(visitors)).session == visitors


def test_a_user_who_signs_in_gets_nothing_of_the_visitor_before(
    alice: Any, visitors: UploadSession
) -> None:
    request = request_of(alice, **{SESSION_TOKEN: "token"})
    assert code_of(request, receipt_of(visitors)) == "receipt_invalid"


def test_visitors_are_refused_when_the_host_no_longer_lets_them(
    visitors: UploadSession, settings: Any
) -> None:
    settings.ASYNC_UPLOAD = {}
    request = request_of(AnonymousUser(), **{SESSION_TOKEN: "token"})
    assert code_of(request, receipt_of(visitors)) == "receipt_invalid"


# One request at a time ----------------------------------------------------------------------------


def test_a_second_request_cannot_open_a_receipt_until_the_first_releases_it(
    alice: Any, session: UploadSession
) -> None:
    first, second = request_of(alice), request_of(alice)
    upload = open_receipt(first, receipt_of(session), field="file")
    assert code_of(second, receipt_of(session), field="file") == "receipt_used"
    end_request([upload], is_done=True)
    assert open_receipt(second, receipt_of(session), field="file")


def test_a_request_that_came_and_went_between_reading_and_taking_wins(
    alice: Any, session: UploadSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = receipts.hold

    def late(sessions: Any) -> Any:
        UploadSession.objects.filter(pk=session.pk).update(epoch=session.epoch + 1)
        return hold(sessions)

    monkeypatch.setattr(receipts, "hold", late)
    assert code_of(request_of(alice), receipt_of(session), field="file") == "receipt_used"


def test_the_hold_of_a_request_that_died_ends_by_itself(alice: Any, session: UploadSession) -> None:
    stale = open_receipt(request_of(alice), receipt_of(session), field="file")
    UploadSession.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    taken = open_receipt(request_of(alice), receipt_of(session), field="file")
    end_request([stale], is_done=True)  # it was only slow: the upload is no longer its own
    assert code_of(request_of(alice), receipt_of(session), field="file") == "receipt_used"
    end_request([taken], is_done=True)
    assert open_receipt(request_of(alice), receipt_of(session), field="file")


def test_a_request_that_was_too_slow_neither_saves_nor_binds_what_another_has_now(
    alice: Any, session: UploadSession, caplog: pytest.LogCaptureFixture
) -> None:
    slow = open_receipt(request_of(alice), receipt_of(session), field="file")
    slow.renew_hold()
    UploadSession.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    taken = open_receipt(request_of(alice), receipt_of(session), field="file")
    with pytest.raises(AlreadyBound):
        slow.renew_hold()
    slow.bind()
    assert "saved twice" in caplog.text
    session.refresh_from_db()
    assert session.state == State.COMPLETED
    taken.bind()
    session.refresh_from_db()
    assert session.state == State.BOUND


def test_the_same_receipt_twice_in_a_request_is_one_file(
    alice: Any, session: UploadSession
) -> None:
    wanted = PostedReceipt(receipt_of(session), "file")
    first, second = open_receipts(request_of(alice), [wanted, wanted])
    assert not isinstance(first, ValidationError)
    assert isinstance(second, ValidationError)
    assert second.code == "receipt_used"


def test_many_receipts_are_looked_up_together(alice: Any, owner: Owner, media: Path) -> None:
    mine = [PostedReceipt(receipt_of(publish(owner))) for _ in range(5)]
    forged = [PostedReceipt(f"{uuid.uuid4().hex}:forged") for _ in range(1000)]
    request = request_of(alice)
    with CaptureQueriesContext(connection) as queries:
        outcomes = open_receipts(request, [*mine, *forged])
    assert [isinstance(each, ValidationError) for each in outcomes] == [False] * 5 + [True] * 1000
    updates = [each for each in queries if each["sql"].startswith("UPDATE")]
    assert len(updates) == 1
    selects = [each for each in queries if each["sql"].startswith("SELECT")]
    assert len(selects) == (2 if connection.features.has_select_for_update else 1)
    with CaptureQueriesContext(connection) as queries:
        end_request(request.__dict__["async_uploads"], is_done=True)
    assert len(queries) == 1
    again = open_receipts(request_of(alice), mine)
    assert not any(isinstance(each, ValidationError) for each in again)


def test_of_many_receipts_only_those_that_are_taken_are_refused(
    alice: Any, owner: Owner, media: Path
) -> None:
    """Whatever epochs their rows have."""
    sessions = [publish(owner, epoch=1 + number % 2) for number in range(6)]
    receipts = [PostedReceipt(receipt_of(session)) for session in sessions]
    open_receipts(request_of(alice), receipts[:2])
    outcomes = open_receipts(request_of(alice), receipts)
    assert [isinstance(each, ValidationError) for each in outcomes] == [True] * 2 + [False] * 4


def test_forged_receipts_cost_no_query(alice: Any) -> None:
    with CaptureQueriesContext(connection) as queries:
        open_receipts(request_of(alice), [PostedReceipt("forged", "file")] * 1000)
    assert not list(queries)


# Field tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html_name", "expected"),
    [
        ("file", "file"),
        ("items-3-file", "items-__prefix__-file"),
        ("items-__prefix__-file", "items-__prefix__-file"),
        ("a-0-b-12-file", "a-__prefix__-b-__prefix__-file"),
        ("a-1-2-file", "a-__prefix__-__prefix__-file"),
        ("0-file", "0-file"),
        ("step-1", "step-1"),
        ("a1-file2", "a1-file2"),
    ],
)
def test_a_field_has_one_name_in_all_rows_of_a_formset(html_name: str, expected: str) -> None:
    assert field_name(html_name) == expected


def test_a_token_says_what_it_was_given() -> None:
    token = field_token("x-1-file", endpoint="photos", max_size=10, accept="image/*")
    assert read_field_token(token, endpoint="photos") == FieldToken(
        "x-__prefix__-file", 10, "image/*", endpoint="photos"
    )
    assert read_field_token(field_token("file"), endpoint="default") == FieldToken("file", None, "")


@pytest.mark.parametrize("token", [None, 1, {}, "", "forged", "a:b", field_token.__name__])
def test_a_token_that_is_not_the_servers_is_refused(token: object) -> None:
    with pytest.raises(MetadataInvalid):
        read_field_token(token, endpoint="default")


def test_a_token_of_another_endpoint_and_a_receipt_are_no_token() -> None:
    with pytest.raises(MetadataInvalid):
        read_field_token(field_token("file", endpoint="photos"), endpoint="default")
    with pytest.raises(MetadataInvalid):
        read_field_token(receipt_of(UploadSession()), endpoint="default")


def test_a_name_that_would_make_receipts_long_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        field_token("f" * 256)


# In the protocol ----------------------------------------------------------------------------------


async def test_completed_brings_the_receipt_whichever_way_the_file_went(
    connect: Callable[..., UploadCommunicator],
) -> None:
    async with connect() as uploads:
        small = await uploads.upload("a.bin", b"small")
        large = await uploads.upload("b.bin", bytes(100_000))
        stream = uploads.new_stream()
        await uploads.send(m.Attach(small.upload), stream)
        again = await uploads.wait_for(m.Completed, stream)
    for completed in (small, large):
        assert completed.receipt == receipt_of(await row(completed.upload))
    assert again == small


async def test_the_verified_field_is_written_down(
    connect: Callable[..., UploadCommunicator],
) -> None:
    token = field_token("x-7-file", max_size=1000, accept=".bin")
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello", metadata={"field": token, "note": "mine"})
    session = await row(done.upload)
    assert (session.field_name, session.field_max_size) == ("x-__prefix__-file", 1000)
    assert session.metadata["note"] == "mine"


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("a.bin", {"field": "forged"}, MetadataInvalid),
        ("a.bin", {"field": {"name": "file", "max_size": None}}, MetadataInvalid),
        ("a.bin", {"field": field_token("f", max_size=4)}, FileTooLarge),
        ("a.bin", {"field": field_token("f", accept="image/*,.pdf")}, TypeRefused),
    ],
)
async def test_what_does_not_fit_the_field_is_refused_before_it_begins(
    connect: Callable[..., UploadCommunicator],
    name: str,
    field: dict[str, Any],
    expected: type[UploadError],
) -> None:
    async with connect() as uploads:
        with pytest.raises(expected):
            await uploads.upload(name, b"hello", metadata=field)
    assert not await UploadSession.objects.aexists()


async def test_the_fields_largest_size_holds_after_a_resume_too(
    connect: Callable[..., UploadCommunicator],
) -> None:
    metadata = {"field": field_token("file", max_size=10)}
    async with connect() as uploads:
        stream = uploads.new_stream()
        await uploads.send(m.Create(new_key(), "a.bin", metadata=metadata), stream)
        created = await uploads.wait_for(m.Created, stream)
        await uploads.send_data(stream, 0, b"12345")
        await uploads.send(m.Release(), stream)
        await uploads.wait_for(m.Released, stream)
        stream = uploads.new_stream()
        await uploads.send(m.Attach(created.upload), stream)
        await uploads.wait_for(m.Attached, stream)
        await uploads.send(m.Proof(crc(b"12345"), crc(b"12345")), stream)
        await uploads.wait_for(m.Ready, stream)
        await uploads.send_data(stream, 5, b"67890+")
        with pytest.raises(FileTooLarge):
            await uploads.wait_for(m.Completed, stream)
