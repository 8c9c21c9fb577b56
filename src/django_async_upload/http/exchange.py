"""One HTTP request and its answer: authentication, CORS, and the upload that the request is about."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

from .. import conf
from ..admission import ConnectionSlot, client_address, log_origin, origin_is_trusted, origins
from ..concurrency import pace
from ..endpoints import Endpoint
from ..engine.concatenation import Concatenation
from ..engine.credit import FLOOR
from ..engine.drain import retry_after
from ..engine.outcomes import Cancelled
from ..engine.service import UploadService, get_service
from ..exceptions import (
    AuthenticationRequired,
    Busy,
    Draining,
    InternalError,
    OriginRefused,
    PermissionRefused,
    SizeExceeded,
    UploadError,
    UploadOver,
    WrongOffset,
)
from ..login import Login
from ..models import UploadSession
from ..nodelay import set_nodelay
from ..notices import log_refused
from ..sessions import policies, rows
from ..sessions.owners import Owner, look_up
from ..sessions.state import ACTIVE, PUBLISHED, State
from ..sessions.values import Facts, UploadAccess
from ..stores.base import Piece
from .body import Body, CutOff
from .cors import cors_headers, is_preflight
from .draft import Draft
from .holder import Holder, Turn, holder_of
from .languages import Language
from .plain import Plain
from .requests import Append, Cancel, Checksum, Create, Look, Offset, Question, Request
from .responses import Response, Standing
from .tus import Tus

METHODS: Final = "OPTIONS, HEAD, GET, POST, PUT, PATCH, DELETE"
SAFE: Final = ("GET", "HEAD", "OPTIONS")
PATIENCE_SECONDS: Final = 5.0
"""The longest delay of a request whose owner sends too many."""
FINISHING_SECONDS: Final = 30.0
"""Seconds that a request waits for the end of an upload that another one has completed."""
RETRY_SECONDS: Final = 2.0
DISCARD_SECONDS: Final = 2.0
"""Seconds for which the rest of a body is read and discarded after an error, so that the client reads the answer."""

logger = logging.getLogger("django_async_upload")


class Exchange:
    """The HTTP door of an endpoint: one request."""

    def __init__(self, hooks: Endpoint) -> None:
        self.hooks = hooks
        size = hooks.announced_size
        self._languages: tuple[Language, ...] = (Tus(size), Draft(size), Plain())
        """The first one that speaks a request answers it."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve the request."""
        self._scope = scope
        self._receive = receive
        self._service: UploadService = get_service()
        self._service.start()
        self._standing: Standing | None = None
        self._body: Body | None = None
        set_nodelay(receive)
        self.hooks.address = client_address(scope)
        self._slot = ConnectionSlot(self.hooks.address, self._evict)
        self._login = self.hooks.login = Login(
            self.hooks.endpoint, self._look_up, self._take_slot, self._signed_in
        )
        request = Request.of(scope, _segment_of(scope))
        with suppress(CutOff):
            try:
                response = await self._respond(request)
            finally:
                self._slot.leave()
            await self._send(send, request, response)

    async def _respond(self, request: Request) -> Response:
        language = self._languages[-1]
        question: Question | None = None
        try:
            language = next(each for each in self._languages if each.speaks(request))
            self._check_origin()
            if request.method == "OPTIONS":
                return Response(204, {} if is_preflight(request) else self._abilities())
            question = language.read(request)
            standing = await self._answer(request, question)
            return language.answer(request, question, standing)
        except UploadError as error:
            return self._refuse(language, request, question, error)
        except CutOff:
            raise
        except Exception:  # a bug of a host's hook, or of this app
            logger.exception("A request over HTTP failed")
            return self._refuse(language, request, question, InternalError())

    def _abilities(self) -> dict[str, str]:
        headers = {"Allow": METHODS}
        for language in self._languages:
            headers |= language.abilities
        return headers

    def _refuse(
        self, language: Language, request: Request, question: Question | None, error: UploadError
    ) -> Response:
        self._service.telemetry.count("requests.failed", code=error.code)
        log_refused(error, self.counted_as, self.hooks.endpoint, upload=_id_of(question))
        return language.refuse(request, question, error, self._standing)

    # Who asks -----------------------------------------------------------------------------------

    @property
    def counted_as(self) -> str:
        """The key whose share of the server the request uses: its owner, or before authentication its address."""
        return self._login.key or f"address:{self._slot.address}"

    async def _authenticate(self, request: Request) -> None:
        """Authenticate in the host's own way, by a ticket, or by the session cookie. Raises :class:`UploadError`."""
        if (seconds := retry_after()) is not None:
            raise Draining(retry_after=seconds)
        self._slot.enter()
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if (user := await self.hooks.user_of(self._scope)) is not None:
            await self._login.by_host(user)
        elif scheme.lower() == "bearer":
            await self._login.by_auth(credential.strip(), self._login.expect())
        elif self._cookie_counts(request):
            await self._login.by_cookie(self._scope)
        if not self._login.is_answered:
            raise AuthenticationRequired
        await self._login.wait()
        await self._keep_pace()

    def _cookie_counts(self, request: Request) -> bool:
        """Whether a cookie proves that the user wants the request, and not another site's page that the user looks at.

        A request that changes something has to say its Origin, as every browser does, and :meth:`_check_origin` has
        compared it. Others are the site's own by what the browser says of them; a HEAD or GET of another site's page
        could not read the answer, and the cookie of Django's sessions is not sent with it (SameSite=Lax).
        """
        if origins(self._scope):
            return True
        return request.method in SAFE and request.headers.get("sec-fetch-site") in (
            None,
            "same-origin",
            "none",
        )

    async def _keep_pace(self) -> None:
        """Delay a request of an owner who sends very many. Raises :class:`Busy`."""
        now = asyncio.get_running_loop().time()
        seconds = self._service.pace(self.counted_as).delay(now, pace.QUESTION)
        if seconds > PATIENCE_SECONDS:
            raise Busy(retry_after=seconds)
        if seconds:
            await asyncio.sleep(seconds)

    def _evict(self, error: UploadError) -> None:
        """A newer request needs the slot of this one, which is not authenticated yet."""
        self._login.refuse(error)

    async def _look_up(self, credential: Any) -> Owner:
        return await self._service.database.call(look_up, credential, owner=self.counted_as)

    async def _take_slot(self, owner: Owner) -> None:
        self._slot.sign_in()

    def _signed_in(self, owner: Owner) -> None:
        self.hooks.owner = owner

    # Origin -------------------------------------------------------------------------------------

    def _check_origin(self) -> None:
        """Raises :class:`OriginRefused`."""
        if not origin_is_trusted(self._scope):
            log_origin(self._scope, self.hooks.endpoint, self.hooks.address)
            raise OriginRefused(origin=", ".join(origins(self._scope)))

    # What is asked ------------------------------------------------------------------------------

    async def _answer(self, request: Request, question: Question) -> Standing | None:
        await self._authenticate(request)
        match question:
            case Create(parts=parts) if parts:
                return await self._concatenate(question)
            case Create():
                return await self._create(request, question)
            case Append():
                return await self._append(request, question)
            case Offset(upload):
                return await self._offset(upload)
            case Look(upload):
                return await self._look(upload)
            case Cancel(upload):
                await self._cancel(upload)
        return None

    async def _create(self, request: Request, create: Create) -> Standing:
        held = policies.check_metadata(create.new.metadata)
        body = self._body_of(request)
        holder = Holder(self._service, self.hooks, held=held)
        if create.completes and body.length is not None and body.length <= FLOOR:
            return await self._create_small(holder, create, body)
        holder.create(create.new)
        standing = await holder.prepared()
        if standing.is_published:  # an earlier request with the same key
            return standing
        with await holder.turn() as turn:
            if turn.standing.offset and body.length != 0:
                raise WrongOffset(offset=0, expected=turn.standing.offset)
            try:
                return await self._write(turn, body, create, create.completes)
            except (CutOff, UploadError):
                if not create.has_key:  # the client is not told where it could go on
                    turn.cancel()
                raise

    async def _create_small(self, holder: Holder, create: Create, body: Body) -> Standing:
        """Receive a small file as a whole first: then it is published together with others."""
        upload = holder.upload
        try:
            async with aclosing(_pieces(body, create.checksum)) as pieces:
                async for data in pieces:
                    upload.append(Piece(data))
            facts = dict(create.digests)
            upload.finish(Facts(body.received, facts.pop("crc32c", None), facts))
        except BaseException:
            await holder.attachment.leave()
            raise
        holder.create(create.new)
        return await holder.finished()

    async def _concatenate(self, create: Create) -> Standing:
        """Create an upload of the bytes of partial ones, as if they were the body."""
        hooks = self.hooks
        parts = await Concatenation.of(self._service, create.parts, hooks.owner, hooks.endpoint)
        held = policies.check_metadata(create.new.metadata)
        holder = Holder(self._service, hooks, held=held)
        holder.create(parts.upload(create.new))
        standing = await holder.prepared()
        if not standing.is_published:
            with await holder.turn() as turn:
                async with aclosing(parts.read(turn.standing.offset)) as pieces:
                    async for data in pieces:
                        await turn.write(data)
                standing = await turn.finish({"crc32c": parts.crc32c})
        await parts.join(standing.session)
        return standing

    async def _append(self, request: Request, append: Append) -> Standing:
        holder = holder_of(self._service, self.hooks, append.upload)
        if holder is None:
            session = await self._find(append.upload)
            if session.state in PUBLISHED:
                return self._replayed(request, append, Standing(session, session.size or 0))
            holder = self._attached(append.upload)
        self._standing = standing = await holder.prepared()
        if standing.is_published:
            return self._replayed(request, append, standing)
        if holder.is_finishing:
            return self._replayed(request, append, await self._end_of(holder))
        with await holder.turn() as turn:
            self._standing = standing = turn.standing
            if append.offset != standing.offset:
                raise WrongOffset(offset=append.offset, expected=standing.offset)
            if append.size is not None:
                await turn.declare(append.size)
            try:
                return await self._write(turn, self._body_of(request), append, append.completes)
            finally:
                self._standing = turn.standing

    def _replayed(self, request: Request, append: Append, standing: Standing) -> Standing:
        """The end of a published upload, for a client that has lost the answer. Raises :class:`UploadOver`."""
        self._standing = standing
        if append.completes is False or append.offset != standing.offset or request.length:
            raise UploadOver(state=standing.session.state)
        return standing

    async def _write(
        self, turn: Turn, body: Body, question: Create | Append, completes: bool | None
    ) -> Standing:
        """Write the body as it comes, as fast as there is credit."""
        size, offset = turn.size, turn.standing.offset
        if body.length is not None:
            _check_end(offset + body.length, size)
        turn.body = body
        async with aclosing(_pieces(body, question.checksum)) as pieces:
            async for data in pieces:
                _check_end(offset + body.received, size)
                await turn.write(data)
        if completes is None:
            completes = turn.standing.offset == size
        return await turn.finish(question.digests) if completes else await turn.save()

    async def _offset(self, upload: uuid.UUID) -> Standing:
        holder = holder_of(self._service, self.hooks, upload)
        if holder is None:
            session = await self._find(upload)
            if session.state in PUBLISHED:
                return Standing(session, session.size or 0)
            holder = self._attached(upload)
        standing = await holder.prepared()
        if standing.is_published:
            return standing
        if holder.is_finishing:
            return await self._end_of(holder)
        with await holder.turn() as turn:
            return await turn.save()

    async def _end_of(self, holder: Holder) -> Standing:
        """The end of an upload that another request has completed. Raises :class:`Busy` where that takes long."""
        try:
            async with asyncio.timeout(FINISHING_SECONDS):
                return await holder.finished()
        except TimeoutError:
            raise Busy(retry_after=RETRY_SECONDS) from None

    async def _look(self, upload: uuid.UUID) -> Standing:
        session = await self._service.find(self._access(upload))
        if session.state in PUBLISHED:
            return Standing(session, session.size or 0)
        active = self._service.active.get(upload)
        return Standing(session, session.durable if active is None else active.flow.received)

    async def _cancel(self, upload: uuid.UUID) -> None:
        end = await self._service.cancel(self._access(upload))
        if holder := holder_of(self._service, self.hooks, upload):
            holder.forget()
        if end.session.state == State.COMPLETED:
            if not await self.hooks.is_discardable(end.session):
                raise PermissionRefused
            end = await self._service.discard(end.session)
        if not isinstance(end, Cancelled):
            raise UploadOver(state=end.session.state)

    async def _find(self, upload: uuid.UUID) -> UploadSession:
        """Raises :class:`NotFound`, and the error of an upload that has ended."""
        session = await self._service.find(self._access(upload))
        if session.state not in PUBLISHED | ACTIVE:
            raise rows.error_of(session)
        return session

    def _attached(self, upload: uuid.UUID) -> Holder:
        holder = Holder(self._service, self.hooks)
        holder.attach(upload)
        return holder

    def _access(self, upload: uuid.UUID) -> UploadAccess:
        return UploadAccess(upload, self.hooks.owner, self.hooks.endpoint)

    # The body and the answer --------------------------------------------------------------------

    def _body_of(self, request: Request) -> Body:
        self._body = Body(self._receive, request.length, conf.uploads().idle_timeout)
        return self._body

    async def _send(self, send: Any, request: Request, response: Response) -> None:
        headers = {
            "Content-Length": str(len(response.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **response.headers,
            **cors_headers(self._scope, request, response),
        }
        if response.status == 204 or request.method == "HEAD":
            del headers["Content-Length"]
            response.body = b""
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    (name.lower().encode("latin-1"), value.encode("latin-1"))
                    for name, value in headers.items()
                ],
            }
        )
        part = {"type": "http.response.body", "body": response.body}
        if response.status >= 400 and not (self._body and self._body.has_ended):
            # A server that closes the connection under a client that sends has its answer lost.
            await send({**part, "more_body": True})
            await (self._body or Body(self._receive, None, DISCARD_SECONDS)).discard(
                DISCARD_SECONDS
            )
            part["body"] = b""
        await send(part)


def _pieces(body: Body, checksum: Checksum | None) -> AsyncGenerator[bytes]:
    return body.pieces() if checksum is None else body.checked(checksum)


def _check_end(end: int, size: int | None) -> None:
    """Raises :class:`SizeExceeded`."""
    if size is not None and end > size:
        raise SizeExceeded(end=end, size=size)


def _segment_of(scope: Mapping[str, Any]) -> str:
    """What the path has after the address of the endpoint, by the pattern of :func:`~.routing.upload_path`."""
    return str(scope.get("url_route", {}).get("kwargs", {}).get("segment", ""))


def _id_of(question: Question | None) -> str | None:
    upload = getattr(question, "upload", None)
    return None if upload is None else str(upload)
