"""One request, one transaction, committed before the response leaves."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.services import ServicesDep


async def get_session(services: ServicesDep) -> AsyncIterator[AsyncSession]:
    async with services.db.transaction() as session:
        yield session


# scope="function": the teardown, and with it the commit, runs before the response is sent. A plain dependency would
# answer 200 first and find out about a failing commit afterwards.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
