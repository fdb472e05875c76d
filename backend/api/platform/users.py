"""The caller's own profile."""

from fastapi import APIRouter

from backend.api.auth import OwnerDep
from backend.api.errors import error_responses
from backend.api.platform.auth import UserOut
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.billing import ledger
from backend.users import queries

router = APIRouter(prefix="/users", tags=["users"])


class ProfileOut(UserOut):
    has_received_free_credits: bool
    free_characters_remaining: int
    total_characters_used: int


@router.get("/me", responses=error_responses(401))
async def get_me(owner: OwnerDep, session: SessionDep, services: ServicesDep) -> ProfileOut:
    user = await queries.get_user(session, owner)
    usage = await ledger.usage(session, user_id=owner.id, free_characters=services.settings.free_characters)
    return ProfileOut(
        **UserOut.model_validate(user).model_dump(),
        has_received_free_credits=user.has_received_free_credits,
        free_characters_remaining=usage.free_remaining,
        total_characters_used=usage.used,
    )
