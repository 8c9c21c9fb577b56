"""A client written from the protocol page and nothing else: small, slow, and complete for one file.

It imports nothing of the package. It fails where the server differs from the page.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Protocol

from crc32c import crc32c

from . import page

NUMBERS = {name: number for number, name in page.TYPES.items()}


class Wire(Protocol):
    async def send(self, message: bytes) -> None: ...

    async def receive(self) -> bytes: ...


class Failed(Exception):
    """ERROR came: its fields."""


def build(name: str, stream: int, payload: bytes, offset: int = 0, flags: int = 0) -> bytes:
    """Section "Frames"."""
    head = bytes([NUMBERS[name], flags]) + offset.to_bytes(6, "big") + stream.to_bytes(4, "big")
    return head + crc32c(payload, crc32c(head)).to_bytes(4, "big") + payload


def crc(data: bytes) -> str:
    return f"{crc32c(data):08x}"


class Stranger:
    """One file on one connection. ``damage`` are the offsets of chunks to be damaged on their way, once each."""

    def __init__(self, wire: Wire, file: bytes, *, damage: tuple[int, ...] = ()) -> None:
        self.wire = wire
        self.file = file
        self.damage = set(damage)
        self.key = secrets.token_hex(16)
        self.upload = ""
        self.stream = 0
        self.rewinds = 0
        self.resumed_at = -1

    async def say(self, kind: str, stream: int = 0, **fields: Any) -> None:
        await self.wire.send(build(kind, stream, json.dumps(fields).encode()))

    async def begin(self, ticket: str | None = None) -> None:
        """Section "Opening a connection"."""
        frame = page.parse(await self.wire.receive())
        assert frame.type == "HELLO"
        self.hello = frame.fields
        self.connection_limit, self.connection_sent = self.hello["connection_limit"], 0
        if ticket is not None:
            assert not self.hello["authenticated"]
            await self.say("AUTH", ticket=ticket)

    async def create(self) -> dict[str, Any]:
        """CREATE, and everything up to COMPLETED; nothing is waited for before data is sent."""
        self.stream += 1
        await self.say("CREATE", self.stream, key=self.key, name="a.bin", size=len(self.file))
        self.state(sending=True, limit=self.hello["stream_limit"])
        return await self.transfer()

    async def attach(self) -> dict[str, Any]:
        """ATTACH, and everything up to COMPLETED."""
        self.stream += 1
        await self.say("ATTACH", self.stream, upload=self.upload)
        self.state(sending=False, limit=0)
        return await self.transfer()

    def state(self, *, sending: bool, limit: int) -> None:
        self.sending, self.limit = sending, limit
        self.sent = self.durable = 0
        self.chunk = self.hello["max_chunk"]
        self.restart = self.finished = False

    async def transfer(self) -> dict[str, Any]:
        completed = None
        while completed is None:
            await self.send_what_may_be_sent()
            completed = await self.take(page.parse(await self.wire.receive()))
        return completed

    async def send_what_may_be_sent(self) -> None:
        """Sections "Credit" and "Finish, cancel, release"."""
        while self.sending and not self.finished:
            room = min(
                self.limit - self.sent,
                self.durable + self.hello["window"] - self.sent,
                self.connection_limit - self.connection_sent,
                self.chunk,
                self.hello["max_chunk"],
            )
            payload = self.file[self.sent : self.sent + max(room, 0)]
            if payload:
                flags = 1 if self.restart else 0
                frame = bytearray(build("DATA", self.stream, payload, self.sent, flags))
                if self.sent in self.damage:
                    self.damage.remove(self.sent)
                    frame[-1] ^= 1
                self.restart = False
                self.sent += len(payload)
                self.connection_sent += len(payload)
                await self.wire.send(bytes(frame))
            elif self.sent == len(self.file) and not self.restart:
                self.finished = True
                await self.say("FINISH", self.stream, size=self.sent, crc32c=crc(self.file))
            else:
                return

    async def take(self, frame: page.Frame) -> dict[str, Any] | None:
        """What the server says; returns the fields of COMPLETED."""
        assert frame.stream in (0, self.stream)
        told = frame.fields
        match frame.type:
            case "ERROR":
                raise Failed(told)
            case "PING":
                await self.say("PONG", nonce=told["nonce"])
            case "LIMIT":
                self.connection_limit = told["limit"]
            case "CREATED":
                self.upload = told["upload"]
                self.limit, self.chunk = max(self.limit, told["limit"]), told["chunk"]
            case "ACK":
                assert self.durable <= told["durable"] <= told["received"] <= self.sent
                self.durable, self.chunk = told["durable"], told["chunk"]
                self.limit = max(self.limit, told["limit"])
            case "ATTACHED":
                self.upload, self.sending, self.finished = told["upload"], False, False
                proof = {"durable_crc32c": crc(self.file[: told["durable"]])}
                if told["received"] <= len(self.file):
                    proof["received_crc32c"] = crc(self.file[: told["received"]])
                await self.say("PROOF", self.stream, **proof)
            case "READY":
                self.sending, self.sent, self.durable = True, told["offset"], told["durable"]
                self.limit, self.chunk = told["limit"], told["chunk"]
                self.resumed_at = self.sent
            case "REWIND":
                self.sent, self.durable = told["offset"], told["durable"]
                self.limit, self.restart, self.finished = told["limit"], True, False
                self.rewinds += 1
            case "PAUSE":
                self.limit = self.sent
                await self.say("PAUSED", self.stream, offset=self.sent)
            case "COMPLETED":
                assert (told["size"], told["crc32c"]) == (len(self.file), crc(self.file))
                return told
            case "PROGRESS" | "AUTHENTICATED" | "PONG":
                pass
            case other:
                raise AssertionError(other)
        return None
