"""The ledger: written once, and never changed."""

import asyncio
import secrets

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from backend.billing import ledger
from backend.kit.db import Database


async def _record(db: Database, user: int, characters: int, reference: str) -> bool:
    async with db.transaction() as session:
        return await ledger.record_usage(
            session, user_id=user, characters=characters, reference=reference, params={"name": "Dataset"}
        )


async def test_one_reference_is_counted_once(db: Database) -> None:
    user, reference = secrets.randbits(40), f"job:{secrets.token_hex(8)}"
    written = await asyncio.gather(*[_record(db, user, 700, reference) for _ in range(8)])
    assert sorted(written) == [False] * 7 + [True]
    async with db.transaction() as session:
        balance = await ledger.balance(session, user)
    assert (balance.used, balance.complimentary, balance.posted) == (700, 700, 0)


async def test_the_free_quota_never_goes_below_zero(db: Database) -> None:
    user = secrets.randbits(40)
    async with db.transaction() as session:
        assert (await ledger.balance(session, user)).free_remaining(1000) == 1000
        await ledger.post(session, user_id=user, kind="grant", characters=900, reference=f"{user}", params={})
        await ledger.post(session, user_id=user, kind="purchase", characters=500, reference=f"{user}", params={})
        held = await ledger.hold(session, user_id=user, characters=1200, reference=f"{user}", purpose="generation")
        assert await ledger.settle(session, held.id, 400)
        assert (await ledger.balance(session, user)).free_remaining(1000) == 500
        held = await ledger.hold(session, user_id=user, characters=1000, reference=f"{user} b", purpose="generation")
        assert await ledger.settle(session, held.id, 1000)
        assert (await ledger.balance(session, user)).free_remaining(1000) == 0


@pytest.mark.parametrize("statement", ["UPDATE ledger_entries SET characters = 1", "DELETE FROM ledger_entries"])
async def test_entries_are_never_changed(db: Database, statement: str) -> None:
    with pytest.raises(DBAPIError, match="never changed"):
        async with db.transaction() as session:
            await session.execute(text(statement))
