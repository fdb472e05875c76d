"""The caller's keys at providers: added, listed masked, deleted."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, SecretStr, StringConstraints

from backend.api.auth import ClaimsDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.platform.deps import WindowDep, shown
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.users import provider_keys
from backend.users.models import ProviderKey

router = APIRouter(prefix="/users/me/api-keys", tags=["provider keys"])


class ApiKeyIn(BaseModel):
    provider: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=30)]
    key: Annotated[SecretStr, Field(min_length=1, max_length=4000)]


class ApiKeyOut(BaseModel):
    id: int
    user_id: int
    provider: str
    key: str  # masked
    verified_at: datetime | None
    created_at: datetime


@router.get("", responses=error_responses(401))
async def list_api_keys(owner: OwnerDep, session: SessionDep, window: WindowDep, response: Response) -> list[ApiKeyOut]:
    return [api_key_out(row) for row in shown(response, window, await provider_keys.list_keys(session, owner))]


@router.post("", status_code=201, responses={200: {"model": ApiKeyOut}, **error_responses(400, 401)})
async def put_api_key(body: ApiKeyIn, claims: ClaimsDep, services: ServicesDep, response: Response) -> ApiKeyOut:
    """201 for the first key of a provider, 200 when it replaces another. No transaction is open during the check."""
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
    row, is_new = await provider_keys.put(
        services.db,
        services.sealer,
        owner,
        provider=body.provider,
        key=body.key.get_secret_value(),
        base_url=services.settings.provider_url(body.provider),
    )
    response.status_code = 201 if is_new else 200
    return api_key_out(row)


@router.delete("/{provider}", status_code=204, responses=error_responses(400, 401, 404))
async def delete_api_key(provider: str, owner: OwnerDep, session: SessionDep) -> None:
    await provider_keys.remove(session, owner, provider)


def api_key_out(row: ProviderKey) -> ApiKeyOut:
    return ApiKeyOut(
        id=row.id,
        user_id=row.user_id,
        provider=row.provider,
        key=row.masked,
        verified_at=row.verified_at,
        created_at=row.created_at,
    )
