"""Personal access tokens of the caller: made by a login only, shown once, listed by their beginning, revoked."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.api.auth import LoginDep, OwnerDep
from backend.api.errors import error_responses
from backend.api.platform.deps import RowId, WindowDep, shown
from backend.api.session import SessionDep
from backend.users import personal_tokens

# Not an IdempotentRoute: the kept answer would hold the token itself.
router = APIRouter(prefix="/users/me/tokens", tags=["personal access tokens"])


class TokenIn(BaseModel):
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]
    expires_in_days: int | None = Field(default=None, ge=1, le=3650, description="Null: it works until it is deleted")


class TokenOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    prefix: str = Field(description="Its first characters, to tell it from others")
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute")


class NewTokenOut(TokenOut):
    token: str = Field(description="The token itself; no other answer ever shows it")


@router.get("", responses=error_responses(401))
async def list_tokens(owner: OwnerDep, session: SessionDep, window: WindowDep, response: Response) -> list[TokenOut]:
    rows = shown(response, window, await personal_tokens.list_tokens(session, owner))
    return [TokenOut.model_validate(row) for row in rows]


@router.post("", status_code=201, responses=error_responses(401, 403, 409))
async def create_token(
    body: TokenIn, owner: OwnerDep, _: LoginDep, session: SessionDep, response: Response
) -> NewTokenOut:
    row, token = await personal_tokens.create(session, owner, name=body.name, expires_in_days=body.expires_in_days)
    response.headers["Cache-Control"] = "no-store"
    return NewTokenOut(**TokenOut.model_validate(row).model_dump(), token=token)


@router.delete("/{token_id}", status_code=204, responses=error_responses(401, 403, 404))
async def delete_token(token_id: RowId, owner: OwnerDep, _: LoginDep, session: SessionDep) -> None:
    """It stops working at once."""
    await personal_tokens.revoke(session, owner, token_id)
