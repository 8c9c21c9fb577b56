"""The life cycle of an upload: its states, and the one table of transitions between them.

::

    created -> uploading <-> interrupted -> verifying -> finalizing -> completed -> bound
        \\___________\\______________\\____________\\
                                                 +-> failed | cancelled | expired

Intermediate states that no answer to the client has named may be skipped: a small file that was received whole goes
from ``created`` to ``finalizing`` in one step. A completed upload that is not taken can be cancelled too, but only by a
request that says so.
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
    State.FINALIZING: _CHECKED | {State.FINALIZING},  # again, with another name
    State.COMPLETED: frozenset({State.FINALIZING}),
    State.BOUND: frozenset({State.COMPLETED}),
    State.FAILED: _CHECKED | {State.FINALIZING},  # the part was lost before it was published
    State.CANCELLED: _CHECKED | {State.COMPLETED},  # a completed upload that is not taken
    State.EXPIRED: _CHECKED,
}
"""State -> the states from which it may be entered."""

ACTIVE: Final = _CHECKED | {State.FINALIZING}
"""Not ended: these uploads count against quotas and have a part."""
PUBLISHED: Final = frozenset({State.COMPLETED, State.BOUND})
PAST_WRITING: Final = PUBLISHED | {State.FINALIZING}
"""No connection takes these over: the result is the answer."""
OVER: Final = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})
