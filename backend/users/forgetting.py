"""Logins and tokens that have ended are kept for a while, for whoever looks into what happened, and then deleted."""

from datetime import timedelta

from sqlalchemy import delete, func, or_

from backend.kit.db import Database
from backend.users.models import OneUseToken, PersonalAccessToken, UserSession

KEPT_FOR = timedelta(days=30)


async def forget_ended(db: Database) -> int:
    """Deletes what ended KEPT_FOR ago: expired or revoked logins and tokens. Returns how many rows."""
    before = func.now() - KEPT_FOR
    gone = 0
    async with db.transaction() as session:
        for model in (UserSession, PersonalAccessToken):
            ended = or_(model.expires_at < before, model.revoked_at < before)
            gone += len((await session.scalars(delete(model).where(ended).returning(model.id))).all())
        expired = delete(OneUseToken).where(OneUseToken.expires_at < before).returning(OneUseToken.id)
        gone += len((await session.scalars(expired)).all())
    return gone
