"""A ready application for uploads only, for a process beside a site that stays on WSGI.

``uvicorn django_async_upload.asgi:application``, with the site's ``DJANGO_SETTINGS_MODULE``. It mounts the default
consumer at ``ws/uploads/``; a site with consumers of its own writes these lines with its own patterns. The site's
``ROOT_URLCONF`` and ``MIDDLEWARE`` are not loaded.
"""

import django

django.setup(set_prefix=False)

from .routing import upload_application  # noqa: E402  (needs the apps)

application = upload_application()
