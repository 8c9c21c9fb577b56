"""Verification of an upload after its last byte: size, CRC, digests, and the endpoint's inspection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Final, Protocol

from django.core.files import File

from .. import conf
from ..concurrency.apart import Unfinished, apart
from ..exceptions import DigestMismatch, InternalError, SizeMismatch
from ..failpoints import failpoint
from ..models import UploadSession
from ..sessions import rows
from ..sessions.owners import Owner
from ..sessions.state import State
from ..sessions.values import Change, Facts, NewUpload, Progress
from ..stores.base import Writer
from ..stores.publication.copy import PartReader
from .active import ActiveUpload
from .taps import Tap

logger = logging.getLogger("django_async_upload")

CRC32C: Final = "crc32c"
PIECE: Final = 4 * 1024 * 1024


class Hooks(Protocol):
    """The hooks that the use cases call; :class:`~django_async_upload.endpoints.Endpoint` implements them."""

    owner: Owner

    async def admit(self) -> int | None:
        """Check the owner's permission; returns the largest file, bytes. Raises :class:`PermissionRefused`."""

    async def new_session(self, new: NewUpload) -> tuple[UploadSession, int | None]:
        """Check a new upload; returns its unsaved row and largest size. Raises :class:`UploadRefused`."""

    async def name_of(self, session: UploadSession) -> str:
        """The name to publish under, which may be taken."""

    def get_taps(self, session: UploadSession) -> Sequence[Tap]:
        """New taps for the upload."""

    @property
    def inspects(self) -> bool:
        """Whether the host overrides :meth:`inspect`."""

    async def inspect(self, session: UploadSession, file: File[bytes]) -> None:
        """Refuse the whole file by raising an :class:`UploadRefused`."""

    @property
    def responds(self) -> bool:
        """Whether the host overrides :meth:`respond`."""

    async def respond(self, session: UploadSession) -> Mapping[str, Any] | None:
        """The app's own answer to the client of a completed upload."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A part that was verified."""

    writer: Writer
    digests: dict[str, str]


async def verify(upload: ActiveUpload, facts: Facts, hooks: Hooks) -> Verified:
    """Check size, CRC, digests and the endpoint's inspection.

    Raises :class:`SizeMismatch` (the upload can be resumed), :class:`DigestMismatch` and errors of taps and the
    inspection (the upload fails).
    """
    await upload.checkpoints.finish()
    session = upload.session
    expected_size = facts.size if session.size is None else session.size
    if not upload.flow.received == facts.size == expected_size:
        raise SizeMismatch(size=facts.size, received=upload.flow.received, declared=session.size)
    writer = await upload.part.made()
    actual = f"{writer.crc:08x}"
    expected = facts.crc32c or session.digests.get(CRC32C)
    if expected not in (None, actual):
        raise DigestMismatch(algorithm=CRC32C, actual=actual, expected=expected)
    digests = await _digests(upload, writer, facts)
    if hooks.inspects:
        await _enter_verifying(upload, "inspecting")
        await _inspect(upload, writer, hooks)
    return Verified(writer, digests)


async def _digests(upload: ActiveUpload, writer: Writer, facts: Facts) -> dict[str, str]:
    """The digests of the taps, compared with the client's."""
    promised = upload.session.digest
    sent = {**upload.session.digests, **facts.digests}
    if not upload.taps:
        return {}
    await upload.taps.caught_up()
    upload.raise_if_lost()

    def report(done: int) -> None:
        upload.raise_if_lost()
        upload.progress = Progress("verifying", done, upload.flow.received)

    if upload.taps.has_missed:
        await _enter_verifying(upload, "verifying")
    found = await upload.taps.end(writer, report)
    for algorithm, actual in found.items():
        expected = sent.get(algorithm)
        if expected is None and algorithm == promised:
            missing = f"The client did not send the {algorithm} that it had promised."
            raise DigestMismatch(missing, algorithm=algorithm, actual=actual)
        if expected is not None and actual != expected:
            raise DigestMismatch(algorithm=algorithm, actual=actual, expected=expected)
    return found


async def _enter_verifying(upload: ActiveUpload, phase: str) -> None:
    upload.progress = Progress(phase, 0, upload.flow.received)
    if upload.session.state != State.VERIFYING:
        # The row names the part, by whose lock another process sees that this one verifies it.
        await upload.checkpoints.make_now()
        change = Change(upload.session.pk, upload.session.epoch, State.VERIFYING)
        failpoint("verify.before_commit")
        await upload.runtime.database.call(rows.change, change, owner=upload.session.owner_key)
        failpoint("verify.after_commit")
        upload.session.state = State.VERIFYING


async def _inspect(upload: ActiveUpload, writer: Writer, hooks: Hooks) -> None:
    """Have the endpoint inspect the whole file. Raises what it raises, and :class:`InternalError` where it hangs."""
    done = 0

    def report(read: int) -> None:
        nonlocal done
        done = read
        upload.report(Progress("inspecting", read, upload.flow.received))

    pk = upload.session.pk  # a copy, since the hook may change the session
    seconds = conf.uploads().inspect_timeout
    file = File(BufferedReader(PartReader(writer, report), PIECE), upload.session.name)
    try:
        await apart(lambda: hooks.inspect(upload.session, file), seconds, lambda: done)
    except Unfinished as error:
        logger.error("inspect() of upload %s %s, and read no further", pk, error)
        raise InternalError from error
