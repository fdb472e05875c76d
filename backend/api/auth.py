"""Bearer token to owner, for both faces."""

import time
from collections import OrderedDict
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2PasswordBearer
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.services import Services, services_of
from backend.api.session import SessionDep
from backend.kit.errors import Unauthorized
from backend.kit.owner import Owner
from backend.users import queries
from backend.users.errors import BadToken, LoginRequired
from backend.users.tokens import PERSONAL_PREFIX, Claims, PersonalToken, digest

bearer = OAuth2PasswordBearer(tokenUrl="/api/auth/login", auto_error=False)
_CACHED_TOKENS = 10_000

# What a request came with: an access token's claims, or a personal access token that is still to be looked up.
Credentials = Claims | PersonalToken


class VerifiedTokens:
    """Remembers tokens whose signature was checked, which costs more than the rest of a small request.

    Only what never changes is remembered: whether the login still stands is asked of the database each time.
    """

    def __init__(self, limit: int = _CACHED_TOKENS) -> None:
        self._limit = limit
        self._claims: OrderedDict[str, Claims] = OrderedDict()

    def verify(self, services: Services, token: str) -> Claims:
        claims = self._claims.get(token)
        if claims is None:
            claims = services.signer.verify("access", token)
            self._claims[token] = claims
            if len(self._claims) > self._limit:
                self._claims.popitem(last=False)
        elif claims.expires_at <= time.time():
            del self._claims[token]
            raise BadToken()
        return claims


async def current_claims(request: Request, token: Annotated[str | None, Security(bearer)]) -> Credentials | None:
    """What the token says; None when there is none and none is needed (AUTH_MODE=local)."""
    if token is None:
        if services_of(request).local_owner is None:
            raise Unauthorized()
        return None
    if token.startswith(PERSONAL_PREFIX):
        return PersonalToken(digest(token))
    verified: VerifiedTokens = request.app.state.verified_tokens
    return verified.verify(services_of(request), token)


async def current_owner(request: Request, session: SessionDep, token: Annotated[str | None, Security(bearer)]) -> Owner:
    return await authenticate(services_of(request), session, await current_claims(request, token))


ClaimsDep = Annotated[Credentials | None, Depends(current_claims)]


async def current_login(claims: ClaimsDep) -> Claims | None:
    """For what a machine's token may not do; None in AUTH_MODE=local. Raises LoginRequired."""
    if isinstance(claims, PersonalToken):
        raise LoginRequired()
    return claims


async def authenticate(services: Services, session: AsyncSession, claims: Credentials | None) -> Owner:
    """The owner that the request acts for. Raises Unauthorized or BadToken."""
    if claims is None:
        if services.local_owner is None:
            raise Unauthorized()
        return services.local_owner
    if isinstance(claims, PersonalToken):
        owner = await services.token_uses.find_owner(session, claims.digest)
    else:
        owner = await queries.find_owner(session, user=claims.user, login=claims.session)
    if owner is None:
        raise BadToken()
    return owner


LoginDep = Annotated[Claims | None, Depends(current_login)]
OwnerDep = Annotated[Owner, Depends(current_owner)]
