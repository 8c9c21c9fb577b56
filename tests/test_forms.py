"""Every kind of form that Django has takes an upload in the place of a file, with stock fields."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django import forms
from django.contrib import admin
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.validators import FileExtensionValidator
from django.db import models
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from django.urls import path
from django.utils.datastructures import MultiValueDict
from formtools.wizard.views import SessionWizardView
from PIL import Image

from django_async_upload.forms import MultipleFileField
from django_async_upload.models import UploadSession
from django_async_upload.receipts import receipt_of
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.widgets import (
    AsyncClearableFileInput,
    AsyncFileInput,
    AsyncMultipleFileInput,
)

from .fixtures import posted, publish
from .models import Album, Track
from .test_middleware import files, post, state_of
from .test_widgets import Elements

pytest_plugins = ["tests.fixtures"]
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
    pytest.mark.usefixtures("media"),
]


class PlainForm(forms.Form):
    title = forms.CharField()
    doc = forms.FileField(
        widget=AsyncFileInput(max_size=1000),
        max_length=20,
        validators=[FileExtensionValidator(["txt", "pdf"])],
    )
    extra = forms.FileField(widget=AsyncClearableFileInput, required=False, allow_empty_file=True)
    locked = forms.FileField(widget=AsyncFileInput, required=False, disabled=True)


class ManyForm(forms.Form):
    title = forms.CharField()
    docs = MultipleFileField(max_length=20, validators=[FileExtensionValidator(["txt"])])
    more = MultipleFileField(required=False, widget=AsyncMultipleFileInput(max_size=1000))


class AlbumForm(forms.ModelForm):
    class Meta:
        model = Album
        fields = ["title", "cover", "notes"]
        widgets = {"cover": AsyncClearableFileInput, "notes": AsyncClearableFileInput}


TrackFormSet = forms.inlineformset_factory(
    Album, Track, fields=["sound"], widgets={"sound": AsyncClearableFileInput}, extra=2
)
AlbumFormSet = forms.modelformset_factory(Album, AlbumForm, extra=1)


class TrackInline(admin.TabularInline):
    model = Track
    extra = 1
    formfield_overrides = {models.FileField: {"widget": AsyncClearableFileInput}}


class AlbumAdmin(admin.ModelAdmin):
    inlines = [TrackInline]
    formfield_overrides = {
        models.FileField: {"widget": AsyncClearableFileInput},
        models.ImageField: {"widget": AsyncClearableFileInput},
    }


site = admin.AdminSite()
site.register(Album, AlbumAdmin)


def answer(form: Any) -> HttpResponse:
    """The errors, and the form as it is shown again."""
    errors = form.errors if isinstance(form.errors, list) else form.errors.get_json_data()
    return JsonResponse({"errors": errors, "html": str(form)})


def plain(request: HttpRequest) -> HttpResponse:
    form = PlainForm(request.POST, request.FILES, prefix=request.GET.get("prefix"))
    if not form.is_valid():
        return answer(form)
    data = form.cleaned_data
    read = {name: data[name].read().decode() for name in ("doc", "extra") if data[name]}
    return JsonResponse({"read": read, "locked": data["locked"]})


def many(request: HttpRequest) -> HttpResponse:
    form = ManyForm(request.POST, request.FILES)
    if not form.is_valid():
        return answer(form)
    return JsonResponse(
        {name: [each.name for each in form.cleaned_data[name]] for name in ("docs", "more")}
    )


def album(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    form = AlbumForm(request.POST, request.FILES, instance=Album.objects.get(pk=pk) if pk else None)
    if not form.is_valid():
        return answer(form)
    form.save()
    return HttpResponse(status=302)


def albums(request: HttpRequest) -> HttpResponse:
    formset = AlbumFormSet(request.POST, request.FILES, queryset=Album.objects.all())
    if not formset.is_valid():
        return answer(formset)
    formset.save()
    return HttpResponse(status=302)


def tracks(request: HttpRequest, pk: int) -> HttpResponse:
    formset = TrackFormSet(request.POST, request.FILES, instance=Album.objects.get(pk=pk))
    if not formset.is_valid():
        return answer(formset)
    formset.save()
    return HttpResponse(status=302)


class Wizard(SessionWizardView):
    form_list = [("first", PlainForm), ("second", AlbumForm)]

    @property
    def file_storage(self) -> FileSystemStorage:
        from django.conf import settings

        return FileSystemStorage(Path(settings.MEDIA_ROOT).with_name("wizard"))

    def render(self, form: Any = None, **kwargs: Any) -> HttpResponse:
        form = form or self.get_form()
        return JsonResponse(
            {"step": self.steps.current, "errors": form.errors.get_json_data(), "html": str(form)}
        )

    def done(self, form_list: Any, form_dict: Any, **kwargs: Any) -> HttpResponse:
        form_dict["second"].save()
        return JsonResponse({"doc": form_dict["first"].cleaned_data["doc"].read().decode()})


urlpatterns = [
    path("plain/", plain),
    path("many/", many),
    path("album/", album),
    path("album/<int:pk>/", album),
    path("albums/", albums),
    path("tracks/<int:pk>/", tracks),
    path("wizard/", Wizard.as_view()),
    path("admin/", site.urls),
]


def png() -> bytes:
    found = io.BytesIO()
    Image.new("RGB", (3, 2)).save(found, "PNG")
    return found.getvalue()


@pytest.fixture
def made(owner: Owner) -> Callable[..., UploadSession]:
    def made(field: str, data: bytes = b"hello", name: str = "a.txt", **fields: Any) -> Any:
        metadata = {"field": {"name": field, "max_size": None}}
        return publish(owner, data, name, metadata=metadata, **fields)

    return made


Made = Callable[..., UploadSession]


def errors(response: Any) -> dict[str, list[str]]:
    found = response.json()["errors"]
    return {name: [each["code"] for each in errors] for name, errors in found.items()}


def hidden(response: Any) -> list[dict[str, str | None]]:
    """The receipts in a form that is shown again, and the tokens of their fields."""
    inputs = Elements(response.json()["html"]).all("input")
    return [each for each in inputs if (each["name"] or "").startswith("async_upload")]


def values(*inputs: dict[str, str | None]) -> dict[str, str]:
    """What the inputs post."""
    return {str(each["name"]): str(each["value"]) for each in inputs}


# Forms --------------------------------------------------------------------------------------------


def test_a_form_reads_an_upload_as_any_file(login: Client, made: Made) -> None:
    response = post(login, "/plain/", made("doc"), made("extra", b"more"), title="x")
    assert response.json() == {"read": {"doc": "hello", "extra": "more"}, "locked": None}


def test_it_works_without_javascript(login: Client) -> None:
    doc = SimpleUploadedFile("a.txt", b"hello")
    assert login.post("/plain/", {"title": "x", "doc": doc}).json()["read"] == {"doc": "hello"}
    doc = SimpleUploadedFile("a.txt", b"x" * 1001)
    assert errors(login.post("/plain/", {"title": "x", "doc": doc})) == {"doc": ["file_too_large"]}


def test_a_prefix_is_part_of_the_name(login: Client, made: Made) -> None:
    first, second = made("a-doc"), made("b-doc")
    response = post(login, "/plain/?prefix=a", first, second, **{"a-title": "x"})
    assert response.json()["read"] == {"doc": "hello"}
    assert state_of(second) == State.COMPLETED


def test_required_is_asked_for(login: Client) -> None:
    assert errors(post(login, "/plain/", title="x")) == {"doc": ["required"]}


def test_what_is_posted_for_a_disabled_field_is_not_looked_at(login: Client, made: Made) -> None:
    response = post(login, "/plain/", made("doc"), made("locked"), title="x")
    assert response.json()["locked"] is None


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.exe", b"hello", "invalid_extension"),
        ("a" * 20 + ".txt", b"hello", "max_length"),
        ("a.txt", b"", "empty"),
        ("a.txt", b"x" * 1001, "file_too_large"),
    ],
)
def test_the_fields_own_validators_hold(
    login: Client, made: Made, name: str, data: bytes, expected: str
) -> None:
    session = made("doc", data, name)
    assert errors(post(login, "/plain/", session, title="x")) == {"doc": [expected]}
    assert state_of(session) == State.COMPLETED


def test_an_empty_file_may_be_allowed(login: Client, made: Made) -> None:
    response = post(login, "/plain/", made("doc"), made("extra", b""), title="x")
    assert response.json()["read"] == {"doc": "hello", "extra": ""}


def test_a_form_with_errors_is_shown_with_the_upload(login: Client, made: Made) -> None:
    session = made("doc", name="<b>.txt")
    response = post(login, "/plain/", session)
    assert errors(response) == {"title": ["required"]}
    kept, token = hidden(response)
    assert token["name"] == "async_upload_field.doc"
    assert kept == {
        "type": "hidden",
        "name": "async_upload.doc",
        "value": receipt_of(session),
        "data-name": "<b>.txt",
        "data-size": "5",
    }
    again = login.post("/plain/", {"title": "x", **values(kept, token)})
    assert again.json()["read"] == {"doc": "hello"}


def test_a_refused_receipt_is_not_shown_again(login: Client, made: Made) -> None:
    response = post(login, "/plain/", made("doc", state=State.BOUND), title="x")
    assert errors(response) == {"doc": ["receipt_used"]}
    assert hidden(response) == []


# Several files ------------------------------------------------------------------------------------


def test_several_files_are_a_list(login: Client, made: Made) -> None:
    sessions = [made("docs", name=f"{number}.txt") for number in range(3)]
    plain = SimpleUploadedFile("plain.txt", b"plain")
    response = post(login, "/many/", *sessions, title="x", docs=plain)
    assert response.json() == {"docs": ["0.txt", "1.txt", "2.txt", "plain.txt"], "more": []}


def test_the_error_of_one_of_several_names_it_and_all_are_kept(login: Client, made: Made) -> None:
    good, bad, gone = made("docs"), made("docs", name="b.exe"), made("docs", state=State.BOUND)
    response = post(login, "/many/", good, bad, gone, title="x")
    assert errors(response) == {"docs": ["invalid_extension", "receipt_used"]}
    first, second = response.json()["errors"]["docs"]
    assert first["message"].startswith("b.exe: ")
    assert not second["message"].startswith("gone")
    kept = [each["value"] for each in hidden(response)]
    assert kept[:-1] == [receipt_of(good), receipt_of(bad)]


def test_several_files_may_be_required_or_not(login: Client, made: Made) -> None:
    assert errors(post(login, "/many/", title="x")) == {"docs": ["required"]}
    form = ManyForm({"title": "x"}, {"docs": [SimpleUploadedFile("a.txt", b"a")]})
    assert form.is_valid(), form.errors
    assert form.cleaned_data["more"] == []
    assert form.changed_data == ["title", "docs"]


def test_a_field_for_several_files_keeps_its_initial_ones() -> None:
    field = MultipleFileField()
    assert field.clean(None, ["before"]) == ["before"]
    assert isinstance(field.widget, AsyncMultipleFileInput)


# Models -------------------------------------------------------------------------------------------


def test_an_image_is_validated_by_its_link_and_saved_without_a_copy(
    login: Client, made: Made, media: Path, staging: Path
) -> None:
    session = made("cover", png(), "a.png")
    inode = (media / session.stored_as).stat().st_ino
    assert errors(post(login, "/album/", session)) == {"title": ["required"]}
    assert (files(media), files(staging)) == ([session.stored_as], [])
    assert post(login, "/album/", session, title="Blue").status_code == 302
    cover = Album.objects.get().cover
    assert (cover.width, cover.height) == (3, 2)
    assert Path(cover.path).stat().st_ino == inode
    assert (files(media), files(staging)) == (["covers/a.png"], [])
    assert state_of(session) == State.BOUND


@pytest.mark.parametrize(
    ("name", "expected"), [("a.png", "invalid_image"), ("a.txt", "type_refused")]
)
def test_what_is_no_image_is_refused(
    login: Client, made: Made, staging: Path, name: str, expected: str
) -> None:
    session = made("cover", b"no image", name)
    assert errors(post(login, "/album/", session, title="Blue")) == {"cover": [expected]}
    assert state_of(session) == State.COMPLETED
    assert files(staging) == []


def test_an_image_in_another_kind_of_storage_is_validated_by_reading(
    login: Client, made: Made, settings: Any
) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "elsewhere": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    }
    from django.core.files.base import ContentFile
    from django.core.files.storage import storages

    session = made("cover", png(), "a.png", storage="elsewhere")
    storages["elsewhere"].save(session.stored_as, ContentFile(png()))
    assert errors(post(login, "/album/", session)) == {"title": ["required"]}
    assert post(login, "/album/", session, title="Blue").status_code == 302
    assert Album.objects.get().cover.read() == png()
    assert not storages["elsewhere"].exists(session.stored_as)


def test_an_object_keeps_replaces_and_clears_its_file(login: Client, made: Made) -> None:
    post(login, "/album/", made("notes", b"first"), title="Blue")
    url = f"/album/{Album.objects.get().pk}/"
    assert login.post(url, {"title": "Red"}).status_code == 302
    assert Album.objects.get().notes.read() == b"first"
    assert post(login, url, made("notes", b"second"), title="Red").status_code == 302
    assert Album.objects.get().notes.read() == b"second"
    both = made("notes", b"third")
    response = post(login, url, both, title="Red", **{"notes-clear": "on"})
    assert errors(response) == {"notes": ["contradiction"]}
    assert len(hidden(response)) == 2
    assert login.post(url, {"title": "Red", "notes-clear": "on"}).status_code == 302
    assert not Album.objects.get().notes


def management(prefix: str, total: int, initial: int = 0) -> dict[str, Any]:
    return {f"{prefix}-TOTAL_FORMS": total, f"{prefix}-INITIAL_FORMS": initial}


def test_rows_of_an_inline_formset_and_those_the_page_adds(login: Client, made: Made) -> None:
    parent = Album.objects.create(title="Blue")
    field = "track_set-__prefix__-sound"
    sessions = [made(field, name=f"{number}.txt") for number in range(3)]
    rows = posted(
        *(
            (f"track_set-{number}-sound", session)
            for number, session in zip((0, 1, 7), sessions, strict=True)
        )
    )
    response = login.post(f"/tracks/{parent.pk}/", {**management("track_set", 8), **rows})
    assert response.status_code == 302
    assert sorted(Track.objects.values_list("sound", flat=True)) == [
        f"tracks/{number}.txt" for number in range(3)
    ]
    assert {state_of(each) for each in sessions} == {State.BOUND}


def test_rows_of_a_model_formset_with_errors_keep_their_uploads(login: Client, made: Made) -> None:
    Album.objects.create(title="Blue")
    first, second = made("form-__prefix__-notes"), made("form-__prefix__-notes", name="b.txt")
    fields = {
        **management("form", 2, 1),
        "form-0-id": Album.objects.get().pk,
        "form-0-title": "Red",
        "form-1-title": "",
        **posted(("form-0-notes", first), ("form-1-notes", second)),
    }
    response = login.post("/albums/", fields)
    assert response.json()["errors"] == [{}, {"title": ["This field is required."]}]
    assert [each["name"] for each in hidden(response)] == [
        f"async_upload{kind}.form-{number}-notes" for number in (0, 1) for kind in ("", "_field")
    ]
    assert login.post("/albums/", {**fields, "form-1-title": "Green"}).status_code == 302
    assert {each.title: each.notes.name for each in Album.objects.all()} == {
        "Red": "notes/a.txt",
        "Green": "notes/b.txt",
    }


def test_the_admin_saves_an_object_with_its_inline(
    admin_client: Client, admin_user: Any, media: Path
) -> None:
    page = admin_client.get("/admin/tests/album/add/").content.decode()
    found = Elements(page)
    names = {each["name"] for each in found.all("input") if each.get("type") == "file"}
    assert {"cover", "notes", "track_set-0-sound", "track_set-__prefix__-sound"} <= names
    assert len(found.all("async-upload")) == 4
    scripts = [each for each in found.all("script") if "async-upload" in (each.get("src") or "")]
    (texts,) = [each for each in found.all("meta") if each.get("name") == "async-upload-texts"]
    assert "Choose a file" in str(texts["content"])
    assert [each["type"] for each in scripts] == ["module"]

    owner = Owner(f"user:{admin_user.pk}", admin_user)
    names = {"notes": "notes", "track_set-0-sound": "track_set-__prefix__-sound"}
    sessions = {
        html: publish(owner, b"x", metadata={"field": {"name": field, "max_size": None}})
        for html, field in names.items()
    }
    response = admin_client.post(
        "/admin/tests/album/add/",
        {
            "title": "Blue",
            **management("track_set", 1),
            **posted(*sessions.items()),
        },
    )
    assert response.status_code == 302, response.content
    assert Album.objects.get().notes.name == "notes/a.bin"
    assert Track.objects.get().sound.name == "tracks/a.bin"
    assert {state_of(each) for each in sessions.values()} == {State.BOUND}


# Wizards ------------------------------------------------------------------------------------------


def test_a_wizard_keeps_the_file_from_one_step_to_the_next(
    login: Client, made: Made, media: Path
) -> None:
    login.get("/wizard/")
    doc, notes = made("first-doc"), made("second-notes", b"notes", "n.txt")
    inode = (media / doc.stored_as).stat().st_ino
    here = {"wizard-current_step": "first"}
    wrong = post(login, "/wizard/", doc, **here)
    assert wrong.json()["step"] == "first"
    assert len(hidden(wrong)) == 2
    step = post(login, "/wizard/", doc, **here, **{"first-title": "x"})
    assert step.json()["step"] == "second"
    (kept,) = (media.with_name("wizard")).iterdir()
    assert kept.stat().st_ino == inode
    assert state_of(doc) == State.BOUND
    fields = {"wizard-current_step": "second", "second-title": "Blue"}
    assert post(login, "/wizard/", notes, **fields).json() == {"doc": "hello"}
    assert Album.objects.get().notes.read() == b"notes"


def test_each_of_several_files_is_checked_by_the_fields_own_rules(
    login: Client, made: Made
) -> None:
    large = SimpleUploadedFile("large.txt", b"x" * 1001)
    response = post(login, "/many/", made("docs"), title="x", more=large)
    assert errors(response) == {"more": ["file_too_large"]}


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (3, 10, None),
        (4, 1, "too_many_files"),
        (2, 31, "total_too_large"),
        (1, 1, None),
        (1, 0, "file_too_small"),
    ],
)
def test_number_total_and_least_size_hold_in_a_form(
    count: int, size: int, expected: str | None
) -> None:
    widget = AsyncMultipleFileInput(max_files=3, max_total_size=60, min_size=1)
    field = MultipleFileField(widget=widget, allow_empty_file=True)
    form = type("LimitedForm", (forms.Form,), {"docs": field})
    files = [SimpleUploadedFile(f"{number}.txt", b"x" * size) for number in range(count)]
    checked = form({}, MultiValueDict({"docs": files}))
    found = [each.code for each in checked.errors.as_data().get("docs", [])]
    assert found == ([expected] if expected else [])
    for limit in ('max-files="3"', 'max-total-size="60"', 'min-size="1"'):
        assert limit in str(checked)
