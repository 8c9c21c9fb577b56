"""The site on gunicorn, uploads in a process of their own, and a proxy that has both behind one port."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from django.conf import settings

ADDRESS = "127.0.0.1"
SECONDS = 10.0
"""For a process to end after SIGTERM."""


def find_proxy(name=None):
    """The path of that proxy, or of the first of :data:`PROXIES` that is here; None where there is none."""
    folders = [
        os.path.dirname(sys.executable),
        os.environ["PATH"],
        "/usr/sbin",
    ]  # pip's comes first
    names = [name] if name else PROXIES
    return next(filter(None, (shutil.which(each, path=":".join(folders)) for each in names)), None)


def serve(proxy, port, workers, env):
    """Run the three until one ends or a signal comes; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))
        os.chmod(folder, 0o711)  # root's nginx writes large requests there as another user
        env = env | {"XDG_CONFIG_HOME": folder, "XDG_DATA_HOME": folder}  # Caddy's
        site, uploads = free_ports(2)
        running = []
        stack.callback(stop, running)

        def start(command):
            # Ctrl-C is this process's: it stops the others in turn.
            running.append(
                subprocess.Popen(command, cwd=settings.BASE_DIR, env=env, start_new_session=True)
            )

        try:
            start(gunicorn(site, workers))
            start(uvicorn(uploads))
            while not (listens(site) and listens(uploads)) and is_running(running):
                time.sleep(0.1)
            start(PROXIES[Path(proxy).name](proxy, folder, port, site, uploads))
            while is_running(running):
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 0
        ended = next(each for each in running if each.poll() is not None)
        print(f"{ended.args[0]} ended with status {ended.returncode}.", file=sys.stderr)
        return 1


def is_running(processes):
    return all(each.poll() is None for each in processes)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def stop(running):
    for each in reversed(running):
        each.terminate()
    for each in running:
        try:
            each.wait(SECONDS)
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()


def gunicorn(port, workers):
    """Sync workers, which know nothing of asyncio."""
    command = [sys.executable, "-m", "gunicorn", "demo.wsgi", "--bind", f"{ADDRESS}:{port}"]
    return [*command, "--workers", str(max(workers, 2)), "--log-level", "warning"]


def uvicorn(port):
    command = [sys.executable, "-m", "uvicorn", "django_async_upload.asgi:application"]
    command += ["--host", ADDRESS, "--port", str(port)]
    command += ["--ws", "websockets-sansio", "--ws-per-message-deflate", "false"]
    return [*command, "--ws-max-size", "1048576", "--timeout-graceful-shutdown", "3"]


def nginx(program, folder, port, site, uploads):
    os.mkdir(f"{folder}/temp")
    config = configured(folder, "nginx.conf", port, site, uploads)
    return [program, "-e", "stderr", "-p", folder, "-c", config]


def caddy(program, folder, port, site, uploads):
    config = configured(folder, "Caddyfile", port, site, uploads)
    return [program, "run", "--adapter", "caddyfile", "--config", config]


PROXIES = {"nginx": nginx, "caddy": caddy}


def configured(folder, name, port, site, uploads):
    """Write the proxy's configuration, with the ports of this run; returns its path."""
    ports = {"80": port, "8000": site, "8001": uploads}
    text = re.sub(
        rf"{ADDRESS}:(\d+)",
        lambda found: f"{ADDRESS}:{ports[found[1]]}",
        (settings.BASE_DIR / "sidecar" / name).read_text(),
    )
    path = Path(folder, name)
    path.write_text(text)
    return str(path)


def free_ports(count):
    """Ports that nothing listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((ADDRESS, 0))
        return [each.getsockname()[1] for each in sockets]
