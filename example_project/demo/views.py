import os
from contextlib import suppress

from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.messages.views import SuccessMessageMixin
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse, reverse_lazy
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.generic import DeleteView
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from django_async_upload.models import UploadSession
from django_async_upload.responses import START, picture_type, upload_response

from .forms import DocumentForm
from .models import Document, Photo

MOST = 60
"""Things on a page."""


def upload(request):
    return render(request, "demo/upload.html", {"host": request.get_host()})


# Watching ------------------------------------------------------------------------------------------


@never_cache
def live(request, template="demo/live.html"):
    """What becomes of this user's uploads, from whatever browser, program and server process."""
    uploads = UploadSession.objects.for_user(request.user)
    context = {
        "uploads": uploads.select_related("summary")[:MOST],
        "under_way": uploads.active().count(),
        "completed": uploads.completed().count(),
    }
    return render(request, template, context)


# Documents: a form with files ----------------------------------------------------------------------


def documents(request):
    found = Document.objects.visible_to(request.user).prefetch_related("photos")
    return render(request, "demo/documents.html", {"documents": found[:MOST]})


def edit_document(request, pk=None):
    if pk is None:
        document = Document(owner=request.user)
    else:
        document = get_object_or_404(Document.objects.visible_to(request.user), pk=pk)
    form = DocumentForm(request.POST or None, request.FILES or None, instance=document)
    if form.is_valid():
        form.save()
        messages.success(request, _("“%(title)s” was saved.") % {"title": document})
        return redirect("documents")
    return render(request, "demo/document_form.html", {"form": form})


class DeleteDocument(SuccessMessageMixin, DeleteView):
    template_name = "demo/document_delete.html"
    success_url = reverse_lazy("documents")
    success_message = gettext_lazy("The document was deleted.")

    def get_queryset(self):
        return Document.objects.visible_to(self.request.user)


# Showing what was uploaded -------------------------------------------------------------------------


def gallery(request):
    """The newest of what this user may see: uploads that no document has, documents and their pictures."""
    uploads = UploadSession.objects.for_user(request.user).filter(state="completed")
    documents = Document.objects.visible_to(request.user).prefetch_related("photos")
    found = [(each.created_at, each, reverse("file", args=[each.pk])) for each in uploads[:MOST]]
    for document in documents[:MOST]:
        pictures = [each.image for each in document.photos.all()]
        files = [each for each in (document.file, document.cover, *pictures) if each]
        found += [(document.created_at, each, each.url) for each in files]
    found.sort(key=lambda each: each[0], reverse=True)
    items = []
    for created_at, source, url in found[:MOST]:
        with suppress(FileNotFoundError):
            items.append({**_look_into(source), "url": url, "created_at": created_at})
    return render(request, "demo/gallery.html", {"items": items})


def _look_into(source):
    name = os.path.basename(source.name)
    with source.file if isinstance(source, UploadSession) else source.open() as file:
        return {
            "name": name,
            "extension": os.path.splitext(name)[1].lstrip("."),
            "size": file.size,
            "is_picture": picture_type(file.read(START)) is not None,  # not by what it is called
        }


def file(request, pk):
    """An upload that no document has: a picture is shown, anything else is a download."""
    uploads = UploadSession.objects.for_user(request.user).filter(state="completed")
    return upload_response(get_object_or_404(uploads, pk=pk), inline=True, request=request)


def media(request, name):
    """A file of a document. ``MEDIA_URL`` leads here, so the links of forms and of the admin work."""
    documents = Document.objects.visible_to(request.user)
    photos = Photo.objects.filter(document__in=documents)
    for objects, field in ((documents, "file"), (documents, "cover"), (photos, "image")):
        if found := objects.filter(**{field: name}).first():
            return upload_response(getattr(found, field), inline=True, request=request)
    raise Http404


# For the operator ----------------------------------------------------------------------------------


@login_not_required
def metrics(request):
    """What Prometheus reads: see ``monitoring/``. A proxy should keep it from the public."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)
