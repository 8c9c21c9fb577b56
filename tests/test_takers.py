"""An upload's taker is named when it is created; forms, APIs, receivers and the purge check it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from channels.auth import AuthMiddlewareStack
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import transaction
from django.template import Context, Template
from django.test import RequestFactory
from django.utils import timezone

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.service import get_service
from django_async_upload.exceptions import AlreadyBound, MetadataInvalid
from django_async_upload.models import UploadSession
from django_async_upload.receipts import field_token, open_receipt, receipt_of
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.signals import upload_completed
from django_async_upload.testing.communicator import UploadCommunicator
from django_async_upload.widgets import AsyncFileInput

from .fixtures import publish, row
from .models import Document
from .test_widgets import Elements

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., UploadCommunicator]


def token_of(html: str) -> str:
    token = Elements(html).one("async-upload")["field"]
    assert token is not None
    return token


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "receiver"),
        ({"taker": "api"}, "api"),
        ({"taker": "form"}, "form"),
        ({"field": field_token("file")}, "form"),
        ({"field": field_token("file", taker="api")}, "api"),
        ({"field": field_token("file", taker="receiver"), "taker": "form"}, "receiver"),
    ],
)
async def test_an_upload_says_who_takes_it_and_a_pages_token_has_the_last_word(
    connect: Connect, metadata: dict[str, str], expected: str
) -> None:
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello", metadata={**metadata, "note": 1})
    session = await row(done.upload)
    assert session.taker == expected
    assert "taker" not in session.metadata
    assert session.metadata["note"] == 1


@pytest.mark.parametrize("taker", ["", "somebody", None, 7, ["form"]])
async def test_another_taker_is_refused(connect: Connect, taker: Any) -> None:
    async with connect() as uploads:
        with pytest.raises(MetadataInvalid, match="taker"):
            await uploads.upload("a.bin", b"hello", metadata={"taker": taker})


async def test_an_endpoint_may_say_it_for_all_of_its_uploads(connect: Connect) -> None:
    class ForPrograms(UploadConsumer):
        async def check(self, session: UploadSession) -> None:
            session.taker = "api"

    async with connect(AuthMiddlewareStack(ForPrograms.as_asgi())) as uploads:
        done = await uploads.upload("a.bin", b"hello")
    assert (await row(done.upload)).taker == "api"


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (lambda: AsyncFileInput().render("file", None), "form"),
        (lambda: AsyncFileInput(taker="api").render("file", None), "api"),
        (lambda: tag('"file"'), "receiver"),
        (lambda: tag('"file" multiple=True'), "receiver"),
        (lambda: tag('"file" taker="form"'), "form"),
        (lambda: tag('"file" taker="api"'), "api"),
    ],
)
async def test_what_a_page_renders_says_it(
    connect: Connect, html: Callable[[], str], expected: str
) -> None:
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello", metadata={"field": token_of(html())})
    assert (await row(done.upload)).taker == expected


def tag(arguments: str) -> str:
    template = Template("{% load async_upload %}{% async_upload " + arguments + " %}")
    return template.render(Context())


def test_a_token_for_another_taker_is_not_made() -> None:
    with pytest.raises(ValueError, match="receiver"):
        field_token("file", taker="somebody")


# A receiver beside forms and APIs --------------------------------------------------------------------


@pytest.fixture
def tutorial() -> Iterator[None]:
    """The receiver of the tutorial."""

    def make_document(session: UploadSession, **kwargs: Any) -> None:
        if session.taker != "receiver":
            return
        try:
            with transaction.atomic():
                Document.objects.create(attachment=session.bind())
        except AlreadyBound:
            return

    upload_completed.connect(make_document)
    yield
    upload_completed.disconnect(make_document)


async def test_a_receiver_takes_a_pages_uploads_and_leaves_those_of_forms_and_apis(
    connect: Connect, tutorial: None, media: Path
) -> None:
    states = {}
    async with connect() as uploads:
        for name, metadata in {
            "page": {"field": token_of(tag('"films"'))},
            "program": {},
            "form": {"field": field_token("file")},
            "api": {"taker": "api"},
        }.items():
            done = await uploads.upload(name, b"hello", metadata=metadata)
            await get_service().outbox.join()
            states[name] = (await row(done.upload)).state
    assert states == {
        "page": State.BOUND,
        "program": State.BOUND,
        "form": State.COMPLETED,
        "api": State.COMPLETED,
    }


def test_a_receipt_of_what_a_receiver_takes_is_refused_and_the_log_says_why(
    owner: Owner, alice: Any, rf: RequestFactory, caplog: pytest.LogCaptureFixture
) -> None:
    request = rf.post("/")
    request.user = alice
    for_api, for_receiver = (publish(owner, taker=taker) for taker in ("api", "receiver"))
    assert open_receipt(request, receipt_of(for_api)).read() == b"hello"
    with caplog.at_level(logging.WARNING), pytest.raises(ValidationError) as refused:
        open_receipt(request, receipt_of(for_receiver))
    assert refused.value.code == "receipt_invalid"
    assert f"{for_receiver.pk} was posted, but the upload was created for a receiver" in caplog.text


def test_the_purge_never_deletes_what_a_receiver_is_to_take_unless_it_is_named(
    owner: Owner, media: Path
) -> None:
    def left() -> set[str]:
        return set(UploadSession.objects.values_list("taker", flat=True))

    long_ago = timezone.now() - timedelta(days=9)
    for taker in ("form", "api", "receiver"):
        publish(owner, taker=taker, completed_at=long_ago, metadata={"field": {"name": "films"}})
    call_command("purge_uploads", "--unbound-after", "7", "--taker", "api")
    assert left() == {"form", "receiver"}
    call_command("purge_uploads", "--unbound-after", "7")
    assert left() == {"receiver"}
    assert UploadSession.objects.for_taker("receiver", "api").count() == 1
    call_command("purge_uploads", "--unbound-after", "7", "--taker", "receiver", "--taker", "form")
    assert left() == set()
    assert not [path for path in media.rglob("*") if path.is_file()]
