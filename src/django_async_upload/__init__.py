"""Large, resumable, verified uploads for Django, over a WebSocket.

Importing this package needs neither Django's settings nor Django itself: the Python client
(:mod:`django_async_upload.client`) runs in programs that have no Django project.
"""

__version__ = "0.1.0"
