import asyncio
import os
import signal
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.site.settings")
django_application = get_asgi_application()

from django_async_upload.consumers import UploadConsumer  # noqa: E402  (needs the apps)
from django_async_upload.routing import upload_application, upload_path  # noqa: E402
from tests.site import stacks  # noqa: E402
from tests.site.receivers import is_first, write_down  # noqa: E402

stacks.listen()
INSPECTION_SECONDS = 3.0


class OtherConsumer(UploadConsumer):
    """A second endpoint: what was made at the first does not exist here."""

    endpoint = "other"


class AnsweringConsumer(UploadConsumer):
    """Answers; where the file's name says so, the process dies the first time."""

    endpoint = "answering"

    async def respond(self, session: Any) -> dict[str, Any]:
        write_down("respond", session)
        if session.name.startswith("crash-") and is_first("crashed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"answered by": os.getpid(), "name": session.name}


class InspectingConsumer(UploadConsumer):
    """Looks at each file for some seconds."""

    endpoint = "inspecting"

    async def inspect(self, session: Any, file: Any) -> None:
        write_down("inspect", session)
        await asyncio.sleep(INSPECTION_SECONDS)


class CheckingConsumer(UploadConsumer):
    """Looks at each file, has it copied into another storage, and answers."""

    endpoint = "checking"

    def get_storage(self, session: Any) -> str:
        return "copied"

    async def inspect(self, session: Any, file: Any) -> None:
        await asyncio.to_thread(file.read)

    async def respond(self, session: Any) -> dict[str, Any]:
        return {"name": session.name}


application = upload_application(
    django_application,
    [
        upload_path(),
        upload_path("ws/other/", OtherConsumer),
        upload_path("ws/answering/", AnsweringConsumer),
        upload_path("ws/inspecting/", InspectingConsumer),
        upload_path("ws/checking/", CheckingConsumer),
    ],
)
