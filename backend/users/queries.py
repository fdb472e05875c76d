"""SELECTs over users and their logins."""

from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.owner import Owner
from backend.users.models import User, UserSession

# Built once: this statement runs on every request.
_OWNER_OF_SESSION = (
    select(User.id, User.public_id)
    .join(UserSession, UserSession.user_id == User.id)
    .where(
        UserSession.revoked_at.is_(None),
        UserSession.expires_at > func.now(),
        User.is_active,
    )
)


async def find_owner(session: AsyncSession, *, user: UUID, login: UUID) -> Owner | None:
    """The active owner of a login that was neither revoked nor has expired."""
    statement = _OWNER_OF_SESSION.where(User.public_id == user, UserSession.public_id == login)
    row = (await session.execute(statement)).one_or_none()
    return None if row is None else Owner(id=row[0], public_id=row[1])


async def find_by_email(session: AsyncSession, email: str) -> User | None:
    return await session.scalar(select(User).where(func.lower(User.email) == email.lower()))


async def get_user(session: AsyncSession, owner: Owner) -> User:
    return (await session.scalars(select(User).where(User.id == owner.id))).one()


async def find_session_for_update(session: AsyncSession, login: UUID) -> UserSession | None:
    return await session.scalar(select(UserSession).where(UserSession.public_id == login).with_for_update())
