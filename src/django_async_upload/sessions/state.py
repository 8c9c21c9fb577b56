"""The life of an upload: its states and the one table of transitions between them.

::

    created -> uploading <-> interrupted -> verifying -> finalizing -> completed -> bound
        \\___________\\______________\\____________\\
                                                 +-> failed | cancelled | expired

A transition that no answer to the client has named may be skipped: a small file that arrived whole goes from
``created`` to ``finalizing`` in one step. A completed upload whose file is not taken is cancelled only by a
sender who says that he means a finished one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    CREATED = "created"
    UPLOADING = "uploading"
    INTERRUPTED = "interrupted"
    VERIFYING = "verifying"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    BOUND = "bound"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_OPEN: Final = frozenset({State.CREATED, State.UPLOADING, State.INTERRUPTED})
_CHECKED: Final = _OPEN | {State.VERIFYING}

SOURCES: Final[dict[State, frozenset[State]]] = {
    State.CREATED: frozenset(),
    State.UPLOADING: _CHECKED,
    State.INTERRUPTED: _CHECKED,
    State.VERIFYING: _OPEN,
    State.FINALIZING: _CHECKED | {State.FINALIZING},  # once more, with another name
    State.COMPLETED: frozenset({State.FINALIZING}),
    State.BOUND: frozenset({State.COMPLETED}),
    State.FAILED: _CHECKED | {State.FINALIZING},  # what was to be published is gone
    State.CANCELLED: _CHECKED | {State.COMPLETED},  # a finished file that is not taken
    State.EXPIRED: _CHECKED,
}
"""State -> the states from which it may be entered."""

ACTIVE: Final = _CHECKED | {State.FINALIZING}
"""Not over: these count against quotas and hold a part."""
PUBLISHED: Final = frozenset({State.COMPLETED, State.BOUND})
OVER: Final = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})
