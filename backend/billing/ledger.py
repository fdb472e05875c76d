"""The only writer of accounts, entries and holds. Its callers own the transaction, and key what they do.

Every function locks the account's row first, so that all that happens to one account happens one after the other. A
repeated call with the same reference changes nothing and says so. Amounts are whole characters.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import uuid_utils.compat
from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Account, Hold, LedgerEntry
from backend.kit.db import fetch

GRANT, PURCHASE, COMPLIMENTARY, USAGE = "grant", "purchase", "complimentary", "usage"
REFUND, CHARGEBACK, REINSTATEMENT = "refund", "chargeback", "reinstatement"
# An advance covers what must be taken back and is not there; a repayment returns it.
ADVANCE, REPAYMENT, ADJUSTMENT = "advance", "repayment", "adjustment"
HELD, SETTLED, RELEASED = "held", "settled", "released"

# Which sum of the account an entry of this kind belongs to, and with which sign.
TOTALS: dict[str, tuple[str, int]] = {
    GRANT: ("granted", 1),
    PURCHASE: ("purchased", 1),
    REFUND: ("purchased", 1),
    CHARGEBACK: ("purchased", 1),
    REINSTATEMENT: ("purchased", 1),
    COMPLIMENTARY: ("complimentary", 1),
    USAGE: ("used", -1),
    ADVANCE: ("owed", 1),
    REPAYMENT: ("owed", 1),
}
_POSITIVE = frozenset({GRANT, PURCHASE, COMPLIMENTARY, ADVANCE, REINSTATEMENT})
_NEGATIVE = frozenset({USAGE, REFUND, CHARGEBACK, REPAYMENT})

_BALANCE = "SELECT posted, held, owed, granted, purchased, complimentary, used FROM accounts WHERE user_id = $1"
# FOR NO KEY UPDATE: nothing refers to the row by its key, and a stronger lock would fight with foreign keys.
_LOCK = text("SELECT posted, held, owed, granted FROM accounts WHERE user_id = :user_id FOR NO KEY UPDATE")
# One round trip for an entry and its account: every statement more would be waited for by all who want this account.
_POST = """
    WITH entry AS (
        INSERT INTO ledger_entries (public_id, user_id, kind, reference, characters, balance_after, params)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (kind, reference) DO NOTHING RETURNING id
    )
    UPDATE accounts SET posted = posted + $5, held = held + $8, owed = owed + $9, granted = granted + $10,
        purchased = purchased + $11, complimentary = complimentary + $12, used = used + $13,
        version = version + 1, updated_at = clock_timestamp()
    WHERE user_id = $2 AND EXISTS (SELECT FROM entry)
    RETURNING id
"""
_CHANGE_HELD = """
    UPDATE accounts SET held = held + $2, version = version + 1, updated_at = clock_timestamp() WHERE user_id = $1
"""
_SUMS = ("owed", "granted", "purchased", "complimentary", "used")


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has, in characters; all non-negative but `purchased`, which refunds lower."""

    posted: int = 0
    held: int = 0
    owed: int = 0
    granted: int = 0
    purchased: int = 0
    complimentary: int = 0
    used: int = 0

    @property
    def available(self) -> int:
        return self.posted - self.held

    def free_remaining(self, quota: int) -> int:
        """What is left of the free quota, which is `quota` until it is granted; free characters are used first."""
        billed = max(self.used - self.complimentary, 0)
        return max((self.granted or quota) - billed, 0)


@dataclass(slots=True)
class LockedAccount:
    """An account as it stands while its row is locked; the functions here keep it true."""

    user_id: int
    posted: int
    held: int
    owed: int
    granted: int

    @property
    def available(self) -> int:
        return self.posted - self.held


async def balance(session: AsyncSession, user_id: int) -> Balance:
    """One row, however long the history is."""
    rows = await fetch(session, _BALANCE, user_id)
    return Balance(*rows[0]) if rows else Balance()


async def post(
    session: AsyncSession, *, user_id: int, kind: str, characters: int, reference: str, params: dict[str, Any]
) -> bool:
    """Writes one entry and moves the balance by it; False when `kind` has this reference already.

    Raises InsufficientCharacters when that much is not available.
    """
    account = await lock(session, user_id)
    return await _post(session, account, kind, characters, reference, params)


async def credit(
    session: AsyncSession, *, user_id: int, kind: str, characters: int, reference: str, params: dict[str, Any]
) -> bool:
    """As `post` of a positive amount, of which what the account owes is paid back at once."""
    account = await lock(session, user_id)
    if not await _post(session, account, kind, characters, reference, params):
        return False
    if repaid := min(account.owed, characters, account.available):
        await _post(session, account, REPAYMENT, -repaid, f"{kind}:{reference}", params)
    return True


async def take_back(
    session: AsyncSession, *, user_id: int, kind: str, characters: int, reference: str, params: dict[str, Any]
) -> bool:
    """Takes `characters` (positive) whether they are there or not: what was used meanwhile is owed from now on."""
    account = await lock(session, user_id)
    if await _exists(session, kind, reference):
        return False
    if short := max(characters - account.available, 0):
        await _post(session, account, ADVANCE, short, f"{kind}:{reference}", params)
    return await _post(session, account, kind, -characters, reference, params)


async def record_usage(
    session: AsyncSession, *, user_id: int, characters: int, reference: str, params: dict[str, Any]
) -> bool:
    """Writes that `characters` were processed for nothing; a second call with the same reference is False."""
    account = await lock(session, user_id)
    if not await _post(session, account, COMPLIMENTARY, characters, reference, {**params, "unbilled": True}):
        return False
    return await _post(session, account, USAGE, -characters, reference, params)


async def hold(
    session: AsyncSession,
    *,
    user_id: int,
    characters: int,
    reference: str,
    purpose: str,
    job_id: int | None = None,
    order_id: int | None = None,
    params: dict[str, Any] | None = None,
) -> Hold:
    """Reserves characters for work; the same reference gives the same hold again. Raises InsufficientCharacters."""
    assert characters > 0, "a hold is a positive number of characters"
    account = await lock(session, user_id)
    if account.available < characters:
        # A repeated call is no shortage.
        if (existing := await _hold_of(session, user_id, reference)) is not None:
            return existing
        raise InsufficientCharacters(needed=characters, available=account.available)
    made: Hold | None = await session.scalar(
        upsert(Hold)
        .values(
            user_id=user_id,
            characters=characters,
            reference=reference,
            purpose=purpose,
            job_id=job_id,
            order_id=order_id,
            params=params or {},
        )
        .on_conflict_do_nothing(index_elements=["reference"])
        .returning(Hold)
    )
    if made is None:
        existing = await _hold_of(session, user_id, reference)
        assert existing is not None, "what it conflicts with is there"
        return existing
    await _change_held(session, account, characters)
    return made


async def extend(session: AsyncSession, hold_id: int, characters: int) -> Hold:
    """Makes a live hold `characters` large; one that is as large already, or has ended, stays as it is.

    Raises InsufficientCharacters.
    """
    found = await session.get_one(Hold, hold_id)
    account = await lock(session, found.user_id)
    await session.refresh(found)
    more = characters - found.characters
    if found.state != HELD or more <= 0:
        return found
    if account.available < more:
        raise InsufficientCharacters(needed=characters, available=account.available + found.characters)
    found.characters = characters
    await session.flush()
    await _change_held(session, account, more)
    return found


async def hand_on(session: AsyncSession, hold_id: int, job_id: int) -> None:
    """A hold that ends with a job ends with another one from now on: the next of a chain."""
    await session.execute(
        update(Hold).where(Hold.id == hold_id, Hold.state == HELD, Hold.job_id.is_not(None)).values(job_id=job_id)
    )


async def settle(session: AsyncSession, hold_id: int, characters: int, params: dict[str, Any] | None = None) -> bool:
    """Ends a hold: `characters` of it were processed, the rest goes back. False when it has ended already."""
    ended = await _end(session, hold_id, SETTLED, characters)
    if ended is None:
        return False
    account, found = ended
    if characters:
        reference = f"hold:{found.public_id}"
        entry_params = {**found.params, **(params or {})}
        written = await _post(session, account, USAGE, -characters, reference, entry_params, held=-found.characters)
        assert written, "a hold ends once"
    else:
        await _change_held(session, account, -found.characters)
    return True


async def release(session: AsyncSession, hold_id: int) -> bool:
    """Ends a hold of which nothing was processed. False when it has ended already."""
    ended = await _end(session, hold_id, RELEASED, None)
    if ended is None:
        return False
    account, found = ended
    await _change_held(session, account, -found.characters)
    return True


async def lock(session: AsyncSession, user_id: int) -> LockedAccount:
    """The account, locked until the transaction ends; made when the user has none yet."""
    connection = await session.connection()
    row = (await connection.execute(_LOCK, {"user_id": user_id})).one_or_none()
    if row is None:
        await connection.execute(upsert(Account).values(user_id=user_id).on_conflict_do_nothing())
        row = (await connection.execute(_LOCK, {"user_id": user_id})).one()
    return LockedAccount(user_id, *row)


async def _post(
    session: AsyncSession,
    account: LockedAccount,
    kind: str,
    characters: int,
    reference: str,
    params: dict[str, Any],
    *,
    held: int = 0,
) -> bool:
    """Writes an entry and moves the account, whose row is locked, by it; `held` is what its hold changes besides."""
    assert characters > 0 or kind not in _POSITIVE, f"{kind} adds characters"
    assert characters < 0 or kind not in _NEGATIVE, f"{kind} takes characters"
    after = account.posted + characters
    if after < account.held + held:
        # A repeated call is no shortage.
        if await _exists(session, kind, reference):
            return False
        raise InsufficientCharacters(needed=-characters, available=account.available)
    name, sign = TOTALS.get(kind, ("", 0))
    changes = {total: sign * characters if total == name else 0 for total in _SUMS}
    written = await fetch(
        session,
        _POST,
        uuid_utils.compat.uuid7(),
        account.user_id,
        kind,
        reference,
        characters,
        after,
        orjson.dumps(params).decode(),
        held,
        *changes.values(),
    )
    if not written:
        return False
    account.posted, account.held = after, account.held + held
    account.owed += changes["owed"]
    account.granted += changes["granted"]
    return True


async def _end(
    session: AsyncSession, hold_id: int, state: str, settled: int | None
) -> tuple[LockedAccount, Hold] | None:
    """Ends a hold that is live; the account still counts it."""
    user_id = (await session.execute(select(Hold.user_id).where(Hold.id == hold_id))).scalar_one()
    account = await lock(session, user_id)
    found = await session.scalar(
        update(Hold)
        .where(Hold.id == hold_id, Hold.state == HELD)
        .values(state=state, settled=settled, ended_at=datetime.now(UTC))
        .returning(Hold)
        .execution_options(populate_existing=True)
    )
    if found is None:
        return None
    assert settled is None or 0 <= settled <= found.characters, "at most the hold is settled"
    return account, found


async def _change_held(session: AsyncSession, account: LockedAccount, more: int) -> None:
    await fetch(session, _CHANGE_HELD, account.user_id, more)
    account.held += more


async def _hold_of(session: AsyncSession, user_id: int, reference: str) -> Hold | None:
    existing = await session.scalar(select(Hold).where(Hold.reference == reference))
    assert existing is None or existing.user_id == user_id, "a reference belongs to one user"
    return existing


async def _exists(session: AsyncSession, kind: str, reference: str) -> bool:
    query = select(LedgerEntry.id).where(LedgerEntry.kind == kind, LedgerEntry.reference == reference)
    return await session.scalar(query) is not None
