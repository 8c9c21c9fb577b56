"""Where a handshake comes from, whether its page is trusted, and how many connections there may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from django_async_upload import admission
from django_async_upload.admission import (
    MAX_UNAUTHENTICATED,
    ConnectionSlot,
    client_address,
    network_of,
    origin_is_trusted,
)
from django_async_upload.exceptions import TooManyConnections, UploadError


def handshake(
    *headers: tuple[str, str], scheme: str = "ws", client: str | None = "127.0.0.1"
) -> dict[str, Any]:
    return {
        "type": "websocket",
        "scheme": scheme,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": None if client is None else [client, 4711],
    }


# Origin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "trusted"),
    [
        (None, True),
        ("https://example.com", True),
        ("HTTPS://EXAMPLE.COM", True),
        ("http://example.com", False),
        ("ftp://example.com", False),
        ("chrome-extension://example.com", False),
        ("https://example.com:8443", False),
        ("https://evil.com", False),
        ("https://example.com.evil.com", False),
        ("https://me@example.com", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("https://[::1", False),
        ("https://partner.org", True),
        ("http://partner.org", False),
        ("https://a.wild.org", True),
        ("http://a.wild.org", False),
        ("https://notwild.org", False),
        ("https://", False),
    ],
)
def test_origins_are_compared_as_djangos_csrf_compares_them(
    settings: Any, origin: str | None, trusted: bool
) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://partner.org", "https://*.wild.org"]
    settings.ALLOWED_HOSTS = ["example.com"]
    headers = [("Host", "example.com")]
    if origin is not None:
        headers.append(("Origin", origin))
    assert origin_is_trusted(handshake(*headers, scheme="wss")) is trusted


def test_a_host_that_is_not_allowed_has_no_origin_of_its_own(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["example.com"]
    foreign = handshake(("Host", "evil.com"), ("Origin", "http://evil.com"))
    assert not origin_is_trusted(foreign)
    settings.CSRF_TRUSTED_ORIGINS = ["http://evil.com"]
    assert origin_is_trusted(foreign)


def test_a_handshake_without_a_host_has_no_origin_of_its_own() -> None:
    assert not origin_is_trusted(handshake(("Origin", "http://example.com")))


def test_a_header_with_an_underscore_is_no_other_header(settings: Any) -> None:
    """Where a proxy sets X-Forwarded-Host it lets X_Forwarded_Host of the client through."""
    settings.USE_X_FORWARDED_HOST = True
    settings.ALLOWED_HOSTS = ["*"]
    said = ("Host", "example.com"), ("X-Forwarded-Host", "example.com")
    evil = ("X_Forwarded_Host", "evil.com"), ("Origin", "http://evil.com")
    assert not origin_is_trusted(handshake(*said, *evil))
    assert not origin_is_trusted(handshake(said[0], *evil))


def test_two_origins_are_none() -> None:
    own = ("Origin", "http://example.com")
    assert origin_is_trusted(handshake(("Host", "example.com"), own))
    assert not origin_is_trusted(handshake(("Host", "example.com"), own, own))


def test_a_proxy_that_ends_tls_says_so_by_the_header_that_django_is_told(settings: Any) -> None:
    headers = [
        ("Host", "example.com"),
        ("Origin", "https://example.com"),
        ("X-Forwarded-Proto", "https"),
    ]
    assert not origin_is_trusted(handshake(*headers))
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert origin_is_trusted(handshake(*headers))
    assert not origin_is_trusted(handshake(*headers[:2], ("X-Forwarded-Proto", "http")))
    settings.USE_X_FORWARDED_HOST = True
    inside = [("Host", "10.0.0.7:8000"), ("X-Forwarded-Host", "example.com"), *headers[1:]]
    assert origin_is_trusted(handshake(*inside))


# Address ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", None),
        ("junk", None),
        ("", None),
        (None, None),
        ("1.2.3.4.5", None),
        ("/run/site.sock", None),
        ("\x00", None),
    ],
)
def test_what_is_no_address_is_none(said: str | None, address: str | None) -> None:
    found = client_address(handshake(client=said))
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, ["6.6.6.6"], "10.0.0.1"),
        (1, [], "10.0.0.1"),
        (1, ["192.0.2.1"], "192.0.2.1"),
        (1, ["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        (1, ["6.6.6.6", "junk, 192.0.2.1"], "192.0.2.1"),
        (1, ["6.6.6.6, junk"], None),
        (2, ["6.6.6.6, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (2, ["192.0.2.1"], "10.0.0.1"),
    ],
)
def test_the_address_is_what_the_first_of_the_trusted_proxies_wrote(
    settings: Any, proxies: int, forwarded: list[str], address: str | None
) -> None:
    settings.ASYNC_UPLOAD = {"NUM_PROXIES": proxies}
    headers = [("X-Forwarded-For", each) for each in forwarded]
    found = client_address(handshake(*headers, client="10.0.0.1"))
    assert (None if found is None else str(found)) == address


def test_behind_a_unix_socket_the_header_is_all_there_is(settings: Any) -> None:
    scope = handshake(("X-Forwarded-For", "192.0.2.1"), client=None)
    assert client_address(scope) is None
    settings.ASYNC_UPLOAD = {"NUM_PROXIES": 1}
    assert str(client_address(scope)) == "192.0.2.1"


def test_an_ipv6_subscriber_counts_once_for_all_his_addresses() -> None:
    def counted(text: str) -> str | None:
        return network_of(client_address(handshake(client=text)))

    assert counted("2001:db8:1:2:3::4") == counted("2001:db8:1:2:ffff::1") == "2001:db8:1:2::"
    assert counted("2001:db8:1:3::4") == "2001:db8:1:3::"
    assert counted("192.0.2.1") == "192.0.2.1"
    assert counted("") is None


# Slots --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_connections() -> Iterator[None]:
    admission.forget()
    yield
    admission.forget()


class Slot(ConnectionSlot):
    """A slot that records the error with which it was ended."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.sent_away: list[UploadError] = []
        super().__init__(client_address(handshake(client=address)), self.sent_away.append)


def test_a_flood_of_strangers_does_not_keep_out_who_signs_in() -> None:
    flood = []
    for number in range(5 * MAX_UNAUTHENTICATED):
        stranger = Slot()
        stranger.enter()
        stranger.owes_auth = True
        flood.append(stranger)
        if number % 200 == 0:
            guest = Slot()
            guest.enter()
            guest.sign_in()
            assert not guest.sent_away
    sent_away = [stranger for stranger in flood if stranger.sent_away]
    assert sent_away == flood[: len(sent_away)]  # the oldest
    assert len(flood) - len(sent_away) == MAX_UNAUTHENTICATED
    assert isinstance(sent_away[0].sent_away[0], TooManyConnections)
    for stranger in flood:
        stranger.leave()
    assert admission.slots_taken() == 7  # the open ones


def test_a_handshake_that_is_looked_up_keeps_its_place() -> None:
    """Otherwise a flood of handshakes with cookies would be looked up without a limit."""
    for _ in range(MAX_UNAUTHENTICATED):
        Slot().enter()
    with pytest.raises(TooManyConnections):
        Slot().enter()
    Slot("192.0.2.2").enter()


def test_connections_of_an_address_are_capped_before_they_cost(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"ADDRESS_MAX_CONNECTIONS": 2}
    first, second = Slot(), Slot()
    for guest in (first, second):
        guest.enter()
        guest.sign_in()
    with pytest.raises(TooManyConnections):
        Slot().enter()
    first.leave()
    first.leave()
    third = Slot()
    third.enter()
    third.sign_in()


def test_a_connection_that_ends_makes_room(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"ADDRESS_MAX_CONNECTIONS": 1}
    for _ in range(3):
        guest = Slot()
        guest.enter()
        guest.sign_in()
        guest.leave()
    assert admission.slots_taken() == 0


def test_who_has_no_address_is_not_counted_by_address(settings: Any) -> None:
    settings.ASYNC_UPLOAD = {"ADDRESS_MAX_CONNECTIONS": 1}
    slots = [Slot("") for _ in range(3 * MAX_UNAUTHENTICATED)]
    for number, guest in enumerate(slots):
        guest.enter()
        guest.owes_auth = True
        if number < 2:
            guest.sign_in()
    assert not any(guest.sent_away for guest in slots)
