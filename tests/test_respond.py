"""An endpoint answers a finished upload with JSON of its own: asked once, the answer is kept and repeated."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from crc32c import crc32c
from django.db import transaction
from django.utils import timezone

from django_async_upload.consumers import UploadConsumer
from django_async_upload.engine.answers import AT_ONCE_PER_OWNER
from django_async_upload.engine.outcomes import Published
from django_async_upload.engine.service import UploadService
from django_async_upload.exceptions import Busy, DatabaseUnavailable, FileRefused
from django_async_upload.models import UploadSession
from django_async_upload.protocol import messages as m
from django_async_upload.sessions import answers
from django_async_upload.sessions.answers import MAX_DEPTH, MAX_RESPONSE, InvalidAnswer, as_json
from django_async_upload.sessions.owners import Owner
from django_async_upload.sessions.state import State
from django_async_upload.testing.communicator import UploadCommunicator

from .fixtures import KIB, finish, new_key, publish, row, run, settled
from .models import Document

pytest_plugins = ["tests.fixtures"]
pytestmark = pytest.mark.django_db(transaction=True)

Connect = Callable[..., UploadCommunicator]

SIZES = [0, 5, 100 * KIB]
"""Small files are published in groups, what is larger one by one."""


class Answering(UploadConsumer):
    """Answers with what a test wants, and keeps the sessions that it was asked about."""

    answer: ClassVar[Any] = None
    asked: ClassVar[list[UploadSession]] = []

    async def respond(self, session: UploadSession) -> Any:
        type(self).asked.append(session)
        return await self.answer(session) if callable(self.answer) else self.answer


def answering(answer: Any) -> type[Answering]:
    """An endpoint that answers so; a coroutine function gets the session."""
    own = staticmethod(answer) if callable(answer) else answer
    return type("Endpoint", (Answering,), {"answer": own, "asked": []})


def application(consumer: type[UploadConsumer]) -> Any:
    return AuthMiddlewareStack(consumer.as_asgi())


async def ask_again(uploads: UploadCommunicator, message: m.Message) -> m.Completed:
    stream = uploads.new_stream()
    await uploads.send(message, stream)
    return await uploads.wait_for(m.Completed, stream)


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# What is answered ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_the_answer_comes_with_completed_and_is_kept(connect: Connect, size: int) -> None:
    answer = {"document": 7, "tags": ("a", None, 1.5), "größe": {"ja": True}}
    endpoint = answering(answer)
    async with connect(application(endpoint)) as uploads:
        done = await uploads.upload("a.bin", bytes(size))
    assert done.response == json.loads(json.dumps(answer))
    session = await row(done.upload)
    assert (session.response, session.response_due) == (done.response, None)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("size", SIZES)
async def test_a_client_that_asks_again_gets_the_same_answer_and_the_hook_is_asked_once(
    connect: Connect, size: int
) -> None:
    count = iter(range(100))

    async def answer(session: UploadSession) -> Mapping[str, int]:
        return {"number": next(count)}

    endpoint = answering(answer)
    key, data = new_key(), bytes(size)
    async with connect(application(endpoint)) as uploads:
        done = await uploads.upload("a.bin", data, key=key)
        assert await uploads.upload("a.bin", data, key=key) == done
    async with connect(application(endpoint)) as uploads:
        assert await ask_again(uploads, m.Create(key, "a.bin", size)) == done
        assert await ask_again(uploads, m.Attach(done.upload)) == done
        assert await ask_again(uploads, m.Cancel(done.upload)) == done
    assert done.response == {"number": 0}
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("answer", [None, {}])
async def test_no_answer_is_left_out_of_completed_and_not_asked_for_again(
    connect: Connect, answer: Any
) -> None:
    endpoint = answering(answer)
    key = new_key()
    async with connect(application(endpoint)) as uploads:
        for _ in range(2):
            done = await uploads.upload("a.bin", b"hello", key=key)
            assert done.response is None
    assert (await row(done.upload)).response == {}
    assert len(endpoint.asked) == 1


async def test_an_endpoint_that_says_nothing_costs_nothing(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(answers, "ask", never)
    monkeypatch.setattr(answers, "save", never)
    async with connect() as uploads:
        for size in SIZES:
            done = await uploads.upload("a.bin", bytes(size))
            assert done.response is None
            assert (await row(done.upload)).response is None


@pytest.mark.parametrize("size", SIZES)
async def test_the_hook_sees_the_finished_file_and_may_bind_it(
    connect: Connect, size: int, media: Path
) -> None:
    async def answer(session: UploadSession) -> dict[str, Any]:
        def save() -> Document:
            assert session.file.read() == bytes(size)
            with transaction.atomic():
                return Document.objects.create(attachment=session.bind())

        document = await sync_to_async(save)()
        return {"document": document.pk, "name": document.attachment.name}

    key = new_key()
    async with connect(application(answering(answer))) as uploads:
        done = await uploads.upload("a.bin", bytes(size), key=key)
        assert (await uploads.upload("a.bin", bytes(size), key=key)).response == done.response
    document = await Document.objects.aget()
    assert done.response == {"document": document.pk, "name": document.attachment.name}
    assert (await row(done.upload)).state == State.BOUND
    assert [each.name for each in media.rglob("*") if each.is_file()] == ["a.bin"]


async def test_the_hook_is_asked_when_the_client_has_gone(connect: Connect) -> None:
    begun, released = asyncio.Event(), asyncio.Event()

    async def answer(session: UploadSession) -> dict[str, int]:
        begun.set()
        await released.wait()
        return {"document": 7}

    endpoint = answering(answer)
    async with connect(application(endpoint)) as uploads:
        await uploads.send(m.Create(key := new_key(), "a.bin", 5), 1)
        await uploads.send_data(1, 0, b"hello")
        await uploads.send(finish(b"hello"), 1)
        await asyncio.wait_for(begun.wait(), 10)
    released.set()
    await settled()
    async with connect(application(endpoint)) as uploads:
        assert (await uploads.upload("a.bin", b"hello", key=key)).response == {"document": 7}
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("make", [m.Attach, m.Cancel])
async def test_an_upload_that_was_recovered_without_an_endpoint_is_asked_about_when_its_client_asks(
    connect: Connect, owner: Owner, make: Any
) -> None:
    session = await run(publish, owner)
    endpoint = answering({"document": 7})
    async with connect(application(endpoint)) as uploads:
        done = await ask_again(uploads, make(str(session.pk)))
    assert done.response == (await row(session.pk)).response == {"document": 7}


async def test_a_file_that_its_sender_deletes_is_not_asked_about_and_its_answer_goes(
    connect: Connect, owner: Owner
) -> None:
    session = await run(publish, owner)
    endpoint = answering({"document": 7})
    async with connect(application(endpoint)) as uploads:
        done = await uploads.upload("b.bin", b"hello")
        for upload in (str(session.pk), done.upload):
            stream = uploads.new_stream()
            await uploads.send(m.Cancel(upload, finished=True), stream)
            await uploads.wait_for(m.Cancelled, stream)
            assert (await row(upload)).response is None
    assert [str(each.pk) for each in endpoint.asked] == [done.upload]


# What is no answer --------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for _ in range(depth - 1):
        answer = {"a": answer}
    return answer


def circle() -> dict[str, Any]:
    answer: dict[str, Any] = {}
    answer["answer"] = answer
    return answer


LARGEST = {"text": "ä" * ((MAX_RESPONSE - len('{"text":""}') - 1) // 2)}
INVALID = {
    "a list": [1],
    "a text": "done",
    "no JSON": {"at": timezone},
    "bytes": {"content": b"a"},
    "not a number": {"size": float("nan")},
    "too large a number": {"size": 10**400},
    "half a character": {"name": "\ud800"},
    "a NUL": {"name": "a\0"},
    "too large": {"text": LARGEST["text"] + "aa"},
    "too large when it is written out": {"sizes": [1e300] * 60},
    "too deep": nested(MAX_DEPTH + 1),
    "far too deep": nested(100_000),
    "a circle": circle(),
}


@pytest.mark.parametrize("what", INVALID)
def test_what_a_client_or_a_database_cannot_take_is_no_answer(what: str) -> None:
    with pytest.raises(InvalidAnswer, match=r"\w"):
        as_json(INVALID[what])


@pytest.mark.parametrize(
    "answer", [LARGEST, nested(MAX_DEPTH), {"": [True, -1, 1.5e-7, 2**60, None]}]
)
async def test_the_largest_answer_arrives(connect: Connect, answer: dict[str, Any]) -> None:
    name = "ä" * 120 + ".bin"
    async with connect(application(answering(answer))) as uploads:
        done = await uploads.upload(name, b"hello", key=(key := new_key()))
        assert done.response == answer
        assert (await uploads.upload(name, b"hello", key=key)).response == answer


def test_the_largest_of_all_fields_fit_into_a_frame() -> None:
    upload = "5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0"
    long, sha256 = "😀" * 1024, {"sha-256": "0" * 64}
    largest = m.Completed(upload, long, 2**48, "0" * 8, long, sha256, "x" * 4096, LARGEST)
    assert largest.to_frame(1, crc32c)


async def test_an_answer_that_is_none_is_logged_and_the_upload_is_complete(
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint = answering({"text": LARGEST["text"] + "aa"})
    async with connect(application(endpoint)) as uploads:
        done = await uploads.upload("a.bin", b"hello")
    assert done.response is None
    session = await row(done.upload)
    assert (session.state, session.response) == (State.COMPLETED, {})
    (problem,) = problems(caplog)
    assert "response_invalid" in problem
    assert done.upload in problem
    assert f"are more than {MAX_RESPONSE}" in problem


async def refuse(session: UploadSession) -> None:
    raise FileRefused("It is too late.")


async def fail(session: UploadSession) -> None:
    raise RuntimeError


async def cancel_itself(session: UploadSession) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(10)


async def hang(session: UploadSession) -> None:
    await asyncio.sleep(30)


async def hang_in_a_thread(session: UploadSession) -> None:
    await sync_to_async(threading.Event().wait)(5)


@pytest.mark.parametrize("hook", [refuse, fail, cancel_itself, hang, hang_in_a_thread])
@pytest.mark.parametrize("size", SIZES[1:])
async def test_a_hook_that_fails_breaks_no_upload(
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    settings: Any,
    hook: Any,
    size: int,
) -> None:
    settings.ASYNC_UPLOAD = {**getattr(settings, "ASYNC_UPLOAD", {}), "RECEIVER_TIMEOUT": 0.3}
    endpoint = answering(hook)
    key = new_key()
    begun = time.monotonic()
    async with connect(application(endpoint)) as uploads:
        for _ in range(2):
            done = await uploads.upload("a.bin", bytes(size), key=key)
            assert done.response is None
    assert time.monotonic() - begun < 4
    session = await row(done.upload)
    assert (session.state, session.response, session.error) == (State.COMPLETED, {}, "")
    (problem,) = [each for each in problems(caplog) if "respond_failed" in each]
    assert done.upload in problem
    assert len(endpoint.asked) == 1


async def test_slow_hooks_wait_for_no_other_hook_and_progress_is_told(connect: Connect) -> None:
    together = threading.Barrier(2, timeout=10)
    released = threading.Event()

    async def answer(session: UploadSession) -> dict[str, bool]:
        def wait() -> None:
            together.wait()
            released.wait(10)

        await sync_to_async(wait)()
        return {"done": True}

    async with connect(application(answering(answer))) as uploads:
        for stream in (1, 2):
            await uploads.send(m.Create(new_key(), "a.bin", 5), stream)
            await uploads.send_data(stream, 0, b"hello")
            await uploads.send(finish(b"hello"), stream)
        progress = await uploads.wait_for(m.Progress, 1)
        assert (progress.phase, progress.done, progress.total) == ("finalizing", 5, 5)
        async with connect() as others:
            await others.upload("b.bin", b"hello")
        released.set()
        ended = {}
        while len(ended) < 2:
            stream, message = await uploads.receive()
            if isinstance(message, m.Completed):
                ended[stream] = message.response
        assert ended == {1: {"done": True}, 2: {"done": True}}


# Once ---------------------------------------------------------------------------------------------


async def test_an_owner_has_some_answers_at_once_and_no_other_owner_waits_for_them(
    uploads: UploadService, owner: Owner, bob: Any
) -> None:
    released = asyncio.Event()
    slow, other = Hooks({"document": 7}, released), Hooks({"document": 8})
    sessions = [await run(publish, owner) for _ in range(AT_ONCE_PER_OWNER + 2)]
    asking = [asyncio.create_task(uploads.answered(Published(each), slow)) for each in sessions]
    while slow.asked < AT_ONCE_PER_OWNER:
        await asyncio.sleep(0.01)
    of_bob = await run(publish, Owner(f"user:{bob.pk}", bob))
    assert (await uploads.answered(Published(of_bob), other)).session.response == {"document": 8}
    assert slow.asked == AT_ONCE_PER_OWNER
    released.set()
    assert {each.session.response["document"] for each in await asyncio.gather(*asking)} == {7}


class Hooks:
    """What the engine asks an endpoint; see :class:`~django_async_upload.engine.verify.Hooks`."""

    responds = True

    def __init__(self, answer: Any = None, event: asyncio.Event | None = None) -> None:
        self.answer = answer
        self.event = event
        self.asked = 0

    async def respond(self, session: UploadSession) -> Any:
        self.asked += 1
        if self.event is not None:
            await self.event.wait()
        return self.answer


async def test_two_who_ask_at_the_same_time_get_one_answer(
    uploads: UploadService, owner: Owner
) -> None:
    session = await run(publish, owner)
    endpoint = Hooks({"document": 7}, asyncio.Event())
    asking = [asyncio.create_task(uploads.answered(Published(session), endpoint)) for _ in range(3)]
    while not endpoint.asked:
        await asyncio.sleep(0.01)
    asking.pop().cancel()  # one of them does not wait
    endpoint.event.set()
    found = await asyncio.gather(*asking)
    assert [each.session.response for each in found] == [{"document": 7}] * 2
    assert endpoint.asked == 1


async def test_while_another_process_asks_the_client_comes_back_later(
    connect: Connect, owner: Owner
) -> None:
    soon = timezone.now() + timedelta(seconds=30)
    session = await run(publish, owner, response_due=soon)
    endpoint = answering({"document": 7})
    async with connect(application(endpoint)) as uploads:
        with pytest.raises(Busy):
            await ask_again(uploads, m.Attach(str(session.pk)))
        await UploadSession.objects.aupdate(response={"document": 8}, response_due=None)
        done = await ask_again(uploads, m.Attach(str(session.pk)))
    assert done.response == {"document": 8}
    assert endpoint.asked == []


async def test_what_a_process_that_died_did_not_answer_is_asked_again(
    connect: Connect, owner: Owner
) -> None:
    past = timezone.now() - timedelta(seconds=1)
    session = await run(publish, owner, response_due=past)
    endpoint = answering({"document": 7})
    async with connect(application(endpoint)) as uploads:
        done = await ask_again(uploads, m.Attach(str(session.pk)))
    assert done.response == {"document": 7}
    assert len(endpoint.asked) == 1


async def test_a_commit_whose_answer_was_lost_is_recognised(
    uploads: UploadService, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await run(publish, owner)
    ask, save = answers.ask, answers.save
    monkeypatch.setattr(answers, "ask", lambda items: (ask(items), ask(items))[1])
    monkeypatch.setattr(answers, "save", lambda items: (save(items), save(items))[1])
    found = await uploads.answered(Published(session), Hooks({"document": 7}))
    assert found.session.response == {"document": 7}


async def test_the_answer_that_was_saved_first_is_everybodys(
    uploads: UploadService, owner: Owner
) -> None:
    """A stopped process that wakes after its claim ran out gives no second answer."""
    session = await run(publish, owner)
    endpoint = Hooks({"document": 7}, asyncio.Event())
    asking = asyncio.create_task(uploads.answered(Published(session), endpoint))
    while not endpoint.asked:
        await asyncio.sleep(0.01)
    await UploadSession.objects.aupdate(response={"document": 8}, response_due=None)
    endpoint.event.set()
    assert (await asking).session.response == {"document": 8}


async def test_an_answer_that_could_not_be_saved_is_told_to_no_client(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(items: Any) -> Any:
        return [DatabaseUnavailable() for _ in items]

    endpoint = answering({"document": 7})
    save = answers.save
    monkeypatch.setattr(answers, "save", failing)
    key = new_key()
    async with connect(application(endpoint)) as uploads:
        with pytest.raises(DatabaseUnavailable):
            await uploads.upload("a.bin", b"hello", key=key)
        monkeypatch.setattr(answers, "save", save)
        await UploadSession.objects.aupdate(response_due=timezone.now())
        assert (await uploads.upload("a.bin", b"hello", key=key)).response == {"document": 7}
    assert len(endpoint.asked) == 2
