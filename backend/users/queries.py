"""SELECTs over users and their logins."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.db import fetch
from backend.kit.owner import Owner
from backend.users.models import Subscription, User, UserSession

# Plain SQL: this runs on every request.
_OWNER_OF_SESSION = """
SELECT u.id, u.public_id FROM users u JOIN user_sessions s ON s.user_id = u.id
WHERE u.public_id = $1 AND s.public_id = $2 AND s.revoked_at IS NULL AND s.expires_at > now() AND u.is_active
"""


async def find_owner(session: AsyncSession, *, user: UUID, login: UUID) -> Owner | None:
    """The active owner of a login that was neither revoked nor has expired."""
    rows = await fetch(session, _OWNER_OF_SESSION, user, login)
    return Owner(id=rows[0][0], public_id=rows[0][1]) if rows else None


async def find_by_email(session: AsyncSession, email: str) -> User | None:
    return await session.scalar(select(User).where(func.lower(User.email) == func.lower(email)))


async def get_user(session: AsyncSession, owner: Owner) -> User:
    return (await session.scalars(select(User).where(User.id == owner.id))).one()


async def find_subscription(session: AsyncSession, owner: Owner) -> Subscription | None:
    return await session.scalar(select(Subscription).where(Subscription.user_id == owner.id))


async def find_session_for_update(session: AsyncSession, login: UUID) -> UserSession | None:
    return await session.scalar(select(UserSession).where(UserSession.public_id == login).with_for_update())
