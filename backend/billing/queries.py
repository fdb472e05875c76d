"""SELECTs over entries and holds."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ARRAY, BigInteger, any_, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing.models import Hold, LedgerEntry
from backend.kit.pagination import Page, Window

# Holds whose work has ended or is gone, and whose order, if they have one, waits for nothing more. A hold that names
# neither (disputed characters) ends with what it is about. In plain SQL because orders and jobs are only looked at.
_ABANDONED = text("""
    SELECT h.id FROM holds h
    WHERE h.state = 'held' AND h.id > :after AND (h.job_id IS NOT NULL OR h.order_id IS NOT NULL)
      AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = h.job_id AND j.state IN ('queued', 'running'))
      AND NOT EXISTS (
          SELECT FROM orders o WHERE o.id = h.order_id AND o.state IN ('pending_payment', 'paid', 'running')
      )
    ORDER BY h.id LIMIT :most
""")


async def given_this_month(session: AsyncSession, user_id: int, now: datetime | None = None) -> int:
    """The complimentary characters of this calendar month (UTC); work that is not billed at all does not count."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    given = select(func.sum(LedgerEntry.characters)).where(
        LedgerEntry.user_id == user_id,
        LedgerEntry.kind == "complimentary",
        LedgerEntry.created_at >= start,
        ~LedgerEntry.params.has_key("unbilled"),
    )
    return int(await session.scalar(given) or 0)


async def hold_exists(session: AsyncSession, reference: str) -> bool:
    return await session.scalar(select(Hold.id).where(Hold.reference == reference)) is not None


async def live_holds_of_jobs(session: AsyncSession, job_ids: Sequence[int]) -> Sequence[int]:
    """The holds that end with one of these jobs, in the order in which they are to be locked."""
    if not job_ids:
        return []
    found = select(Hold.id).where(
        Hold.state == "held", Hold.order_id.is_(None), Hold.job_id == any_(literal(list(job_ids), ARRAY(BigInteger)))
    )
    return (await session.scalars(found.order_by(Hold.id))).all()


async def live_holds_of_user(session: AsyncSession, user_id: int) -> Sequence[int]:
    """The holds of a user's work; disputed characters are none."""
    found = select(Hold.id).where(Hold.user_id == user_id, Hold.state == "held", Hold.purpose != "dispute")
    return (await session.scalars(found.order_by(Hold.id))).all()


async def abandoned_holds(session: AsyncSession, *, after: int, most: int) -> Sequence[int]:
    """The next `most` holds, above the id `after`, that nobody will end any more."""
    return (await session.scalars(_ABANDONED, {"after": after, "most": most})).all()


async def page_of_entries(session: AsyncSession, user_id: int, window: Window) -> Page[LedgerEntry]:
    """A user's entries, newest first."""
    rows = await session.scalars(
        select(LedgerEntry)
        .where(LedgerEntry.user_id == user_id)
        .order_by(LedgerEntry.id.desc())
        .limit(window.limit)
        .offset(window.offset)
    )
    total = await session.scalar(select(func.count()).select_from(LedgerEntry).where(LedgerEntry.user_id == user_id))
    return Page(rows.all(), int(total or 0))
