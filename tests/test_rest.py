"""APIs take receipts as JSON, and forms as they always did; each refusal has a stable code."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import models
from django.test import Client
from django.urls import path
from django.utils import timezone
from django.utils.translation import override
from rest_framework import generics, serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.response import Response
from rest_framework.schemas.openapi import AutoSchema
from rest_framework.views import APIView

from django_async_upload.models import UploadSession
from django_async_upload.receipts import receipt_of
from django_async_upload.rest import UploadField
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State

from .fixtures import posted, publish
from .models import Document

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

DATA = os.urandom(50_000)


class DocumentSerializer(serializers.ModelSerializer):
    attachment = UploadField(max_length=20)

    class Meta:
        model = Document
        fields = ["id", "attachment"]


class Documents(generics.ListCreateAPIView):
    queryset = Document.objects.order_by("pk")
    serializer_class = DocumentSerializer


class DocumentDetail(generics.RetrieveUpdateAPIView):
    queryset = Document.objects.all()
    serializer_class = DocumentSerializer


class StockSerializer(serializers.ModelSerializer):
    class Meta:
        model = Document
        fields = ["id", "attachment"]


class StockDocuments(generics.CreateAPIView):
    """A view that knows nothing of uploads."""

    queryset = Document.objects.all()
    serializer_class = StockSerializer


class Album(serializers.Serializer):
    pictures = serializers.ListField(child=UploadField(), allow_empty=False)
    cover = UploadField(required=False, allow_null=True, endpoint="covers", field="cover")


class Albums(APIView):
    def post(self, request: Any) -> Response:
        album = Album(data=request.data, context={"request": request})
        album.is_valid(raise_exception=True)
        pictures = [picture.read().decode() for picture in album.validated_data["pictures"]]
        cover = album.validated_data.get("cover")
        return Response({"pictures": pictures, "cover": cover and cover.name})


class ByHeader(BaseAuthentication):
    """A program that signs in without a session."""

    def authenticate(self, request: Any) -> tuple[Any, None] | None:
        from django.contrib.auth import get_user_model

        name = request.headers.get("X-User")
        return (get_user_model().objects.get(username=name), None) if name else None


class ForPrograms(Documents):
    authentication_classes = [ByHeader]


urlpatterns = [
    path("documents/", Documents.as_view()),
    path("documents/<int:pk>/", DocumentDetail.as_view()),
    path("stock/", StockDocuments.as_view()),
    path("albums/", Albums.as_view()),
    path("programs/", ForPrograms.as_view()),
]


@pytest.fixture(autouse=True)
def api(settings: Any, media: Path) -> None:
    settings.ROOT_URLCONF = __name__
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "rest_framework"]
    middleware = "django_async_upload.middleware.UploadMiddleware"
    settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if each != middleware]
    settings.MIDDLEWARE += [middleware]


def post(client: Client, url: str = "/documents/", **fields: Any) -> Any:
    return client.post(url, fields, content_type="application/json")


def codes(serializer: serializers.Serializer) -> dict[str, Any]:
    serializer.is_valid()
    return {name: [each.code for each in errors] for name, errors in serializer.errors.items()}


def fresh(session: UploadSession) -> UploadSession:
    return UploadSession.objects.get(pk=session.pk)


# JSON ---------------------------------------------------------------------------------------------


def test_a_receipt_in_json_becomes_the_models_file_without_a_copy(
    login: Client, owner: Owner, media: Path
) -> None:
    session = publish(owner, DATA, "report.pdf")
    inode = (media / session.stored_as).stat().st_ino
    answer = post(login, attachment=receipt_of(session))
    assert answer.status_code == 201
    document = Document.objects.get()
    assert answer.json() == {
        "id": document.pk,
        "attachment": "http://testserver/media/documents/report.pdf",
    }
    assert (media / "documents/report.pdf").stat().st_ino == inode
    assert (media / "documents/report.pdf").read_bytes() == DATA
    assert fresh(session).state == State.BOUND
    assert not (media / session.stored_as).exists()


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        ("nonsense", "receipt_invalid"),
        (17, "receipt_invalid"),
        (["nonsense"], "receipt_invalid"),
        ({"name": "a"}, "receipt_invalid"),
        ("", "receipt_invalid"),
        (None, "null"),
    ],
)
def test_what_is_no_receipt_is_refused(login: Client, refused: object, code: str) -> None:
    answer = post(login, attachment=refused)
    assert answer.status_code == 400
    assert [each.code for each in answer.data["attachment"]] == [code]
    assert not Document.objects.exists()


def test_a_missing_receipt_is_required(login: Client) -> None:
    answer = post(login)
    assert [each.code for each in answer.data["attachment"]] == ["required"]


def test_each_refusal_has_its_code(login: Client, owner: Owner, bob: Any) -> None:
    long_ago = timezone.now() - timedelta(days=2)
    theirs = publish(Owner(f"user:{bob.pk}", bob))
    refused = {
        receipt_of(theirs): "receipt_invalid",
        receipt_of(publish(owner, endpoint="films")): "receipt_invalid",
        receipt_of(publish(owner, state=State.UPLOADING)): "receipt_invalid",
        receipt_of(publish(owner, completed_at=long_ago)): "receipt_expired",
        receipt_of(publish(owner, state=State.BOUND)): "receipt_used",
        receipt_of(publish(owner, b"", "a.bin")): "empty",
        receipt_of(publish(owner, name="a name of more than twenty.bin")): "max_length",
    }
    for receipt, code in refused.items():
        answer = post(login, attachment=receipt)
        assert answer.status_code == 400
        assert [each.code for each in answer.data["attachment"]] == [code]
    assert fresh(theirs).state == State.COMPLETED
    assert not Document.objects.exists()


def test_a_second_use_is_refused(login: Client, owner: Owner) -> None:
    receipt = receipt_of(publish(owner))
    assert post(login, attachment=receipt).status_code == 201
    again = post(login, attachment=receipt)
    assert [each.code for each in again.data["attachment"]] == ["receipt_used"]
    assert Document.objects.count() == 1


def test_what_was_not_saved_can_be_sent_again(
    login: Client, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = publish(owner, DATA)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise serializers.ValidationError("Not today.", code="today")

    with monkeypatch.context() as patch:
        patch.setattr(DocumentSerializer, "validate", fail)
        assert post(login, attachment=receipt_of(session)).status_code == 400
    assert fresh(session).state == State.COMPLETED
    assert post(login, attachment=receipt_of(session)).status_code == 201
    assert Document.objects.get().attachment.read() == DATA


def test_a_host_can_word_the_refusal_and_people_read_it_in_their_language(
    login: Client, owner: Owner, rf: Any
) -> None:
    class Worded(serializers.Serializer):
        file = UploadField(error_messages={"receipt_invalid": "Please upload it first."})

    request = rf.post("/")
    request._request, request.user = request, owner.user
    serializer = Worded(data={"file": "nonsense"}, context={"request": request})
    assert not serializer.is_valid()
    assert serializer.errors == {"file": ["Please upload it first."]}
    with override("de"):
        stock = DocumentSerializer(data={"attachment": "x"}, context={"request": request})
        assert not stock.is_valid()
        assert stock.errors["attachment"][0] == str(UploadField().error_messages["receipt_invalid"])


def test_who_asks_is_who_rest_framework_has_authenticated(owner: Owner, login: Client) -> None:
    receipt = receipt_of(publish(owner))
    # The session's cookie alone signs no user in here: no CSRF token protects it.
    refused = post(login, "/programs/", attachment=receipt)
    assert [each.code for each in refused.data["attachment"]] == ["receipt_invalid"]
    body = {"attachment": receipt}
    program = Client(headers={"X-User": "alice"})
    assert program.post("/programs/", body, content_type="application/json").status_code == 201


def test_an_object_is_changed_by_a_receipt_and_left_alone_without(
    login: Client, owner: Owner
) -> None:
    document = Document.objects.create(attachment=ContentFile(b"old", "old.bin"))
    url = f"/documents/{document.pk}/"
    receipt = receipt_of(publish(owner, b"new", "new.bin"))
    assert login.patch(url, {}, content_type="application/json").status_code == 200
    changed = login.patch(url, {"attachment": receipt}, content_type="application/json")
    assert changed.json()["attachment"] == "http://testserver/media/documents/new.bin"
    assert Document.objects.get().attachment.read() == b"new"


def test_a_list_takes_several_and_tells_which_is_refused(login: Client, owner: Owner) -> None:
    first, second = publish(owner, b"one"), publish(owner, b"two")
    receipts = [receipt_of(first), receipt_of(second)]
    twice = post(login, "/albums/", pictures=[receipts[0], receipts[1], receipts[0]])
    assert twice.status_code == 400
    errors = twice.data["pictures"]
    assert {index: [each.code for each in found] for index, found in errors.items()} == {
        2: ["receipt_used"]
    }
    album = post(login, "/albums/", pictures=receipts)
    assert album.json() == {"pictures": ["one", "two"], "cover": None}
    assert post(login, "/albums/", pictures=[]).status_code == 400


def test_a_field_takes_only_what_was_uploaded_for_it(login: Client, owner: Owner) -> None:
    picture = receipt_of(publish(owner, b"one"))
    token = {"field": {"name": "cover", "max_size": None}}
    cover = publish(owner, name="cover.png", endpoint="covers", metadata=token)
    elsewhere = publish(owner, endpoint="covers")
    refused = post(login, "/albums/", pictures=[picture], cover=receipt_of(elsewhere))
    assert [each.code for each in refused.data["cover"]] == ["receipt_invalid"]
    album = post(login, "/albums/", pictures=[picture], cover=receipt_of(cover))
    assert album.json() == {"pictures": ["one"], "cover": "cover.png"}
    assert post(login, "/albums/", pictures=[picture], cover=None).json()["cover"] is None


def test_a_serializer_without_its_request_says_what_is_missing() -> None:
    with pytest.raises(ImproperlyConfigured, match="context"):
        DocumentSerializer(data={"attachment": "receipt"}).is_valid()


# Forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/stock/", "/documents/"])
def test_a_multipart_form_brings_receipts_and_plain_files(
    login: Client, owner: Owner, url: str
) -> None:
    token = {"field": {"name": "attachment", "max_size": None}}
    session = publish(owner, DATA, "a.bin", metadata=token)
    answer = login.post(url, posted(("attachment", session)))
    assert answer.status_code == 201, answer.content
    assert Document.objects.get(pk=answer.json()["id"]).attachment.read() == DATA
    assert fresh(session).state == State.BOUND
    plain = login.post(url, {"attachment": SimpleUploadedFile("b.bin", b"plain")})
    assert plain.status_code == 201
    assert Document.objects.get(pk=plain.json()["id"]).attachment.read() == b"plain"


def test_a_receipt_that_a_form_brings_is_refused_on_its_field(login: Client, owner: Owner) -> None:
    of_other = publish(owner, DATA, metadata={"field": {"name": "other", "max_size": None}})
    answer = login.post("/documents/", posted(("attachment", of_other)))
    assert answer.status_code == 400
    assert [each.code for each in answer.data["attachment"]] == ["receipt_invalid"]
    assert answer.data["attachment"] == [
        "This uploaded file cannot be used here. Please choose the file again."
    ]


# Descriptions -------------------------------------------------------------------------------------


def test_the_field_is_a_string_in_openapi() -> None:
    assert AutoSchema().map_field(UploadField()) == {"type": "string"}
    assert UploadField._spectacular_annotation == {"field": {"type": "string"}}


def test_the_browsable_api_shows_a_form_and_what_is_wrong_with_it(
    login: Client, owner: Owner
) -> None:
    page = login.get("/documents/", headers={"accept": "text/html"})
    assert '<input name="attachment"' in page.content.decode().replace("\n", " ").replace("  ", "")
    refused = login.post("/documents/", {"attachment": "x"}, headers={"accept": "text/html"})
    assert refused.status_code == 400
    assert "This uploaded file cannot be used here." in refused.content.decode()
    receipt = receipt_of(publish(owner, DATA))
    made = login.post("/documents/", {"attachment": receipt}, headers={"accept": "text/html"})
    assert made.status_code == 201
    assert Document.objects.get().attachment.read() == DATA


def test_the_name_is_shown_where_the_api_shows_names(settings: Any) -> None:
    document = Document.objects.create(attachment=ContentFile(b"old", "old.bin"))
    assert DocumentSerializer(document).data["attachment"] == "/media/documents/old.bin"
    assert DocumentSerializer(Document()).data["attachment"] is None
    settings.REST_FRAMEWORK = {"UPLOADED_FILES_USE_URL": False}
    assert DocumentSerializer(document).data["attachment"] == "documents/old.bin"
    assert isinstance(Document._meta.get_field("attachment"), models.FileField)
