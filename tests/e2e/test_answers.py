"""Answers that get lost: asking again gives the same answer, and nothing happens twice."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from django_async_upload.protocol import messages
from django_async_upload.protocol.frames import FrameType

from .hosts import Host
from .programs import put
from .raw import Closed, Failed, finish
from .servers import wait_for

pytestmark = pytest.mark.one_server


def test_create_sent_again_after_its_answer_was_lost_finds_the_upload(host: Host) -> None:
    key = uuid.uuid4().hex
    data = os.urandom(200_000)
    ticket = host.ticket()
    with host.proxy() as proxy:
        for _ in range(3):
            proxy.lose(FrameType.CREATED)
            proxy.lose(FrameType.ATTACHED)
            with host.connect(ticket, port=proxy.port) as connection, pytest.raises(Closed):
                connection.create("answer lost.bin", len(data), key=key)
    with host.connect(ticket) as connection:
        stream = connection.next_stream()
        connection.send(messages.Create(key=key, name="answer lost.bin", size=len(data)), stream)
        attached = connection.expect(messages.Attached, stream=stream)
        connection.send(messages.Proof("00000000"), stream)
        connection.expect(messages.Ready, stream=stream)
        connection.upload(stream, data)
        completed = connection.finish(stream, data)
    assert [each["id"] for each in host.uploads() if each["key"] == key] == [attached.upload]
    assert host.path(completed.stored_as).read_bytes() == data
    host.wait_for_signals("upload_completed", attached.upload)
    assert len(host.wait_for_signals("upload_started", attached.upload)) == 1


def test_finish_asked_again_after_its_answer_was_lost_gives_the_same_answer(host: Host) -> None:
    data = os.urandom(200_000)
    ticket = host.ticket()
    key = uuid.uuid4().hex
    files = len(host.files())
    with host.proxy() as proxy, host.connect(ticket, port=proxy.port) as connection:
        stream, created = connection.create("finish lost.bin", len(data), key=key)
        connection.upload(stream, data)
        proxy.lose(FrameType.COMPLETED)
        with pytest.raises(Closed):
            connection.finish(stream, data)
    answers = []
    with host.connect(ticket) as connection:
        for message in (
            messages.Attach(created.upload),
            messages.Create(key=key, name="finish lost.bin", size=len(data)),
            messages.Attach(created.upload),
            messages.Cancel(created.upload),
        ):
            stream = connection.next_stream()
            connection.send(message, stream)
            answers.append(connection.expect(messages.Completed, stream=stream))
    assert len({(each.upload, each.stored_as, each.crc32c, each.size) for each in answers}) == 1
    assert host.path(answers[0].stored_as).read_bytes() == data
    assert len(host.files()) == files + 1
    told = host.wait_for_signals("upload_completed", created.upload)
    assert len({each["event"] for each in told}) == 1


def test_two_creates_of_one_key_at_once_make_one_upload(host: Host) -> None:
    key = uuid.uuid4().hex
    ticket = host.ticket()
    with host.connect(ticket) as one, host.connect(ticket) as two:
        create = messages.Create(key=key, name="at once.bin", size=1000)
        one.send(create, 1)
        two.send(create, 1)
        answered = set()
        for connection in (one, two):
            _, message = connection.receive()
            if isinstance(message, messages.Created | messages.Attached):
                answered.add(message.upload)
            else:
                assert isinstance(message, messages.Error)
                assert message.code == "taken_over"
    assert [each["id"] for each in host.uploads() if each["key"] == key] == list(answered)


def test_cancel_throws_the_upload_away_and_says_so_again(host: Host) -> None:
    with host.connect() as connection:
        stream, created = connection.create("cancelled.bin", 100_000)
        connection.upload(stream, bytes(100_000), stop=50_000)
        connection.send(messages.Cancel(), stream)
        connection.expect(messages.Cancelled, stream=stream)
        for message in (messages.Attach(created.upload), messages.Cancel(created.upload)):
            stream = connection.next_stream()
            connection.send(message, stream)
            _, answer = connection.receive()
            assert isinstance(answer, messages.Error | messages.Cancelled)
            if isinstance(answer, messages.Error):
                assert answer.code == "upload_over"
    host.wait_for_signals("upload_cancelled", created.upload)


def test_the_completion_is_told_again_after_a_crash_between_commit_and_delivery(
    hosts: Callable[..., Host],
) -> None:
    host = hosts()
    data = os.urandom(100_000)
    with host.connect() as connection:
        stream, created = connection.create("die-once.bin", len(data))
        connection.upload(stream, data)
        connection.send(finish(data), stream)
        wait_for(lambda: (host.root / "died").exists(), what="the crash")
        host.server.kill()
    assert host.signals("upload_completed", created.upload) == []
    host.server.restart()
    with host.connect() as connection:  # where a server has no lifespan, this is the first hint
        stream = connection.next_stream()
        connection.send(messages.Attach(created.upload), stream)
        completed = connection.expect(messages.Completed, stream=stream)
        host.wait_for_signals("upload_completed", created.upload)
    assert host.path(completed.stored_as).read_bytes() == data
    assert len(host.files()) == 1


def test_the_hosts_own_answer_is_asked_for_again_only_where_the_server_died_before_a_client_had_it(
    hosts: Callable[..., Host], tmp_path: Path
) -> None:
    host = hosts(RECEIVER_TIMEOUT=1.0)
    url, ticket = host.url(path="/ws/answering/"), host.ticket(endpoint="answering")
    (data := tmp_path / "crash-once.bin").write_bytes(os.urandom(1000))
    with put(tmp_path / "home", url, ticket, data) as program:
        wait_for(lambda: (host.root / "crashed").exists(), what="the crash")
        host.server.kill()
        host.server.start()
        (result,) = program.results()
    assert result["response"]["name"] == "crash-once.bin"
    assert len(host.signals("respond", result["id"])) == 2
    with host.connect(ticket, path="/ws/answering/") as connection:
        connection.send(messages.Attach(result["id"]), 1)
        again = connection.expect(messages.Completed, stream=1)
    assert again.response == result["response"]
    assert len(host.signals("respond", result["id"])) == 2
    assert len(host.files()) == 1


def test_no_client_is_told_anything_about_an_upload_that_is_not_there(host: Host) -> None:
    with host.connect() as connection:
        with pytest.raises(Failed) as failed:
            connection.attach(str(uuid.uuid4()), b"")
        assert failed.value.error.code == "not_found"
