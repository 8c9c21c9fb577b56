"""Each system check, triggered once; and silence where nothing is wrong."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.core.checks import run_checks
from django.db import connection, connections
from django.test import modify_settings

from django_async_upload import checks
from django_async_upload.middleware import UploadMiddleware
from django_async_upload.models import UploadSession
from django_async_upload.widgets import AsyncFileInput

pytest_plugins = ["tests.fixtures"]


def ids(*functions: Any, **kwargs: Any) -> set[str]:
    functions = functions or (checks.check_settings,)
    return {str(message.id) for function in functions for message in function(**kwargs)} - {
        "async_upload.I010",  # of the machine
        "async_upload.I024",  # of every site without a proxy
    }


@pytest.fixture(autouse=True)
def storages_of_a_project(settings: Any) -> None:
    """Finished files go where they do by default."""
    settings.STORAGES = {key: settings.STORAGES[key] for key in ("default", "staticfiles")}


def test_nothing_is_wrong_with_the_defaults(settings: Any, media: Path) -> None:
    settings.ASYNC_UPLOAD = {}
    assert ids(checks.check_settings, checks.check_deployment) == set()


def test_they_are_registered(settings: Any, media: Path, db: None) -> None:
    settings.ASYNC_UPLOAD = {"MAX_SIZ": 1}
    assert "async_upload.E001" in {message.id for message in run_checks()}
    settings.ASYNC_UPLOAD = {"DURABILITY": "os"}
    found = {message.id for message in run_checks(include_deployment_checks=True)}
    assert "async_upload.W011" in found


def test_e001_settings(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"MAX_SIZ": 1, "THREADS": 0}
    assert [message.id for message in checks.check_settings()] == ["async_upload.E001"] * 2
    assert ids(checks.check_deployment) == set()


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        ("django.contrib.auth", "async_upload.E002"),
        ("django.contrib.contenttypes", "async_upload.E002"),
        ("django.contrib.sessions", "async_upload.W003"),
    ],
)
def test_missing_apps(media: Path, app: str, expected: str) -> None:
    with modify_settings(INSTALLED_APPS={"remove": [app]}):
        assert expected in {message.id for message in checks._check_apps()}


def test_e004_upload_to(settings: Any, media: Path) -> None:
    settings.ASYNC_UPLOAD = {"UPLOAD_TO": "nowhere.to_be_found"}
    assert ids() == {"async_upload.E004"}
    settings.ASYNC_UPLOAD = {"UPLOAD_TO": "tests.test_checks.ids"}
    assert ids() == set()


def test_e005_storage(settings: Any, media: Path) -> None:
    settings.ASYNC_UPLOAD = {"STORAGE": "nowhere"}
    assert "async_upload.E005" in ids()


@pytest.mark.parametrize("store", ["nowhere.Store", "django.core.files.File", "tests.fixtures.crc"])
def test_e006_store(settings: Any, media: Path, store: str) -> None:
    settings.ASYNC_UPLOAD = {"STORE": store}
    assert ids() == {"async_upload.E006"}


def test_e007_no_place_for_staging(settings: Any) -> None:
    settings.STORAGES = {
        **settings.STORAGES,
        "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    }
    settings.MEDIA_ROOT = ""
    assert ids() == {"async_upload.E007"}


@pytest.mark.parametrize("name", ["MEDIA_ROOT", "STATIC_ROOT"])
def test_e008_staging_is_served(settings: Any, media: Path, tmp_path: Path, name: str) -> None:
    settings.STATIC_ROOT = str(tmp_path / "static")
    settings.ASYNC_UPLOAD = {"STAGING_ROOT": os.path.join(getattr(settings, name), "staging")}
    assert ids() == {"async_upload.E008"}


def test_w009_staging_on_another_file_system(settings: Any, media: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        settings.ASYNC_UPLOAD = {"STAGING_ROOT": os.path.join(folder, "staging")}
        assert ids() == {"async_upload.W009"}


def test_i010_few_files(settings: Any, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 1024))
    assert [message.id for message in checks.check_settings()] == ["async_upload.I010"]
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (unlimited, unlimited))
    assert checks.check_settings() == []


def test_deployment_w011_and_w012(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": "os", "ALLOW_ANONYMOUS": True}
    assert ids(checks.check_deployment) == {"async_upload.W011", "async_upload.W012"}


@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's settings")
@pytest.mark.parametrize(
    ("durability", "pragmas", "expected"),
    [
        ("os", ["journal_mode=DELETE"], {"async_upload.W013"}),
        ("fsync", ["journal_mode=WAL", "synchronous=NORMAL"], {"async_upload.W014"}),
        ("fsync", ["journal_mode=WAL", "synchronous=FULL"], set()),
        ("os", ["journal_mode=WAL", "synchronous=OFF"], set()),
    ],
)
def test_the_database_w013_and_w014(
    transactional_db: None,
    settings: Any,
    tmp_path: Path,
    durability: str,
    pragmas: list[str],
    expected: set[str],
) -> None:
    settings.ASYNC_UPLOAD = {"DURABILITY": durability}
    database = connections["default"]
    name = database.settings_dict["NAME"]
    database.close()
    # Of its own: SQLite refuses a new journal mode while a thread of an earlier test has the database open.
    database.settings_dict["NAME"] = str(tmp_path / "own.sqlite3")
    try:
        with database.cursor() as cursor:
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
        no_tables = {"async_upload.W023"}
        assert ids(checks.check_database, databases=["default"]) == expected | no_tables
        assert ids(checks.check_database, databases=[]) == set()
    finally:
        database.close()
        database.settings_dict["NAME"] = name


@pytest.mark.skipif(connection.vendor != "mysql", reason="MariaDB's settings")
def test_the_database_w032_and_w033(transactional_db: None) -> None:
    assert ids(checks.check_database, databases=["default"]) == set()
    with connections["default"].cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("ALTER DATABASE CHARACTER SET latin1")
    expected = {"async_upload.W032", "async_upload.W033"}
    try:
        assert ids(checks.check_database, databases=["default"]) == expected
    finally:
        with connections["default"].cursor() as cursor:
            cursor.execute("ALTER DATABASE CHARACTER SET utf8mb4")
        connections["default"].close()


def test_w023_the_tables_are_missing(transactional_db: None, settings: Any) -> None:
    with connections["default"].schema_editor() as editor:
        editor.alter_db_table(UploadSession, UploadSession._meta.db_table, "elsewhere")
    try:
        assert "async_upload.W023" in ids(checks.check_database, databases=["default"])
        assert ids(checks.check_database, databases=[]) == set()
    finally:
        with connections["default"].schema_editor() as editor:
            editor.alter_db_table(UploadSession, "elsewhere", UploadSession._meta.db_table)
    assert "async_upload.W023" not in ids(checks.check_database, databases=["default"])


def test_i024_behind_a_proxy_the_address_may_be_everybodys(settings: Any) -> None:
    found = {message.id: message for message in checks.check_deployment()}
    assert "upload_doctor" in str(found["async_upload.I024"].hint)
    settings.ASYNC_UPLOAD = {"NUM_PROXIES": 1}
    assert checks.check_deployment() == []


def test_e022_finished_files_cannot_be_written(
    settings: Any, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ASYNC_UPLOAD = {"STAGING_ROOT": str(tmp_path / "staging")}
    assert ids() == set()
    media.mkdir()
    read_only = str(media)

    def access(path: str, mode: int) -> bool:
        return str(path) != read_only

    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(os, "access", access)
        (found,) = checks.check_settings()
    assert found.id == "async_upload.E022"
    assert read_only in found.msg
    media.rmdir()
    media.write_text("in the way")
    assert ids() == {"async_upload.E022"}


def test_w025_a_serializer_field_without_the_middleware(
    settings: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = pytest.importorskip("django_async_upload.rest")
    settings.MIDDLEWARE = [SESSION, AUTH]
    monkeypatch.setattr(AsyncFileInput, "is_used", False)
    monkeypatch.setattr(rest.UploadField, "is_used", False)
    assert ids() == set()
    rest.UploadField()
    assert ids() == {"async_upload.W025"}
    settings.MIDDLEWARE = [SESSION, AUTH, checks.UPLOAD_MIDDLEWARE]
    assert ids() == set()


def test_e020_staging_cannot_be_written(settings: Any, media: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    settings.ASYNC_UPLOAD = {"STAGING_ROOT": str(tmp_path / "file")}
    assert "async_upload.E020" in ids()


def test_w020_staging_is_open_to_others(settings: Any, media: Path, staging: Path) -> None:
    staging.mkdir(mode=0o755)
    staging.chmod(0o755)
    assert ids() == {"async_upload.W020"}
    staging.chmod(0o700)
    assert ids() == set()


SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
AUTH = "django.contrib.auth.middleware.AuthenticationMiddleware"


class OwnMiddleware(UploadMiddleware):
    """A host's own, made of the app's."""


class OwnAuthentication(AuthenticationMiddleware):
    """As above."""


@pytest.mark.parametrize(
    ("middleware", "expected"),
    [
        ([SESSION, AUTH, checks.UPLOAD_MIDDLEWARE], []),
        ([SESSION, f"{__name__}.OwnAuthentication", checks.UPLOAD_MIDDLEWARE], []),
        ([SESSION, checks.UPLOAD_MIDDLEWARE, AUTH], [AUTH]),
        ([checks.UPLOAD_MIDDLEWARE, SESSION, AUTH], [SESSION, AUTH]),
        ([checks.UPLOAD_MIDDLEWARE], [SESSION, AUTH]),
        (["nowhere.Middleware", SESSION, AUTH], []),
    ],
)
def test_e015_the_middleware_stands_behind_those_it_needs(
    settings: Any, middleware: list[str], expected: list[str]
) -> None:
    settings.MIDDLEWARE = middleware
    found = checks._check_middleware()
    assert [message.id for message in found] == ["async_upload.E015"] * len(expected)
    assert all(name in message.msg for name, message in zip(expected, found, strict=True))


def test_e016_a_widget_without_the_middleware(
    settings: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = pytest.importorskip("django_async_upload.rest")
    settings.MIDDLEWARE = [SESSION, AUTH]
    settings.ROOT_URLCONF = "nowhere.urls"
    monkeypatch.setattr(AsyncFileInput, "is_used", False)
    monkeypatch.setattr(rest.UploadField, "is_used", False)
    assert ids() == set()
    AsyncFileInput()
    assert ids() == {"async_upload.E016"}
    settings.MIDDLEWARE = [SESSION, AUTH, f"{__name__}.OwnMiddleware"]
    assert ids() == set()


def test_w017_a_widget_without_static_files(
    settings: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncFileInput, "is_used", True)
    with modify_settings(INSTALLED_APPS={"remove": ["django.contrib.staticfiles"]}):
        assert {message.id for message in checks._check_widgets()} == {"async_upload.W017"}
    assert ids() == set()


def test_deployment_w018_a_websocket_in_the_clear(settings: Any) -> None:
    for url, expected in (
        ("ws://example.com/ws/", {"async_upload.W018"}),
        ("wss://example.com/ws/", set()),
        ("/ws/", set()),
    ):
        settings.ASYNC_UPLOAD = {"WEBSOCKET_URL": url}
        assert ids(checks.check_deployment) == expected


@pytest.mark.parametrize(
    "url",
    ["", "ws/uploads/", "//evil.example.com/", "http://a/", "ws://", "/a b", "javascript:1", 1],
)
def test_e001_a_websocket_url_that_is_none(settings: Any, media: Path, url: object) -> None:
    settings.ASYNC_UPLOAD = {"WEBSOCKET_URL": url}
    assert ids() == {"async_upload.E001"}
