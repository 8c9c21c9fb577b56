"""The communicator for hosts' own tests, by the tests of its page in the docs, and what it refuses."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.consumers import UploadConsumer
from django_async_upload.exceptions import ConnectionLost, KeyReused
from django_async_upload.protocol import messages as m
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import MIB, crc, new_key
from .test_consumers import mounted

pytest_plugins = ["tests.fixtures"]

PAGE = Path(__file__).parents[1] / "docs/how-to/testing.md"


class Pages(UploadConsumer):
    allowed_extensions = ("pdf", "bin")


def documented() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "documented"}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(code, names)
    return names


TESTS = {name: found for name, found in documented().items() if name.startswith("test_")}


@pytest.mark.parametrize("name", TESTS)
async def test_what_the_page_says_holds(
    application: Any, alice: Any, media: Path, tmp_path: Path, settings: Any, name: str
) -> None:
    # The page's project leaves finished files where they go by default.
    settings.STORAGES = {
        alias: storage for alias, storage in settings.STORAGES.items() if alias != "async_upload"
    }
    given = {"application": mounted(Pages), "user": alice, "tmp_path": tmp_path}
    test = TESTS[name]
    await test(**{each: given[each] for each in inspect.signature(test).parameters})


def test_the_page_names_every_method() -> None:
    named = set(re.findall(r"^\| `(?:await )?(\w+)\(", PAGE.read_text(), re.MULTILINE))
    public = {
        name
        for name, found in vars(UploadCommunicator).items()
        if inspect.isfunction(found) and not name.startswith("_")
    }
    assert named == public - {"connect", "upload"}


async def test_upload_follows_credit_rewinds_and_resumes(
    application: Any, connect: Any, media: Path
) -> None:
    data, key = bytes(range(256)) * (12 * MIB // 256), new_key()
    async with connect() as client:
        await client.send(m.Create(key, "a.bin", len(data)), client.new_stream())
        created = await client.wait_for(m.Created, 1)
        await client.send_data(1, 0, data[: created.limit])
    async with connect() as client:
        done = await client.upload("a.bin", data, key=key)
        assert done.crc32c == crc(data)
        with pytest.raises(KeyReused):
            await client.upload("b.bin", data, key=key)


async def test_silence_ends_in_a_timeout(connect: Any) -> None:
    client = connect()
    await client.connect()
    client.timeout = 0.05
    assert await client.receives_nothing()
    with pytest.raises(TimeoutError):
        await client.receive()


async def test_a_handshake_that_is_refused_is_told(connect: Any) -> None:
    with pytest.raises(ConnectionLost):
        async with connect(cookies=None, headers=[(b"origin", b"https://evil.com")]):
            pass


def test_it_needs_no_server() -> None:
    """Channels' own communicator imports Daphne."""
    program = (
        "import sys; sys.modules['daphne'] = None; import django_async_upload.testing.communicator"
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    setup = "import django; django.setup(); "
    subprocess.run([sys.executable, "-c", setup + program], env=environment, check=True)
