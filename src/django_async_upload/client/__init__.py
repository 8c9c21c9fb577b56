"""The Python client; it runs in programs that have no Django project. Needs the ``client`` extra::

pip install django-async-upload[client]
"""

try:
    from .client import Ticket, UploadClient, upload_file
except ModuleNotFoundError as error:
    if error.name != "websockets":
        raise
    raise ModuleNotFoundError(
        "The client needs websockets: pip install django-async-upload[client]", name=error.name
    ) from error
from .conversation import Progress
from .upload import Upload, UploadResult

__all__ = ["Progress", "Ticket", "Upload", "UploadClient", "UploadResult", "upload_file"]
