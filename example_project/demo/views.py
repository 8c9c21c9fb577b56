import aiofiles
from django.contrib.auth.decorators import login_required
from django.http import StreamingHttpResponse
from django.shortcuts import aget_object_or_404, render
from django.utils.http import content_disposition_header

from django_async_upload.models import UploadSession

PIECE = 256 * 1024


@login_required
def home(request):
    uploads = UploadSession.objects.for_user(request.user).select_related("summary")
    return render(
        request,
        "demo/home.html",
        {
            "uploads": uploads[:100],
            "seconds": 2 if uploads.active().exists() else 10,
            "host": request.get_host(),
        },
    )


@login_required
async def download(request, pk):
    """A finished file of this user, as a download: never shown by the type that its sender declared."""
    mine = UploadSession.objects.for_user(await request.auser())
    upload = await aget_object_or_404(mine.completed(), pk=pk)
    # Not a FileResponse: its iterator is not async, and is read into memory first.
    response = StreamingHttpResponse(
        _pieces(upload.get_storage().path(upload.stored_as)),
        content_type="application/octet-stream",
    )
    response["Content-Length"] = upload.size
    response["Content-Disposition"] = content_disposition_header(True, upload.name)
    return response


async def _pieces(path):
    async with aiofiles.open(path, "rb") as file:
        while piece := await file.read(PIECE):
            yield piece
