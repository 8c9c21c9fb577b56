"""Admission of connections: the address and origin of a handshake, and limits on what one address may open."""

from __future__ import annotations

import ipaddress
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.utils.http import is_same_domain

from . import conf
from .exceptions import TooManyConnections, UploadError
from .notices import notice

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_UNAUTHENTICATED: Final = 256
"""Connections of one address that have not signed in yet: a network's clients come back at once after a restart.
One more has the oldest of those closed that owe an AUTH: it has had the most time, so a flood of them does not keep
out clients that sign in at once."""
RETRY_AFTER: Final = (1.0, 3.0)
"""Seconds after which a refused client may try again, at random between these: not all of them at once."""

IPV6_SUBSCRIBER: Final = 64
"""Length in bits of the prefix that identifies a subscriber of IPv6 (RFC 6177), who has all addresses in it."""


# Address ------------------------------------------------------------------------------------------


def client_address(scope: dict[str, Any]) -> Address | None:
    """The client's address; None where it is unknown: a Unix socket, or what is no IP address.

    With ``NUM_PROXIES`` it is the entry of ``X-Forwarded-For`` that the first of these proxies wrote, counted
    from the right: the client may have forged the entries left of it. How the server itself reads the header
    does not matter. Where there are fewer entries, the connection bypassed a proxy, and the address is the one that the
    server reports.
    """
    if count := conf.uploads().num_proxies:
        values = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        entries = b",".join(values).decode("latin-1").split(",") if values else []
        if len(entries) >= count:
            return _parsed(entries[-count])
    return _parsed((scope.get("client") or [""])[0])


def _parsed(text: str | None) -> Address | None:
    """Parse ``192.0.2.1``, ``192.0.2.1:4711``, ``2001:db8::1``, ``[2001:db8::1]:4711`` and ``fe80::1%eth0``."""
    text = (text or "").strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def network_of(address: Address | None) -> str | None:
    """The address that limits and quotas count by: an IPv4 address, or the first one of an IPv6 network."""
    if isinstance(address, ipaddress.IPv6Address):
        network = ipaddress.ip_network((address, IPV6_SUBSCRIBER), strict=False)
        return str(network.network_address)
    return None if address is None else str(address)


# Origin -------------------------------------------------------------------------------------------


class _Handshake(HttpRequest):
    """A handshake as a Django request, so that Django reads its host and scheme by the settings."""

    def __init__(self, scope: dict[str, Any]) -> None:
        super().__init__()
        self._scheme = "https" if scope.get("scheme") in ("https", "wss") else "http"
        for name, value in scope["headers"]:
            if b"_" not in name:  # "_" would be read as "-": a forged header
                key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
                self.META[key] = value.decode("latin-1")

    def _get_scheme(self) -> str:
        return self._scheme


def origins(scope: dict[str, Any]) -> list[str]:
    """The Origin headers of a handshake. Every browser sends one."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]


def own_origin(scope: dict[str, Any]) -> str | None:
    """The server's origin as this handshake reached it; None for a host that is not in ALLOWED_HOSTS."""
    request = _Handshake(scope)
    try:
        return f"{request.scheme}://{request.get_host()}".lower()
    except (DisallowedHost, KeyError):  # KeyError: no Host at all
        return None


def origin_is_trusted(scope: dict[str, Any]) -> bool:
    """Whether the Origin is the server's own or in ``CSRF_TRUSTED_ORIGINS``, as Django's CSRF compares it.

    True where there is none: then the client is no browser, and only a ticket can authenticate it.
    """
    sent = origins(scope)
    if not sent:
        return True
    return len(sent) == 1 and _is_trusted(sent[0].lower(), scope)


def _is_trusted(origin: str, scope: dict[str, Any]) -> bool:
    if origin == own_origin(scope):
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return any(
        origin == trusted.lower()
        or (
            "://*." in trusted
            and parts.scheme == trusted.partition("://")[0].lower()
            and is_same_domain(parts.netloc, trusted.partition("://*")[2].lower())
        )
        for trusted in _trusted_origins()
    )


def _trusted_origins() -> Iterable[str]:
    return settings.CSRF_TRUSTED_ORIGINS


def log_origin(scope: dict[str, Any], endpoint: str, address: Address | None) -> None:
    """Log that a page of another site was refused, and what to set if it is no other site."""
    notice(
        "origin",
        logging.WARNING,
        "A request from Origin %s was refused. It is neither the server's own (%s) nor in "
        "CSRF_TRUSTED_ORIGINS. Behind a proxy, that must pass the Host header on, and where it ends TLS "
        "SECURE_PROXY_SSL_HEADER must be set.",
        ", ".join(map(ascii, origins(scope))),
        own_origin(scope) or "none: the Host is not in ALLOWED_HOSTS",
        code="origin_refused",
        owner=None,
        endpoint=endpoint,
        address=None if address is None else str(address),
    )


# Slots --------------------------------------------------------------------------------------------


_addresses: Counter[str] = Counter()
_unauthenticated: dict[str, dict[ConnectionSlot, None]] = {}  # the oldest first


class ConnectionSlot:
    """A connection's slot among those of its address at this process. It costs no query, so that a flood costs none.

    Until :meth:`sign_in` the connection is unauthenticated. ``evict`` is called with the error for the client when a
    newer unauthenticated connection needs the slot; it must return at once. A connection without an address is not
    counted. The limits for all processes are those of :class:`.engine.slots.Slots`.
    """

    def __init__(self, address: Address | None, evict: Callable[[UploadError], None]) -> None:
        self.address = network_of(address)
        self.owes_auth = False
        """Whether the handshake has ended and no AUTH was received: only then may a newer connection get the slot."""
        self._evict = evict
        self._is_signed_in = False

    def enter(self) -> None:
        """Take an unauthenticated connection's slot, before the handshake. Raises :class:`TooManyConnections`."""
        if self.address is None:
            return
        most = conf.uploads().address_max_connections
        if _addresses[self.address] >= most:
            raise _refusal(most)
        unauthenticated = _unauthenticated.setdefault(self.address, {})
        if len(unauthenticated) >= MAX_UNAUTHENTICATED:
            oldest = next((each for each in unauthenticated if each.owes_auth), None)
            error = _refusal(MAX_UNAUTHENTICATED)
            if oldest is None:
                raise error
            oldest.leave()
            oldest._evict(error)
        _unauthenticated.setdefault(self.address, {})[self] = None

    def sign_in(self) -> None:
        """Exchange the slot for one of the address's authenticated connections."""
        self._leave_unauthenticated()
        if self.address is not None:
            _addresses[self.address] += 1
            self._is_signed_in = True

    def leave(self) -> None:
        """Free the slot; a second call does nothing."""
        self._leave_unauthenticated()
        if self._is_signed_in and self.address is not None:
            self._is_signed_in = False
            _addresses[self.address] -= 1
            if not _addresses[self.address]:
                del _addresses[self.address]

    def _leave_unauthenticated(self) -> None:
        unauthenticated = _unauthenticated.get(self.address or "")
        if unauthenticated is not None:
            unauthenticated.pop(self, None)
            if not unauthenticated:
                del _unauthenticated[self.address or ""]


def _refusal(most: int) -> TooManyConnections:
    return TooManyConnections(
        max_connections=most,
        retry_after=round(random.uniform(*RETRY_AFTER), 2),  # noqa: S311
    )


def slots_taken() -> int:
    """The number of slots of this process that are taken."""
    return sum(_addresses.values()) + sum(map(len, _unauthenticated.values()))


def forget() -> None:
    """Free all slots, for tests."""
    _addresses.clear()
    _unauthenticated.clear()
