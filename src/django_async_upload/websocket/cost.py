"""What frames cost that move no upload: a client may send them only at a limited rate."""

from __future__ import annotations

from typing import Final

from ..concurrency import pace
from ..protocol import messages as m
from ..protocol.frames import HEADER_SIZE
from ..protocol.server import Chunk, Control, Event

SHORT_FRAME: Final = 4096
"""Bytes. Clients, which are advised at least 16 KiB, send shorter frames only at the end of a file."""


def cost(event: Event | None) -> int:
    """The number of frames that an event counts as for the limit of frames with little or no data."""
    match event:
        case Chunk(_number, payload, offset=offset):
            missing = SHORT_FRAME - HEADER_SIZE - len(payload)
            is_short = missing > 0 and offset
            return pace.SHORT_CHUNK * missing // SHORT_FRAME if is_short else 0
        case Control(_number, m.Create() | m.Attach() | m.Proof() | m.Finish()):
            return 0
        case Control(_number, m.Query() | m.Watch() | m.Auth() | m.Cancel()):
            return pace.QUESTION
    return 1
