"""Receipts in a posted form become files, for one request at a time, and are bound by what the request saves."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django import forms
from django.core.asgi import get_asgi_application
from django.core.exceptions import ValidationError
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.files.uploadedfile import SimpleUploadedFile, UploadedFile
from django.core.files.uploadhandler import MemoryFileUploadHandler, SkipFile
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.http import (
    HttpRequest,
    HttpResponse,
    JsonResponse,
    QueryDict,
    StreamingHttpResponse,
)
from django.test import AsyncClient, Client, RequestFactory
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils.datastructures import MultiValueDict
from django.views.decorators.http import require_POST

from django_async_upload import middleware, notices, widgets
from django_async_upload.binding.linked import CompletedUpload, RefusedUpload
from django_async_upload.exceptions import AlreadyBound
from django_async_upload.middleware import UploadMiddleware
from django_async_upload.models import UploadSession
from django_async_upload.receipts import field_token, receipt_of
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.widgets import AsyncClearableFileInput

from .fixtures import posted, publish
from .models import Album, Copy, Document, elsewhere

pytest_plugins = ["tests.fixtures"]
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("media"),
]

DATA = os.urandom(50_000)
hooks: dict[str, Callable[[HttpRequest], Any]] = {}
"""What a test wants the view "hook" to do."""


class DocumentForm(forms.ModelForm):
    class Meta:
        model = Document
        fields = ["attachment"]
        widgets = {"attachment": AsyncClearableFileInput}


class AlbumForm(forms.ModelForm):
    class Meta:
        model = Album
        fields = ["title", "notes"]


def save_with(form: forms.ModelForm) -> HttpResponse:
    if form.is_valid():
        form.save()
        return HttpResponse(status=302)
    return JsonResponse(form.errors.get_json_data())


def document(request: HttpRequest) -> HttpResponse:
    return save_with(DocumentForm(request.POST, request.FILES))


async def document_async(request: HttpRequest) -> HttpResponse:
    return await sync_to_async(document)(request)


def album(request: HttpRequest) -> HttpResponse:
    return save_with(AlbumForm(request.POST, request.FILES))


def in_atomic_and_fails(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        DocumentForm(request.POST, request.FILES).save()
        raise RuntimeError("after the save")


def hook(request: HttpRequest) -> Any:
    return hooks["view"](request)


async def hook_async(request: HttpRequest) -> Any:
    """Without a thread: what it does must not wait for a database."""
    return hooks["view"](request)


urlpatterns = [
    path("document/", document),
    path("document-async/", document_async),
    path("album/", album),
    path("fails/", in_atomic_and_fails),
    path("hook/", require_POST(hook)),
    path("hook-async/", hook_async),
]


@pytest.fixture
def session(owner: Owner) -> UploadSession:
    return publish_for("attachment", owner)


def publish_for(field: str, owner: Owner, **fields: Any) -> UploadSession:
    metadata = {"field": {"name": field, "max_size": None}}
    return publish(owner, DATA, "report.pdf", metadata=metadata, **fields)


def state_of(session: UploadSession) -> str:
    return UploadSession.objects.get(pk=session.pk).state


def files(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def post(client: Client, url: str, *sessions: UploadSession, **fields: Any) -> Any:
    """A form with receipts in the place of files."""
    pairs = [(session.field_name, session) for session in sessions]
    return client.post(url, {**posted(*pairs), **fields})


def codes(response: Any) -> dict[str, list[str]]:
    return {name: [each["code"] for each in found] for name, found in response.json().items()}


def run_view(
    client: Client, view: Callable[[HttpRequest], Any], *sessions: UploadSession, **fields: Any
) -> Any:
    hooks["view"] = view
    return post(client, "/hook/", *sessions, **fields)


# A form is saved ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "atomic_requests"),
    [("/document/", False), ("/document/", True), ("/document-async/", False)],
)
def test_a_model_form_saves_the_upload_without_writing_a_byte(
    login: Client,
    session: UploadSession,
    media: Path,
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    atomic_requests: bool,
) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests)
    inode = (media / session.stored_as).stat().st_ino
    assert post(login, url, session).status_code == 302
    saved = Document.objects.get()
    assert saved.attachment.name == "documents/report.pdf"
    assert Path(saved.attachment.path).stat().st_ino == inode
    assert saved.attachment.read() == DATA
    assert (files(media), files(staging)) == (["documents/report.pdf"], [])
    assert state_of(session) == State.BOUND
    assert codes(post(login, url, session)) == {"attachment": ["receipt_used"]}
    assert Document.objects.count() == 1


@pytest.mark.parametrize("url", ["/document/", "/document-async/"])
async def test_it_works_under_asgi(
    alice: Any, session: UploadSession, media: Path, url: str
) -> None:
    client = AsyncClient()
    await sync_to_async(client.force_login)(alice)
    fields = posted(("attachment", session))
    assert (await client.post(url, fields)).status_code == 302
    assert files(media) == ["documents/report.pdf"]
    assert await sync_to_async(state_of)(session) == State.BOUND
    again = await client.post(url, fields)
    assert codes(again) == {"attachment": ["receipt_used"]}


def test_a_form_with_errors_keeps_the_upload(
    login: Client, owner: Owner, media: Path, staging: Path
) -> None:
    session = publish_for("notes", owner)
    assert codes(post(login, "/album/", session)) == {"title": ["required"]}
    assert state_of(session) == State.COMPLETED
    assert (files(media), files(staging)) == ([session.stored_as], [])
    assert post(login, "/album/", session, title="Blue").status_code == 302
    assert Album.objects.get().notes.read() == DATA
    assert state_of(session) == State.BOUND


# What goes wrong ----------------------------------------------------------------------------------


def test_a_rollback_loses_nothing(
    login: Client, session: UploadSession, media: Path, staging: Path
) -> None:
    login.raise_request_exception = False
    assert post(login, "/fails/", session).status_code == 500
    assert Document.objects.count() == 0
    assert state_of(session) == State.COMPLETED
    assert (media / session.stored_as).read_bytes() == DATA
    assert files(staging) == []
    assert post(login, "/document/", session).status_code == 302
    assert Document.objects.get().attachment.read() == DATA


def test_a_rollback_that_the_view_survives_loses_nothing(
    login: Client, owner: Owner, media: Path
) -> None:
    session = publish_for("notes", owner)

    def view(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            Album.objects.create(title="Blue", notes=request.FILES["notes"])
            transaction.set_rollback(True)
        return HttpResponse("errors")

    assert run_view(login, view, session).status_code == 200
    assert state_of(session) == State.COMPLETED
    assert post(login, "/album/", session, title="Blue").status_code == 302
    assert Album.objects.get().notes.read() == DATA


@pytest.mark.parametrize("is_caught", [False, True])
def test_a_failed_insert_loses_nothing_in_autocommit(
    login: Client, owner: Owner, is_caught: bool
) -> None:
    session = publish_for("notes", owner)
    Album.objects.create(title="Blue")

    def view(request: HttpRequest) -> HttpResponse:
        assert not connection.in_atomic_block
        try:
            Album.objects.create(title="Blue", notes=request.FILES["notes"])
        except IntegrityError:
            if not is_caught:
                raise
        return HttpResponse("taken")

    login.raise_request_exception = False
    run_view(login, view, session)
    assert state_of(session) == State.COMPLETED
    assert post(login, "/album/", session, title="Red").status_code == 302
    assert Album.objects.get(title="Red").notes.read() == DATA


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_link_that_no_storage_took_is_removed(
    login: Client, session: UploadSession, media: Path, staging: Path, is_broken: bool
) -> None:
    links = []

    def view(request: HttpRequest) -> HttpResponse:
        upload = request.FILES["attachment"]
        links.append(upload.temporary_file_path())
        assert upload.temporary_file_path() == links[0]
        assert Path(links[0]).read_bytes() == DATA
        if is_broken:
            raise RuntimeError
        return HttpResponse()

    login.raise_request_exception = False
    run_view(login, view, session)
    assert links
    assert (files(media), files(staging)) == ([session.stored_as], [])
    assert state_of(session) == State.COMPLETED


def test_a_response_that_is_streamed_may_read_and_save_the_file(
    login: Client, session: UploadSession, media: Path, staging: Path
) -> None:
    def view(request: HttpRequest) -> StreamingHttpResponse:
        def stream() -> Any:
            yield from request.FILES["attachment"].chunks()
            Document.objects.create(attachment=request.FILES["attachment"])

        return StreamingHttpResponse(stream())

    response = run_view(login, view, session)
    assert b"".join(response.streaming_content) == DATA
    response.close()
    assert state_of(session) == State.BOUND
    assert (files(media), files(staging)) == (["documents/report.pdf"], [])


def test_a_database_that_fails_at_the_end_does_not_spoil_the_answer(
    login: Client, session: UploadSession, caplog: pytest.LogCaptureFixture
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        request.FILES["attachment"].end_request = fail
        return HttpResponse("saved")

    def fail(**kwargs: Any) -> None:
        raise OperationalError("gone")

    assert run_view(login, view, session).content == b"saved"
    assert "could not be released" in caplog.text


# Races --------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    barrier, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return results


def post_as(cookies: Any, session: UploadSession, number: int) -> Any:
    client = Client()
    client.cookies = cookies
    return post(client, "/document/", session)


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_of_requests_that_race_one_gets_the_file_and_the_others_a_field_error(
    alice: Any,
    login: Client,
    owner: Owner,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
    atomic_requests: bool,
) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic_requests)
    for _ in range(5):
        session = publish_for("attachment", owner)
        responses = in_threads(6, partial(post_as, login.cookies, session))
        assert sorted(each.status_code for each in responses) == [200] * 5 + [302]
        refused = [codes(each) for each in responses if each.status_code == 200]
        assert refused == [{"attachment": ["receipt_used"]}] * 5
        assert state_of(session) == State.BOUND
    assert Document.objects.count() == 5
    assert len(files(media)) == 5


def test_while_one_request_has_it_another_is_refused_and_can_have_it_afterwards(
    login: Client, session: UploadSession
) -> None:
    inside = []

    def view(request: HttpRequest) -> HttpResponse:
        assert request.FILES
        inside.append(codes(post(login, "/document/", session)))
        return HttpResponse("errors")

    assert run_view(login, view, session).status_code == 200
    assert inside == [{"attachment": ["receipt_used"]}]
    assert post(login, "/document/", session).status_code == 302


def test_a_request_that_lost_the_upload_while_it_was_slow_cannot_save_it(
    login: Client, session: UploadSession
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        assert request.FILES
        UploadSession.objects.update(expires_at=None)  # two minutes later
        assert post(login, "/document/", session).status_code == 302
        with pytest.raises(AlreadyBound):
            Document.objects.create(attachment=request.FILES["attachment"])
        return HttpResponse("too late")

    assert run_view(login, view, session).status_code == 200
    assert Document.objects.count() == 1
    assert Document.objects.get().attachment.read() == DATA


def test_two_objects_cannot_have_one_file(login: Client, session: UploadSession) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        Document.objects.create(attachment=request.FILES["attachment"])
        with pytest.raises(AlreadyBound):
            Document.objects.create(attachment=request.FILES["attachment"])
        return HttpResponse()

    run_view(login, view, session)
    assert Document.objects.count() == 1


# What is saved in other ways ----------------------------------------------------------------------


def test_another_kind_of_storage_reads_the_file_once(
    login: Client, session: UploadSession, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def read(upload: CompletedUpload, size: int = -1) -> bytes:
        piece: bytes = upload.file.read(size)
        reads.append(len(piece))
        return piece

    monkeypatch.setattr(CompletedUpload, "read", read)

    def view(request: HttpRequest) -> HttpResponse:
        Copy.objects.create(in_memory=request.FILES["attachment"])
        return HttpResponse()

    run_view(login, view, session)
    assert sum(reads) == len(DATA)
    assert elsewhere.open(Copy.objects.get().in_memory.name).read() == DATA
    assert state_of(session) == State.BOUND
    assert files(media) == []


def test_a_storage_that_takes_it_without_a_model_has_it(
    login: Client, session: UploadSession, media: Path, tmp_path: Path
) -> None:
    storage = FileSystemStorage(tmp_path / "wizard")

    def view(request: HttpRequest) -> HttpResponse:
        storage.save("step.pdf", request.FILES["attachment"])
        return HttpResponse()

    run_view(login, view, session)
    assert storage.open("step.pdf").read() == DATA
    assert state_of(session) == State.BOUND
    assert files(media) == []


def test_what_is_saved_before_an_error_is_not_lost(
    login: Client, session: UploadSession, media: Path, tmp_path: Path
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        FileSystemStorage(tmp_path / "wizard").save("step.pdf", request.FILES["attachment"])
        raise RuntimeError

    login.raise_request_exception = False
    run_view(login, view, session)
    assert state_of(session) == State.COMPLETED
    assert (media / session.stored_as).read_bytes() == DATA


def test_other_fields_of_the_object_may_be_saved_without_the_file(
    login: Client, owner: Owner
) -> None:
    session = publish_for("notes", owner)
    Album.objects.create(title="Blue")

    def view(request: HttpRequest) -> HttpResponse:
        album = Album.objects.get()
        album.notes = request.FILES["notes"]
        album.title = "Red"
        album.save(update_fields=["title"])
        assert state_of(session) == State.COMPLETED
        album.save(update_fields=["notes"])
        album.save()
        return HttpResponse()

    run_view(login, view, session)
    assert state_of(session) == State.BOUND
    assert Album.objects.get().notes.read() == DATA


# What is put in request.FILES ---------------------------------------------------------------------


def test_several_files_come_in_order_before_those_that_were_posted_themselves(
    login: Client, owner: Owner
) -> None:
    sessions = [publish_for("attachment", owner) for _ in range(3)]
    found: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        found.extend(request.FILES.getlist("attachment"))
        assert request.FILES["attachment"].name == "plain.txt"
        assert request.FILES["other"].read() == b"other"
        return HttpResponse()

    plain = SimpleUploadedFile("plain.txt", b"plain")
    other = SimpleUploadedFile("other.txt", b"other")
    run_view(login, view, *sessions, attachment=plain, other=other)
    assert [getattr(each, "session", None) for each in found] == [*sessions, None]


def test_many_receipts_may_be_one_value(login: Client, owner: Owner, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 10
    sessions = [publish_for("attachment", owner) for _ in range(20)]
    found: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        found.extend(request.FILES.getlist("attachment"))
        return HttpResponse()

    receipts = ",".join(receipt_of(each) for each in sessions)
    run_view(
        login, view, **{**posted(("attachment", sessions[0])), "async_upload.attachment": receipts}
    )
    assert [each.session for each in found] == sessions


def test_a_receipt_under_another_field_or_a_row_that_is_none_is_refused(
    login: Client, owner: Owner
) -> None:
    in_rows = publish_for("rows-__prefix__-file", owner)
    elsewhere = publish_for("elsewhere", owner)
    found: dict[str, Any] = {}

    def view(request: HttpRequest) -> HttpResponse:
        found.update(request.FILES.items())
        return HttpResponse()

    fields = posted(("rows-7-file", in_rows), ("attachment", elsewhere), ("", elsewhere))
    run_view(login, view, **fields, **{"async_upload.empty": ""})
    assert {name: file.session for name, file in found.items()} == {"rows-7-file": in_rows}
    answer = post(login, "/document/", **posted(("attachment", elsewhere)))
    assert codes(answer) == {"attachment": ["receipt_invalid"]}


@pytest.mark.parametrize("token", [None, "", "forged", "other", "api"])
def test_a_field_whose_page_posted_no_token_of_its_own_takes_no_upload(
    login: Client, session: UploadSession, token: str | None
) -> None:
    tokens = {"other": field_token("other"), "api": field_token("attachment", taker="api")}
    fields = posted(("attachment", session))
    del fields["async_upload_field.attachment"]
    if token is not None:
        fields["async_upload_field.attachment"] = tokens.get(token, token)
    assert codes(login.post("/document/", fields)) == {"attachment": ["required"]}
    assert state_of(session) == State.COMPLETED


@pytest.mark.parametrize("is_signed_in", [False, True])
def test_a_junk_receipt_breaks_no_view_that_looks_at_the_files_by_itself(
    login: Client, session: UploadSession, is_signed_in: bool
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str([(file.name, file.size) for file in request.FILES.values()]))

    fields = {**posted(("attachment", session)), "async_upload.attachment": "junk"}
    response = run_view(login if is_signed_in else Client(), view, **fields)
    assert response.content == b"[]"


def served(
    login: Client, server: str, view: Callable[[HttpRequest], HttpResponse], **fields: Any
) -> bytes:
    """What the view answers to a posted form, over WSGI or ASGI."""
    hooks["view"] = view
    if server == "WSGI":
        return bytes(login.post("/hook/", fields).content)
    # Not Django's client for ASGI: the body that it hands over is not a server's.
    body = encode_multipart(BOUNDARY, fields)
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in login.cookies.items())
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/hook-async/" if server == "ASGI, async view" else "/hook/",
        "query_string": b"",
        "headers": [
            (b"content-type", MULTIPART_CONTENT.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cookie", cookies.encode()),
        ],
    }

    async def ask() -> bytes:
        application = ApplicationCommunicator(get_asgi_application(), scope)
        await application.send_input({"type": "http.request", "body": body})
        assert (await application.receive_output(10))["status"] == 200
        answer = await application.receive_output(10)
        await application.wait()
        return bytes(answer["body"])

    return async_to_sync(ask)()


SERVERS = ["WSGI", "ASGI", "ASGI, async view"]


@pytest.mark.parametrize("server", SERVERS)
def test_a_view_may_read_the_body_of_a_form_itself(login: Client, server: str) -> None:
    """As a webhook does that checks a signature."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.body)

    body = served(login, server, view, a=SimpleUploadedFile("a.txt", DATA))
    assert DATA in body
    assert b'filename="a.txt"' in body


@pytest.mark.parametrize("server", SERVERS[:2])
def test_a_view_may_set_upload_handlers_of_its_own(login: Client, server: str) -> None:
    class Refusing(MemoryFileUploadHandler):
        def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes:
            raise SkipFile

    def view(request: HttpRequest) -> HttpResponse:
        request.upload_handlers = [Refusing(request)]
        return HttpResponse(str(len(request.FILES)))

    assert served(login, server, view, a=SimpleUploadedFile("a.txt", DATA)) == b"0"


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("first", ["FILES", "POST", "body"])
def test_a_view_finds_uploads_whatever_it_looks_at_first(
    server: str, first: str, login: Client, session: UploadSession
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        getattr(request, first)
        return HttpResponse(",".join(file.name or "" for file in request.FILES.values()))

    assert served(login, server, view, **posted(("attachment", session))) == b"report.pdf"


def test_a_form_that_no_view_reads_opens_nothing(login: Client, session: UploadSession) -> None:
    with CaptureQueriesContext(connection) as queries:
        run_view(login, lambda request: HttpResponse(), **posted(("attachment", session)))
    assert not [each for each in queries if "async_upload_" in each["sql"]]


def test_a_form_without_the_middleware_leaves_a_line_in_the_log(
    session: UploadSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices.forget()
    fields = posted(("attachment", session))
    data = QueryDict(mutable=True)
    data.update(fields)
    DocumentForm(data, MultiValueDict()).is_valid()
    assert not caplog.records
    monkeypatch.setattr(widgets, "receipt_middleware", set())
    for _ in range(2):
        DocumentForm(data, MultiValueDict()).is_valid()
    (line,) = caplog.records
    assert "UploadMiddleware" in line.getMessage()


# Which form a file was uploaded for ---------------------------------------------------------------


def of_place(place: str, owner: Owner, field: str = "attachment") -> UploadSession:
    metadata = {"field": {"name": field, "max_size": None, "place": place}}
    return publish(owner, DATA, "report.pdf", metadata=metadata)


def test_a_form_takes_no_file_that_was_uploaded_for_another_object(
    login: Client, owner: Owner
) -> None:
    of_a = of_place("document A", owner)
    for place in ("document B", ""):
        answer = login.post("/document/", posted(("attachment", of_a), place=place))
        assert codes(answer) == {"attachment": ["receipt_misplaced"]}
    assert state_of(of_a) == State.COMPLETED
    answer = login.post("/document/", posted(("attachment", of_a), place="document A"))
    assert answer.status_code == 302


@pytest.mark.parametrize("field", ["attachment", "cover"])
def test_a_file_that_the_person_took_over_is_taken(login: Client, owner: Owner, field: str) -> None:
    of_a = of_place("document A", owner, field)
    fields = posted(("attachment", of_a), place="document B")
    fields["async_upload.attachment"] = f"moved:{receipt_of(of_a)}"
    assert login.post("/document/", fields).status_code == 302
    assert state_of(of_a) == State.BOUND


def test_a_file_that_was_taken_over_is_still_its_owners_and_its_endpoints(
    login: Client, bob: Any, owner: Owner
) -> None:
    of_bob = of_place("document A", Owner(f"user:{bob.pk}", bob))
    of_photos = publish(owner, DATA, endpoint="photos", metadata=of_bob.metadata)
    for session in (of_bob, of_photos):
        fields = posted(("attachment", session), place="document B")
        fields["async_upload.attachment"] = f"moved:{receipt_of(session)}"
        assert codes(login.post("/document/", fields)) == {"attachment": ["receipt_invalid"]}


def test_a_refused_file_says_why_wherever_it_is_looked_at() -> None:
    refused = RefusedUpload(ValidationError("No.", code="no"))
    for name in ("name", "size", "file"):
        with pytest.raises(ValidationError):
            getattr(refused, name)
    assert isinstance(refused, UploadedFile)
    assert bool(refused)
    assert (str(refused), repr(refused)) == ("No.", "<RefusedUpload: no>")
    refused.close()
    with pytest.raises(ValidationError):
        default_storage.save("anything", refused)


def test_another_owners_receipt_is_a_field_error(
    bob: Any, session: UploadSession, media: Path
) -> None:
    client = Client()
    for _ in range(2):
        assert codes(post(client, "/document/", session)) == {"attachment": ["receipt_invalid"]}
        client.force_login(bob)
    assert state_of(session) == State.COMPLETED


# What it costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_it_does_not_look_at_what_is_no_form(is_async: bool) -> None:
    def respond(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def respond_async(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    middleware = UploadMiddleware(respond_async if is_async else respond)
    assert iscoroutinefunction(middleware) is is_async
    assert iscoroutinefunction(middleware.process_view) is is_async
    factory = RequestFactory()
    requests = [
        factory.get("/"),
        factory.post("/", b"{}", content_type="application/json"),
        factory.put("/", b"a=b", content_type="application/x-www-form-urlencoded"),
    ]
    for request in requests:
        outcome: Any = middleware.process_view(request, respond, (), {})
        response: Any = middleware(request)
        if is_async:
            outcome, response = asyncio.run(outcome), asyncio.run(response)
        assert outcome is None
        assert response.status_code == 200
        assert not hasattr(request, "_post")
        assert not request._read_started


def test_a_form_without_receipts_costs_no_query() -> None:
    hooks["view"] = lambda request: HttpResponse(request.FILES["a"].name)
    with CaptureQueriesContext(connection) as queries:
        response = Client().post("/hook/", {"a": SimpleUploadedFile("a.txt", b"a")})
    assert response.content == b"a.txt"
    assert not list(queries)


def test_more_receipts_than_a_form_may_have_fields_are_refused(
    login: Client, session: UploadSession
) -> None:
    response = login.post("/document/", posted(*[("attachment", session)] * 1001))
    assert response.status_code == 400
    assert state_of(session) == State.COMPLETED


# A form that has waited for a new login -----------------------------------------------------------


@pytest.mark.parametrize("kept", ["cookie", "cookie for HTTP only", "session"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_page_gets_a_csrf_token_of_the_new_login(
    alice: Any, settings: Any, kept: str, is_async: bool
) -> None:
    settings.CSRF_USE_SESSIONS = kept == "session"
    settings.CSRF_COOKIE_HTTPONLY = kept == "cookie for HTTP only"
    csrf = "django.middleware.csrf.CsrfViewMiddleware"
    # Wherever it stands: the token is that of the request, and of the cookie that goes out.
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, csrf] if is_async else [csrf, *settings.MIDDLEWARE]
    if kept == "session" and not is_async:
        settings.MIDDLEWARE = [settings.MIDDLEWARE[1], csrf, *settings.MIDDLEWARE[2:]]
    hooks["view"] = lambda request: HttpResponse("saved")
    client = Client(enforce_csrf_checks=True)

    def ask() -> Any:
        response = client.get("/hook/", headers={"Async-Upload": "token"})
        assert "no-store" in response["Cache-Control"]
        return response.json()

    client.force_login(alice)
    old = ask()
    assert client.post("/hook/", {"csrfmiddlewaretoken": old["csrf"]}).content == b"saved"
    if kept == "session":
        client.session.flush()
    else:
        client.cookies.clear()
    client.force_login(alice)  # which rotates the token
    assert client.post("/hook/", {"csrfmiddlewaretoken": old["csrf"]}).status_code == 403
    new = ask()
    assert client.post("/hook/", {"csrfmiddlewaretoken": new["csrf"]}).content == b"saved"
    assert new["owner"] == old["owner"]
    assert Client().get("/hook/", headers={"Async-Upload": "token"}).json()["owner"] == ""


def test_a_form_brings_no_more_receipts_than_a_folder_has_files(
    login: Client, owner: Owner, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "MAX_RECEIPTS", 2)
    sessions = [publish(owner, metadata={"field": {"name": "attachment"}}) for _ in range(3)]

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(len(request.FILES.getlist("attachment")))

    assert run_view(login, view, *sessions[:2]).content == b"2"
    assert run_view(login, view, *sessions).status_code == 400


def test_a_page_that_comes_back_learns_which_receipts_can_still_be_posted(
    login: Client, owner: Owner, bob: Any, session: UploadSession
) -> None:
    bound = publish_for("attachment", owner, state=State.BOUND)
    of_bob = publish_for("attachment", Owner(f"user:{bob.pk}", bob))
    hooks["view"] = lambda request: HttpResponse("not asked")
    asked = ",".join([*map(receipt_of, (session, bound, of_bob)), "junk"])
    headers = {"Async-Upload": "token", "Async-Upload-Receipts": asked}
    assert login.get("/hook/", headers=headers).json()["usable"] == [receipt_of(session)]
    assert Client().get("/hook/", headers=headers).json()["usable"] == []
    assert state_of(session) == State.COMPLETED
