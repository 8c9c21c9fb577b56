"""A PostgreSQL database of a test's own, which can go away."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest


class Postgres:
    """A database of the test's own."""

    def __init__(self) -> None:
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
        self._admin.execute(f'CREATE DATABASE "{self.name}"')
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
