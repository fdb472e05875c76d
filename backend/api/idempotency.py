"""Idempotency-Key: a POST that is sent again with the same key does nothing twice and gets the same answer."""

import hashlib
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.params import Depends as DependsParam
from fastapi.responses import Response
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import Credentials, authenticate, bearer, current_claims
from backend.api.errors import error_responses
from backend.api.services import services_of
from backend.api.session import share_session
from backend.kit.errors import DomainError
from backend.kit.owner import Owner
from backend.users import idempotency
from backend.users.errors import BadIdempotencyKey
from backend.users.idempotency import KeptAnswer

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
_KEY = re.compile(r"[\x20-\x7e]{1,255}")

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


async def _documented(
    key: Annotated[
        str | None,
        Header(
            alias=HEADER,
            min_length=1,
            max_length=255,
            description="Any string that is new for each task. The same request with the same key is carried out once: "
            f"when it is sent again within 24 hours it gets the first answer, with the header {REPLAYED}.",
        ),
    ] = None,
) -> None:
    """For the OpenAPI document; the route itself has read the header before."""


KEY_DOCUMENTED = Depends(_documented)
# Kept with the number of a row instead of an answer.
_PLACED = 202


class IdempotentRoute(APIRoute):
    """A route whose POST takes an Idempotency-Key: `APIRouter(route_class=IdempotentRoute)`.

    The answer is kept in the transaction of the work, which the endpoint gets as its SessionDep; so it must write by
    that alone, and answer with a body that is whole. Failures are not kept. Not for uploads: the body is read whole.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: set[str] | list[str] | None = None,
        dependencies: Sequence[DependsParam] | None = None,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self._takes_key = "POST" in (methods or ())
        if self._takes_key:
            dependencies = [*(dependencies or ()), Depends(_documented)]
            responses = {**error_responses(400), **(responses or {})}
        super().__init__(path, endpoint, methods=methods, dependencies=dependencies, responses=responses, **options)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if not self._takes_key:
            return handle

        async def handle_once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            return await handle(request) if key is None else await _once(request, key, handle)

        return handle_once


async def _once(request: Request, key: str, handle: Handler) -> Response:
    if not _KEY.fullmatch(key):
        raise BadIdempotencyKey()
    services = services_of(request)
    claims = await current_claims(request, await bearer(request))
    digest = await _digest(request)
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        kept = await idempotency.claim(session, owner, key, digest)
        if kept is not None:
            return Response(kept.body, kept.status_code, {REPLAYED: "true"}, "application/json")
        share_session(request, session)
        try:
            response = await handle(request)
        except DomainError as error:
            if error.keeps_changes:
                await idempotency.release(session, owner, key)
            raise
        if response.status_code < 400:
            answer = KeptAnswer(response.status_code, bytes(response.body).decode())
            await idempotency.keep(session, owner, key, answer)
        else:
            await idempotency.release(session, owner, key)
    return response


async def place_once(
    request: Request, claims: Credentials | None, place: Callable[[AsyncSession, Owner], Awaitable[int]]
) -> tuple[int, bool]:
    """Runs `place` in a transaction of its own and returns its number; the same request with the same key gets that
    number again, and True.

    For a POST whose answer needs a call outside after the commit (a checkout at Stripe): the answer is made from the
    numbered row each time, so that a repeated request also goes on where the first one was cut off. The route names
    `KEY_DOCUMENTED` among its dependencies.
    """
    key = request.headers.get(HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise BadIdempotencyKey()
    services = services_of(request)
    digest = await _digest(request)
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
        kept = None if key is None else await idempotency.claim(session, owner, key, digest)
        if kept is not None:
            return int(kept.body), True
        number = await place(session, owner)
        if key is not None:
            await idempotency.keep(session, owner, key, KeptAnswer(_PLACED, str(number)))
        return number, False


async def _digest(request: Request) -> str:
    """SHA-256 over what makes a request another one: method, path, query and body."""
    url = f"{request.method} {request.url.path}?{request.url.query}\n"
    return hashlib.sha256(url.encode() + await request.body()).hexdigest()
