"""The admin's list of uploads, with live progress."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import ShowFacets
from django.contrib.admin.utils import display_for_value, unquote
from django.contrib.auth import get_permission_codename, get_user_model
from django.core.exceptions import PermissionDenied
from django.core.files.storage import InvalidStorageError, storages
from django.core.paginator import Paginator
from django.db import router, transaction
from django.db.models import QuerySet
from django.forms import Script
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext_lazy as _

from . import conf
from .assets import PROGRESS_SCRIPT
from .engine import outbox, service
from .exceptions import UploadError
from .models import CompletionEvent, UploadSession, UploadSessionQuerySet
from .progress import progress_element, progress_of
from .responses import upload_response
from .sessions.state import ACTIVE, State

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[UploadSession]
    UploadPaginator = Paginator[UploadSession]
else:
    ModelAdmin, UploadPaginator = admin.ModelAdmin, Paginator

PER_PAGE: Final = 100
"""Uploads on a page of the list, and ids in one request for progress."""
MAX_COUNTED: Final = 10_000
"""Uploads that the list counts, shows and acts upon; to reach others, filter the list."""
STOPPABLE: Final = ACTIVE - {State.FINALIZING}


class BoundedPaginator(UploadPaginator):
    """Counts no further than :data:`MAX_COUNTED`: counting a million rows takes longer than the rest of the page."""

    object_list: QuerySet[UploadSession]

    @cached_property
    def count(self) -> int:
        return self.object_list.order_by().values("pk")[:MAX_COUNTED].count()


class EndpointFilter(admin.SimpleListFilter):
    """Filters by endpoint. Finds each by one lookup in the index, since DISTINCT would read all rows."""

    title = _("endpoint")
    parameter_name = "endpoint"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        uploads = model_admin.get_queryset(request).order_by("endpoint")
        endpoints = uploads.values_list("endpoint", flat=True)
        found: list[tuple[str, str]] = []
        name = endpoints.first()
        while name is not None and len(found) < PER_PAGE:
            found.append((name, name))
            name = endpoints.filter(endpoint__gt=name).first()
        return found if len(found) > 1 else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(endpoint=self.value()) if self.value() else queryset


class StorageFilter(admin.SimpleListFilter):
    """Filters by storage, of those in the settings."""

    title = _("storage")
    parameter_name = "storage"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        aliases = sorted({*storages.backends, conf.uploads().storage} - {"staticfiles"})
        return [(alias, alias) for alias in aliases] if len(aliases) > 1 else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(storage=self.value()) if self.value() else queryset


class SignalsFilter(admin.SimpleListFilter):
    """Filters by failures of the delivery of ``upload_completed``."""

    title = _("signals")
    parameter_name = "signals"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("failing", _("failed, will be retried")), ("given_up", _("given up"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        failed = queryset.filter(completion__error__gt="", completion__delivered_at=None)
        if self.value() in ("failing", "given_up"):
            failing = self.value() == "failing"
            return failed.filter(completion__given_up_at__isnull=failing)
        return queryset


@admin.register(UploadSession)
class UploadSessionAdmin(ModelAdmin):
    """Lists uploads, and lets users end and delete them. Nothing can be edited."""

    list_display = ("name", "progress", "total", "owner_shown", "created")
    list_filter = ("state", "taker", SignalsFilter, EndpointFilter, StorageFilter, "created_at")
    list_select_related = ("owner",)
    list_per_page = PER_PAGE
    list_max_show_all = PER_PAGE
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    paginator = BoundedPaginator
    search_help_text = _("Name, name as stored or owner; or the whole id.")
    actions = ("cancel", "expire", "send_again")
    readonly_fields = (
        "progress",
        "total",
        "file",
        "checksums",
        "sent_metadata",
        "answer",
        "delivered",
        "attempts",
        "next_attempt",
    )
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "name",
                    "progress",
                    "total",
                    "owner",
                    "endpoint",
                    "taker",
                    "error",
                    "error_message",
                    "file",
                )
            },
        ),
        (
            _("File"),
            {
                "fields": (
                    "storage",
                    "stored_as",
                    "content_type",
                    "checksums",
                    "sent_metadata",
                    "answer",
                )
            },
        ),
        (
            _("Times"),
            {
                "fields": (
                    *("created_at", "updated_at", "expires_at", "completed_at"),
                    *("delivered", "attempts", "next_attempt"),
                )
            },
        ),
        (
            _("Internals"),
            {
                "classes": ("collapse",),
                "fields": ("id", "address", "durable", "epoch", "part", "token"),
            },
        ),
    )

    class Media:
        css = {"all": ("django_async_upload/admin.css",)}
        js = (
            Script(PROGRESS_SCRIPT, type="module"),
            Script("django_async_upload/admin.js", type="module"),
        )

    # Permissions -------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing can be edited; the permission to change uploads allows ending them."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_end_permission(request)

    def has_end_permission(self, request: HttpRequest) -> bool:
        codename = get_permission_codename("change", self.opts)
        return request.user.has_perm(f"{self.opts.app_label}.{codename}")

    def has_delete_permission(self, request: HttpRequest, obj: UploadSession | None = None) -> bool:
        # If a row were deleted during publication, its published file would be left without a row.
        is_free = obj is None or obj.state != State.FINALIZING
        return is_free and super().has_delete_permission(request, obj)

    # The list ----------------------------------------------------------------------------------

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return ("name", "stored_as", f"owner__{get_user_model().USERNAME_FIELD}")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[UploadSession], search_term: str
    ) -> tuple[QuerySet[UploadSession], bool]:
        try:
            return queryset.filter(pk=uuid.UUID(search_term.strip())), False
        except ValueError:
            return super().get_search_results(request, queryset, search_term)

    @admin.display(description=_("state"), ordering="state")
    def progress(self, session: UploadSession) -> str:
        """The state, with a progress bar that follows the upload while it is active."""
        shown = progress_of(session)
        if not shown["active"]:
            return str(shown["text"])
        # The data is for admin.js, which asks where no WebSocket tells.
        about: dict[str, Any] = {"data-upload": session.pk, "data-url": self._url("progress")}
        return progress_element(session, **{"class": "async-upload"}, **about)

    @admin.display(description=_("size"), ordering="size")
    def total(self, session: UploadSession) -> str:
        return self._shown(None if session.size is None else filesizeformat(session.size))

    @admin.display(description=_("owner"), ordering="owner")
    def owner_shown(self, session: UploadSession) -> str:
        return str(session.owner or _("visitor"))

    @admin.display(description=_("created"), ordering="created_at")
    def created(self, session: UploadSession) -> str:
        at = session.created_at
        return date_format(localtime(at) if is_aware(at) else at, "SHORT_DATETIME_FORMAT")

    # One upload --------------------------------------------------------------------------------

    @admin.display(description=_("file"))
    def file(self, session: UploadSession) -> str:
        if session.state == State.BOUND:
            return str(_("It belongs to another object of this site."))
        if session.state != State.COMPLETED:
            return self._shown(None)
        return format_html('<a href="{}">{}</a>', self._url("file", session.pk), session.name)

    @admin.display(description=_("checksums"))
    def checksums(self, session: UploadSession) -> str:
        digests = {"CRC-32C": session.crc32c, **session.digests} if session.is_completed else {}
        return self._shown("; ".join(f"{name}: {text}" for name, text in digests.items()) or None)

    @admin.display(description=_("metadata"))
    def sent_metadata(self, session: UploadSession) -> str:
        return self._shown_as_json(session.metadata)

    @admin.display(description=_("response"))
    def answer(self, session: UploadSession) -> str:
        return self._shown_as_json(session.response)

    @admin.display(description=_("signals sent"))
    def delivered(self, session: UploadSession) -> str:
        event: CompletionEvent | None = getattr(session, "completion", None)
        if event is None or event.delivered_at is not None or not event.error:
            return self._shown(event and event.delivered_at)
        if event.given_up_at is not None:
            text = _("Given up after %(attempts)s attempts: %(error)s")
        else:
            text = _("Attempts that failed so far: %(attempts)s. %(error)s")
        return text % {"attempts": number_format(event.attempts), "error": event.error}

    @admin.display(description=_("attempts"))
    def attempts(self, session: UploadSession) -> str:
        event: CompletionEvent | None = getattr(session, "completion", None)
        return self._shown(event and event.attempts)

    @admin.display(description=_("next attempt"))
    def next_attempt(self, session: UploadSession) -> str:
        event: CompletionEvent | None = getattr(session, "completion", None)
        if event is None or event.delivered_at is not None or event.given_up_at is not None:
            return self._shown(None)
        return self._shown(event.due_at)

    def _shown_as_json(self, value: dict[str, Any] | None) -> str:
        if not value:
            return self._shown(None)
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
        return format_html('<pre class="async-upload-json" dir="ltr">{}</pre>', text)

    def _shown(self, value: Any) -> str:
        return display_for_value(value, self.get_empty_value_display())

    # Views -------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view, name = self.admin_site.admin_view, f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path("progress/", view(self.progress_view), name=f"{name}_progress"),
            path("<path:object_id>/file/", view(self.file_view), name=f"{name}_file"),
            *super().get_urls(),
        ]

    def _url(self, view: str, *args: Any) -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_{view}"
        return reverse(name, args=args, current_app=self.admin_site.name)

    def progress_view(self, request: HttpRequest) -> HttpResponse:
        """The progress of the uploads ``?id=…&id=…`` as JSON, of the first :data:`PER_PAGE`."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        sessions = self.get_queryset(request).filter(pk__in=_ids(request.GET.getlist("id")))
        return JsonResponse({str(each.pk): progress_of(each) for each in sessions})

    def file_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """The published file, as a download."""
        session = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, session):
            raise PermissionDenied
        if session is None or session.state != State.COMPLETED:
            raise Http404
        try:
            return upload_response(session, request=request)
        except (FileNotFoundError, InvalidStorageError) as error:
            raise Http404 from error

    # Actions -----------------------------------------------------------------------------------

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[UploadSession], *args: Any, **kwargs: Any
    ) -> HttpResponse | None:
        if request.POST.get("select_across") == "1":  # only the rows that the list has counted
            queryset = queryset.filter(
                pk__in=list(queryset.values_list("pk", flat=True)[:MAX_COUNTED])
            )
        return super().response_action(request, queryset, *args, **kwargs)

    @admin.action(description=_("Cancel selected uploads"), permissions=["end"])
    def cancel(self, request: HttpRequest, queryset: UploadSessionQuerySet) -> HttpResponse | None:
        return self._act_when_confirmed(
            request,
            queryset.filter(state__in=STOPPABLE),
            partial(self._end, request, State.CANCELLED, _("Uploads cancelled: %(count)s.")),
            _("Cancel uploads?"),
            _("The data received for these uploads is deleted. They cannot be resumed."),
        )

    @admin.action(description=_("Let selected uploads expire"), permissions=["end"])
    def expire(self, request: HttpRequest, queryset: UploadSessionQuerySet) -> HttpResponse | None:
        return self._act_when_confirmed(
            request,
            queryset.filter(state__in=STOPPABLE),
            partial(self._end, request, State.EXPIRED, _("Uploads expired: %(count)s.")),
            _("Let uploads expire?"),
            _(
                "The data received for these uploads is deleted, as if they had been inactive for too long."
            ),
        )

    @admin.action(description=_("Send the signals of selected uploads again"), permissions=["end"])
    def send_again(
        self, request: HttpRequest, queryset: UploadSessionQuerySet
    ) -> HttpResponse | None:
        return self._act_when_confirmed(
            request,
            queryset.completed(),
            partial(self._send_again, request),
            _("Send the signals again?"),
            _(
                "The site is notified again that these uploads are complete, and may repeat what it did "
                "the first time."
            ),
        )

    def _act_when_confirmed(
        self,
        request: HttpRequest,
        concerned: QuerySet[UploadSession],
        act: Callable[[Sequence[UploadSession]], None],
        title: Any,
        consequence: Any,
    ) -> HttpResponse | None:
        """Act on the uploads that an action concerns, once the user has confirmed it."""
        if request.POST.get("post"):
            act(list(concerned))
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "consequence": consequence,
            "opts": self.opts,
            "media": self.media,
            "uploads": concerned[:PER_PAGE],
            "count": concerned.count(),
            "action": request.POST["action"],
            "across": request.POST.get("select_across") == "1",
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
            "checkbox_name": ACTION_CHECKBOX_NAME,
        }
        template = "admin/async_upload/uploadsession/confirm.html"
        return TemplateResponse(request, template, context)

    def _end(
        self, request: HttpRequest, to: State, message: Any, sessions: Sequence[UploadSession]
    ) -> None:
        with transaction.atomic(using=router.db_for_write(UploadSession)):
            ended = service.end([session.pk for session in sessions], to)
        self._report(request, ended, message)

    def _send_again(self, request: HttpRequest, sessions: Sequence[UploadSession]) -> None:
        # After the commit, because other database connections change the rows and run the receivers.
        transaction.on_commit(
            partial(self._deliver, request, sessions), using=router.db_for_write(UploadSession)
        )

    def _deliver(self, request: HttpRequest, sessions: Sequence[UploadSession]) -> None:
        try:
            sent = outbox.send_again([session.pk for session in sessions])
        except UploadError as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        sent_again = [session for session in sessions if session.pk in sent]
        self._report(request, sent_again, _("Uploads whose signals were sent again: %(count)s."))

    def _report(self, request: HttpRequest, done: Sequence[UploadSession], message: Any) -> None:
        for session in done:
            self.log_change(request, session, str(message % {"count": 1}))
        level = messages.SUCCESS if done else messages.WARNING
        self.message_user(request, message % {"count": number_format(len(done))}, level)

    # Deletion ----------------------------------------------------------------------------------

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        found, counts, missing, protected = super().get_deleted_objects(objs, request)
        publishing = [str(each) for each in objs if each.state == State.FINALIZING]
        if publishing and self.has_delete_permission(request):  # no permission is missing
            missing = missing - {self.opts.verbose_name}
        return found, counts, missing, [*protected, *publishing]

    def delete_model(self, request: HttpRequest, obj: UploadSession) -> None:
        self.delete_queryset(request, UploadSession.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[UploadSession]) -> None:
        """End active uploads, so that their holders stop; then delete rows, parts and unbound files."""
        with transaction.atomic(using=router.db_for_write(UploadSession)):
            active = queryset.filter(state__in=STOPPABLE).values_list("pk", flat=True)
            service.end(list(active), State.CANCELLED)
            queryset.exclude(state=State.FINALIZING).delete()


def _ids(texts: Iterable[str]) -> list[uuid.UUID]:
    found = []
    for text in list(texts)[:PER_PAGE]:
        try:
            found.append(uuid.UUID(text))
        except ValueError:
            continue
    return found
