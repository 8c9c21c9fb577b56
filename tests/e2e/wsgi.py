"""A site on gunicorn with an upload process beside it and nginx in front, by the texts of docs/how-to/wsgi-site.md."""

from __future__ import annotations

import configparser
import contextlib
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from .recipes import block
from .servers import Server

PAGE = "docs/how-to/wsgi-site.md"
BIN = Path(sys.executable).parent
NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path temp/body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


def unit(name: str) -> configparser.SectionProxy:
    """The [Service] section of a unit."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(block(PAGE, "ini", f"/{name}.service"))
    return parser["Service"]


class Service(Server):
    """The process that a unit of the page starts; ``project`` stands in for mysite."""

    def __init__(self, name: str, project: str, folder: Path, env: Mapping[str, str], log: Path):
        super().__init__(name, env, log)
        self.unit = unit(name)
        self.project = project
        self.folder = folder

    def command(self) -> list[str]:
        program, *rest = shlex.split(self.unit["ExecStart"])
        words = [each.replace("mysite.wsgi", f"{self.project}.wsgi") for each in rest]
        ports = {"127.0.0.1:8000": f"127.0.0.1:{self.port}", "8001": str(self.port)}
        return [str(BIN / Path(program).name), *(ports.get(each, each) for each in words)]

    def _answers(self) -> bool:
        """It listens: the upload process has no page."""
        assert self._process is not None
        assert self._process.poll() is None, self.log()[-3000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False


def find_nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def page_locations() -> str:
    return block(PAGE, "nginx", "location /ws/") + block(PAGE, "nginx", "location / ")


def nginx(folder: Path, port: int, site: int, uploads: int, locations: str) -> list[str]:
    """Write a configuration with the locations, those of the page; returns the command."""
    program = find_nginx()
    assert program is not None
    (folder / "temp").mkdir(parents=True, exist_ok=True)
    for old, new in ((8000, site), (8001, uploads)):
        locations = locations.replace(f"http://127.0.0.1:{old};", f"http://127.0.0.1:{new};")
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(port=port, locations=locations))
    return [program, "-e", "stderr", "-p", str(folder), "-c", str(config)]


class WsgiSite:
    """For a :class:`Server` that is nginx itself: has the other two, and starts and kills them with it."""

    def __init__(self, project: str, folder: Path, env: Mapping[str, str], log: Path, port: int):
        self.site = Service("mysite", project, folder, env, log)
        self.uploads = Service("mysite-uploads", project, folder, env, log)
        self.port = port
        self.folder = log.with_suffix(".nginx")
        self.locations = page_locations()

    def start(self) -> None:
        for each in (self.site, self.uploads):
            if not each.is_running:
                each.start()

    def kill(self) -> None:
        for each in (self.site, self.uploads):
            each.kill()

    def command(self) -> list[str]:
        return nginx(self.folder, self.port, self.site.port, self.uploads.port, self.locations)
