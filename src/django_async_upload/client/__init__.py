"""The Python client, for programs with or without a Django project. It needs the ``client`` extra::

pip install 'django-resumable-upload[client]'
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Ticket, UploadClient, upload_file
    from .conversation import Progress
    from .upload import Upload, UploadResult

__all__ = ["Progress", "Ticket", "Upload", "UploadClient", "UploadResult", "upload_file"]

_MODULES = {
    "Progress": "conversation",
    "Ticket": "client",
    "Upload": "upload",
    "UploadClient": "client",
    "UploadResult": "upload",
    "upload_file": "client",
}


def __getattr__(name: str) -> object:
    # Imported on demand, so that the command line can name what to install where the extra is missing.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("websockets", "h11"):
            raise
        message = f"{name} needs {missing}: pip install 'django-resumable-upload[client]'"
        raise ModuleNotFoundError(message, name=error.name) from error
