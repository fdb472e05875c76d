"""The only writer of accounts, entries and holds. Its callers own the transaction, and key what they do.

Every function locks the account's row first, so that all that happens to one account happens one after the other. A
repeated call with the same reference changes nothing and says so. Amounts are whole characters.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from backend.billing.errors import InsufficientCharacters
from backend.billing.models import Account, Hold, LedgerEntry

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


async def balance(session: AsyncSession, user_id: int) -> Balance:
    """One row, however long the history is."""
    row = (
        await session.execute(
            select(
                Account.posted,
                Account.held,
                Account.owed,
                Account.granted,
                Account.purchased,
                Account.complimentary,
                Account.used,
            ).where(Account.user_id == user_id)
        )
    ).one_or_none()
    return Balance() if row is None else Balance(*row)


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
    existing = await session.scalar(select(Hold).where(Hold.reference == reference))
    if existing is not None:
        assert existing.user_id == user_id, "a reference belongs to one user"
        return existing
    if account.available < characters:
        raise InsufficientCharacters(needed=characters, available=account.available)
    found = Hold(
        user_id=user_id,
        characters=characters,
        reference=reference,
        purpose=purpose,
        job_id=job_id,
        order_id=order_id,
        params=params or {},
    )
    session.add(found)
    await session.flush()
    await _change(session, account, held=account.held + characters)
    return found


async def settle(session: AsyncSession, hold_id: int, characters: int, params: dict[str, Any] | None = None) -> bool:
    """Ends a hold: `characters` of it were processed, the rest goes back. False when it has ended already."""
    ended = await _end(session, hold_id, SETTLED, characters)
    if ended is None:
        return False
    account, found = ended
    if characters:
        reference = f"hold:{found.public_id}"
        await _post(session, account, USAGE, -characters, reference, {**found.params, **(params or {})})
    return True


async def release(session: AsyncSession, hold_id: int) -> bool:
    """Ends a hold of which nothing was processed. False when it has ended already."""
    return await _end(session, hold_id, RELEASED, None) is not None


async def lock(session: AsyncSession, user_id: int) -> Account:
    """The account's row, locked until the transaction ends; made when the user has none yet.

    FOR NO KEY UPDATE: nothing refers to the row by its key, and a stronger lock would fight with foreign keys.
    """
    query = (
        select(Account)
        .where(Account.user_id == user_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    account = await session.scalar(query)
    if account is None:
        await session.execute(upsert(Account).values(user_id=user_id).on_conflict_do_nothing())
        account = (await session.scalars(query)).one()
    return account


async def _post(
    session: AsyncSession, account: Account, kind: str, characters: int, reference: str, params: dict[str, Any]
) -> bool:
    assert characters > 0 or kind not in _POSITIVE, f"{kind} adds characters"
    assert characters < 0 or kind not in _NEGATIVE, f"{kind} takes characters"
    after = account.posted + characters
    if after < account.held:
        # A repeated call is no shortage.
        if await _exists(session, kind, reference):
            return False
        raise InsufficientCharacters(needed=-characters, available=account.available)
    written = await session.scalar(
        upsert(LedgerEntry)
        .values(
            user_id=account.user_id,
            kind=kind,
            reference=reference,
            characters=characters,
            balance_after=after,
            params=params,
        )
        .on_conflict_do_nothing(index_elements=["kind", "reference"])
        .returning(LedgerEntry.id)
    )
    if written is None:
        return False
    name, sign = TOTALS.get(kind, ("", 0))
    await _change(
        session, account, posted=after, **({name: getattr(account, name) + sign * characters} if name else {})
    )
    return True


async def _end(session: AsyncSession, hold_id: int, state: str, settled: int | None) -> tuple[Account, Hold] | None:
    found = await session.get_one(Hold, hold_id)
    assert settled is None or 0 <= settled <= found.characters, "at most the hold is settled"
    account = await lock(session, found.user_id)
    ended = await session.execute(
        update(Hold)
        .where(Hold.id == hold_id, Hold.state == HELD)
        .values(state=state, settled=settled, ended_at=datetime.now(UTC))
        .returning(Hold.id)
    )
    if ended.one_or_none() is None:
        return None
    await _change(session, account, held=account.held - found.characters)
    return account, found


async def _change(session: AsyncSession, account: Account, **values: int) -> None:
    for name, value in values.items():
        setattr(account, name, value)
    account.version += 1
    await session.flush()


async def _exists(session: AsyncSession, kind: str, reference: str) -> bool:
    query = select(LedgerEntry.id).where(LedgerEntry.kind == kind, LedgerEntry.reference == reference)
    return await session.scalar(query) is not None
