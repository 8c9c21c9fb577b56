"""Where the vectors are, and the frames that they describe instead of spelling them out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from crc32c import crc32c

from django_async_upload.protocol.frames import FrameType, build_header

from .transcripts import Transcript, pattern, read_all

FOLDER = Path(__file__).parents[1] / "vectors"
FRAMES: dict[str, Any] = json.loads((FOLDER / "frames.json").read_text("utf-8"))
ENDINGS: dict[str, Any] = json.loads((FOLDER / "endings.json").read_text("utf-8"))
EXAMPLES = int(os.environ.get("ASYNC_UPLOAD_FUZZ_EXAMPLES", "2000"))
"""How many inputs the tests that make up their own try."""
TRANSCRIPTS: list[Transcript] = read_all(FOLDER / "transcripts")


def frame(vector: dict[str, Any]) -> bytes:
    """The frame of an entry of ``invalid``."""
    if "data" in vector:
        data = vector["data"]
        payload = pattern(data["payload"]["pattern"], 0, data["payload"]["length"])
        return with_header("DATA", data["stream"], payload)
    if "control" in vector:
        control = vector["control"]
        payload = b"{" + b" " * control["spaces"] + b"}" if "spaces" in control else b""
        payload += b"[" * control.get("brackets", 0)
        return with_header(control["type"], control["stream"], payload)
    return bytes.fromhex(vector["frame"])


def with_header(kind: str, stream: int, payload: bytes) -> bytes:
    return build_header(FrameType[kind], stream, payload, crc32c) + payload


def named(vector: Any) -> str:
    """A test's id."""
    if isinstance(vector, Transcript):
        return vector.name
    return str(vector.get("about") or vector.get("type"))
