"""The admin: permitted users see uploads and can end them, safely, among a million rows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.admin.widgets import AdminFileWidget
from django.contrib.auth.models import Permission
from django.core.files.base import ContentFile
from django.db import connection, models, transaction
from django.forms import TextInput
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone

from django_async_upload import admin as upload_admin
from django_async_upload.admin_widgets import AsyncAdminFileInput, AsyncUploadAdminMixin
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import NotFound, UploadOver
from django_async_upload.models import CompletionEvent, UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import MIB, Heard, new_key, publish, row, run
from .models import Document
from .test_cleanup import part, parts, unfinished

pytest_plugins = ["tests.fixtures"]
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("media")]

LIST = "/admin/async_upload/uploadsession/"
PROGRESS = f"{LIST}progress/"


def staff(django_user_model: Any, *rights: str, **fields: Any) -> Client:
    user = django_user_model.objects.create_user("clerk", is_staff=True, **fields)
    codenames = [f"{right}_uploadsession" for right in rights]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def site(django_user_model: Any) -> Client:
    """The admin, for a superuser."""
    return staff(django_user_model, is_superuser=True)


def act(client: Client, action: str, *sessions: UploadSession, **fields: str) -> Any:
    chosen = [str(session.pk) for session in sessions]
    form = {"action": action, "_selected_action": chosen, "index": "0", **fields}
    if fields.get("post"):
        form.pop("index")
    return client.post(LIST, form)


def said(client: Client) -> str:
    """The messages that the next page shows."""
    page = client.get(LIST).content.decode()
    found = re.findall(r'<li class="(?:success|warning|error)">(.*?)</li>', page)
    return unescape("; ".join(found))


def names_on(response: Any) -> set[str]:
    """The uploads on a page of the list."""
    return {session.name for session in response.context["cl"].result_list}


# The list -----------------------------------------------------------------------------------------


def test_the_list_shows_how_far_uploads_are(site: Client, owner: Owner) -> None:
    going = unfinished(owner, "", name="going.bin", size=8)
    unfinished(owner, "", name="endless.bin", size=None)
    publish(owner, name="done.bin")
    page = site.get(LIST).content.decode()
    bar = re.search(rf'data-upload="{going.pk}" data-url="([^"]+)" [^>]*><progress (.*?)>', page)
    assert bar is not None
    assert bar[1] == PROGRESS
    assert bar[2] == 'aria-label="going.bin" max="100" value="50"'
    assert f'upload="{going.pk}" url="/ws/uploads/"' in page
    assert "uploading, 50%" in page
    assert "uploading, 4\xa0bytes so far" in page
    assert page.count("<progress") == 2
    assert names_on(site.get(LIST)) == {"going.bin", "endless.bin", "done.bin"}


def test_a_name_is_no_markup(site: Client, owner: Owner) -> None:
    name = '"><script>alert(1)</script>'
    session = unfinished(owner, "", name=name, metadata={name: name}, error=name[:40])
    for url in (LIST, f"{LIST}{session.pk}/change/"):
        assert "<script>alert" not in site.get(url).content.decode()


def test_no_page_has_inline_script_or_style(site: Client, owner: Owner) -> None:
    session = unfinished(owner, "", size=8)
    pages = [site.get(LIST), site.get(f"{LIST}{session.pk}/change/"), act(site, "cancel", session)]
    for page in pages:
        text = page.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text)
        assert 'src="/static/django_async_upload/admin.js" type="module"' in text
        assert 'href="/static/django_async_upload/admin.css"' in text


def test_the_number_of_queries_does_not_depend_on_the_number_of_rows(
    site: Client, django_user_model: Any
) -> None:
    counts = []
    for start in (0, 5):
        for number in range(start, start + 5):
            user = django_user_model.objects.create_user(f"user{number}")
            unfinished(Owner(f"user:{user.pk}", user), "", size=8)
            publish(Owner(f"user:{user.pk}", user))
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert site.get(LIST).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_the_list_counts_no_further_than_it_shows(
    site: Client, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_admin, "MAX_COUNTED", 3)
    sessions = [unfinished(owner, "") for _ in range(5)]
    with CaptureQueriesContext(connection) as queries:
        response = site.get(LIST)
    assert response.context["cl"].result_count == 3
    assert response.context["cl"].full_result_count is None
    counting = [each["sql"] for each in queries if "COUNT" in each["sql"]]
    assert counting
    assert all("LIMIT 3" in sql for sql in counting)
    # "All" is what was counted.
    act(site, "cancel", sessions[0], select_across="1", post="yes")
    assert UploadSession.objects.filter(state=State.CANCELLED).count() == 3


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("port", {"report.pdf"}),
        ("stored/elsewhere", {"film.mov"}),
        ("alice", {"report.pdf"}),
        ("ali mov", set()),
        ("nothing", set()),
    ],
)
def test_uploads_are_found_by_name_and_owner(
    site: Client, owner: Owner, bob: Any, term: str, found: set[str]
) -> None:
    unfinished(owner, "", name="report.pdf")
    unfinished(Owner(f"user:{bob.pk}", bob), "", name="film.mov", stored_as="stored/elsewhere.mov")
    assert names_on(site.get(LIST, {"q": term})) == found


def test_an_upload_is_found_by_its_id_without_looking_elsewhere(site: Client, owner: Owner) -> None:
    sought, _other = unfinished(owner, "", name="a.bin"), unfinished(owner, "", name="b.bin")
    for text in (str(sought.pk), f" {sought.pk.hex.upper()} "):
        with CaptureQueriesContext(connection) as queries:
            assert names_on(site.get(LIST, {"q": text})) == {"a.bin"}
        assert not any("LIKE" in each["sql"] for each in queries)


def test_the_list_can_be_filtered(site: Client, owner: Owner, settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "archive": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    }
    unfinished(owner, "", name="a", endpoint="films", created_at=timezone.now() - timedelta(days=9))
    unfinished(owner, "", name="b", storage="archive")
    publish(owner, name="c")
    choices = {
        spec.title: [each["display"] for each in spec.choices(site.get(LIST).context["cl"])]
        for spec in site.get(LIST).context["cl"].filter_specs
    }
    assert choices["endpoint"] == ["All", "default", "films"]
    assert choices["storage"] == ["All", "archive", "async_upload", "default"]
    assert names_on(site.get(LIST, {"endpoint": "films"})) == {"a"}
    assert names_on(site.get(LIST, {"storage": "archive"})) == {"b"}
    assert names_on(site.get(LIST, {"state__exact": "completed"})) == {"c"}
    week_ago = (timezone.now() - timedelta(days=7)).isoformat()
    assert names_on(site.get(LIST, {"created_at__gte": week_ago})) == {"b", "c"}


def test_a_filter_with_one_choice_is_left_out(site: Client, owner: Owner, settings: Any) -> None:
    settings.STORAGES = {key: settings.STORAGES[key] for key in ("default", "staticfiles")}
    settings.ASYNC_UPLOAD = {"STORAGE": "default"}
    unfinished(owner, "")
    titles = {spec.title for spec in site.get(LIST).context["cl"].filter_specs}
    assert "endpoint" not in titles
    assert "storage" not in titles


# Progress -----------------------------------------------------------------------------------------


def test_progress_is_told_in_one_query_for_the_uploads_asked_for(
    site: Client, owner: Owner
) -> None:
    going = unfinished(owner, "", size=8)
    checked = unfinished(owner, "", size=4, state=State.VERIFYING)
    empty = unfinished(owner, "", size=0, durable=0)
    done, other = publish(owner), unfinished(owner, "")
    asked = [str(each.pk) for each in (going, checked, empty, done)]
    site.get(PROGRESS)
    with CaptureQueriesContext(connection) as queries:
        told = site.get(PROGRESS, {"id": [*asked, "nonsense", ""]}).json()
    assert sum("async_upload" in each["sql"] for each in queries) == 1
    assert told == {
        str(going.pk): {"text": "uploading, 50%", "percent": 50, "active": True},
        str(checked.pk): {"text": "verifying", "percent": None, "active": True},
        str(empty.pk): {"text": "uploading, 100%", "percent": 100, "active": True},
        str(done.pk): {"text": "completed", "percent": None, "active": False},
    }
    assert str(other.pk) not in told


def test_progress_is_told_of_no_more_uploads_than_a_page_has(
    site: Client, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_admin, "PER_PAGE", 2)
    asked = [str(unfinished(owner, "").pk) for _ in range(3)]
    assert set(site.get(PROGRESS, {"id": asked}).json()) == set(asked[:2])


def test_without_the_right_nothing_is_shown(
    django_user_model: Any, owner: Owner, login: Client
) -> None:
    session = publish(owner)
    clerk = staff(django_user_model)
    for page in ("", "progress/", f"{session.pk}/file/", f"{session.pk}/change/"):
        assert clerk.get(LIST + page).status_code == 403
        for outsider in (login, Client()):
            assert outsider.get(LIST + page).status_code == 302


# One upload ---------------------------------------------------------------------------------------


def test_an_upload_can_be_looked_at_but_neither_made_nor_changed(
    site: Client, owner: Owner
) -> None:
    session = publish(
        owner,
        metadata={"album": "Überraschung"},
        digests={"sha256": "ab12"},
        response={"document": "<Geschenk>"},
    )
    page = site.get(f"{LIST}{session.pk}/change/").content.decode()
    assert "Überraschung" in page
    assert "{\n  &quot;document&quot;: &quot;&lt;Geschenk&gt;&quot;\n}" in page
    assert f"CRC-32C: {session.crc32c}; sha256: ab12" in page
    assert 'name="_save"' not in page
    assert site.post(f"{LIST}{session.pk}/change/", {"name": "b.bin"}).status_code == 403
    assert site.get(f"{LIST}add/").status_code == 403


def test_what_is_not_known_is_empty_and_times_are_as_people_write_them(
    site: Client, owner: Owner, settings: Any
) -> None:
    settings.TIME_ZONE = "UTC"
    session = unfinished(owner, "", size=None)
    page = site.get(f"{LIST}{session.pk}/change/").content.decode()
    assert "None" not in page
    done = publish(owner)
    sent = datetime(2026, 2, 3, 16, 5, tzinfo=UTC)
    CompletionEvent.objects.create(session=done, delivered_at=sent)
    assert "Feb. 3, 2026, 4:05 p.m." in site.get(f"{LIST}{done.pk}/change/").content.decode()


def test_the_token_of_a_visitor_is_not_shown(site: Client) -> None:
    session = UploadSession.objects.create(key=new_key(), owner_key="visitor:secret", name="a.bin")
    page = site.get(f"{LIST}{session.pk}/change/").content.decode()
    assert "secret" not in page
    assert "visitor" in site.get(LIST).content.decode()


def test_the_file_is_a_download(site: Client, owner: Owner) -> None:
    session = publish(owner, b"<script>", "a.html", content_type="text/html")
    page = site.get(f"{LIST}{session.pk}/change/").content.decode()
    url = f"{LIST}{session.pk}/file/"
    assert f'<a href="{url}">a.html</a>' in page
    response = site.get(url)
    assert b"".join(response) == b"<script>"
    assert response["Content-Type"] == "application/octet-stream"
    assert response["Content-Disposition"] == 'attachment; filename="a.html"'
    assert response["X-Content-Type-Options"] == "nosniff"


def test_there_is_no_file_that_is_not_there_or_not_the_apps(site: Client, owner: Owner) -> None:
    going, bound, lost = unfinished(owner, ""), publish(owner), publish(owner)
    elsewhere = publish(owner, storage="gone")
    UploadSession.objects.filter(pk=bound.pk).update(state=State.BOUND)
    lost.get_storage().delete(lost.stored_as)
    for session in (going, bound, lost, elsewhere):
        assert site.get(f"{LIST}{session.pk}/change/").status_code == 200
        assert site.get(f"{LIST}{session.pk}/file/").status_code == 404
    assert site.get(f"{LIST}nonsense/file/").status_code == 404
    page = site.get(f"{LIST}{bound.pk}/change/").content.decode()
    assert "It belongs to another object of this site." in page


# Actions ------------------------------------------------------------------------------------------


def test_an_action_asks_first_and_says_what_it_concerns(site: Client, owner: Owner) -> None:
    going, done = unfinished(owner, "", name="going.bin"), publish(owner, name="done.bin")
    page = act(site, "cancel", going, done).content.decode()
    assert "Uploads concerned: 1" in page
    assert "going.bin" in page
    assert "done.bin" not in page
    going.refresh_from_db()
    assert going.state == State.UPLOADING
    assert "none of the selected uploads" in act(site, "cancel", done).content.decode()


@pytest.mark.parametrize(
    ("action", "state", "words"),
    [
        ("cancel", "cancelled", "Uploads cancelled: 2."),
        ("expire", "expired", "Uploads expired: 2."),
    ],
)
def test_uploads_are_ended_with_what_they_hold(
    site: Client, owner: Owner, staging: Path, heard: Heard, action: str, state: str, words: str
) -> None:
    chosen = [unfinished(owner, part(staging)) for _ in range(2)]
    publishing = unfinished(owner, part(staging), state=State.FINALIZING)
    kept, done = unfinished(owner, part(staging)), publish(owner)
    response = act(site, action, *chosen, publishing, done, post="yes")
    assert (response.status_code, response["Location"]) == (302, LIST)
    for session in chosen:
        session.refresh_from_db()
        assert (session.state, session.part, session.epoch) == (state, "", 2)
    assert parts(staging) == {publishing.part, kept.part}
    told = {each["session"].pk for each in heard.named(state)}
    assert told == {session.pk for session in chosen}
    assert len(heard) == 2
    done.refresh_from_db()
    assert done.state == State.COMPLETED
    assert said(site) == words
    assert LogEntry.objects.count() == 2


def test_an_action_that_finds_nothing_to_do_says_so(site: Client, owner: Owner) -> None:
    act(site, "cancel", publish(owner), post="yes")
    assert said(site) == "Uploads cancelled: 0."
    assert not LogEntry.objects.exists()


def test_ending_is_part_of_the_transaction_of_a_request(
    site: Client, owner: Owner, staging: Path, heard: Heard
) -> None:
    going, done = unfinished(owner, part(staging)), publish(owner)
    CompletionEvent.objects.create(session=done, delivered_at=timezone.now())
    with transaction.atomic():
        act(site, "cancel", going, post="yes")
        act(site, "send_again", done, post="yes")
        assert not heard
        transaction.set_rollback(True)
    assert not heard
    assert parts(staging) == {going.part}
    going.refresh_from_db()
    assert going.state == State.UPLOADING


@pytest.mark.parametrize("action", ["cancel", "expire", "delete_selected"])
async def test_who_holds_the_upload_is_told_at_once(
    connect: Callable[..., UploadCommunicator],
    uploads: UploadService,
    django_user_model: Any,
    staging: Path,
    action: str,
) -> None:
    """Also while nothing comes, so that no checkpoint would find out."""
    site = await run(staff, django_user_model, is_superuser=True)
    async with connect() as client:
        stream = client.new_stream()
        await client.send(m.Create(new_key(), "a.bin", MIB), stream)
        created = await client.wait_for(m.Created, stream)
        response = await run(act, site, action, await row(created.upload), post="yes")
        assert response.status_code == 302
        with pytest.raises(NotFound if action == "delete_selected" else UploadOver):
            await client.wait_for(m.Completed, stream)
    assert not parts(staging)
    assert await UploadSession.objects.filter(state__in=["uploading", "created"]).acount() == 0


def test_signals_are_sent_again_under_their_own_id(
    site: Client, owner: Owner, heard: Heard
) -> None:
    then = timezone.now() - timedelta(days=1)
    done, never, going = publish(owner), publish(owner), unfinished(owner, "")
    event = CompletionEvent.objects.create(session=done, delivered_at=then, due_at=then)
    due = CompletionEvent.objects.create(session=never)
    page = act(site, "send_again", done, never, going).content.decode()
    assert "Uploads concerned: 2" in page
    assert not heard
    act(site, "send_again", done, never, going, post="yes")
    assert {each["event_id"] for each in heard.named("completed")} == {event.pk, due.pk}
    event.refresh_from_db()
    assert event.delivered_at is not None
    assert event.delivered_at > then
    assert said(site) == "Uploads whose signals were sent again: 2."


def test_signals_that_fail_and_that_were_given_up_are_found_and_sent_again(
    site: Client, owner: Owner, heard: Heard
) -> None:
    fine, failing, given_up = (
        publish(owner, name=f"{name}.bin") for name in ("fine", "failing", "given")
    )
    now, later = timezone.now(), timezone.now() + timedelta(hours=1)
    CompletionEvent.objects.create(session=fine, delivered_at=now)
    CompletionEvent.objects.create(session=failing, attempts=3, error="receiver: no", due_at=later)
    CompletionEvent.objects.create(
        session=given_up, attempts=20, error="receiver: never", given_up_at=now
    )
    listed = {
        value: {
            name
            for name in ("fine.bin", "failing.bin", "given.bin")
            if f">{name}<" in site.get(f"{LIST}?signals={value}").content.decode()
        }
        for value in ("failing", "given_up")
    }
    assert listed == {"failing": {"failing.bin"}, "given_up": {"given.bin"}}
    page = site.get(f"{LIST}{given_up.pk}/change/").content.decode()
    assert "Given up after 20 attempts: receiver: never" in page
    page = site.get(f"{LIST}{failing.pk}/change/").content.decode()
    assert "Attempts that failed so far: 3. receiver: no" in page
    act(site, "send_again", failing, given_up, post="yes")
    assert {each["session"].pk for each in heard.named("completed")} == {failing.pk, given_up.pk}


def test_attempts_and_the_time_of_the_next_one_are_shown(site: Client, owner: Owner) -> None:
    waiting, sent, never = (publish(owner, name=f"{name}.bin") for name in ("a", "b", "c"))
    due = datetime(2031, 5, 17, 13, 24, tzinfo=UTC)
    CompletionEvent.objects.create(session=waiting, attempts=7, due_at=due)
    CompletionEvent.objects.create(session=sent, attempts=8, due_at=due, delivered_at=due)

    def shown(session: UploadSession, field: str) -> str:
        page = site.get(f"{LIST}{session.pk}/change/").content.decode()
        found = re.search(rf'field-{field}".*?class="readonly">(.*?)</div>', page, re.DOTALL)
        assert found is not None
        return found[1]

    assert (shown(waiting, "attempts"), shown(sent, "attempts")) == ("7", "8")
    assert "2031" in shown(waiting, "next_attempt")
    assert shown(sent, "next_attempt") == shown(never, "attempts") == "-"


def test_signals_that_are_being_sent_are_not_sent_again(
    site: Client, owner: Owner, heard: Heard
) -> None:
    busy = timezone.now() + timedelta(seconds=10)
    event = CompletionEvent.objects.create(session=publish(owner), due_at=busy)
    act(site, "send_again", event.session, post="yes")
    assert not heard
    assert said(site) == "Uploads whose signals were sent again: 0."


@pytest.mark.parametrize("action", ["cancel", "expire", "send_again"])
def test_who_may_only_look_ends_nothing(
    django_user_model: Any, owner: Owner, heard: Heard, action: str
) -> None:
    session = unfinished(owner, "") if action != "send_again" else publish(owner)
    clerk = staff(django_user_model, "view")
    assert f'value="{action}"' not in clerk.get(LIST).content.decode()
    state = session.state
    act(clerk, action, session, post="yes")
    session.refresh_from_db()
    assert session.state == state
    assert not heard


def test_who_may_change_uploads_can_end_them_and_not_delete_them(
    django_user_model: Any, owner: Owner
) -> None:
    session = unfinished(owner, "")
    clerk = staff(django_user_model, "change")
    act(clerk, "delete_selected", session, post="yes")
    assert clerk.post(f"{LIST}{session.pk}/delete/", {"post": "yes"}).status_code == 403
    act(clerk, "cancel", session, post="yes")
    session.refresh_from_db()
    assert session.state == State.CANCELLED


# Deletion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_bulk", [True, False])
def test_deletion_takes_along_what_belongs_to_the_app(
    site: Client, owner: Owner, staging: Path, media: Path, in_bulk: bool
) -> None:
    going, done, bound = unfinished(owner, part(staging)), publish(owner), publish(owner)
    CompletionEvent.objects.create(session=done)
    UploadSession.objects.filter(pk=bound.pk).update(state=State.BOUND)
    if in_bulk:
        page = act(site, "delete_selected", going, done, bound)
        assert page.status_code == 200
        act(site, "delete_selected", going, done, bound, post="yes")
    else:
        for session in (going, done, bound):
            answer = site.post(f"{LIST}{session.pk}/delete/", {"post": "yes"})
            assert answer.status_code == 302
    assert not UploadSession.objects.exists()
    assert not parts(staging)
    assert not (media / done.stored_as).exists()
    assert (media / bound.stored_as).exists(), "the host's"


@pytest.mark.parametrize("in_bulk", [True, False])
def test_what_is_being_published_is_not_deleted(
    site: Client, owner: Owner, staging: Path, in_bulk: bool
) -> None:
    session = unfinished(owner, part(staging), state=State.FINALIZING, name="soon.bin")
    if in_bulk:
        page = act(site, "delete_selected", session, post="yes").content.decode()
        assert "soon.bin" in page
    else:
        answer = site.post(f"{LIST}{session.pk}/delete/", {"post": "yes"})
        assert answer.status_code == 403
    assert UploadSession.objects.get().state == State.FINALIZING
    assert parts(staging) == {session.part}


def test_an_admin_site_of_the_hosts_own_links_to_its_own_pages(
    django_user_model: Any, owner: Owner, settings: Any
) -> None:
    settings.ROOT_URLCONF = __name__
    session = publish(owner)
    page = staff(django_user_model, is_superuser=True).get(
        f"/own/async_upload/uploadsession/{session.pk}/change/"
    )
    assert f'href="/own/async_upload/uploadsession/{session.pk}/file/"' in page.content.decode()


def test_what_a_host_leaves_out_of_the_admin_is_out_of_reach(
    django_user_model: Any, owner: Owner, settings: Any
) -> None:
    settings.ROOT_URLCONF = __name__
    client = staff(django_user_model, is_superuser=True)
    mine = "/own/async_upload/uploadsession/"
    hidden = unfinished(owner, "", endpoint="secret", name="secret.bin")
    done = publish(owner, endpoint="secret", name="secret.bin")
    unfinished(owner, "", endpoint="films")
    unfinished(owner, "")
    assert "secret" not in client.get(mine).content.decode()
    assert client.get(f"{mine}progress/", {"id": [str(hidden.pk)]}).json() == {}
    assert client.get(f"{mine}{done.pk}/file/").status_code == 404
    form = {"action": "cancel", "_selected_action": [str(hidden.pk)], "post": "yes"}
    client.post(mine, form)
    client.post(mine, {**form, "select_across": "1"})
    hidden.refresh_from_db()
    assert hidden.state == State.UPLOADING


# The widget ---------------------------------------------------------------------------------------


class Stock(admin.ModelAdmin):
    pass


class WithWidget(AsyncUploadAdminMixin, admin.ModelAdmin):
    pass


class Chosen(AsyncUploadAdminMixin, admin.ModelAdmin):
    formfield_overrides = {models.FileField: {"widget": TextInput, "help_text": "A path."}}


class Helped(AsyncUploadAdminMixin, admin.ModelAdmin):
    formfield_overrides = {models.FileField: {"help_text": "A PDF."}}


class WithInline(AsyncUploadAdminMixin, admin.TabularInline):
    model = Document


def field_of(model_admin: Any, rf: Any) -> Any:
    return model_admin.formfield_for_dbfield(Document._meta.get_field("attachment"), rf.get("/"))


def test_the_mixin_gives_the_widget_to_admins_and_inlines(rf: Any) -> None:
    assert type(field_of(Stock(Document, own_site), rf).widget) is AdminFileWidget
    assert type(field_of(WithWidget(Document, own_site), rf).widget) is AsyncAdminFileInput
    assert type(field_of(WithInline(Document, own_site), rf).widget) is AsyncAdminFileInput
    for_images = WithWidget(Document, own_site).formfield_overrides[models.ImageField]
    assert for_images["widget"] is AsyncAdminFileInput
    # Nothing but them was changed.
    assert type(field_of(Stock(Document, own_site), rf).widget) is AdminFileWidget


def test_what_a_host_has_chosen_for_a_field_stays(rf: Any) -> None:
    assert type(field_of(Chosen(Document, own_site), rf).widget) is TextInput
    helped = field_of(Helped(Document, own_site), rf)
    assert (type(helped.widget), helped.help_text) == (AsyncAdminFileInput, "A PDF.")


def test_the_widget_looks_as_the_admins_own_and_brings_its_script(rf: Any) -> None:
    document = Document.objects.create(attachment=ContentFile(b"old", "old.bin"))
    model_admin = WithWidget(Document, own_site)
    form = model_admin.get_form(rf.get("/"), document)(instance=document)
    html = str(form["attachment"])
    assert html.startswith("<async-upload ")
    assert '<p class="file-upload">Currently: <a href="/media/documents/old.bin">' in html
    media = str(model_admin.media + form.media)
    assert media.count("django_async_upload/") == 2, "one style and one script"
    assert "django_async_upload/async-upload.min.js" in media
    assert "django_async_upload/async-upload-admin.min.css" in media


ASKING = """
import os, sys
from django.conf import settings
settings.configure(
    SECRET_KEY="tests", USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=sys.argv[1].split(","), ASYNC_UPLOAD={sys.argv[2]: True},
)
import django
django.setup()
if not django.apps.apps.is_installed("django.contrib.admin"):
    assert not any(name.startswith("django.contrib.admin") for name in sys.modules)
    sys.exit()
from django.contrib import admin
from tests.models import Document
field = Document._meta.get_field("attachment")
print(type(admin.site._registry[Document].formfield_for_dbfield(field, None).widget).__name__)
class Inline(admin.TabularInline):
    model = Document
print(type(Inline(Document, admin.site).formfield_for_dbfield(field, None).widget).__name__)
"""
HOSTS_ADMIN = """
from django.contrib import admin
from tests.models import Document
admin.site.register(Document)
"""


@pytest.mark.parametrize(
    ("installed", "setting", "widget"),
    [
        (["django_async_upload", "django.contrib.admin"], "ADMIN_WIDGET", "AsyncAdminFileInput"),
        (["django.contrib.admin", "django_async_upload"], "ADMIN_WIDGET", "AsyncAdminFileInput"),
        (["django.contrib.admin", "django_async_upload"], "ALLOW_ANONYMOUS", "AdminFileWidget"),
        (["django.contrib.admin", "django_async_upload"], "UNKNOWN", "AdminFileWidget"),
        (["django_async_upload"], "ADMIN_WIDGET", None),
    ],
)
def test_one_setting_gives_the_widget_to_the_whole_admin(
    installed: list[str], setting: str, widget: str | None, tmp_path: Path
) -> None:
    """Whatever comes first in INSTALLED_APPS, and without the admin none of it is imported."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/__init__.py").touch()
    (tmp_path / "host/admin.py").write_text(HOSTS_ADMIN)
    apps = ["django.contrib.auth", "django.contrib.contenttypes", *installed, "tests", "host"]
    done = subprocess.run(
        [sys.executable, "-c", ASKING, ",".join(apps), setting],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ([widget] * 2 if widget else [])


OWN_SITE = """
import sys
from django.conf import settings
settings.configure(
    SECRET_KEY="tests", USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.auth", "django.contrib.contenttypes",
        "django.contrib.admin.apps.SimpleAdminConfig", "django_async_upload", "tests",
    ],
    ASYNC_UPLOAD={"ADMIN_WIDGET": True},
)
import django
django.setup()
from django.contrib import admin
from tests.models import Document
site = admin.AdminSite("office")
site.register(Document)
field = Document._meta.get_field("attachment")
print(type(site._registry[Document].formfield_for_dbfield(field, None).widget).__name__)
import django_async_upload.admin_widgets
print(list(admin.site._registry))
"""


def test_the_setting_registers_nothing_where_a_project_has_a_site_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_SITE],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:2] == ["AsyncAdminFileInput", "[]"]


def test_the_widget_is_one_of_the_admins_own(rf: Any) -> None:
    """Packages that change the admin look for it."""
    widget = field_of(WithWidget(Document, own_site), rf).widget
    assert isinstance(widget, AdminFileWidget)


class Films(upload_admin.UploadSessionAdmin):
    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).exclude(endpoint="secret")


own_site = admin.AdminSite("own")
own_site.register(UploadSession, Films)
urlpatterns = [path("admin/", admin.site.urls), path("own/", own_site.urls)]
