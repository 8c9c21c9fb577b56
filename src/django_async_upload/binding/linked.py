"""A published file in a host's hands: as an ``UploadedFile``, linked where possible, and bound once.

Django's own fields, models and storages take it as any file of a form. On a file system they get a hard link, and
rename that: no byte is written again. When a model that holds it is saved, it is bound in the same transaction.

Until its published name is removed, after the commit, the row of a bound upload has ``expires_at``: the purge does
what a process that died in between did not.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from django.core.exceptions import ValidationError
from django.core.files.storage import FileSystemStorage, storages
from django.core.files.uploadedfile import UploadedFile
from django.db import models
from django.db.models.fields.files import FieldFile
from django.db.models.signals import post_save, pre_save
from django.dispatch import receiver
from django.utils import timezone

from ..exceptions import AlreadyBound
from ..models import UploadSession
from ..sessions.commits import after_commit
from ..sessions.holds import HOLD, alias, withdraw
from ..sessions.state import State
from ..stores.configured import PRIVATE, get_storage, staging_root
from ..stores.publication import is_same_place

if TYPE_CHECKING:
    UploadedBytes = UploadedFile[bytes]
else:
    UploadedBytes = UploadedFile  # Django's own cannot be subscripted

logger = logging.getLogger("django_async_upload")

_LINK: Final = re.compile(r"[0-9a-f]{32}\.link\Z")


class CompletedUpload(UploadedBytes):
    """A published file under the name that its sender gave it, for a host's ``FileField``.

    ``session`` is its row, and ``receipt`` what was posted for it ("" where :meth:`UploadSession.bind` made it).
    ``epoch`` is the claim of the request that has it; 0 where the row is bound already.
    """

    def __init__(self, session: UploadSession, receipt: str = "", epoch: int = 0) -> None:
        self._opened: Any = None
        self._link: str | None = None
        self._was_moved = self._was_saved = self._is_taken = False
        super().__init__(None, session.name, session.content_type, session.size or 0)
        self.session = session
        self.receipt = receipt
        self.epoch = epoch
        self.is_bound = not epoch
        self._storage, self._stored_as = session.get_storage(), session.stored_as

    # As a file ----------------------------------------------------------------------------------

    @property
    def file(self) -> Any:
        """Opened when somebody reads: storages seek and read without asking for it."""
        if self._opened is None or self._opened.closed:
            self._opened = self._storage.open(self._stored_as, "rb")
        return self._opened

    @file.setter
    def file(self, opened: Any) -> None:
        self._opened = opened

    @property
    def closed(self) -> bool:
        return self._opened is None or self._opened.closed

    def open(self, mode: str | None = None, *args: object, **kwargs: object) -> CompletedUpload:
        self.file.seek(0)
        return self

    def close(self) -> None:
        """Close the file and remove the link. Whoever asks again has them made again."""
        if self._opened is not None:
            self._opened.close()
        self._unlink()

    # As a file on a disk ------------------------------------------------------------------------

    @property
    def temporary_file_path(self) -> Callable[[], str]:
        """Gives the path of a hard link, which a ``FileSystemStorage`` renames to its place.

        A validator may ask for it, too. There is no such attribute where no link can be made: fields
        and storages read the file then.
        """
        if self._link is None or not os.path.lexists(self._link):
            self._unlink()
            self._link = self._make_link()
        return partial(str, self._link)

    def _make_link(self) -> str:
        if not isinstance(self._storage, FileSystemStorage):
            raise AttributeError("temporary_file_path")
        published = self._storage.path(self._stored_as)
        root = staging_root(self._storage)
        link = os.path.join(root, f"{secrets.token_hex(16)}.link")
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            os.link(published, link)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise AttributeError("temporary_file_path") from error
        return link

    def _unlink(self) -> None:
        if self._link is not None:
            try:
                os.unlink(self._link)
            except FileNotFoundError:
                self._was_moved = True  # the host's storage has moved it to its place
            self._link = None

    # Whose it is --------------------------------------------------------------------------------

    def hold(self) -> None:
        """Somebody saves it now. Raises :class:`AlreadyBound` where somebody else did, or does."""
        self._was_saved = True
        rows = UploadSession.objects.using(alias()).filter(
            pk=self.session.pk, state=State.COMPLETED, epoch=self.epoch
        )
        if self.epoch and not rows.update(expires_at=timezone.now() + HOLD):
            raise AlreadyBound

    def bind(self, saved: FieldFile | None = None) -> None:
        """The host has it, if the transaction commits: the published name goes then. Synchronous.

        Saving a model that holds it does this by itself. Call it where a storage of your own has saved the file
        without one. ``saved`` is what a model's field has now: where that is the published file itself, its name stays.
        """
        stays = saved is not None and is_same_place(
            self._storage, self._stored_as, saved.storage, str(saved.name)
        )
        until = None if stays else timezone.now() + HOLD
        rows = UploadSession.objects.using(alias())
        if self.epoch:
            bound = rows.transition(
                [self.session.pk], State.BOUND, holder=self.epoch, expires_at=until
            )
        else:
            bound = rows.filter(pk=self.session.pk, state=State.BOUND).update(expires_at=until)
        if bound:
            self._is_taken = True
            after_commit(alias(), self._give_away, stays)
        else:  # only outside of a transaction, where saving took longer than HOLD
            logger.error("Upload %s was saved twice: the first took too long", self.session.pk)

    def _give_away(self, stays: bool) -> None:
        self.is_bound = True
        self.close()
        if not stays:
            withdraw(self.session)

    def forget(self) -> None:
        """After the commit of :meth:`UploadSession.bind`."""
        self.close()
        if self._was_moved and not self._is_taken:  # by a storage of the host's, without a model
            withdraw(self.session)
        elif not self._is_taken:
            logger.warning(
                "Upload %s was bound, and no model was saved with its file: it stays as %s. "
                "Call bind() of the file where you save it in another way.",
                self.session.pk,
                self._stored_as,
            )

    def end(self, *, is_done: bool) -> bool:
        """The request is over. Whether the upload is to be let go, to be posted again.

        A file that a storage took without a model (a wizard's, between two steps) is bound, if all went well.
        """
        self._unlink()
        if is_done and self._was_moved and not self._was_saved:
            self.bind()
            return False
        return not self.is_bound


class RefusedUpload(UploadedBytes):
    """What stands in ``request.FILES`` for a file that is refused.

    Whoever looks at its name or size gets the :class:`ValidationError`: form fields and serializers do so
    first of all, and show it where the file was posted.
    """

    def __init__(self, error: ValidationError, called: str = "") -> None:
        self.error = error
        self.called = called
        """The name of the file, where it may be told."""

    def _refuse(self, *args: object) -> NoReturn:
        raise self.error

    name = property(_refuse)
    size = property(_refuse)
    file = property(_refuse)
    content_type = None
    closed = True

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return " ".join(self.error.messages)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.error.code}>"

    def close(self) -> None:
        """There is nothing to close."""


# A model that holds one is saved -------------------------------------------------------------------


@receiver(pre_save)
def hold_uploads(
    sender: type[models.Model],
    instance: models.Model,
    raw: bool,
    update_fields: frozenset[str] | None,
    **kwargs: Any,
) -> None:
    """Nobody else saves the uploads that this object is about to write to its storage."""
    found = {
        field: content
        for field in sender._meta.concrete_fields
        if isinstance(field, models.FileField)
        and not raw
        and isinstance(content := _content(instance, field), CompletedUpload)
        and (update_fields is None or field.name in update_fields or field.attname in update_fields)
    }
    for upload in found.values():
        upload.hold()
    if found:
        instance.__dict__["_async_uploads"] = found
    else:
        instance.__dict__.pop("_async_uploads", None)


def _content(instance: models.Model, field: models.FileField) -> Any:
    """What a field holds that is not written yet; a deferred field is not loaded for it."""
    value = instance.__dict__.get(field.attname)
    return getattr(value, "_file", None) if isinstance(value, field.attr_class) else value


@receiver(post_save)
def bind_uploads(instance: models.Model, **kwargs: Any) -> None:
    found: dict[models.FileField, CompletedUpload] = instance.__dict__.pop("_async_uploads", {})
    for field, upload in found.items():
        upload.bind(getattr(instance, field.name))


# What a crash left ---------------------------------------------------------------------------------


def abandoned_links(age: timedelta) -> Iterator[str]:
    """Paths of links that were made longer ago than ``age`` and that nobody took."""
    before = time.time() - age.total_seconds()
    for folder in _staging_folders():
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if _LINK.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        # A link shares the file's mtime; making it sets the ctime.
                        if entry.stat(follow_symlinks=False).st_ctime < before:
                            yield entry.path


def _staging_folders() -> set[str]:
    folders = set()
    for name in {*storages.backends, PRIVATE}:
        # Not every storage can be used by every process: one for static files wants STATIC_ROOT, another a network.
        with suppress(Exception):
            storage = get_storage(name)
            if isinstance(storage, FileSystemStorage):
                folders.add(staging_root(storage))
    return folders
