"""gunicorn has no flags for what uvicorn does with WebSockets; a class of workers can set them."""

from uvicorn_worker import UvicornWorker


class UploadWorker(UvicornWorker):
    CONFIG_KWARGS = {
        **UvicornWorker.CONFIG_KWARGS,
        "ws": "websockets-sansio",
        "ws_per_message_deflate": False,
        "ws_max_size": 1024 * 1024,
    }
