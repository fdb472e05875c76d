"""One request, one transaction, committed before the response leaves."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.services import services_of


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with services_of(request).db.transaction() as session:
        yield session


# scope="function": the teardown, and with it the commit, runs before the response is sent. A plain dependency would
# answer 200 first and find out about a failing commit afterwards.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
