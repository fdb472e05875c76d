"""Tokens that a mail carries: kept as a digest, good for one use and a limited time, the newest of its purpose only."""

import secrets
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from backend.users.models import OneUseToken, User
from backend.users.tokens import digest

Purpose = Literal["verify_email", "reset_password"]

LIFETIMES: dict[Purpose, timedelta] = {"verify_email": timedelta(hours=24), "reset_password": timedelta(hours=1)}
# A second mail to the same address comes no sooner.
PAUSE = timedelta(minutes=1)


async def issue(session: AsyncSession, user_id: int, purpose: Purpose) -> str | None:
    """A new token, which ends the older ones of its purpose; None within PAUSE of the last one."""
    # Held until the commit, so that of two simultaneous calls the second one sees the first one's token.
    await session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
    latest = await session.scalar(
        select(func.max(OneUseToken.created_at)).where(OneUseToken.user_id == user_id, OneUseToken.purpose == purpose)
    )
    now = datetime.now(UTC)
    if latest is not None and latest > now - PAUSE:
        return None
    await end_all(session, user_id, purpose)
    token = secrets.token_urlsafe(32)
    session.add(
        OneUseToken(user_id=user_id, purpose=purpose, digest=digest(token), expires_at=now + LIFETIMES[purpose])
    )
    await session.flush()
    return token


async def is_good(session: AsyncSession, token: str, purpose: Purpose) -> bool:
    """Whether it could be used now; says nothing about the next moment."""
    return await session.scalar(select(OneUseToken.id).where(*_good(token, purpose))) is not None


async def use(session: AsyncSession, token: str, purpose: Purpose) -> int | None:
    """The id of the token's user, for exactly one caller; None when it is not good."""
    used = update(OneUseToken).where(*_good(token, purpose)).values(used_at=func.now()).returning(OneUseToken.user_id)
    user_id: int | None = (await session.execute(used)).scalar_one_or_none()
    return user_id


async def end_all(session: AsyncSession, user_id: int, purpose: Purpose) -> None:
    await session.execute(
        update(OneUseToken)
        .where(OneUseToken.user_id == user_id, OneUseToken.purpose == purpose, OneUseToken.used_at.is_(None))
        .values(used_at=func.now())
    )


def _good(token: str, purpose: Purpose) -> "tuple[ColumnElement[bool], ...]":
    return (
        OneUseToken.digest == digest(token),
        OneUseToken.purpose == purpose,
        OneUseToken.used_at.is_(None),
        OneUseToken.expires_at > func.now(),
    )
