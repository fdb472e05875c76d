"""The caller's own profile, password and plan."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, field_validator

from backend.api.auth import LoginDep, OwnerDep, authenticate
from backend.api.errors import error_responses
from backend.api.platform.auth import DetailOut, GivenPassword, Name, Password, UserOut, told
from backend.api.rate_limit import count_login
from backend.api.services import ServicesDep
from backend.api.session import SessionDep
from backend.billing import ledger
from backend.kit.language import Language
from backend.users import plans, queries, recovery, service
from backend.users.errors import LocalAccount

router = APIRouter(prefix="/users/me", tags=["users"])


_PASSWORD_CHANGED: dict[Language, str] = {
    "en": "The password is changed, and your other sessions are ended.",
    "fr": "Le mot de passe est modifié, et vos autres sessions ont pris fin.",
}


class ProfileOut(UserOut):
    has_received_free_credits: bool
    free_characters_remaining: int
    total_characters_used: int
    email_verified: bool
    language: str


class ProfileIn(BaseModel):
    """What is left out stays as it is."""

    name: Name | None = None
    has_completed_onboarding: bool | None = None
    language: Language | None = None

    @field_validator("name", "has_completed_onboarding", "language")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("leave the field out to keep it; it cannot be null")
        return value


class PasswordChangeIn(BaseModel):
    current_password: GivenPassword
    new_password: Password


class SubscriptionOut(BaseModel):
    id: int | None
    user_id: int
    stripe_subscription_id: str | None
    plan: str
    status: str
    current_period_start: datetime | None
    current_period_end: datetime | None
    max_projects: int | None
    max_fine_tunings: int | None
    created_at: datetime


@router.get("", responses=error_responses(401))
async def get_me(owner: OwnerDep, session: SessionDep, services: ServicesDep) -> ProfileOut:
    user = await queries.get_user(session, owner)
    balance = await ledger.balance(session, owner.id)
    return ProfileOut(
        **UserOut.model_validate(user).model_dump(),
        has_received_free_credits=user.has_received_free_credits,
        free_characters_remaining=balance.free_remaining(services.settings.free_characters),
        total_characters_used=balance.used,
        email_verified=user.email_verified_at is not None,
        language=user.language,
    )


@router.put("", response_model=UserOut, responses=error_responses(401))
async def change_me(body: ProfileIn, owner: OwnerDep, session: SessionDep) -> Any:
    return await service.change_profile(session, owner, body.model_dump(exclude_unset=True))


@router.get("/subscription", responses=error_responses(401))
async def get_subscription(owner: OwnerDep, session: SessionDep) -> SubscriptionOut:
    """Who pays for no plan has the free one, active, without an id and without Stripe's fields. Null: no limit."""
    limits = await plans.limits_of(session, owner.id)
    row = await queries.find_subscription(session, owner)
    if row is None:
        user = await queries.get_user(session, owner)
        return SubscriptionOut(
            id=None,
            user_id=owner.id,
            stripe_subscription_id=None,
            plan=limits.plan,
            status="active",
            current_period_start=None,
            current_period_end=None,
            max_projects=limits.max_projects,
            max_fine_tunings=limits.max_fine_tunings,
            created_at=user.created_at,
        )
    return SubscriptionOut(
        id=row.id,
        user_id=row.user_id,
        stripe_subscription_id=row.stripe_subscription_id,
        plan=row.plan,
        status=row.status,
        current_period_start=row.current_period_start,
        current_period_end=row.current_period_end,
        max_projects=limits.max_projects,
        max_fine_tunings=limits.max_fine_tunings,
        created_at=row.created_at,
    )


@router.post("/change-password", responses=error_responses(400, 401, 403))
async def change_password(
    body: PasswordChangeIn, request: Request, claims: LoginDep, services: ServicesDep
) -> DetailOut:
    """Ends the other sessions. Not with a personal access token."""
    if claims is None:
        raise LocalAccount()
    async with services.db.transaction() as session:
        owner = await authenticate(services, session, claims)
    await count_login(request, services.settings, str(owner.public_id))
    await recovery.change_password(
        services.db,
        services.post,
        owner,
        current_password=body.current_password,
        new_password=body.new_password,
        login=claims.session,
    )
    return told(request, _PASSWORD_CHANGED)
