import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.site.settings")
django_application = get_asgi_application()

from django_async_upload.consumers import UploadConsumer  # noqa: E402  (needs the apps)
from django_async_upload.routing import upload_application, upload_path  # noqa: E402


class OtherConsumer(UploadConsumer):
    """A second endpoint: what was made at the first does not exist here."""

    endpoint = "other"


application = upload_application(
    django_application, [upload_path(), upload_path("ws/other/", OtherConsumer)]
)
