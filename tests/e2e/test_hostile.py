"""What a client may not do. Each thing has a stable code, changes nothing and disturbs no other upload."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable

import pytest
from crc32c import crc32c

from django_async_upload.protocol import frames, messages
from django_async_upload.protocol.frames import MAX_CHUNK, FrameType

from .hosts import Host
from .raw import TEXT, Closed, Failed, RawConnection, Refused, SteadyUpload, finish, frame_head
from .servers import wait_for

MIB = 1024 * 1024
Misdeed = Callable[[RawConnection, int, bytes], None]


def past_the_limit(connection: RawConnection, stream: int, data: bytes) -> None:
    offset = connection.received.get(stream, 0)
    for _ in range(64):
        connection.send_data(stream, offset, data[:MAX_CHUNK])
        offset += MAX_CHUNK


def with_crc(head: bytes, payload: bytes = b"payload") -> bytes:
    """A frame that was not damaged on its way: this is what its sender meant."""
    return head + crc32c(payload, crc32c(head)).to_bytes(4, "big") + payload


def _control(kind: FrameType, stream: int, fields: dict[str, object]) -> bytes:
    payload = json.dumps(fields).encode()  # says what build_control refuses to say, too
    return frames.build_header(kind, stream, payload, crc32c) + payload


VIOLATIONS: dict[str, tuple[str, Misdeed]] = {
    "data past the limit": ("flow_control", past_the_limit),
    "an unknown stream": (
        "unknown_stream",
        lambda connection, stream, data: connection.send_data(stream + 7, 0, data[:100]),
    ),
    "data on stream 0": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_data(0, 0, data[:100]),
    ),
    "junk": (
        "corrupt_frame",
        lambda connection, stream, data: connection.send_message(b"\xff" + data[:1000]),
    ),
    "an unknown type": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(with_crc(b"\xff" + bytes(11))),
    ),
    "an unknown flag": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(with_crc(b"\x01\x80" + bytes(10))),
    ),
    "an empty message": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(b""),
    ),
    "half a header": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(b"\x01\0\0\0\0\0"),
    ),
    "a text message": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(
            b'{"type": "create"}', opcode=TEXT
        ),
    ),
    "a control frame that is no JSON": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(
            frames.build_header(FrameType.FINISH, stream, b"{", crc32c) + b"{"
        ),
    ),
    "JSON nested a thousand deep": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(
            frames.build_header(FrameType.FINISH, stream, b"[" * 30_000, crc32c) + b"[" * 30_000
        ),
    ),
    "NaN for a size": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(
            _control(FrameType.FINISH, stream, {"size": float("nan"), "crc32c": "00000000"})
        ),
    ),
    "a negative size": (
        "malformed_frame",
        lambda connection, stream, data: connection.send_message(
            _control(FrameType.CREATE, stream + 1, {"key": "0" * 32, "name": "x", "size": -1})
        ),
    ),
    "a message of the server": (
        "unexpected_message",
        lambda connection, stream, data: connection.send(
            messages.Ack(received=0, durable=0, limit=2**40, chunk=1), stream
        ),
    ),
    "a stream id used twice": (
        "unexpected_message",
        lambda connection, stream, data: connection.send(
            messages.Create(key=uuid.uuid4().hex, name="again.bin", size=1), stream
        ),
    ),
    "a damaged control frame": (
        "corrupt_frame",
        lambda connection, stream, data: connection.send_message(
            finish(data).to_frame(stream, crc32c)[:-1] + b"!"
        ),
    ),
    "more streams than there may be": (
        "too_many_streams",
        lambda connection, stream, data: (
            [
                connection.send(
                    messages.Create(key=uuid.uuid4().hex, name=f"{number}.bin", size=1),
                    stream + 1 + number,
                )
                for number in range(connection.hello.max_streams + 1)
            ]
            and None
        ),
    ),
}


@pytest.mark.parametrize("misdeed", VIOLATIONS)
def test_a_violation_closes_the_connection_with_its_code_and_leaves_the_upload_as_it_was(
    host: Host, misdeed: str
) -> None:
    code, commit = VIOLATIONS[misdeed]
    ticket = host.ticket()
    data = os.urandom(2 * MIB)
    with SteadyUpload(host.port, ticket, size=MIB):
        with host.connect(ticket) as connection:
            stream, created = connection.create("violated.bin", len(data))
            connection.upload(stream, data, stop=100_000)
            with contextlib.suppress(Closed):  # reset while we were still sending
                commit(connection, stream, data)
            error, close_code = last_words(connection)
            if misdeed != "data past the limit" or error is not None:
                assert error is not None
                assert error.code == code
                assert close_code == 4400
        with host.connect(ticket) as again:
            stream, ready = again.attach(created.upload, data)
            assert ready.offset in (0, 100_000)
            again.upload(stream, data, offset=ready.offset)
            stored = again.finish(stream, data).stored_as
    assert host.path(stored).read_bytes() == data


def last_words(connection: RawConnection) -> tuple[messages.Error | None, int | None]:
    """The ERROR on stream 0, and the close code."""
    error = None
    try:
        while True:
            stream, message = connection.receive()
            if isinstance(message, messages.Error) and stream == 0:
                error = message
    except Closed as closed:
        return error, closed.code


def test_data_past_the_declared_size_fails_the_upload(host: Host) -> None:
    with SteadyUpload(host.port, host.ticket(), size=MIB), host.connect() as connection:
        stream, created = connection.create("small.bin", 1000)
        connection.send_data(stream, 0, bytes(1001))
        assert connection.error().code == "size_exceeded"
        query = connection.next_stream()
        connection.send(messages.Query(created.upload), query)
        status = connection.expect(messages.Status, stream=query)
        assert (status.state, status.error) == ("failed", "size_exceeded")


def test_a_wrong_offset_ends_the_stream_and_the_upload_can_be_attached_again(host: Host) -> None:
    data = os.urandom(300_000)
    with SteadyUpload(host.port, host.ticket(), size=MIB), host.connect() as connection:
        stream, created = connection.create("gap.bin", len(data))
        connection.upload(stream, data, stop=16_000)
        connection.send_data(stream, 16_001, data[16_001:16_100])
        error = connection.error()
        assert (error.code, error.retryable) == ("wrong_offset", True)
        stream, ready = connection.attach(created.upload, data)
        connection.upload(stream, data, offset=ready.offset)
        stored = connection.finish(stream, data).stored_as
    assert host.path(stored).read_bytes() == data


def test_a_damaged_chunk_is_not_written_and_what_follows_it_is_void(host: Host) -> None:
    data = os.urandom(12_000)
    with host.connect() as connection:
        stream, _ = connection.create("damaged.bin", len(data))
        connection.send_data(stream, 0, data[:4000])
        damaged = bytearray(frames.build_data(stream, 4000, data[4000:8000], crc32c))
        damaged[500] ^= 1
        connection.send_message(bytes(damaged))
        connection.send_data(stream, 8000, data[8000:])
        connection.send(finish(data), stream)
        rewind = connection.expect(messages.Rewind, stream=stream)
        assert (rewind.offset, rewind.code) == (4000, "corrupt_chunk")
        connection.send_data(stream, 4000, data[4000:], restart=True)
        assert host.path(connection.finish(stream, data).stored_as).read_bytes() == data


def test_a_chunk_that_is_damaged_again_and_again_ends_the_stream(host: Host) -> None:
    with host.connect() as connection:
        stream, _ = connection.create("damaged.bin", 8000)
        damaged = bytearray(frames.build_data(stream, 0, bytes(8000), crc32c, restart=True))
        damaged[500] ^= 1
        for _ in range(8):
            connection.send_message(bytes(damaged))
            assert connection.expect(messages.Rewind, stream=stream).offset == 0
        connection.send_message(bytes(damaged))
        assert connection.error().code == "corrupt_chunks"


def test_a_digest_that_does_not_match_fails_the_upload_and_publishes_nothing(host: Host) -> None:
    data = os.urandom(5000)
    with host.connect() as connection:
        before = len(host.files())
        stream, created = connection.create("digest.bin", len(data), digest="sha-256")
        connection.upload(stream, data)
        connection.send(finish(data, digests={"sha-256": "0" * 64}), stream)
        assert connection.error().code == "digest_mismatch"
        assert len(host.files()) == before
        query = connection.next_stream()
        connection.send(messages.Query(created.upload), query)
        assert connection.expect(messages.Status, stream=query).state == "failed"


def test_a_message_of_100_mib_is_refused(host: Host) -> None:
    with SteadyUpload(host.port, host.ticket(), size=MIB):
        connection = host.connect()
        before = host.server.memory()
        with contextlib.suppress(Closed):
            connection.send_bytes(frame_head(100 * MIB))
            for _ in range(100):
                connection.send_bytes(bytes(MIB))
        growth = host.server.memory() - before
        print(f"100 MiB message on {host.server.kind}: grew {growth / MIB:.0f} MiB")
        if host.server.kind != "hypercorn":  # keeps what comes after it has said "too big"
            assert growth < 32 * MIB
        connection.close_code()  # raises where the server leaves the connection open


def test_a_frame_of_one_byte_too_many_closes_the_connection_with_the_reason(host: Host) -> None:
    """By the web server, or by the app where the server takes larger messages."""
    with host.connect() as connection:
        largest = b"\x01" + bytes(MIB)
        with contextlib.suppress(Closed):
            connection.send_message(with_crc(largest[:12], bytes(MIB - 16 + 1)))
        error, close_code = last_words(connection)
        print(f"1 MiB and a byte on {host.server.kind}: {close_code}, {error}")
        if error is not None:
            assert (error.code, close_code) == ("malformed_frame", 4400)
        else:  # Daphne drops the connection without a close frame
            assert close_code == (None if host.server.kind == "daphne" else 1009)


def test_streams_without_end_are_dropped_or_answered_and_cost_nothing(host: Host) -> None:
    """Ids far above each other, opened with uploads that do not exist."""
    with SteadyUpload(host.port, host.ticket(), size=MIB), host.connect() as connection:
        before = host.server.memory()
        for number in range(1000):
            connection.send(messages.Query(str(uuid.uuid4())), 1 + number * 1_000_000)
            error = connection.error()
            assert (error.code, error.retryable) == ("not_found", False)
        assert host.server.memory() - before < 8 * MIB


def test_junk_in_every_shape_leaves_the_server_well(host: Host, chance: random.Random) -> None:
    ticket = host.ticket()
    with SteadyUpload(host.port, ticket, size=2 * MIB):
        for _ in range(60):
            with host.connect(ticket) as connection:
                stream, _ = connection.create("junk.bin", 100_000)
                frame = bytearray(frames.build_data(stream, 0, bytes(1000), crc32c))
                for _ in range(chance.randint(1, 12)):
                    frame[chance.randrange(len(frame))] = chance.randrange(256)
                with contextlib.suppress(Closed):
                    connection.send_message(bytes(frame), opcode=chance.choice([1, 2, 2, 2]))
                    connection.send_message(chance.randbytes(chance.randint(0, 3000)))
                    connection.send_bytes(chance.randbytes(chance.randint(0, 3000)))


@pytest.mark.parametrize("whose", ["another user's", "of another endpoint", "expired", "forged"])
def test_a_ticket_that_is_not_good_here_opens_nothing(host: Host, whose: str) -> None:
    data = os.urandom(1000)
    with host.connect() as connection:
        _, created = connection.create("mine.bin", len(data))
    if whose == "another user's":
        with host.connect(host.ticket("other")) as connection:
            for message in (
                messages.Attach(created.upload),
                messages.Query(created.upload),
                messages.Cancel(created.upload),
            ):
                connection.send(message, connection.next_stream())
                assert connection.error().code == "not_found"
        return
    ticket = {
        "of another endpoint": lambda: host.ticket(endpoint="other"),
        "expired": lambda: host.ticket(max_age=0.01),
        "forged": lambda: host.ticket()[:-2] + "xx",
    }[whose]()
    time.sleep(0.05)
    with RawConnection(host.port) as connection:
        connection.greet()
        connection.send(messages.Auth(ticket))
        error, code = last_words(connection)
        assert error is not None
        assert error.code == ("ticket_expired" if whose == "expired" else "ticket_invalid")
        assert code == 4401


def test_an_upload_of_another_endpoint_is_not_found(host: Host) -> None:
    with host.connect() as connection:
        _, created = connection.create("mine.bin", 1000)
    with RawConnection(host.port, path="/ws/other/") as connection:
        connection.greet(host.ticket(endpoint="other"))
        connection.send(messages.Attach(created.upload), connection.next_stream())
        assert connection.error().code == "not_found"


def test_without_a_ticket_nothing_is_heard_and_time_runs_out(host: Host) -> None:
    with RawConnection(host.port) as connection:
        assert connection.greet().authenticated is False
        connection.send(messages.Create(key=uuid.uuid4().hex, name="x", size=1), 1)
        error, code = last_words(connection)
        assert error is not None
        assert (error.code, code) == ("authentication_required", 4401)
    with RawConnection(host.port) as connection:
        hello = connection.greet()
        error, code = last_words(connection)
        assert hello.auth_timeout == 5
        assert error is not None
        assert (error.code, code) == ("authentication_timeout", 4408)


def test_a_page_of_another_origin_is_refused_before_the_websocket_opens(host: Host) -> None:
    cookie = host.login()
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{host.port + 1}", "junk"):
        with pytest.raises(Refused) as refused:
            RawConnection(host.port, origin=origin, cookie=cookie)
        # Daphne itself answers 400 where the header is none.
        assert refused.value.status in ((400, 403) if origin == "junk" else (403,))
    for origin in (host.server.url, "https://trusted.example"):
        with RawConnection(host.port, origin=origin, cookie=cookie) as connection:
            assert connection.greet().authenticated is True


def test_a_cookie_without_an_origin_is_no_login(host: Host) -> None:
    with RawConnection(host.port, cookie=host.login()) as connection:
        assert connection.greet().authenticated is False


def test_an_origin_of_another_scheme_and_one_that_is_none_are_refused(host: Host) -> None:
    cookie = host.login()
    for origin in (host.server.url.replace("http:", "https:"), "http://[", ""):
        with pytest.raises(Refused) as refused:
            RawConnection(host.port, origin=origin, cookie=cookie)
        # Daphne itself answers 400 where the header is none.
        assert refused.value.status in (400, 403)


def test_a_path_without_an_endpoint_is_refused_without_a_traceback(host: Host) -> None:
    start = host.server.log_size()
    with pytest.raises(Refused) as refused:
        RawConnection(host.port, path="/ws/nothing/")
    assert refused.value.status in (403, 404)  # not every server can say 404
    assert "Traceback" not in host.server.log(start)


def test_the_address_is_what_the_proxy_has_written_on_every_server(
    hosts: Callable[..., Host],
) -> None:
    host = hosts(NUM_PROXIES=1)
    for sent, address in (
        ("6.6.6.6, 192.0.2.7", "192.0.2.7"),
        ("junk, 2001:db8::7", "2001:db8::7"),
        ("6.6.6.6, junk", None),
    ):
        with RawConnection(host.port, headers={"X-Forwarded-For": sent}) as connection:
            assert connection.greet().address == address
    with RawConnection(host.port) as connection:
        assert connection.greet().address == "127.0.0.1"


def test_a_client_that_does_not_offer_the_subprotocol_is_told(host: Host) -> None:
    with RawConnection(host.port, subprotocol=None) as connection:
        error, code = last_words(connection)
        assert error is not None
        assert (error.code, code) == ("subprotocol_required", 4406)


def test_key_reused_with_other_facts_is_an_error_and_changes_nothing(host: Host) -> None:
    key = uuid.uuid4().hex
    with host.connect() as connection:
        _, created = connection.create("one.bin", 1000, key=key)
        for changed in ({"name": "two.bin"}, {"size": 1001}, {"content_type": "text/html"}):
            facts = {"name": "one.bin", "size": 1000, **changed}
            connection.send(messages.Create(key=key, **facts), connection.next_stream())
            assert connection.error().code == "key_reused"
    found = [each for each in host.uploads() if each["key"] == key]
    assert [each["id"] for each in found] == [created.upload]


def test_a_changed_file_is_refused_and_the_upload_stays(host: Host) -> None:
    data = os.urandom(100_000)
    with host.connect() as connection:
        stream, created = connection.create("changed.bin", len(data))
        connection.upload(stream, data, stop=50_000)
        connection.send(messages.Release(), stream)
        released = connection.expect(messages.Released, stream=stream)
        assert released.durable == 50_000
        with pytest.raises(Failed) as failed:
            connection.attach(created.upload, b"!" + data[1:])
        assert failed.value.error.code == "file_changed"
        stream, ready = connection.attach(created.upload, data)
        assert ready.offset == 50_000


def test_too_many_connections_of_one_user_are_refused(hosts: Callable[..., Host]) -> None:
    host = hosts(USER_MAX_CONNECTIONS=3)
    held = [host.connect(host.ticket()) for _ in range(3)]
    assert_refused(host)
    for each in held:
        each.close()
    wait_for(lambda: comes_in(host), what="a free place")


@pytest.mark.one_server
def test_connections_of_one_user_to_two_processes_are_counted_together(
    hosts: Callable[..., Host],
) -> None:
    host = hosts(USER_MAX_CONNECTIONS=3)
    with host.another_server() as another:
        held = [each.connect(host.ticket()) for each in (host, another, host)]
        assert_refused(host)
        assert_refused(another)
        for each in held:
            each.close()
        wait_for(lambda: comes_in(host) and comes_in(another), what="free places")
        host.server.kill()


def assert_refused(host: Host) -> None:
    with RawConnection(host.port) as connection:
        connection.greet()
        connection.send(messages.Auth(host.ticket()))
        error, code = last_words(connection)
        assert error is not None
        assert (error.code, code, error.retryable) == ("too_many_connections", 4429, True)


def comes_in(host: Host) -> bool:
    try:
        host.connect(host.ticket()).close()
    except (Closed, Failed):
        return False
    return True
