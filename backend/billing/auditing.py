"""Proves the books: recomputes every balance, chain, hold and sum from the entries, and tells where they differ.

All of it is SQL over one snapshot, so that work may go on meanwhile; only what differs is read into this process.
"""

import logging
from dataclasses import dataclass

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing import ledger, queries
from backend.billing.models import Account
from backend.jobs.service import claim_tick
from backend.kit.db import Database
from backend.users.models import User
from backend.users.queries import find_by_email

log = logging.getLogger(__name__)

VERIFY_SECONDS, SWEEP_SECONDS = 3600.0, 60.0
VERIFY_TASK, SWEEP_TASK = "ledger.verify", "holds.sweep"
# Differences that are told at most; more of one kind have one cause.
MOST = 1000
_SWEEP_LIMIT = 500

# Each gives user_id, what is wrong, what the account or entry says, and what follows from the entries.
_CHECKS = {
    # A row for each sum of the account that its entries do not give; an account without entries has sums of 0.
    "sums": """
        WITH sums AS (
            SELECT user_id,
                sum(characters) AS posted,
                sum(characters) FILTER (WHERE kind IN ('advance', 'repayment')) AS owed,
                sum(characters) FILTER (WHERE kind = 'grant') AS granted,
                sum(characters) FILTER (
                    WHERE kind IN ('purchase', 'refund', 'chargeback', 'reinstatement')
                ) AS purchased,
                sum(characters) FILTER (WHERE kind = 'complimentary') AS complimentary,
                -sum(characters) FILTER (WHERE kind = 'usage') AS used
            FROM ledger_entries GROUP BY user_id
        )
        SELECT coalesce(a.user_id, s.user_id) AS user_id, checked.name, checked.kept, checked.due
        FROM accounts a FULL JOIN sums s ON s.user_id = a.user_id
        CROSS JOIN LATERAL (VALUES
            ('posted', a.posted, coalesce(s.posted, 0)),
            ('owed', a.owed, coalesce(s.owed, 0)),
            ('granted', a.granted, coalesce(s.granted, 0)),
            ('purchased', a.purchased, coalesce(s.purchased, 0)),
            ('complimentary', a.complimentary, coalesce(s.complimentary, 0)),
            ('used', a.used, coalesce(s.used, 0))
        ) AS checked(name, kept, due)
        WHERE checked.kept IS DISTINCT FROM checked.due
        ORDER BY 1, 2 LIMIT :most
    """,
    # What is held is the sum of the live holds.
    "held": """
        WITH live AS (SELECT user_id, sum(characters) AS held FROM holds WHERE state = 'held' GROUP BY user_id)
        SELECT coalesce(a.user_id, l.user_id) AS user_id, 'held', a.held, coalesce(l.held, 0)
        FROM accounts a FULL JOIN live l ON l.user_id = a.user_id
        WHERE a.held IS DISTINCT FROM coalesce(l.held, 0)
        ORDER BY 1 LIMIT :most
    """,
    # Each entry says the balance after it: that after the one before it, and its own characters.
    "chain": """
        SELECT user_id, 'balance_after of entry ' || id, balance_after, before + characters FROM (
            SELECT id, user_id, characters, balance_after,
                coalesce(lag(balance_after) OVER (PARTITION BY user_id ORDER BY id), 0) AS before
            FROM ledger_entries
        ) AS chained
        WHERE balance_after <> before + characters
        ORDER BY 1, id LIMIT :most
    """,
    # A hold that was settled has one entry of its characters, and no other hold has one.
    "settled": """
        SELECT h.user_id, 'usage of hold ' || h.id, -coalesce(e.characters, 0),
            CASE WHEN h.state = 'settled' THEN coalesce(h.settled, 0) ELSE 0 END
        FROM holds h
        LEFT JOIN ledger_entries e ON e.kind = 'usage' AND e.reference = 'hold:' || h.public_id
        WHERE (CASE WHEN h.state = 'settled' THEN coalesce(h.settled, 0) ELSE 0 END) <> -coalesce(e.characters, 0)
           OR e.user_id <> h.user_id OR (h.state = 'settled') <> (h.settled IS NOT NULL)
        ORDER BY 1, h.id LIMIT :most
    """,
    # No entry has a kind that no sum knows, or the wrong sign.
    "kinds": """
        SELECT user_id, 'sign or kind of entry ' || id, characters, NULL::bigint FROM ledger_entries
        WHERE NOT CASE
            WHEN kind IN ('grant', 'purchase', 'complimentary', 'advance', 'reinstatement') THEN characters > 0
            WHEN kind IN ('usage', 'refund', 'chargeback', 'repayment') THEN characters < 0
            ELSE kind = 'adjustment' END
        ORDER BY 1, id LIMIT :most
    """,
    # The free quota is granted once.
    "grants": """
        SELECT user_id, 'grants', count(*), 1 FROM ledger_entries WHERE kind = 'grant'
        GROUP BY user_id HAVING count(*) > 1 ORDER BY 1 LIMIT :most
    """,
}
_COUNTS = text("""
    SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM ledger_entries), (SELECT count(*) FROM holds),
        (SELECT coalesce(sum(posted), 0) FROM accounts), (SELECT coalesce(sum(held), 0) FROM accounts),
        (SELECT coalesce(sum(owed), 0) FROM accounts)
""")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the books are wrong. `kept` is what is written there, None for nothing; `due` what the entries give."""

    check: str
    user_id: int
    what: str
    kept: int | None
    due: int | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What was looked at, in characters where it is a sum, and what was found wrong, at most MOST of each check."""

    accounts: int
    entries: int
    holds: int
    posted: int
    held: int
    owed: int
    differences: tuple[Difference, ...]

    @property
    def users(self) -> list[int]:
        """The accounts that differ."""
        return sorted({difference.user_id for difference in self.differences})


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What `adjust` did, and the balance after it."""

    user_id: int
    booked: bool
    balance: ledger.Balance


async def verify(db: Database) -> Audit:
    """Recomputes everything. Reads each entry a few times, and holds no lock."""
    async with db.transaction() as session:
        # One snapshot for all checks: work that goes on meanwhile is not a difference.
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        counts = (await session.execute(_COUNTS)).one()
        differences = []
        for check, statement in _CHECKS.items():
            rows = await session.execute(text(statement), {"most": MOST})
            differences += [
                Difference(check, user_id, what, None if kept is None else int(kept), None if due is None else int(due))
                for user_id, what, kept, due in rows
            ]
    accounts, entries, holds, posted, held, owed = (int(count) for count in counts)
    return Audit(accounts, entries, holds, posted, held, owed, tuple(differences))


async def verify_hourly(db: Database) -> Audit | None:
    """One tick of the scheduler: an error in the log names the accounts that differ. None where the tick was taken."""
    async with db.transaction() as session:
        if not await claim_tick(session, VERIFY_TASK, VERIFY_SECONDS):
            return None
    found = await verify(db)
    if found.differences:
        named = ", ".join(str(user) for user in found.users[:50])
        log.error(
            "the books differ in %d places, for users %s; `finetuneflow admin ledger verify` lists them",
            len(found.differences),
            named,
        )
    else:
        log.info("the books are right: %d entries in %d accounts", found.entries, found.accounts)
    return found


async def release_abandoned(db: Database) -> int:
    """One tick of the sweeper: gives back what is held for work that has ended or is gone. Returns how many holds."""
    async with db.transaction() as session:
        if not await claim_tick(session, SWEEP_TASK, SWEEP_SECONDS):
            return 0
    released = last = 0
    while True:
        async with db.transaction() as session:
            found = await queries.abandoned_holds(session, after=last, most=_SWEEP_LIMIT)
        for hold_id in found:
            released += await _release(db, hold_id)
        if len(found) < _SWEEP_LIMIT:
            return released
        last = found[-1]


async def adjust(db: Database, *, user: str, characters: int, reason: str, reference: str) -> Adjustment | None:
    """Adds (or with a negative number takes) characters by hand, with the reason beside them in the books.

    `user` is an e-mail address, or the number of a user or of an account whose user is gone; None where there is
    neither. One reference is booked once. Raises InsufficientCharacters.
    """
    async with db.transaction() as session:
        user_id = await _number_of(session, user)
        if user_id is None:
            return None
        booked = await ledger.post(
            session,
            user_id=user_id,
            kind=ledger.ADJUSTMENT,
            characters=characters,
            reference=f"adjustment:{reference}",
            params={"reason": reason},
        )
        return Adjustment(user_id, booked, await ledger.balance(session, user_id))


async def _number_of(session: AsyncSession, user: str) -> int | None:
    if not user.isdecimal():
        found = await find_by_email(session, user)
        return None if found is None else found.id
    known = await session.scalar(select(User.id).where(User.id == int(user)))
    return known or await session.scalar(select(Account.user_id).where(Account.user_id == int(user)))


async def _release(db: Database, hold_id: int) -> bool:
    try:
        async with db.transaction() as session:
            released = await ledger.release(session, hold_id)
    except Exception:
        # One that cannot be released must not keep the others from it.
        log.exception("hold %d cannot be released; the next sweep tries again", hold_id)
        return False
    if released:
        log.warning("hold %d was left behind by its work, and is released", hold_id)
    return released
