"""The only writer of ledger entries: every processed character is written once, keyed by what processed it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing.models import LedgerEntry

USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Usage:
    """Characters, all non-negative."""

    free_remaining: int
    used: int


async def record_usage(
    session: AsyncSession, *, user_id: int, characters: int, reference: str, params: dict[str, Any]
) -> bool:
    """Writes that `characters` were processed; a second call with the same reference writes nothing and is False."""
    assert characters > 0, "usage is a positive number of characters"
    written = await session.execute(
        insert(LedgerEntry)
        .values(user_id=user_id, kind=USAGE, reference=reference, characters=-characters, params=params)
        .on_conflict_do_nothing(index_elements=["kind", "reference"])
        .returning(LedgerEntry.id)
    )
    return written.scalar_one_or_none() is not None


async def usage(session: AsyncSession, *, user_id: int, free_characters: int) -> Usage:
    used = await session.scalar(
        select(func.coalesce(-func.sum(LedgerEntry.characters), 0)).where(
            LedgerEntry.user_id == user_id, LedgerEntry.kind == USAGE
        )
    )
    return Usage(free_remaining=max(free_characters - int(used or 0), 0), used=int(used or 0))
