"""The host's pages: what a test asks for over HTTP."""

import time

from django.contrib.auth import get_user_model, login
from django.contrib.sessions.backends.db import SessionStore
from django.db import transaction
from django.forms import ModelForm
from django.http import HttpRequest, JsonResponse

from django_async_upload.consumers import drain, undrain
from django_async_upload.engine.service import end
from django_async_upload.models import UploadSession
from django_async_upload.receipts import field_token
from django_async_upload.sessions.state import State
from django_async_upload.tickets import issue_ticket
from tests.site.models import Document

USERS = get_user_model().objects
COLUMNS = ("id", "key", "name", "state", "durable", "size", "stored_as", "error", "epoch")


def up(request: HttpRequest) -> JsonResponse:
    return JsonResponse({})


def hold_connection(request: HttpRequest) -> JsonResponse:
    """Keep a database connection for some seconds, as a slow page does."""
    with transaction.atomic():
        USERS.count()
        time.sleep(float(request.GET["seconds"]))
    return JsonResponse({})


def ticket(request: HttpRequest) -> JsonResponse:
    query = request.GET
    issued = issue_ticket(
        USERS.get_by_natural_key(query["user"]),
        endpoint=query.get("endpoint", "default"),
        max_age=float(query.get("max_age", 900)),
    )
    return JsonResponse({"ticket": issued})


def sign_in(request: HttpRequest) -> JsonResponse:
    login(request, USERS.get_by_natural_key(request.GET["user"]))
    return JsonResponse({})


def sign_out(request: HttpRequest) -> JsonResponse:
    """End the login of that session, as its user does in another window."""
    SessionStore(request.GET["session"]).flush()
    return JsonResponse({})


async def drain_all(request: HttpRequest) -> JsonResponse:
    """What a host does before it stops a server."""
    await drain(retry_after=0.2)
    return JsonResponse({})


def undrain_all(request: HttpRequest) -> JsonResponse:
    """Stands in for the next process."""
    undrain()
    return JsonResponse({})


def uploads(request: HttpRequest) -> JsonResponse:
    rows = UploadSession.objects.order_by("created_at").values(*COLUMNS)
    return JsonResponse({"uploads": list(rows)})


def bind(request: HttpRequest) -> JsonResponse:
    """Bind an upload to a document of its name, unless an earlier request has."""
    session = UploadSession.objects.get(pk=request.GET["upload"])
    with transaction.atomic():
        document, is_new = Document.objects.get_or_create(name=session.name)
        if is_new:
            document.attachment = session.bind()
            document.save()
    return JsonResponse({"name": document.attachment.name})


class DocumentForm(ModelForm):
    class Meta:
        model = Document
        fields = ("name", "attachment")


def form(request: HttpRequest) -> JsonResponse:
    """A page's form, posted; or what it needs: its field's token, and whether the document of a name is saved."""
    if request.method == "GET":
        is_saved = Document.objects.filter(name=request.GET["name"]).exists()
        return JsonResponse({"token": field_token("attachment"), "saved": is_saved})
    posted = DocumentForm(request.POST, request.FILES)
    if posted.is_valid():
        with transaction.atomic():
            posted.save()
    return JsonResponse({"errors": posted.errors})


def cancel(request: HttpRequest) -> JsonResponse:
    """Cancel an upload on behalf of the host, as its admin does."""
    ended = end([request.GET["upload"]], State.CANCELLED)
    return JsonResponse({"ended": len(ended)})
