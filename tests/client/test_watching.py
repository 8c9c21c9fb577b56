"""Following uploads: what a program gets, and what is asked again when the connection is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from django_async_upload.exceptions import NotFound, PermissionRefused
from django_async_upload.protocol import messages as m
from django_async_upload.protocol.frames import Header

from .scripted import ScriptedServer, Session, eventually

A, B = (f"5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e{each}" for each in "01")


def standing(upload: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"upload": upload, "state": state, "name": "a.bin", "durable": 0, "size": 9} | fields


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


def watches(server: ScriptedServer) -> list[m.Watch]:
    return [
        each
        for session in server.sessions
        for each in session.messages
        if isinstance(each, m.Watch)
    ]


async def test_an_upload_is_followed_to_its_end(server: ScriptedServer) -> None:
    server.answer_once(
        m.Watch,
        m.Changed([standing(A, "uploading")]),
        m.Changed([standing(A, "completed", durable=9, stored_as="a")]),
    )
    async with server.client() as client:
        heard = [each.state async for each in client.watch(A)]
    assert heard[-1] == "completed"
    assert watches(server) == [m.Watch("uploads", [A])]


async def test_the_newest_is_what_a_slow_program_gets(server: ScriptedServer) -> None:
    server.answer_once(
        m.Watch, *(m.Changed([standing(A, "uploading", received=each)]) for each in range(9))
    )
    async with server.client() as client:
        async for each in client.watch(A):
            assert each.received == 8
            break


async def test_after_a_lost_connection_it_learns_how_those_ended_that_it_knew(
    server: ScriptedServer,
) -> None:
    def lose(session: Session, header: Header, message: Any) -> bool:
        if isinstance(message, m.Watch) and len(watches(server)) == 1:
            session.say(
                m.Changed([standing(A, "uploading"), standing(B, "completed")]), header.stream
            )
            asyncio.get_running_loop().call_later(0.05, session.drop)
            return True
        if isinstance(message, m.Watch):
            session.say(m.Changed([standing(A, "failed", error="digest_mismatch")]), header.stream)
            return True
        return False

    server.hooks.append(lose)
    heard = []
    async with server.client() as client:
        async for each in client.watch():
            heard.append((each.upload, each.state))
            if each.state == "failed":
                break
    assert heard == [(A, "uploading"), (B, "completed"), (A, "failed")]
    assert watches(server) == [m.Watch("own"), m.Watch("own", [A])]


async def test_a_program_that_leaves_releases_the_stream(server: ScriptedServer) -> None:
    server.answer_once(m.Watch, m.Changed([standing(A, "uploading")]))
    async with server.client() as client:
        following = client.watch(everyone=True)
        await anext(following)
        await following.aclose()
        await eventually(lambda: isinstance(server.sessions[0].messages[-1], m.Release))
    assert watches(server) == [m.Watch("all")]


async def test_what_does_not_exist_or_is_not_allowed_is_an_error(server: ScriptedServer) -> None:
    server.answer_once(m.Watch, m.Changed([], missing=[A]))
    async with server.client() as client:
        with pytest.raises(NotFound):
            await anext(client.watch(A))
        server.answer_once(m.Watch, m.Error("permission_denied", "no", retryable=False))
        with pytest.raises(PermissionRefused):
            await anext(client.watch(everyone=True))


async def test_a_busy_server_is_asked_again(server: ScriptedServer) -> None:
    server.answer_once(m.Watch, m.Error("busy", "later", retryable=True, retry_after=0.01))
    server.answer_once(m.Watch, m.Changed([standing(A, "expired")]))
    async with server.client() as client:
        assert [each.state async for each in client.watch(A)] == ["expired"]
