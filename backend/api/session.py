"""One request, one transaction, committed before the response leaves."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.services import services_of

_SHARED = "session"


def share_session(request: Request, session: AsyncSession) -> None:
    """Makes the request's work part of a transaction that is already open, and that its opener commits."""
    setattr(request.state, _SHARED, session)


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    shared: AsyncSession | None = getattr(request.state, _SHARED, None)
    if shared is not None:
        yield shared
        return
    async with services_of(request).db.transaction() as session:
        yield session


# scope="function": the teardown, and with it the commit, runs before the response is sent. A plain dependency would
# answer 200 first and find out about a failing commit afterwards.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
