"""Whether the client comes back after a connection has ended, and when: ``tests/vectors/endings.json``."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from django_async_upload.client.backoff import Backoff
from django_async_upload.exceptions import UploadError
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import Header
from django_async_upload.protocol.messages import Message

from .scripted import HELLO, ScriptedServer, Session

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "endings.json").read_text("utf-8"))


def named(vector: dict[str, Any]) -> str:
    return str(vector["about"])


def end(session: Session, ending: dict[str, Any]) -> None:
    """End a connection as a vector says."""
    if "drain" in ending:
        session.say(m.Drain(ending["drain"]))
    if "error" in ending:
        session.say(m.Error(**ending["error"]))
    session._loop.call_soon(session.drop, ending["close"])


def waiting(monkeypatch: pytest.MonkeyPatch, share: float) -> list[float]:
    """The waits of all clients from here on, each ``share`` of its random range; none takes time."""
    waits: list[float] = []
    measure = Backoff.delay

    def delay(self: Backoff, *arguments: Any) -> float:
        waits.append(measure(self, *arguments))
        return 0

    monkeypatch.setattr(random, "uniform", lambda least, most: least + share * (most - least))
    monkeypatch.setattr(Backoff, "delay", delay)
    return waits


def tickets(vector: dict[str, Any]) -> str | Callable[[], str] | None:
    if "ticket" not in vector:
        return None
    given = iter(["first", "second", "third"])
    return lambda: "the only one" if vector["ticket"] == "same" else next(given)


@pytest.mark.parametrize("vector", VECTORS["endings"], ids=named)
async def test_it_comes_back_where_that_can_help(
    monkeypatch: pytest.MonkeyPatch, vector: dict[str, Any]
) -> None:
    waiting(monkeypatch, 1)
    server = ScriptedServer(HELLO)

    def hook(session: Session, header: Header, message: Message | bytes) -> bool:
        if isinstance(message, m.Create) and len(server.sessions) == 1:
            end(session, vector)
            return True
        return False

    server.hooks.append(hook)
    async with server.client(ticket=tickets(vector)) as client:
        upload = client.start(io.BytesIO(b"x"), name="name")
        if vector["back"]:
            assert (await upload).size == 1
        else:
            with pytest.raises(UploadError):
                await upload
            with pytest.raises(UploadError):  # nor for the next one
                await client.upload(io.BytesIO(b"y"), name="other")
    assert len(server.sessions) == (2 if vector["back"] else 1)


@pytest.mark.parametrize("bound", [0, 1], ids=["least", "most"])
@pytest.mark.parametrize("vector", VECTORS["waits"], ids=named)
async def test_it_waits_as_long_as_is_right(
    monkeypatch: pytest.MonkeyPatch, vector: dict[str, Any], bound: int
) -> None:
    waits = waiting(monkeypatch, bound)
    server = ScriptedServer(HELLO)
    ends = iter(vector["ends"])
    ending = next(ends)
    ended: list[Session] = []

    def hook(session: Session, header: Header, message: Message | bytes) -> bool:
        nonlocal ending
        if session in ended:
            return True
        kind = bytes if ending.get("gained") else m.Create
        if not ending or not isinstance(message, kind):
            return False
        if isinstance(message, bytes):
            session._answer(header, message)
        end(session, ending)
        ended.append(session)
        ending = next(ends, {})
        return True

    server.hooks.append(hook)
    async with server.client(patience=1e6) as client:
        await client.upload(io.BytesIO(bytes(1000)), name="name")
    assert waits == [pytest.approx(each["wait"][bound]) for each in vector["ends"]]
