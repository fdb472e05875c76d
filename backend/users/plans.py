"""What a user's plan allows, and the door in front of what it limits."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.config import FREE_PLAN, get_settings
from backend.users.errors import PlanLimitReached
from backend.users.models import Subscription, User
from backend.users.service import LOCAL_EMAIL

Limit = Literal["max_projects", "max_fine_tunings"]
# A payment that is late does not stop anybody's work; one that failed for good does.
_PAID = frozenset({"active", "trialing", "past_due"})
# Plain SQL, because what is counted lies in tables of domains above this one.
_COUNTS: dict[Limit, str] = {
    "max_projects": "SELECT count(*) FROM projects WHERE user_id = :user_id",
    "max_fine_tunings": """
        SELECT count(*) FROM fine_tunings f JOIN projects p ON p.id = f.project_id
        WHERE p.user_id = :user_id AND f.status NOT IN ('error', 'cancelled')
    """,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a user may have at once (None is without limit), and the share of the GPUs beside other users."""

    plan: str
    max_projects: int | None
    max_fine_tunings: int | None
    max_running_trainings: int | None = None
    weight: int = 1


async def limits_of(session: AsyncSession, user_id: int) -> Limits:
    return await _limits(session, user_id, lock=False)


async def require_room_for_project(session: AsyncSession, user_id: int) -> None:
    """Holds the user's row until the transaction ends, so that of two simultaneous creations one sees the other.

    Raises PlanLimitReached. An archived project counts; a deleted one does not.
    """
    await _require_room(session, user_id, "max_projects")


async def require_room_for_fine_tuning(session: AsyncSession, user_id: int) -> None:
    """As require_room_for_project. Fine-tunings that failed or were cancelled do not count. Raises PlanLimitReached."""
    await _require_room(session, user_id, "max_fine_tunings")


async def _require_room(session: AsyncSession, user_id: int, limit: Limit) -> None:
    limits = await _limits(session, user_id, lock=True)
    allowed: int | None = getattr(limits, limit)
    if allowed is None:
        return
    used = int(await session.scalar(text(_COUNTS[limit]), {"user_id": user_id}) or 0)
    if used >= allowed:
        raise PlanLimitReached(plan=limits.plan, limit=limit, allowed=allowed, used=used)


async def _limits(session: AsyncSession, user_id: int, *, lock: bool) -> Limits:
    query = (
        select(User.email, Subscription.plan, Subscription.status)
        .outerjoin(Subscription, Subscription.user_id == User.id)
        .where(User.id == user_id)
    )
    if lock:  # FOR NO KEY UPDATE: rows that refer to the user can still be written meanwhile
        query = query.with_for_update(key_share=True, of=User)
    email, plan, status = (await session.execute(query)).one()
    plans = get_settings().plans
    if email == LOCAL_EMAIL:  # AUTH_MODE=local has no plans
        return Limits(FREE_PLAN, None, None)
    name = plan if plan in plans and status in _PAID else FREE_PLAN
    terms = plans[name]
    return Limits(
        plan=name,
        max_projects=terms.get("max_projects"),
        max_fine_tunings=terms.get("max_fine_tunings"),
        max_running_trainings=terms.get("max_running_trainings"),
        weight=terms.get("weight", 1),
    )
