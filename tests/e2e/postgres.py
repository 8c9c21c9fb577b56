"""PostgreSQL that goes away: a database of a test's own on the server that is there, or a server of the tests' own."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from .servers import free_port, wait_for


class Postgres:
    """A database of the test's own, empty or a copy of the database ``template``."""

    def __init__(self, template: str = "template1") -> None:
        self._template = template
        psycopg = pytest.importorskip("psycopg")
        self.server = {
            "host": os.environ.get("PGHOST", "127.0.0.1"),
            "user": os.environ.get("PGUSER", "postgres"),
        }
        self.name = f"e2e_{uuid.uuid4().hex[:12]}"
        try:
            self._admin: Any = psycopg.connect(**self.server, dbname="postgres", autocommit=True)
        except psycopg.OperationalError as error:
            pytest.skip(f"needs PostgreSQL: {error}")

    def __enter__(self) -> Postgres:
        self._admin.execute(f'CREATE DATABASE "{self.name}" TEMPLATE "{self._template}"')
        return self

    def __exit__(self, *exc: object) -> None:
        self._admin.execute(f'DROP DATABASE "{self.name}" WITH (FORCE)')
        self._admin.close()

    @property
    def setting(self) -> dict[str, object]:
        """For Django's DATABASES."""
        return {"NAME": self.name, "HOST": self.server["host"], "USER": self.server["user"]}

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Every connection is broken and no new one let in."""
        self._admin.execute(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false')
        self._admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (self.name,),
        )
        try:
            yield
        finally:
            self._admin.execute(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS true')


class PostgresServer:
    """A PostgreSQL server of the tests' own, in a temporary folder, to be stopped and started.

    Its superuser is ``postgres``; ``site`` is an ordinary user.
    """

    def __init__(self) -> None:
        binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
        found = shutil.which("postgres") or (binaries[-1] if binaries else None)
        if found is None:
            pytest.skip("needs PostgreSQL's server")
        self._bin = Path(os.path.realpath(found)).parent
        self._root = Path(tempfile.mkdtemp(prefix="e2e-postgresql-"))
        self.port = free_port()
        # It refuses to run as root.
        if os.geteuid() == 0:
            shutil.chown(self._root, "postgres", "postgres")
            self._as = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        else:
            self._as = []
        self._databases = 0
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", self._data)

    @property
    def _data(self) -> str:
        return str(self._root / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._bin / program), *arguments]
        done = subprocess.run(
            command, cwd=self._root, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()

    def start(self, *, addresses: Sequence[str] = (), **settings: object) -> None:
        """Start with these settings, and wait until it answers. ``addresses``: what it listens on beside 127.0.0.1."""
        given = {"max_connections": 60, "fsync": "off", **settings}
        with open(f"{self._data}/pg_hba.conf", "a") as rules:
            rules.writelines(f"host all all {each} 255.255.255.252 trust\n" for each in addresses)
        options = f"-h {','.join(['127.0.0.1', *addresses])} -p {self.port} -k {self._root}"
        options += "".join(f" -c {name}={value}" for name, value in given.items())
        log = str(self._root / "log")
        self._run("pg_ctl", "-s", "-w", "-D", self._data, "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate``: as by a crash, in the middle of everything."""
        self._run("pg_ctl", "-s", "-w", "-D", self._data, "-m", mode, "stop")

    def remove(self) -> None:
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def connect(self, database: str = "postgres", user: str = "postgres") -> Any:
        """A psycopg connection in autocommit mode."""
        psycopg = pytest.importorskip("psycopg")
        address = {"host": "127.0.0.1", "port": self.port, "dbname": database, "user": user}
        return psycopg.connect(**address, autocommit=True)

    def make_database(self, template: str | None = None) -> str:
        """A new database of the user ``site``; returns its name."""
        self._databases += 1
        name = f"e2e_{self._databases}"
        with self.connect() as admin:
            if not admin.execute("SELECT FROM pg_roles WHERE rolname = 'site'").fetchall():
                admin.execute("CREATE ROLE site LOGIN")
            admin.execute(f"CREATE DATABASE {name} OWNER site TEMPLATE {template or 'template1'}")
        return name

    def suspend(self) -> None:
        """SIGSTOP, all its processes: connections are accepted, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        main = psutil.Process(int(Path(self._data, "postmaster.pid").read_text().split()[0]))
        main.send_signal(number)  # first: it starts no others
        for each in main.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def setting(
        self,
        database: str,
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        **options: object,
    ) -> Mapping[str, object]:
        """For Django's DATABASES. ``port`` is that of a proxy, which needs to understand what is said."""
        return {
            "NAME": database,
            "HOST": host,
            "PORT": port or self.port,
            "USER": "site",
            "OPTIONS": {"sslmode": "disable", "gssencmode": "disable", **options},
        }

    def terminate(self, database: str) -> None:
        """Break the connections of a database."""
        with self.connect() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (database,),
            )
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            wait_for(lambda: admin.execute(query, (database,)).fetchone() == (0,))
