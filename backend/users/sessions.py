"""A user's logins: listed, and ended one by one or all but one."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.kit.owner import Owner
from backend.users.errors import SessionNotFound
from backend.users.models import UserSession


async def list_sessions(session: AsyncSession, owner: Owner) -> Sequence[UserSession]:
    """Those that still stand, the latest login first."""
    return (await session.scalars(select(UserSession).where(*_live(owner.id)).order_by(UserSession.id.desc()))).all()


async def end(session: AsyncSession, owner: Owner, session_id: int) -> None:
    """Raises SessionNotFound."""
    ended = await session.execute(
        update(UserSession)
        .where(UserSession.id == session_id, *_live(owner.id))
        .values(revoked_at=func.now())
        .returning(UserSession.id)
    )
    if ended.scalar_one_or_none() is None:
        raise SessionNotFound()


async def end_others(session: AsyncSession, user_id: int, *, but: UUID | None = None) -> int:
    """Ends all of a user's logins but one; returns how many."""
    others = [*_live(user_id), *([UserSession.public_id != but] if but else [])]
    ended = update(UserSession).where(*others).values(revoked_at=func.now()).returning(UserSession.id)
    return len((await session.scalars(ended)).all())


def _live(user_id: int) -> "tuple[ColumnElement[bool], ...]":
    return UserSession.user_id == user_id, UserSession.revoked_at.is_(None), UserSession.expires_at > func.now()
