import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo.settings")
application = get_asgi_application()

from django_async_upload.routing import upload_application  # noqa: E402  (needs the apps)

application = upload_application(application)
