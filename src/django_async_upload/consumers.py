"""The WebSocket consumer: use it as it is, or subclass it like a class-based view."""

from __future__ import annotations

from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.core.files import File
from django.utils import timezone
from django.utils.module_loading import import_string

from . import conf
from .admission import network_of
from .exceptions import PermissionRefused
from .models import Taker, UploadSession
from .protocol import messages as m
from .receipts import read_field_token
from .sessions import policies, rows
from .sessions.owners import Owner
from .websocket.connection import CLOSE_CODES, Connection, drain, undrain

__all__ = ["CLOSE_CODES", "UploadConsumer", "drain", "undrain"]


class UploadConsumer(Connection):
    """One connection, with any number of uploads.

    Class attributes that are None take the setting of the same name. The hooks are coroutines and may be
    slow: each delays one upload only. Refuse by raising an :class:`~.exceptions.UploadRefused`.
    """

    endpoint: ClassVar[str] = "default"
    """Names this consumer in rows and tickets: an upload belongs to the endpoint that made it."""
    max_size: ClassVar[int | None] = None
    allowed_types: ClassVar[tuple[str, ...] | None] = None
    allowed_extensions: ClassVar[tuple[str, ...] | None] = None
    storage: ClassVar[str | None] = None
    upload_to: ClassVar[Any] = None

    # Hooks --------------------------------------------------------------------------------------

    async def may_upload(self, user: Any) -> bool:
        """Whether this user may upload here at all."""
        return True

    async def get_max_size(self, user: Any) -> int | None:
        """Largest file of this user, bytes; None is no limit."""
        return self._setting("max_size")  # type: ignore[no-any-return]

    async def may_discard(self, session: UploadSession) -> bool:
        """Whether the sender may delete this finished upload, whose file is not taken yet."""
        return True

    async def check(self, session: UploadSession) -> None:
        """Look at a new session (name, content type, metadata, ...) before it is let in, or change it.

        The default checks the declared type and the extension against the settings.
        """
        policies.check_extension(session.name, self._setting("allowed_extensions"))
        policies.check_type(session.content_type, self._setting("allowed_types"))

    async def get_name(self, session: UploadSession) -> str:
        """The name to publish under, as ``upload_to`` has it; it is made free afterwards."""
        upload_to = self._setting("upload_to")
        name = policies.storage_name(session.name)
        if isinstance(upload_to, str) and conf.is_dotted_path(upload_to):
            upload_to = import_string(upload_to)
        if callable(upload_to):
            return str(await sync_to_async(upload_to, thread_sensitive=False)(session, name))
        directory = timezone.now().strftime(upload_to).strip("/")
        return f"{directory}/{name}" if directory else name

    async def inspect(self, session: UploadSession, file: File[bytes]) -> None:
        """Look at the whole file before it is published (a scanner's place). ``file`` blocks: read it in a
        thread. Called only where a subclass overrides it."""

    # What the connection asks ---------------------------------------------------------------------

    @property
    def _asks_about_users(self) -> bool:
        """Whether a hook of the host may look at the user when an upload is created."""
        hooks = ("may_upload", "get_max_size", "check")
        return any(getattr(type(self), each) is not getattr(UploadConsumer, each) for each in hooks)

    @property
    def inspects(self) -> bool:
        return type(self).inspect is not UploadConsumer.inspect

    async def admit(self) -> int | None:
        """The largest file of this owner: the hook's word, and the ticket's.

        The hooks are asked about the user as he is in the database now. Raises :class:`PermissionRefused` for
        one who may not upload here, and :class:`ConnectionRefused`.
        """
        return await self._admit(await self.reload_owner())

    async def _admit(self, owner: Owner) -> int | None:
        if not await self.may_upload(owner.user):
            raise PermissionRefused
        return policies.smallest(
            await self.get_max_size(owner.user), owner.ticket.max_size if owner.ticket else None
        )

    async def new_session(self, create: m.Create) -> tuple[UploadSession, int | None]:
        """The row for a CREATE that the host allows, and its largest size. Raises :class:`UploadRefused`."""
        if self._asks_about_users:
            max_size = await self.admit()
        else:  # the transaction that makes the row reads the owner, too: once is enough
            max_size = await self._admit(await self.authenticated())
        owner = self.owner
        policies.check_size(create.size, max_size)
        policies.check_name(create.name)
        metadata = dict(create.metadata)
        taker = metadata.pop("taker", Taker.RECEIVER.value)
        policies.check_choice("taker", taker, Taker.values)
        if "field" in metadata:
            field = read_field_token(metadata["field"], endpoint=self.endpoint)
            max_size = policies.smallest(max_size, field.max_size)
            policies.check_size(create.size, max_size)
            policies.check_accept(create.name, create.content_type, field.accept)
            metadata["field"] = {
                "name": field.name,
                "max_size": field.max_size,
                "place": field.place,
            }
            taker = field.taker
        session = UploadSession(
            key=create.key,
            endpoint=self.endpoint,
            owner_id=owner.user_id,
            owner_key=owner.key,
            address=network_of(self.address),
            name=create.name,
            content_type=create.content_type,
            size=create.size,
            metadata=metadata,
            taker=taker,
            digest=create.digest or "",
            storage=self._setting("storage"),
            expires_at=rows.expiry(),
        )
        await self.check(session)
        return session, max_size

    def _setting(self, name: str) -> Any:
        own = getattr(self, name)
        return getattr(conf.uploads(), name) if own is None else own
