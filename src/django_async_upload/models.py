"""The session of one upload, and the outbox of completions."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.conf import settings
from django.core.files import File
from django.core.files.storage import Storage
from django.db import models, router, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.db.transaction import TransactionManagementError
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .exceptions import AlreadyBound, NotCompleted
from .sessions.commits import after_commit
from .sessions.state import ACTIVE, OVER, PUBLISHED, SOURCES, State
from .stores.base import Checkpoint
from .stores.configured import get_storage

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

Row = TypeVar("Row", bound=models.Model)

STATE_CHOICES = [
    (State.CREATED.value, _("created")),
    (State.UPLOADING.value, _("uploading")),
    (State.INTERRUPTED.value, _("interrupted")),
    (State.VERIFYING.value, _("verifying")),
    (State.FINALIZING.value, _("finalizing")),
    (State.COMPLETED.value, _("completed")),
    (State.BOUND.value, _("bound")),
    (State.FAILED.value, _("failed")),
    (State.CANCELLED.value, _("cancelled")),
    (State.EXPIRED.value, _("expired")),
]


class Taker(models.TextChoices):
    """Who takes a finished upload. Stored when the upload is created; each taker takes only its own."""

    FORM = "form", _("a form")
    API = "api", _("an API")
    RECEIVER = "receiver", _("a receiver")


MAX_ERROR_MESSAGE = 255
"""Characters of an error's message that are kept."""


class CurrentQuerySet(models.QuerySet[Row]):
    """Reads from the database that is written to: a replica that lags would miss an upload just created."""

    @property
    def db(self) -> str:
        return self._db or router.db_for_write(self.model, **self._hints)  # type: ignore[attr-defined]  # not in the stubs


class UploadSessionQuerySet(CurrentQuerySet["UploadSession"]):
    """Queries for hosts."""

    def for_user(self, user: AbstractBaseUser | AnonymousUser) -> UploadSessionQuerySet:
        """Uploads of a signed-in user; none for an anonymous one, since NULL equals no owner."""
        return self.filter(owner_id=user.pk) if user.is_authenticated else self.none()

    def active(self) -> UploadSessionQuerySet:
        """Neither ended nor published yet."""
        return self.filter(state__in=ACTIVE)

    def completed(self) -> UploadSessionQuerySet:
        """Published, bound to a host's object or not."""
        return self.filter(state__in=PUBLISHED)

    def ended(self) -> UploadSessionQuerySet:
        """Failed, cancelled or expired."""
        return self.filter(state__in=OVER)

    def expired(self, now: datetime | None = None) -> UploadSessionQuerySet:
        """Active, but inactive for ``expire_after``: the purge expires these.

        An upload in ``finalizing`` never expires: a process is publishing it, or will resume that.
        """
        return self.filter(
            state__in=ACTIVE - {State.FINALIZING}, expires_at__lt=now or timezone.now()
        )

    def for_taker(self, *takers: str) -> UploadSessionQuerySet:
        """Created for one of these takers: ``for_taker("form", "api")``. See :class:`Taker`."""
        return self.filter(taker__in=takers)

    def unbound(self, before: datetime) -> UploadSessionQuerySet:
        """Completed before that time, and not bound to an object of the host."""
        return self.filter(state=State.COMPLETED, completed_at__lt=before)

    def transition(
        self, pks: Iterable[uuid.UUID], to: State, *, holder: int | None = None, **values: Any
    ) -> int:
        """Change the state of rows by compare-and-set; the only place that changes a state.

        ``holder`` is the epoch of the holder that asks: one that was taken over changes nothing. Returns how many
        rows were in a state from which ``to`` may be entered, and were changed.
        """
        rows = self.filter(pk__in=pks, state__in=SOURCES[to])
        if holder is not None:
            rows = rows.filter(epoch=holder)
        return rows.update(**{"state": to, "updated_at": timezone.now(), **values})


class UploadSession(models.Model):
    """One upload, from its creation to the file that the host binds. ``pk`` is its public id."""

    id = models.UUIDField(_("id"), primary_key=True, default=uuid.uuid4, editable=False)
    key = models.CharField(
        _("key"), max_length=32, help_text=_("The client's, makes create idempotent.")
    )
    endpoint = models.CharField(_("endpoint"), max_length=100)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("owner"),
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
    )
    owner_key = models.CharField(
        _("owner key"),
        max_length=100,
        help_text=_("The user, or the token of an anonymous visitor."),
    )
    address = models.GenericIPAddressField(_("address"), null=True, blank=True)

    name = models.CharField(_("name as sent"), max_length=1024)
    content_type = models.CharField(
        _("content type as declared"), max_length=255, blank=True, help_text=_("Never trust it.")
    )
    size = models.BigIntegerField(_("size in bytes"), null=True, blank=True)
    metadata = models.JSONField(_("metadata"), default=dict, blank=True)
    taker = models.CharField(
        _("taken by"), max_length=8, choices=Taker.choices, default=Taker.RECEIVER.value
    )
    digest = models.CharField(_("digest asked for"), max_length=16, blank=True)
    is_partial = models.BooleanField(
        _("partial"), default=False, help_text=_("Never published: a part of another upload.")
    )
    parts = models.JSONField(
        _("parts"), default=list, blank=True, help_text=_("Ids of partial uploads, concatenated.")
    )

    state = models.CharField(
        _("state"), max_length=12, choices=STATE_CHOICES, default=State.CREATED.value
    )
    epoch = models.PositiveIntegerField(_("epoch"), default=1, help_text=_("Counts the holders."))
    part = models.CharField(_("part"), max_length=255, blank=True)
    durable = models.BigIntegerField(_("durable bytes"), default=0)
    crc = models.BigIntegerField(_("CRC-32C of the durable bytes"), default=0)
    token = models.TextField(_("token of the store"), blank=True)

    digests = models.JSONField(_("digests"), default=dict, blank=True)
    storage = models.CharField(_("storage"), max_length=100, default="default")
    stored_as = models.CharField(_("name as stored"), max_length=512, blank=True)
    response = models.JSONField(
        _("response"), null=True, blank=True, help_text=_("The app's own answer to the client.")
    )
    response_due = models.DateTimeField(_("response due"), null=True, blank=True)
    error = models.CharField(_("error"), max_length=40, blank=True)
    error_message = models.CharField(_("error message"), max_length=MAX_ERROR_MESSAGE, blank=True)
    error_facts = models.JSONField(_("figures of the error"), default=dict, blank=True)

    created_at = models.DateTimeField(_("created"), default=timezone.now)
    updated_at = models.DateTimeField(_("updated"), default=timezone.now)
    completed_at = models.DateTimeField(_("completed"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)

    objects = UploadSessionQuerySet.as_manager()

    class Meta:
        verbose_name = _("upload")
        verbose_name_plural = _("uploads")
        ordering: ClassVar[list[str]] = ["-created_at"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["endpoint", "owner_key", "key"], name="async_upload_key_once"
            )
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                fields=["owner_key", "state", "created_at"], name="async_upload_owner_state"
            ),
            models.Index(
                fields=["address", "state", "created_at"], name="async_upload_address_state"
            ),
            models.Index(fields=["state", "expires_at"], name="async_upload_expiry"),
            models.Index(fields=["-created_at"], name="async_upload_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.state})"

    @property
    def crc32c(self) -> str:
        """CRC-32C of the durable bytes, 8 hex digits; of the whole file once it is completed."""
        return f"{self.crc:08x}"

    @property
    def is_completed(self) -> bool:
        return self.state in PUBLISHED

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.part, self.durable, self.crc, self.token)

    @checkpoint.setter
    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self.part, self.token = checkpoint.part, checkpoint.token
        self.durable, self.crc = checkpoint.offset, checkpoint.crc

    @property
    def field_name(self) -> str:
        """The form field whose signed token the client sent, a formset's index as ``__prefix__``; "" without one."""
        return str(self._field.get("name", ""))

    @property
    def field_max_size(self) -> int | None:
        """The largest size that the form field takes, bytes."""
        return self._field.get("max_size")

    @property
    def field_place(self) -> str:
        """The place of that field: an opaque tag of what its form is for, "" where the token has none."""
        return str(self._field.get("place", ""))

    @property
    def made_for(self) -> tuple[str, str]:
        """The field's name and place."""
        return self.field_name, self.field_place

    @property
    def _field(self) -> dict[str, Any]:
        """The content of the field token, stored by the endpoint after it checked the signature."""
        field = self.metadata.get("field") if isinstance(self.metadata, dict) else None
        return field if isinstance(field, dict) else {}

    def get_storage(self) -> Storage:
        return get_storage(self.storage)

    @property
    def file(self) -> File[bytes]:
        """The finished file, to read: ``with session.file as file: ...``.

        Opened from the storage at first use. Raises :class:`NotCompleted` before the upload has completed, and
        :class:`AlreadyBound` once the file is bound: read it from the host's own object then. To assign it to
        a model, see :meth:`bind`.
        """
        self._require_unbound()
        return self.get_storage().open(self.stored_as)

    def bind(self) -> File[bytes]:
        """Bind the finished file to an object of the host, once, without copying it. Synchronous.

        Call it in the transaction that saves the host's object, and assign what it returns to a
        ``FileField``::

            with transaction.atomic():
                document.attachment = session.bind()
                document.save()

        The field's own storage, ``upload_to`` and validators apply. On a file system the host's file is a hard link
        of the published one, which is deleted after the commit; after a rollback it stays, and can be bound
        again. Where your own storage saves the file without a model, also call the file's
        :meth:`~.binding.linked.CompletedUpload.bind`: otherwise the published file stays.

        Raises :class:`NotCompleted`, :class:`AlreadyBound`, and :class:`TransactionManagementError` outside of
        a transaction.
        """
        from .binding.linked import CompletedUpload

        using = router.db_for_write(UploadSession, instance=self)
        if not transaction.get_connection(using).in_atomic_block:
            # Without one the row would say "bound" even if the host's object were never saved.
            raise TransactionManagementError("Call bind() inside transaction.atomic().")
        # The state in memory does not count: a transaction that was rolled back may have left it.
        if not UploadSession.objects.using(using).transition([self.pk], State.BOUND):
            self.refresh_from_db(using=using, fields=["state"])
            self._require_unbound()
        file = CompletedUpload(self)
        after_commit(using, file.finish_bind)
        self.state = State.BOUND
        return file

    def _require_unbound(self) -> None:
        if self.state == State.BOUND:
            raise AlreadyBound
        if self.state != State.COMPLETED:
            raise NotCompleted(state=str(self.state))


class CompletionEventQuerySet(CurrentQuerySet["CompletionEvent"]):
    def due(self, now: datetime) -> CompletionEventQuerySet:
        """To be delivered now: neither waiting after a failed attempt nor claimed by a live process."""
        return self.filter(delivered_at=None, given_up_at=None, due_at__lte=now)

    def given_up(self) -> CompletionEventQuerySet:
        """Not delivered after the last attempt. ``deliver_upload_signals`` and the admin can send them again."""
        return self.exclude(given_up_at=None)

    def claim(self, ids: Iterable[uuid.UUID], until: datetime) -> list[CompletionEvent]:
        """Claim events for delivery by this process until ``until``, which counts as an attempt.

        Events that another process has claimed in the meantime are left out.
        """
        due = self.due(timezone.now())
        claimed = [
            pk for pk in ids if due.filter(pk=pk).update(due_at=until, attempts=F("attempts") + 1)
        ]
        return list(self.filter(pk__in=claimed).select_related("session"))


class CompletionEvent(models.Model):
    """A row of the outbox: committed with the completion, then delivered as ``upload_completed``."""

    id = models.UUIDField(_("id"), primary_key=True, default=uuid.uuid4, editable=False)
    session = models.OneToOneField(
        UploadSession, verbose_name=_("upload"), on_delete=models.CASCADE, related_name="completion"
    )
    created_at = models.DateTimeField(_("created"), default=timezone.now)
    due_at = models.DateTimeField(
        _("due"), default=timezone.now, help_text=_("From then on any process may deliver it.")
    )
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    error = models.CharField(_("error"), max_length=500, blank=True)
    delivered_at = models.DateTimeField(_("delivered"), null=True, blank=True)
    given_up_at = models.DateTimeField(_("given up"), null=True, blank=True)

    objects = CompletionEventQuerySet.as_manager()

    class Meta:
        verbose_name = _("completion event")
        verbose_name_plural = _("completion events")
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["delivered_at", "due_at"], name="async_upload_outbox")
        ]

    def __str__(self) -> str:
        return str(self.id)


class Tombstone(models.Model):
    """A published file whose upload's row was deleted, in the same transaction.

    After the commit the file is deleted, then the tombstone. If the process dies before that, the purge does it.
    """

    id = models.UUIDField(primary_key=True, editable=False)
    """That of the upload."""
    storage = models.CharField(max_length=100)
    stored_as = models.CharField(max_length=512)
    created_at = models.DateTimeField(default=timezone.now)

    objects = CurrentQuerySet["Tombstone"].as_manager()

    def __str__(self) -> str:
        return self.stored_as

    def get_storage(self) -> Storage:
        return get_storage(self.storage)


class Usage(models.Model):
    """The open uploads of one owner, or of one address. A transaction that adds to them has the row locked.

    It holds an upper bound: what ends is not subtracted, but left out by the next count. The purge deletes old rows.
    """

    key = models.CharField(max_length=110, primary_key=True)
    sessions = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    counted_at = models.DateTimeField(null=True, blank=True)

    objects = CurrentQuerySet["Usage"].as_manager()

    def __str__(self) -> str:
        return self.key


class Slot(models.Model):
    """The slot of an authenticated connection. It counts while the connection's process renews ``seen_at``.

    Times are the database's, since the clocks of machines differ.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    process = models.UUIDField()
    owner_key = models.CharField(max_length=100)
    address = models.GenericIPAddressField(null=True, blank=True)
    seen_at = models.DateTimeField(db_default=Now())

    objects = CurrentQuerySet["Slot"].as_manager()

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["owner_key"], name="async_upload_slot_owner"),
            models.Index(fields=["address"], name="async_upload_slot_address"),
        ]

    def __str__(self) -> str:
        return str(self.id)
