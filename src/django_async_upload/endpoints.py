"""Endpoints: the host's limits and hooks for uploads, the same for every door."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, TypeVar

from asgiref.sync import sync_to_async
from django.contrib.auth import get_permission_codename
from django.contrib.auth.models import AbstractBaseUser
from django.core.files import File
from django.utils import timezone
from django.utils.module_loading import import_string

from . import conf
from .admission import network_of
from .concurrency.apart import Unfinished, within
from .engine.taps import Digest, Tap
from .exceptions import InternalError, PermissionRefused
from .login import Login
from .models import Taker, UploadSession
from .receipts import read_field_token
from .sessions import policies, rows
from .sessions.owners import Owner
from .sessions.values import NewUpload

Answer = TypeVar("Answer")

logger = logging.getLogger("django_async_upload")


class Endpoint:
    """One URL for uploads. An instance serves one connection, or one request.

    Class attributes that are None default to the setting of the same name. Hooks that are coroutines may be slow: each
    delays only its own upload, for ``RECEIVER_TIMEOUT`` at most. A hook refuses by raising an
    :class:`~.exceptions.UploadRefused`.
    """

    endpoint: ClassVar[str] = "default"
    """The endpoint's name in rows and tickets: an upload belongs to the endpoint that created it."""
    max_size: ClassVar[int | None] = None
    allowed_types: ClassVar[tuple[str, ...] | None] = None
    allowed_extensions: ClassVar[tuple[str, ...] | None] = None
    storage: ClassVar[str | None] = None
    upload_to: ClassVar[Any] = None

    # Set by the door
    login: Login
    owner: Owner
    """The owner of the uploads, once authenticated."""
    address: IPv4Address | IPv6Address | None
    """The client's."""

    # Hooks --------------------------------------------------------------------------------------

    async def authenticate(self, scope: dict[str, Any]) -> AbstractBaseUser | None:
        """The user of a handshake or request whom the host authenticates in its own way: a JWT, an API key.

        ``scope`` is the ASGI scope, with ``headers``. None: by ticket or session cookie, as without this hook. The
        Origin was checked before. Raises :class:`~.exceptions.AuthenticationRequired` to refuse.
        """
        return None

    async def may_upload(self, user: Any) -> bool:
        """Whether this user may upload here."""
        return True

    async def get_max_size(self, user: Any) -> int | None:
        """Largest file of this user, bytes; None: no limit."""
        return self.announced_size

    async def may_discard(self, session: UploadSession) -> bool:
        """Whether the client may delete this completed upload, which is not taken yet."""
        return True

    async def may_watch(self, user: Any, session: UploadSession | None) -> bool:
        """Whether this user may watch an upload of another owner, or with None all uploads of this endpoint.

        Whoever may watch all may watch each. By default staff with the permission to view uploads; owners may always
        watch their own. Asked when a client begins to watch, and again every half minute.
        """
        view = get_permission_codename("view", UploadSession._meta)
        permission = f"{UploadSession._meta.app_label}.{view}"
        return bool(getattr(user, "is_staff", False)) and await user.ahas_perm(permission)

    async def check(self, session: UploadSession) -> None:
        """Check a new session (name, content type, metadata, ...) before its row is created; may change it.

        The default checks the declared type and the extension against the settings.
        """
        policies.check_extension(session.name, self._setting("allowed_extensions"))
        policies.check_type(session.content_type, self._setting("allowed_types"))

    def get_storage(self, session: UploadSession) -> str:
        """The alias in ``STORAGES`` of the storage for the file. Called once, when the upload is created."""
        storage: str = self._setting("storage")
        return storage

    async def get_name(self, session: UploadSession) -> str:
        """The name to publish under, by default from ``upload_to``. If it is taken, the storage finds a free one."""
        upload_to = self._setting("upload_to")
        name = policies.storage_name(session.name)
        if isinstance(upload_to, str) and conf.is_dotted_path(upload_to):
            upload_to = import_string(upload_to)
        if callable(upload_to):
            ask = sync_to_async(upload_to, thread_sensitive=False)
            return str(await self._limited("upload_to", lambda: ask(session, name)))
        directory = timezone.now().strftime(upload_to).strip("/")
        return f"{directory}/{name}" if directory else name

    def taps(self, session: UploadSession) -> Sequence[Tap]:
        """New taps for the upload's bytes, in addition to the digest that the client asked for.

        An upload that is resumed gets new taps. See :class:`~.engine.taps.Tap`.
        """
        return ()

    async def inspect(self, session: UploadSession, file: File[bytes]) -> None:
        """Check the whole file before it is published, for example by a scanner. ``file`` blocks: read it in a
        thread. Called only where a subclass overrides it, and given up when for ``INSPECT_TIMEOUT`` it has neither
        read further nor returned."""

    async def respond(self, session: UploadSession) -> Mapping[str, Any] | None:
        """The app's own answer to the client: a JSON object of at most 16 KiB, sent with COMPLETED and saved as
        ``session.response``.

        Called once, after the upload has completed: the file can be read and bound. An exception is logged, and the
        answer is empty. Called only where a subclass overrides it.
        """
        return None

    # For doors and use cases ----------------------------------------------------------------------

    async def authenticated(self) -> Owner:
        """Wait until the owner is authenticated. Raises :class:`ConnectionRefused`."""
        return await self.login.wait()

    async def reload_owner(self) -> Owner:
        """The owner as now in the database: permissions are looked up, not remembered.

        The user is a new object, so that no permission is cached. Raises :class:`ConnectionRefused`.
        """
        return await self.login.reload()

    @property
    def announced_size(self) -> int | None:
        """The largest file by settings and class, bytes, which OPTIONS names; None: no limit."""
        size: int | None = self._setting("max_size")
        return size

    async def user_of(self, scope: dict[str, Any]) -> AbstractBaseUser | None:
        """The user whom the host's own way finds, by the hook."""
        if not _overrides(type(self), "authenticate"):
            return None
        return await self._ask(self.authenticate, scope)

    @property
    def _asks_about_users(self) -> bool:
        """Whether a hook of the host may use the user when an upload is created."""
        return _overrides(type(self), "may_upload", "get_max_size", "check", "get_storage")

    @property
    def inspects(self) -> bool:
        """Whether the host overrides :meth:`inspect`."""
        return _overrides(type(self), "inspect")

    @property
    def responds(self) -> bool:
        """Whether the host overrides :meth:`respond`."""
        return _overrides(type(self), "respond")

    def get_taps(self, session: UploadSession) -> Sequence[Tap]:
        """All taps of an upload."""
        taps = self.taps(session)
        return (Digest(session.digest), *taps) if session.digest else taps

    async def admit(self) -> int | None:
        """Check the owner's permission; returns the largest file, bytes, by the hook and the ticket.

        The hooks get the user as now in the database. Raises :class:`PermissionRefused` where the user
        may not upload here, and :class:`ConnectionRefused`.
        """
        return await self._admit(await self.reload_owner())

    async def _admit(self, owner: Owner) -> int | None:
        if not await self._ask(self.may_upload, owner.user):
            raise PermissionRefused
        return policies.smallest(
            await self._ask(self.get_max_size, owner.user),
            owner.ticket.max_size if owner.ticket else None,
        )

    async def name_of(self, session: UploadSession) -> str:
        """The name to publish under, by the hook."""
        return await self._ask(self.get_name, session)

    async def is_discardable(self, session: UploadSession) -> bool:
        """Whether the client may delete a completed upload, by the hook."""
        return await self._ask(self.may_discard, session)

    async def is_watchable(self, session: UploadSession | None) -> bool:
        """Whether the user may watch an upload of another owner, or with None all of this endpoint, by the hook."""
        return await self._limited("may_watch", lambda: self.may_watch(self.owner.user, session))

    async def _ask(self, hook: Callable[..., Coroutine[Any, Any, Answer]], about: Any) -> Answer:
        name = hook.__name__
        if getattr(type(self), name) is getattr(Endpoint, name):
            return await hook(about)  # a task for each would slow down small files
        return await self._limited(name, lambda: hook(about))

    async def _limited(self, name: str, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Await the host's code. Raises :class:`InternalError` when it takes longer than ``RECEIVER_TIMEOUT``."""
        try:
            return await within(ask, conf.uploads().receiver_timeout)
        except Unfinished as error:
            logger.error("%s() of endpoint %s %s", name, self.endpoint, error)
            raise InternalError from error

    async def new_session(self, new: NewUpload) -> tuple[UploadSession, int | None]:
        """Check a new upload; returns its unsaved row and largest size. Raises :class:`UploadRefused`."""
        if self._asks_about_users:
            max_size = await self.admit()
        else:  # not reloaded here, since the transaction that creates the row reloads the owner
            max_size = await self._admit(await self.authenticated())
        owner = self.owner
        policies.check_size(new.size, max_size)
        policies.check_name(new.name)
        metadata = dict(new.metadata)
        taker = metadata.pop("taker", Taker.RECEIVER.value)
        policies.check_choice("taker", taker, Taker.values)
        if "field" in metadata:
            field = read_field_token(metadata["field"], endpoint=self.endpoint)
            max_size = policies.smallest(max_size, field.max_size)
            policies.check_size(new.size, max_size)
            policies.check_accept(new.name, new.content_type, field.accept)
            metadata["field"] = {
                "name": field.name,
                "max_size": field.max_size,
                "place": field.place,
            }
            taker = field.taker
        session = UploadSession(
            key=new.key,
            endpoint=self.endpoint,
            owner_id=owner.user_id,
            owner_key=owner.key,
            address=network_of(self.address),
            name=new.name,
            content_type=new.content_type,
            size=new.size,
            metadata=metadata,
            taker=taker,
            digest=new.digest or "",
            is_partial=new.is_partial,
            parts=[str(part) for part in new.parts],
            digests=dict(new.digests),
            expires_at=rows.expiry(),
        )
        session.storage = self.get_storage(session)
        if not session.is_partial:  # what it becomes a part of is checked
            await self._ask(self.check, session)
        return session, max_size

    def _setting(self, name: str) -> Any:
        own = getattr(self, name)
        return getattr(conf.uploads(), name) if own is None else own


def _overrides(endpoint: type[Endpoint], *hooks: str) -> bool:
    return any(getattr(endpoint, each) is not getattr(Endpoint, each) for each in hooks)
