"""Who asks, and which model: a bearer token of ours becomes an owner, a model's name his own fine-tuning."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Security
from sqlalchemy.ext.asyncio import AsyncSession

from backend.api.auth import Credentials, bearer, current_claims
from backend.api.services import services_of
from backend.kit.owner import Owner
from backend.training import queries
from backend.training.errors import FineTuningNotFound
from backend.training.models import FineTuning

_NAME = re.compile(r"(?:ft-)?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})")


async def current_key(request: Request, token: Annotated[str | None, Security(bearer)]) -> Credentials | None:
    """What the caller's key says. Clients of this API always send one: without login (AUTH_MODE=local) any will do."""
    if services_of(request).local_owner is not None:
        return None
    return await current_claims(request, token)


KeyDep = Annotated[Credentials | None, Depends(current_key)]


def name_of(run: FineTuning) -> str:
    return f"ft-{run.public_id}"


async def get_model(session: AsyncSession, owner: Owner, name: str) -> FineTuning:
    """The owner's fine-tuning that a client names: 'ft-<its UUID>', or the UUID alone. Raises FineTuningNotFound."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise FineTuningNotFound()
    return await queries.get_by_public_id(session, owner, UUID(found.group(1)))
