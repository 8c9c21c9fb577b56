"""A published file as an ``UploadedFile`` for the host: a hard link where possible, bound once.

Django's own fields, models and storages take it as any file of a form. On a file system they get a hard link, and
rename that: no byte is written again. Saving a model that has it binds it in the same transaction.

The published name is deleted after the commit. Until then the row of a bound upload has ``expires_at``: where the
process crashes in between, the purge deletes the name.
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

from .. import conf
from ..exceptions import AlreadyBound
from ..failpoints import failpoint
from ..models import UploadSession
from ..notices import about
from ..sessions.commits import after_commit
from ..sessions.holds import HOLD, upload_database, withdraw
from ..sessions.state import State
from ..stores import disk
from ..stores.configured import PRIVATE, get_storage, staging_root
from ..stores.disk import translated
from ..stores.publication.link import directories_of, sync_names
from ..stores.publication.names import is_same_place

if TYPE_CHECKING:
    UploadedBytes = UploadedFile[bytes]
else:
    UploadedBytes = UploadedFile  # Django's own class is not generic

logger = logging.getLogger("django_async_upload")

_LINK: Final = re.compile(r"[0-9a-f]{32}\.link\Z")


class CompletedUpload(UploadedBytes):
    """A published file under the name that the client sent, for a host's ``FileField``.

    ``session`` is its row, and ``receipt`` the posted receipt ("" where :meth:`UploadSession.bind` created it).
    ``epoch`` is that of the request's hold; 0 where the row is bound already.
    """

    def __init__(self, session: UploadSession, receipt: str = "", epoch: int = 0) -> None:
        self._opened: Any = None
        self._link: str | None = None
        self._was_moved = False
        """A storage renamed the link: nothing else removes it from the staging folder within a request."""
        self._was_saved = False
        """A model began to save the file, and :meth:`bind` follows, unless that fails."""
        self._is_taken = False
        super().__init__(None, session.name, session.content_type, session.size or 0)
        self.session = session
        self.receipt = receipt
        self.epoch = epoch
        self.is_bound = not epoch
        self._storage, self._stored_as = session.get_storage(), session.stored_as

    # As a file ----------------------------------------------------------------------------------

    @property
    def file(self) -> Any:
        """The open file. It is opened on first use, since storages seek and read without calling :meth:`open`."""
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
        """Close the file and remove the link. Later use opens the file and makes the link again."""
        if self._opened is not None:
            self._opened.close()
        self._unlink()

    # As a file on a disk ------------------------------------------------------------------------

    @property
    def temporary_file_path(self) -> Callable[[], str]:
        """A method that returns the path of a hard link, which a ``FileSystemStorage`` renames to its own name.

        A validator may use it, too. Where no link can be made this raises :class:`AttributeError`, so that fields
        and storages read the file instead.
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
            failpoint("bind.before_link")
            os.link(published, link)
            failpoint("bind.after_link")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise AttributeError("temporary_file_path") from error
        return link

    def _unlink(self) -> None:
        if self._link is not None:
            failpoint("bind.before_unlink")
            try:
                os.unlink(self._link)
            except FileNotFoundError:
                self._was_moved = True  # the host's storage has renamed it
            failpoint("bind.after_unlink")
            self._link = None

    # Binding ------------------------------------------------------------------------------------

    def renew_hold(self) -> None:
        """Extend the hold to save a model. Raises :class:`AlreadyBound` where another request took the upload."""
        self._was_saved = True
        rows = UploadSession.objects.using(upload_database()).filter(
            pk=self.session.pk, state=State.COMPLETED, epoch=self.epoch
        )
        failpoint("renew_hold.before_commit")
        if self.epoch and not rows.update(expires_at=timezone.now() + HOLD):
            raise AlreadyBound
        failpoint("renew_hold.after_commit")

    def bind(self, saved: FieldFile | None = None) -> None:
        """Mark the row bound; the published name is deleted when the transaction commits. Synchronous.

        Saving a model that has the file does this by itself. Call it where your own storage has saved the file
        without a model. ``saved`` is the value of a model's field after saving: where that is the published file
        itself, its name stays.
        """
        stays = saved is not None and is_same_place(
            self._storage, self._stored_as, saved.storage, str(saved.name)
        )
        if saved is not None and not stays:
            _sync(saved)
        until = None if stays else timezone.now() + HOLD
        rows = UploadSession.objects.using(upload_database())
        failpoint("bind.before_update")
        if self.epoch:
            bound = rows.transition(
                [self.session.pk], State.BOUND, holder=self.epoch, expires_at=until
            )
        else:
            bound = rows.filter(pk=self.session.pk, state=State.BOUND).update(expires_at=until)
        failpoint("bind.after_update")
        if bound:
            self._is_taken = True
            after_commit(upload_database(), self._after_commit, stays)
        else:  # only outside of a transaction, where saving took longer than the hold lasts
            logger.error(
                "Upload %s was saved twice: its hold expired before it was bound",
                self.session.pk,
                extra=about(self.session),
            )

    def _after_commit(self, stays: bool) -> None:
        failpoint("bind.after_commit")
        self.is_bound = True
        self.close()
        if not stays:
            withdraw(self.session)

    @property
    def _is_moved_without_model(self) -> bool:
        """Whether a storage has saved the file for code that has no model, such as a wizard's."""
        return self._was_moved and not self._was_saved

    def finish_bind(self) -> None:
        """Clean up after the commit of :meth:`UploadSession.bind`."""
        self.close()
        if self._is_taken:
            return
        if self._is_moved_without_model:
            withdraw(self.session)
        else:
            logger.warning(
                "Upload %s was bound, but no model was saved with its file, which stays as %s. "
                "Where you save the file in another way, call its bind().",
                self.session.pk,
                self._stored_as,
                extra=about(self.session),
            )

    def end_request(self, *, is_done: bool) -> bool:
        """End the request. Returns whether to release the upload, so that its receipt can be posted again.

        A file that a storage saved without a model (a wizard's, between two steps) is bound, if the request succeeded.
        """
        self._unlink()
        if is_done and self._is_moved_without_model:
            self.bind()
            return False
        return not self.is_bound


def _sync(saved: FieldFile) -> None:
    """Make the host's file durable before the row says that it is bound: soon its published name is deleted."""
    storage, name = saved.storage, str(saved.name)
    if conf.uploads().durability != "fsync" or not isinstance(storage, FileSystemStorage):
        return
    with translated(), suppress(FileNotFoundError):  # a storage may keep it elsewhere
        failpoint("bind.before_sync")
        disk.sync_file(storage.path(name))
        failpoint("bind.after_sync")
        sync_names(directories_of(storage, name))
        failpoint("bind.after_sync_of_names")


class RefusedUpload(UploadedBytes):
    """The value of a field whose posted file is refused.

    Its name and size raise the :class:`ValidationError`: form fields and serializers read them first, and so show the
    error at the field.
    """

    def __init__(self, error: ValidationError, called: str = "") -> None:
        self.error = error
        self.called = called
        """The file's name, where it may be shown."""

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
        """Nothing to close."""


# Saving of models that have an upload --------------------------------------------------------------


@receiver(pre_save)
def hold_uploads(
    sender: type[models.Model],
    instance: models.Model,
    raw: bool,
    update_fields: frozenset[str] | None,
    **kwargs: Any,
) -> None:
    """Extend the holds of the uploads that this object is about to write to its storage."""
    found = {
        field: content
        for field in sender._meta.concrete_fields
        if isinstance(field, models.FileField)
        and not raw
        and isinstance(content := _content(instance, field), CompletedUpload)
        and (update_fields is None or field.name in update_fields or field.attname in update_fields)
    }
    for upload in found.values():
        upload.renew_hold()
    if found:
        instance.__dict__["_async_uploads"] = found
    else:
        instance.__dict__.pop("_async_uploads", None)


def _content(instance: models.Model, field: models.FileField) -> Any:
    """A field's file that is not saved yet, without loading a deferred field."""
    value = instance.__dict__.get(field.attname)
    return getattr(value, "_file", None) if isinstance(value, field.attr_class) else value


@receiver(post_save)
def bind_uploads(instance: models.Model, **kwargs: Any) -> None:
    found: dict[models.FileField, CompletedUpload] = instance.__dict__.pop("_async_uploads", {})
    for field, upload in found.items():
        upload.bind(getattr(instance, field.name))


# Links that a crash left ---------------------------------------------------------------------------


def abandoned_links(age: timedelta) -> Iterator[str]:
    """Paths of links that are older than ``age`` and that no storage renamed."""
    before = time.time() - age.total_seconds()
    for folder in _staging_folders():
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if _LINK.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        # A link shares the file's mtime; creating it sets the ctime.
                        if entry.stat(follow_symlinks=False).st_ctime < before:
                            yield entry.path


def _staging_folders() -> set[str]:
    folders = set()
    for name in {*storages.backends, PRIVATE}:
        # Some storages fail in some processes: one for static files needs STATIC_ROOT, another a network.
        with suppress(Exception):
            storage = get_storage(name)
            if isinstance(storage, FileSystemStorage):
                folders.add(staging_root(storage))
    return folders
