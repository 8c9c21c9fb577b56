"""What a field of a page is for: its object, its page, and who looks at it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django import forms
from django.core.files.uploadedfile import SimpleUploadedFile
from django.forms import inlineformset_factory
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import AsyncClient, Client
from django.urls import path

from django_async_upload.models import UploadSession
from django_async_upload.receipts import read_field_token
from django_async_upload.sessions.owners import SESSION_TOKEN, Owner, ensure_visitor
from django_async_upload.widgets import AsyncClearableFileInput, AsyncFileInput

from .fixtures import publish
from .models import Album, Track
from .test_widgets import Elements

pytest_plugins = ["tests.fixtures"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class AlbumForm(forms.ModelForm):
    class Meta:
        model = Album
        fields = ["title", "notes"]
        widgets = {"notes": AsyncClearableFileInput}


class PlainForm(forms.Form):
    title = forms.CharField()
    notes = forms.FileField(widget=AsyncFileInput)


TrackSet = inlineformset_factory(
    Album, Track, fields=["sound"], extra=1, widgets={"sound": AsyncClearableFileInput}
)


def album(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    instance = Album() if pk is None else Album.objects.get(pk=pk)
    form = AlbumForm(request.POST or None, request.FILES or None, instance=instance)
    if form.is_valid():
        form.save()
        return HttpResponse(status=302)
    return HttpResponse(form.as_p())


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PlainForm(request.POST or None, request.FILES or None).as_p())


async def plain_async(request: HttpRequest) -> HttpResponse:
    if "known" in request.GET:
        await request.auser()
    return HttpResponse(PlainForm().as_p())


def tracks(request: HttpRequest, pk: int) -> HttpResponse:
    rows = TrackSet(instance=Album.objects.get(pk=pk))
    return HttpResponse(rows.as_p() + rows.empty_form.as_p())


def tag(request: HttpRequest) -> HttpResponse:
    if "visitor" in request.GET:
        ensure_visitor(request)
    template = engines["django"].from_string("{% load async_upload %}{% async_upload 'notes' %}")
    return HttpResponse(template.render({}, request))


urlpatterns = [
    path("album/", album),
    path("album/<int:pk>/", album),
    path("other/<int:pk>/", album),
    path("plain/", plain),
    path("plain-async/", plain_async),
    path("tracks/<int:pk>/", tracks),
    path("tag/", tag),
]


def elements(response: Any) -> list[dict[str, str | None]]:
    return Elements(response.content.decode()).all("async-upload")


def place(response: Any) -> str:
    """That of the page's only element, in its attribute and in its token."""
    (element,) = elements(response)
    token = read_field_token(element["field"])
    assert element["place"] == token.place
    return token.place


def test_each_object_is_a_place_whichever_page_shows_it(login: Client) -> None:
    first, second = (Album.objects.create(title=title) for title in ("Red", "Blue"))
    of_first = place(login.get(f"/album/{first.pk}/"))
    assert of_first == place(login.get(f"/other/{first.pk}/?next=/"))
    assert of_first != place(login.get(f"/album/{second.pk}/"))
    assert str(first.pk) != of_first
    assert len(of_first) == 20


def test_a_new_object_and_a_form_without_one_are_places_of_their_page(login: Client) -> None:
    pages = ["/album/", "/album/?parent=1", "/plain/", "/plain/?step=2"]
    found = {place(login.get(page)) for page in pages}
    assert len(found) == len(pages)
    assert found == {place(login.get(page)) for page in pages}


def test_a_form_that_comes_back_with_errors_is_still_for_what_it_was(login: Client) -> None:
    page = login.get("/album/")
    (element,) = elements(page)
    notes = SimpleUploadedFile("notes.txt", b"x")
    posted = {"async_upload_field.notes": element["field"], "notes": notes}
    assert place(login.post("/album/?elsewhere", posted)) == place(page)


def test_a_form_with_errors_is_saved_with_what_was_uploaded_for_it(
    login: Client, owner: Owner, media: Path
) -> None:
    of = Album.objects.create(title="Red")
    page = login.get(f"/album/{of.pk}/")
    metadata = {"field": {"name": "notes", "max_size": None, "place": place(page)}}
    upload = publish(owner, metadata=metadata)
    from .fixtures import posted

    fields = posted(("notes", upload), place=place(page))
    page = login.post(f"/album/{of.pk}/", {"title": "", **fields})
    kept = {
        str(each["name"]): each["value"]
        for each in Elements(page.content.decode()).all("input")
        if (each["name"] or "").startswith("async_upload")
    }
    assert login.post(f"/album/{of.pk}/", {"title": "Redder", **kept}).status_code == 302
    assert Album.objects.get().notes.read() == b"hello"


def test_what_the_person_took_over_stays_so_when_the_form_comes_back(
    login: Client, owner: Owner, media: Path
) -> None:
    of = Album.objects.create(title="Red")
    upload = publish(owner, metadata={"field": {"name": "notes", "max_size": None, "place": "A"}})
    from .fixtures import posted

    fields = posted(("notes", upload), place=place(login.get(f"/album/{of.pk}/")))
    fields["async_upload.notes"] = f"moved:{fields['async_upload.notes'][0]}"
    page = login.post(f"/album/{of.pk}/", {"title": "", **fields})
    inputs = Elements(page.content.decode()).all("input")
    (kept,) = [each for each in inputs if each["name"] == "async_upload.notes"]
    assert kept["value"] == fields["async_upload.notes"]


def test_rows_of_a_formset_are_places_of_their_objects_and_new_ones_of_the_page(
    login: Client,
) -> None:
    first, second = (Album.objects.create(title=title) for title in ("Red", "Blue"))
    for each in (first, second):
        Track.objects.create(album=each, sound="a.mp3")
    rows = [
        [each["place"] for each in elements(login.get(f"/tracks/{album.pk}/"))]
        for album in (first, second)
    ]
    for saved, new, template in rows:
        assert saved != new == template
    assert not set(rows[0]) & set(rows[1])


def owner_on(client: Client, url: str = "/plain/") -> str | None:
    (element,) = elements(client.get(url))
    return element.get("owner")


def test_each_user_has_a_tag_that_tells_nothing(login: Client, alice: Any, bob: Any) -> None:
    other = Client()
    other.force_login(bob)
    again = Client()
    again.force_login(alice)
    assert owner_on(login) == owner_on(again) == owner_on(login, "/tag/")
    assert owner_on(login) != owner_on(other)
    assert owner_on(Client()) is None


def test_a_visitor_has_one_where_visitors_may_upload(settings: Any, db: None) -> None:
    settings.ASYNC_UPLOAD = {"ALLOW_ANONYMOUS": True}
    visitor, other = Client(), Client()
    assert owner_on(visitor, "/tag/") is None
    first = owner_on(visitor, "/tag/?visitor")
    assert first == owner_on(visitor, "/tag/") != owner_on(other, "/tag/?visitor")
    assert visitor.session[SESSION_TOKEN] not in str(first)


def test_a_page_of_an_asynchronous_view_knows_its_user_where_the_view_does(alice: Any) -> None:
    async def ask(url: str) -> str | None:
        client = AsyncClient()
        await client.aforce_login(alice)
        (element,) = elements(await client.get(url))
        return element.get("owner")

    async def both() -> list[str | None]:
        return [await ask("/plain-async/"), await ask("/plain-async/?known")]

    unknown, known = asyncio.run(both())
    assert unknown is None
    assert known == asyncio.run(ask("/plain/"))


async def test_the_place_of_a_field_token_is_written_down_with_the_upload(
    connect: Any, login: Client
) -> None:
    (element,) = elements(await sync_to_async(login.get)("/album/"))
    async with connect() as uploads:
        done = await uploads.upload("a.bin", b"hello", metadata={"field": element["field"]})
    session = await UploadSession.objects.aget(pk=done.upload)
    assert session.field_place == element["place"]
